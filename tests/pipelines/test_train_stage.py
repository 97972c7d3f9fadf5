"""A training run: its outputs, and going on after an interruption as if there had been none."""

import json
import shutil

import pandas as pd
import pytest

from dynamo_cli.config import Model, load_params
from dynamo_cli.errors import DynamoError
from dynamo_cli.ladder import LadderSource, read_ladder
from dynamo_cli.records import write_jsonl
from pipelines import train as stage

OUTPUTS = ("policy/model.safetensors", "metrics.csv", "ledger.parquet", "summary.json")


@pytest.fixture
def case(root, tmp_path):
    """The smallest base model, eight problems, and a run of six steps: three epochs."""
    params = load_params(
        root / "params.yaml",
        [
            "training.steps=6",
            "training.problems_per_step=3",
            "training.rollouts_per_step=24",
            "training.updates_per_step=2",
            "training.sampling.max_tokens=20",
            "training.checkpoint_every=1",
            "methods.dynamo.allocation.low=4",
            "methods.dynamo.allocation.high=12",
        ],
    )
    source = LadderSource(kind="ladder", levels=[1, 2], problems=8, split="train", seed=5)
    write_jsonl(tmp_path / f"{params.training.dataset}.jsonl", read_ladder("pool", source))
    shutil.copytree(root / "dynamo_cli" / "models" / "ladder-small", tmp_path / "base")

    def run(out, *, work="work", method="dynamo", seed=1):
        stage.run(
            model=Model(path=str(tmp_path / "base"), template="plain"),
            method=params.methods[method],
            training=params.training,
            seed=seed,
            compute=params.compute,
            data=tmp_path,
            out=tmp_path / out,
            work=tmp_path / work,
            report=lambda *a, **k: None,
        )
        return {name: (tmp_path / out / name).read_bytes() for name in OUTPUTS}

    return run


def test_the_same_run_gives_the_same_bytes_and_another_seed_others(case):
    first, second, other = case("a"), case("b"), case("c", seed=2)
    assert first == second
    assert all(other[name] != first[name] for name in OUTPUTS)


@pytest.mark.parametrize("steps_done", [1, 2, 4, 5])
def test_an_interrupted_run_ends_in_the_same_bytes(case, monkeypatch, tmp_path, steps_done):
    whole = case("whole", work="elsewhere")
    real = stage.train_step

    def interrupted(step, run):
        if step == steps_done:
            raise KeyboardInterrupt
        return real(step, run)

    monkeypatch.setattr(stage, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        case("cut")
    assert not (tmp_path / "cut").exists(), "nothing half-written"

    seen = []
    monkeypatch.setattr(
        stage, "train_step", lambda step, run: (seen.append(step), real(step, run))[1]
    )
    assert case("cut") == whole
    assert seen == list(range(steps_done, 6))
    assert not any((tmp_path / "work").iterdir()), "a complete run leaves no checkpoint"


def test_outputs_tell_what_happened(case, tmp_path):
    case("run")
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    ledger = pd.read_parquet(tmp_path / "run" / "ledger.parquet")
    assert metrics.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert ledger.groupby("step").rollouts.sum().tolist() == [24] * 6
    assert (ledger.groupby("step").size() == 3).all()
    # What a problem has had before a step is what the earlier steps gave it.
    for _, visits in ledger.groupby("problem_id"):
        before = visits.graded.cumsum().shift(fill_value=0)
        assert visits.seen_before.tolist() == before.tolist()
    assert metrics.sampler_gap.abs().max() < 1e-6, "sampler and trainer run the same policy"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["parameters"]["seed"] == 1
    assert set(manifest["inputs"]) == {"problems", "model"}
    assert manifest["parameters"]["method"]["allocation"]["kind"] == "variance"


def test_a_folder_without_a_model_is_refused_before_anything_is_written(case, tmp_path):
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(DynamoError, match="weights"):
        case("run")
    assert not (tmp_path / "run").exists()
