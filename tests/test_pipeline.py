"""dvc.yaml: what a change costs. A stand-in for `dynamo` writes each stage's outputs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

STAND_IN = """#!{python} -S
import sys
from pathlib import Path

verb, *words = sys.argv[1:]
first = 2 if verb == "probe" else 1
options = dict(zip(words[first::2], words[first + 1 :: 2]))


def write(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(" ".join(sys.argv[1:]))


if verb == "prepare":
    write(options["--out"] + "/" + words[0] + ".jsonl")
elif verb == "train":
    names = "policy/model ledger.parquet rollouts.parquet manifest.json summary.json metrics.csv"
    for name in names.split():
        write(words[0] + "/" + name)
    Path(words[0], "summary.json").write_text('{{"reward": 1}}')
elif verb == "eval":
    write(words[0] + "/scores.csv")
elif verb == "probe":
    write(words[1] + "/summary.json")
elif verb == "table":
    for suffix in ("md", "csv", "tex"):
        write(options["--out"] + "/" + words[0] + "." + suffix)
elif verb == "plot":
    for suffix in ("png", "svg", "pdf", "csv"):
        write(options["--out"] + "/" + words[0] + "." + suffix)
elif verb in ("study", "report"):
    write(words[0])
else:
    sys.exit("no stage may run " + verb)
"""
GRID = {
    "models": ["ladder-small", "ladder-medium"],
    "methods": ["grpo", "dynamo"],
    "seeds": [1],
    "suites": ["ladder-2", "ladder-4"],
}


class Project:
    """A copy of the pipeline in which every stage takes a moment."""

    def __init__(self, root: Path, home: Path) -> None:
        self.home = home
        for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config"):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, home / name)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("dynamo_cli", "pipelines"):
            shutil.copytree(root / name, home / name, ignore=ignored)
        dynamo = home / "bin" / "dynamo"
        dynamo.parent.mkdir()
        dynamo.write_text(STAND_IN.format(python=sys.executable))
        dynamo.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{dynamo.parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
        }
        self.dvc("config", "core.no_scm", "true")
        self.edit(lambda params: params["grid"].update(GRID))

    def dvc(self, *words: str) -> str:
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(
            command, cwd=self.home, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def edit(self, change) -> None:
        """Change params.yaml, and keep its anchors as they are."""
        yaml = YAML()
        params = yaml.load(self.home / "params.yaml")
        change(params)
        yaml.dump(params, self.home / "params.yaml")

    def stale(self) -> set[str]:
        return set(json.loads(self.dvc("status", "--json")))


@pytest.fixture(scope="module")
def reproduced(root, tmp_path_factory):
    """The project after one `dvc repro`."""
    project = Project(root, tmp_path_factory.mktemp("project"))
    project.dvc("repro", "--quiet")
    return project


@pytest.fixture
def project(reproduced):
    """The same, put back after each test."""
    kept = {p: p.read_bytes() for p in (reproduced.home / "params.yaml",)}
    code = reproduced.home / "dynamo_cli" / "reporting" / "tables.py"
    kept[code] = code.read_bytes()
    yield reproduced
    for path, content in kept.items():
        path.write_bytes(content)


def test_nothing_is_stale_after_a_run(project):
    assert project.stale() == set()
    for cell in ("ladder-small-grpo-1", "ladder-medium-dynamo-1"):
        assert (project.home / "outputs" / "evals" / cell / "scores.csv").is_file()


def test_a_value_of_one_method_concerns_the_training_of_that_method_alone(project):
    project.edit(lambda p: p["methods"]["dynamo"]["allocation"].update(high=20))
    stale = project.stale()
    assert {s for s in stale if s.startswith(("train", "eval", "prepare"))} == {
        "train@ladder-small-dynamo-1",
        "train@ladder-medium-dynamo-1",
    }


def test_a_variant_concerns_the_study_alone(project):
    project.edit(lambda p: p["studies"]["budget"]["variants"].append("budget-128"))
    assert not {s for s in project.stale() if s.startswith(("train", "eval", "prepare"))}
    assert "study" in project.stale()


def test_a_new_suite_retrains_nothing(project):
    project.edit(lambda p: p["grid"]["suites"].append("ladder-6"))
    stale = project.stale()
    assert "prepare@ladder-6" in stale
    assert not [s for s in stale if s.startswith("train")]


def test_a_new_method_adds_only_its_own_cells(project):
    project.edit(lambda p: p["grid"]["methods"].append("kl_cov"))
    trained = {s for s in project.stale() if s.startswith(("train", "eval"))}
    assert {s.split("@")[1].split("-")[2] for s in trained} == {"kl_cov"}
    assert len(trained) == 4


def test_a_warmer_evaluation_retrains_nothing(project):
    project.edit(lambda p: p["evaluation"]["sampling"].update(temperature=0.7))
    stale = project.stale()
    assert not [s for s in stale if s.startswith(("train", "prepare"))]
    assert len([s for s in stale if s.startswith("eval")]) == 6


def test_a_probe_of_other_size_runs_again_with_its_figures_alone(project):
    project.edit(lambda p: p["probes"]["entropy"].update(steps=2))
    # The folder of all probes is what figures depend on: each may draw from several.
    assert project.stale() == {"probe@entropy"}


def test_a_formula_of_an_allocation_concerns_the_variance_probe_and_no_training_of_others(project):
    rule = "allocation-knapsack"
    project.edit(lambda p: p["methods"][rule]["allocation"].update(confidence=0.8))
    stale = project.stale()
    assert "probe@variance" in stale
    assert not [s for s in stale if s.startswith(("train", "eval"))]


def test_a_change_of_a_table_redraws_the_table_alone(project):
    code = project.home / "dynamo_cli" / "reporting" / "tables.py"
    code.write_text(code.read_text() + "\n# another layout\n")
    assert project.stale() == {"table@main", "table_study@ablation", "table_study@allocators"}
