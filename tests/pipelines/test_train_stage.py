"""A training run: its outputs, and going on after an interruption as if there had been none."""

import json
import os
import random
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from dynamo_cli.cli import app
from dynamo_cli.config import Model, load_params
from dynamo_cli.errors import DynamoError
from dynamo_cli.ladder import LadderSource, read_ladder
from dynamo_cli.records import write_jsonl
from dynamo_cli.rollout.hf_engine import HFEngine
from dynamo_cli.train.local_engine import LocalEngine
from pipelines import train as stage
from pipelines.train import Outcome

OUTPUTS = ("policy/model.safetensors", "metrics.csv", "ledger.parquet", "summary.json")


class Case:
    """The smallest base model, eight problems, and a run of six steps: three epochs."""

    def __init__(self, root, folder):
        self.root, self.folder, self.said, self.outcome = root, folder, [], None
        source = LadderSource(kind="ladder", levels=[1, 2], problems=8, split="train", seed=5)
        write_jsonl(folder / "ladder-train.jsonl", read_ladder("pool", source))
        shutil.copytree(root / "dynamo_cli" / "models" / "ladder-small", folder / "base")

    def __call__(self, out, *settings, work="work", method="dynamo", seed=1):
        """Train into a folder of that name; the bytes of its outputs where there are any."""
        params = load_params(
            self.root / "params.yaml",
            [
                "training.steps=6",
                "training.problems_per_step=3",
                "training.rollouts_per_step=24",
                "training.updates_per_step=2",
                "training.sampling.max_tokens=20",
                "training.checkpoint_every=1",
                "methods.dynamo.allocation.low=4",
                "methods.dynamo.allocation.high=12",
                "methods.dynamo.allocation.refresh=epoch",
                *settings,
            ],
        )
        self.said.clear()
        self.outcome = stage.run(
            model=Model(path=str(self.folder / "base"), template="plain"),
            method=params.methods[method],
            training=params.training,
            sampler=params.engines[params.training.sampler],
            seed=seed,
            compute=params.compute,
            data=self.folder,
            out=self.folder / out,
            work=self.folder / work,
            report=lambda *a, **k: None,
            say=self.said.append,
        )
        files = {name: self.folder / out / name for name in OUTPUTS}
        return {name: file.read_bytes() for name, file in files.items() if file.exists()}


@pytest.fixture
def case(root, tmp_path):
    return Case(root, tmp_path)


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The outputs of the run that nothing interrupted."""
    return Case(root, tmp_path_factory.mktemp("whole"))("whole")


def test_the_same_run_gives_the_same_bytes_and_another_seed_others(case, whole):
    same, other = case("b"), case("c", seed=2)
    assert same == whole
    assert all(other[name] != same[name] for name in OUTPUTS)


@pytest.mark.parametrize("steps_done", [1, 2, 4, 5])
def test_an_interrupted_run_ends_in_the_same_bytes(case, whole, monkeypatch, tmp_path, steps_done):
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


def signal_at(monkeypatch, owner, name, call, number):
    """Send this process a signal in the middle of a call; returns the calls that were made."""
    real, calls = getattr(owner, name), []

    def signalled(*args, **options):
        calls.append(name)
        result = real(*args, **options)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(owner, name, signalled)
    return calls


@pytest.mark.parametrize(
    ("owner", "name", "call", "number", "steps_done"),
    [
        (HFEngine, "generate", 1, signal.SIGTERM, 0),
        (HFEngine, "generate", 3, signal.SIGINT, 2),
        (LocalEngine, "step", 3, signal.SIGTERM, 2),
        (LocalEngine, "step", 4, signal.SIGINT, 2),
        (LocalEngine, "save_state", 1, signal.SIGTERM, 5),
    ],
    ids=["first sampling", "sampling", "first update", "last update", "saving"],
)
def test_a_signal_drops_the_sampling_or_finishes_the_updates_and_saves(
    case, whole, monkeypatch, tmp_path, owner, name, call, number, steps_done
):
    with monkeypatch.context() as patched:
        signal_at(patched, owner, name, call, number)
        updates = signal_at(patched, LocalEngine, "backward", 0, number)
        assert case("cut", "training.checkpoint_every=5") == {}
        assert case.outcome is Outcome.INTERRUPTED
    assert not (tmp_path / "cut").exists(), "no output: a pipeline must not take it for complete"
    saved = [path.name for path in (tmp_path / "work").glob("*/step-*")]
    assert saved == ([f"step-{steps_done:06d}"] if steps_done else [])
    assert bool(updates) == bool(steps_done)
    # How often checkpoints are written moves no number: the run goes on with another rhythm.
    assert case("cut", "training.checkpoint_every=4", "training.checkpoints_kept=1") == whole
    assert case.outcome is Outcome.COMPLETE
    assert len(case.said) == (1 if steps_done else 0)
    assert not any((tmp_path / "work").iterdir())


def test_a_signal_while_outputs_are_written_lets_the_run_complete(case, whole, monkeypatch):
    signal_at(monkeypatch, LocalEngine, "save", 1, signal.SIGTERM)
    assert case("run") == whole
    assert case.outcome is Outcome.COMPLETE


def test_a_damaged_checkpoint_costs_a_step_and_no_byte(case, whole, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        signal_at(patched, HFEngine, "generate", 5, signal.SIGTERM)
        case("cut")
    newest = sorted((tmp_path / "work").glob("*/step-*"))[-1]
    (newest / "engine.pt").write_bytes((newest / "engine.pt").read_bytes()[:-100])
    assert case("cut") == whole
    assert "step-000004 is damaged (engine.pt was changed)" in case.said[0]
    assert "going on after step 3" in case.said[1]


def test_a_finished_run_started_again_says_so_and_does_nothing(case, monkeypatch, tmp_path):
    before = case("run")
    stamps = [(tmp_path / "run" / name).stat().st_mtime_ns for name in (*OUTPUTS, "manifest.json")]
    monkeypatch.setattr(stage, "load_model", lambda *a, **k: pytest.fail("it began"))
    assert case("run", "training.checkpoints_kept=1") == before
    assert case.outcome is Outcome.KNOWN
    assert stamps == [
        (tmp_path / "run" / name).stat().st_mtime_ns for name in (*OUTPUTS, "manifest.json")
    ]


def test_a_changed_output_is_written_anew_and_said(case, whole, tmp_path):
    case("run")
    (tmp_path / "run" / "metrics.csv").write_text("step\n")
    assert case("run") == whole
    assert case.outcome is Outcome.COMPLETE
    assert "its files were changed" in case.said[0]


def test_another_run_in_the_folder_is_replaced_at_the_end_and_said(case, whole, tmp_path):
    case("run", seed=2)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert case("run") == whole
    assert "holds another run" in case.said[0]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_no_global_generator_is_consumed(case):
    torch.manual_seed(0)

    def states():
        numpys = str(np.random.get_state())  # noqa: NPY002 - to be left alone is what is asked of it
        return torch.get_rng_state().tolist(), numpys, random.getstate()

    before = states()
    case("run", method="fork_tokens")
    case("run", method="clip_cov")
    assert states() == before


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome.COMPLETE, "policy, metrics and ledger of 12 steps"),
        (Outcome.KNOWN, "complete already; nothing to do"),
        (Outcome.INTERRUPTED, "interrupted and saved; the same command goes on from there"),
    ],
)
def test_every_end_of_a_run_is_said_and_exits_with_zero(root, monkeypatch, outcome, words):
    monkeypatch.chdir(root)
    monkeypatch.setattr(stage, "run", lambda **_: outcome)
    shown = CliRunner().invoke(app, ["train", "somewhere"])
    assert shown.exit_code == 0
    assert shown.stdout.startswith("somewhere: ")
    assert words in shown.stdout


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ([], {"kind": "local"}),
        (["--engine", "deepspeed"], {"kind": "deepspeed", "ranks": None, "zero": 2}),
        (["--engine", "deepspeed", "--ranks", "3"], {"kind": "deepspeed", "ranks": 3, "zero": 2}),
    ],
)
def test_an_engine_and_its_ranks_are_options_of_the_command(root, monkeypatch, options, engine):
    given = {}

    def taken(**cell):
        given.update(cell["training"].engine.model_dump())
        return Outcome.KNOWN

    monkeypatch.chdir(root)
    for name in ("run", "launch"):
        monkeypatch.setattr(stage, name, taken)
    assert CliRunner().invoke(app, ["train", "somewhere", *options]).exit_code == 0
    assert engine.items() <= given.items()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "deepsped"], "did you mean 'deepspeed'"),
        (["--ranks", "2"], "add --engine deepspeed"),
    ],
)
def test_an_engine_that_there_is_not_is_one_line(root, monkeypatch, options, said):
    monkeypatch.chdir(root)
    shown = CliRunner().invoke(app, ["train", "somewhere", *options])
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_steps_stand_for_their_value_and_make_the_run_no_cell_of_the_study(root, monkeypatch):
    given = {}
    monkeypatch.chdir(root)
    monkeypatch.setattr(stage, "run", lambda **cell: given.update(cell) or Outcome.COMPLETE)
    shown = CliRunner().invoke(app, ["train", "--steps", "2"])
    assert "ledger of 2 steps" in shown.stdout
    assert given["training"].steps == 2
    assert "adhoc" in given["out"].parts
