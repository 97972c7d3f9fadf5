"""Stage `study`: many cells side by side, each what `dynamo train` and `dynamo eval` would make."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from ruamel.yaml import YAML

from dynamo_cli.config import load_params
from dynamo_cli.errors import DynamoError
from dynamo_cli.studies import Cell, Cells, Grid, Studies, Varied
from pipelines import prepare, study

CELLS = [Cell("ladder-small", "grpo", None, 1), Cell("ladder-small", "dynamo", "narrow", 1)]


@pytest.fixture
def places(root, tmp_path, monkeypatch) -> study.Places:
    """A small study in a folder of its own, with its problems."""
    monkeypatch.chdir(tmp_path)
    tree = YAML(typ="safe").load(root / "params.yaml")
    for model in tree["models"].values():
        model["path"] = str(root / model["path"])
    tree["grid"] |= {"suites": ["ladder-2"], "models": ["ladder-small"]}
    tree["training"] |= {"steps": 2, "problems_per_step": 4, "rollouts_per_step": 32}
    tree["training"] |= {"checkpoint_every": 1}
    tree["datasets"]["ladder-train"]["problems"] = 8
    tree["datasets"]["ladder-2"]["problems"] = 2
    tree["evaluation"] |= {"samples": 2, "ks": [1]}
    bounds = ("methods.dynamo.allocation.low", "methods.dynamo.allocation.high")
    tree["variants"]["narrow"] = dict(zip(bounds, (4, 12), strict=True))
    YAML(typ="safe").dump(tree, tmp_path / "params.yaml")
    loaded = load_params(tmp_path / "params.yaml")
    for name, folder in (("ladder-train", "pools"), ("ladder-2", "suites")):
        out = tmp_path / folder / f"{name}.jsonl"
        source = loaded.datasets[name]
        prepare.run(source, name=name, out=out, data_dir=None, sources=loaded.datasets)
    folders = {name: tmp_path / name for name in ("pools", "suites", "runs", "evals", "logs")}
    return study.Places(params=tmp_path / "params.yaml", overrides=(), **folders)


def run(places, cells=CELLS):
    told = []
    out = places.runs.parent / "study.json"

    def report(done, total, *, newest):
        told.append((done, total, newest))

    return study.run(cells, places, jobs=2, out=out, report=report), told, out


def test_every_cell_is_trained_and_scored_and_named_in_the_outcome(places):
    left, told, out = run(places)
    assert left == []
    assert [done for done, *_ in told] == [1, 2] and {row[1] for row in told} == {2}
    outcome = json.loads(out.read_text())
    assert list(outcome) == ["ladder-small-grpo-1", "ladder-small-dynamo-narrow-1"]
    for name in outcome:
        assert (places.evals / name / "scores.csv").is_file()
        assert (places.runs / name / "policy" / "model.safetensors").is_file()
    manifest = json.loads((places.runs / "ladder-small-dynamo-narrow-1/manifest.json").read_text())
    assert manifest["parameters"]["method"]["allocation"]["low"] == 4


def test_a_cell_is_what_the_commands_make_of_it(places):
    run(places)
    command = [sys.executable, "-m", "dynamo_cli", "train", "alone", "--model", "ladder-small"]
    command += ["--method", "dynamo", "--variant", "narrow", "--seed", "1", "--data", "pools"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    for name in ("policy/model.safetensors", "metrics.csv", "ledger.parquet"):
        ours = places.runs / "ladder-small-dynamo-narrow-1" / name
        assert ours.read_bytes() == (places.runs.parent / "alone" / name).read_bytes()


def test_what_is_complete_stays_and_what_is_missing_is_made(places):
    _, _, out = run(places)
    before = {p: p.stat().st_mtime_ns for p in places.runs.rglob("*.safetensors")}
    outcome = out.read_text()
    shutil.rmtree(places.evals / "ladder-small-grpo-1")
    run(places)
    assert {p: p.stat().st_mtime_ns for p in places.runs.rglob("*.safetensors")} == before
    assert out.read_text() == outcome


def test_a_cell_that_fails_is_named_and_the_others_are_finished(places):
    broken = Cell("ladder-small", "dynamo", "broad", 1)
    tree = YAML(typ="safe").load(places.params)
    tree["variants"]["broad"] = {"training.dataset": "ladder-4"}  # which is not prepared
    YAML(typ="safe").dump(tree, places.params)
    with pytest.raises(DynamoError, match=r"1 of 2 cells failed: \S+-broad-1 \(.*ladder-4.jsonl"):
        run(places, [broken, CELLS[0]])
    assert (places.evals / "ladder-small-grpo-1" / "scores.csv").is_file()
    assert not (places.runs.parent / "study.json").exists()


def test_a_signal_saves_the_cells_under_way_and_the_same_call_goes_on(places):
    run(places, CELLS[:1])
    alone = (places.runs / "ladder-small-grpo-1/policy/model.safetensors").read_bytes()
    shutil.rmtree(places.runs)
    tree = YAML(typ="safe").load(places.params)
    tree["studies"] |= {"presets": {"models": ["ladder-small"], "methods": ["grpo"], "seeds": [1]}}
    tree["studies"]["scales"]["methods"] = []
    tree["studies"]["budget"]["methods"] = tree["studies"]["sensitivity"]["methods"] = []
    YAML(typ="safe").dump(tree, places.params)
    command = [sys.executable, "-m", "dynamo_cli", "study", "study.json", "--pools", "pools"]
    command += ["--data", "suites", "--runs", "runs", "--evals", "evals", "--jobs", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    work = places.runs.parent / load_params(places.params).paths.work
    limit = time.monotonic() + 60
    while not list(work.glob("*/lock")) and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    if not (places.runs.parent / "study.json").exists():  # unless it was over already
        assert "interrupted, 1 of 1 cells left" in said
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    again = (places.runs / "ladder-small-grpo-1/policy/model.safetensors").read_bytes()
    assert again == alone


def test_where_a_gpu_may_have_been_asked_for_cells_are_not_forked(places, monkeypatch):
    assert study.start_method("cpu") == "fork" and study.start_method("cuda") == "spawn"
    forked = run(places, CELLS[1:])[2].read_text()
    shutil.rmtree(places.runs)
    shutil.rmtree(places.evals)
    monkeypatch.setattr(study, "start_method", lambda device: "spawn")
    assert run(places, CELLS[1:])[2].read_text() == forked


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_a_cell_with_ranks_is_trained_by_them_and_known_the_next_time(places):
    tree = YAML(typ="safe").load(places.params)
    tree["training"]["engine"] = {
        "kind": "deepspeed",
        "ranks": 2,
        "zero": 3,
        "offload_optimiser": True,
        "offload_parameters": False,
        "gradient_checkpointing": True,
    }
    YAML(typ="safe").dump(tree, places.params)
    left, _, out = run(places, CELLS[1:])
    name = CELLS[1].name
    assert left == [] and list(json.loads(out.read_text())) == [name]
    manifest = json.loads((places.runs / name / "manifest.json").read_text())
    assert manifest["parameters"]["training"]["engine"]["ranks"] == 2
    assert manifest["parameters"]["method"]["allocation"]["low"] == 4, "the variant reached them"
    log = places.logs / f"{name}.log"
    assert "policy, metrics and ledger of 2 steps" in log.read_text()
    before = out.read_text()
    run(places, CELLS[1:])
    assert out.read_text() == before and "2/2" not in log.read_text(), "no rank was started"


def test_the_cells_of_all_groups_are_named_once():
    grid = Grid(models=["a"], methods=["x", "y"], seeds=[1], suites=["s"])
    none = Varied(models=["a"], methods=[], variants=[], seeds=[1])
    studies = Studies(
        ablation=["x"],
        allocators=["x"],
        tables=[],
        figures=[],
        more_seeds=[2, 3],
        presets=Cells(models=["a"], methods=["y", "z"], seeds=[1, 2]),
        scales=Cells(models=["b"], methods=["x"], seeds=[1]),
        budget=Varied(models=["a"], methods=["x"], variants=["v", "w"], seeds=[1]),
        sensitivity=none,
    )
    names = [cell.name for cell in studies.cells(grid)]
    assert names == (
        ["a-x-2", "a-y-2", "a-x-3", "a-y-3"]  # more seeds of the grid's cells
        + ["a-y-1", "a-z-1", "a-z-2"]  # a-y-2 is among them already
        + ["b-x-1", "a-x-v-1", "a-x-w-1"]
    )


def test_each_table_and_figure_has_its_cells_and_together_they_are_all(root):
    loaded = load_params(root / "params.yaml", ["studies.more_seeds=[2]"])
    study, seen = loaded.studies, set()
    for name in ("main", "ablation", "allocators", "scales", "budget", "sensitivity"):
        seen |= set(study.cells(loaded.grid, name))
    assert seen == set(study.cells(loaded.grid))
    methods = {cell.method for cell in study.cells(loaded.grid, "ablation")}
    assert methods == set(study.ablation) - {"grpo", "dynamo"}, "which the grid has"
    budgets = [(cell.method, cell.variant) for cell in study.cells(loaded.grid, "budget")]
    assert budgets == [
        ("dynamo-uniform", None),
        ("dynamo", "budget-64"),
        ("dynamo-uniform", "budget-64"),
    ]
