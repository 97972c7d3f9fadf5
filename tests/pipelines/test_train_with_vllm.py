"""Training with a sampler that has weights of its own: vLLM, through the command line.

With two ranks each has an engine, samples its share, and is checked after each hand-over.
"""

import shutil
import subprocess
import sys
from importlib.util import find_spec

import pandas as pd
import pytest

from dynamo_cli.ladder import LadderSource, read_ladder
from dynamo_cli.records import write_jsonl


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("ranks", [1, 2])
def test_two_steps_are_sampled_by_vllm_from_the_policy_as_it_moves(root, tmp_path, ranks):
    if ranks > 1 and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    source = LadderSource(kind="ladder", levels=[1, 2], problems=8, split="train", seed=5)
    write_jsonl(tmp_path / "ladder-train.jsonl", read_ladder("pool", source))
    settings = {
        "training.sampler": "vllm",
        "training.steps": 2,
        "training.problems_per_step": 4,
        "training.rollouts_per_step": 32,
        "training.updates_per_step": 1,
        "training.optimiser.learning_rate": 0.003,  # without the new weights the gap would show
        "engines.vllm.cpu_cache_gib": 0.1,
        "paths.work": tmp_path / "work",
        "methods.dynamo.allocation.low": 4,
        "methods.dynamo.allocation.high": 12,
    }
    command = [sys.executable, "-m", "dynamo_cli", "train", str(tmp_path / "run")]
    command += ["--data", str(tmp_path), "--params", str(root / "params.yaml")]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    if ranks > 1:
        command += ["--engine", "deepspeed", "--ranks", str(ranks)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=360)
    assert run.returncode == 0, run.stderr[-3000:]
    # vLLM keeps its voice down, and a second rank has none.
    assert all(line.startswith("train ladder-small-dynamo-1 ") for line in run.stderr.splitlines())
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert list(metrics.step) == [1, 2]
    assert (metrics.sampler_gap < 1e-8).all()  # k3, of log-probabilities 1e-6 apart
    assert (metrics.grad_norm > 0).any()
    shutil.rmtree(tmp_path / "work", ignore_errors=True)
