"""Model folders: what is written, and what writing them drags along."""

import subprocess
import sys

import torch

from dynamo_cli.models_io import load_model, save_model

RUN = """
import sys
from pathlib import Path
from dynamo_cli.models_io import load_model, save_model
model, tokenizer = load_model(Path(sys.argv[1]))
save_model(model, tokenizer, Path(sys.argv[2]))
print(sorted({"deepspeed"} & set(sys.modules)))
"""


def test_what_is_saved_loads_as_it_was(tiny, tmp_path):
    model, tokenizer = tiny
    save_model(model, tokenizer, tmp_path / "plain")
    halved = {name: weight / 2 for name, weight in model.state_dict().items()}
    save_model(model, tokenizer, tmp_path / "halved", state=halved)
    plain, halves = (load_model(tmp_path / name)[0] for name in ("plain", "halved"))
    for name, weight in model.named_parameters():
        assert torch.equal(plain.get_parameter(name), weight)
        assert torch.equal(halves.get_parameter(name), weight / 2)


def test_a_run_without_deepspeed_neither_imports_it_nor_hears_from_it(root, tmp_path):
    base = root / "dynamo_cli" / "models" / "ladder-small"
    command = [sys.executable, "-c", RUN, str(base), str(tmp_path / "saved")]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "[]\n", "")
