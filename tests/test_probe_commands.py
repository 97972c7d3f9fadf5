"""`dynamo probe` and `dynamo check invariance` on a small project; and how they refuse."""

import json
import re
import shutil

import pandas as pd
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from dynamo_cli.cli import app
from dynamo_cli.methods import Method


@pytest.fixture(scope="module")
def project(root, tmp_path_factory):
    """A folder with params.yaml for small probes, the pool, and a base model for a policy."""
    home = tmp_path_factory.mktemp("project")
    params = YAML(typ="safe").load(root / "params.yaml")
    params["datasets"]["ladder-train"]["problems"] = 24
    params["training"] |= {"problems_per_step": 6, "rollouts_per_step": 24}
    params["grid"] |= {"models": ["ladder-small"], "methods": ["grpo", "dynamo"]}
    params["probes"]["resamples"] = 100
    params["probes"]["variance"] |= {
        "problems": 12, "rollouts": 8, "rated": 8, "known": 4, "draws": 8, "dimension": 32,
        "allocations": ["allocation-uniform", "allocation-jeffreys"],
    }  # fmt: skip
    for name in ("allocation-jeffreys", "dynamo"):
        params["methods"][name]["allocation"] |= {"low": 2, "high": 6}
    params["probes"]["entropy"] |= {"steps": 2, "alone": 6}
    base = root / "dynamo_cli" / "models" / "ladder-small"
    shutil.copytree(base, home / "dynamo_cli" / "models" / "ladder-small")
    shutil.copytree(base, home / "outputs" / "runs" / "cell" / "policy")
    manifest = {"parameters": {"model": {"template": "plain"}}}
    (home / "outputs" / "runs" / "cell" / "manifest.json").write_text(json.dumps(manifest))
    YAML(typ="safe").dump(params, home / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert dynamo("prepare", "ladder-train").exit_code == 0
    return home


@pytest.fixture(autouse=True)
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "240")


def dynamo(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words) -> str:
    """What a refused command says, in one line and with exit code 2."""
    result = dynamo(*words)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in result.output
    return errors[0]


def test_a_variance_probe_measures_the_newest_policy_and_says_the_same_twice(project):
    for name in ("one", "two"):
        result = dynamo("probe", "variance", name)
        assert result.exit_code == 0, result.output
    assert "the newest trained one" in result.stderr
    assert "by measured" in result.output and "P x norm" in result.output
    for file in sorted((project / "one").glob("*.csv")):
        assert file.read_bytes() == (project / "two" / file.name).read_bytes()
    problems = pd.read_csv(project / "one" / "problems.csv")
    assert len(problems) == 12 and (problems["size"] == 4).all()
    steps = pd.read_csv(project / "one" / "steps.csv")
    counts = steps.groupby(["advantage", "aggregation", "allocation"])["count"].sum()
    assert (counts == 48).all()  # two steps of 24 rollouts
    allocations = pd.read_csv(project / "one" / "allocations.csv")
    equal = allocations[allocations.allocation == "equal"]
    assert (equal.measured == 0).all() and len(equal) == 4
    summary = json.loads((project / "one" / "summary.json").read_text())
    assert summary["problems"] == 12 and set(summary["best_proxy"]) == {"centred", "normalised"}
    manifest = json.loads((project / "one" / "manifest.json").read_text())
    assert manifest["inputs"].keys() == {"policy", "problems"}
    assert manifest["parameters"]["probes"]["variance"]["rollouts"] == 8


def test_probes_are_drawn(project):
    assert dynamo("probe", "variance", "outputs/probes/variance").exit_code == 0
    assert dynamo("probe", "entropy", "outputs/probes/entropy").exit_code == 0
    tokens = pd.read_csv("outputs/probes/entropy/tokens.csv")
    assert tokens.step.nunique() == 2 and tokens.alone.notna().sum() == 6
    for name in ("variance", "entropy-change"):
        result = dynamo("plot", name)
        assert result.exit_code == 0, result.output
        assert (project / "report" / f"{name}.png").stat().st_size > 10_000


def test_what_is_not_there_is_named(project):
    assert "there is no probe 'varianze'; known probes: variance" in refusal("probe", "varianze")
    assert "nowhere: no such folder" in refusal("probe", "entropy", "--policy", "nowhere")
    half = project / "half" / "policy"
    shutil.copytree(project / "outputs" / "runs" / "cell" / "policy", half)
    assert "training is not complete" in refusal("probe", "entropy", "--policy", half)
    run = project / "outputs" / "runs" / "cell"
    assert f"give its policy: --policy {run / 'policy'}" in refusal(
        "probe", "variance", "--policy", run
    )
    assert "run `dynamo prepare` first" in refusal("probe", "variance", "--data", "nowhere")
    assert "run `dynamo probe variance none/variance` first" in refusal(
        "plot", "variance", "--probes", "none"
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("variance.problems=8", "probes.variance.problems is 8.*no multiple.*set it to 6"),
        ("variance.problems=30", "asks for 30 problems, but the pool holds only 24"),
        ("variance.known=6", "2 histories of 6 known rollouts.*rated is 8"),
        ("variance.rollouts=7", "multiple of 2"),
        ("entropy.steps=5", "probes.entropy.steps asks for 30 problems"),
        ("method=dynamoo", "probes.method names 'dynamoo'.*did you mean 'dynamo'"),
    ],
)
def test_samples_that_do_not_suffice_are_refused(change, complaint):
    name = change.split(".")[0] if "." in change else "variance"
    assert re.search(complaint, refusal("probe", name, "--set", f"probes.{change}"))


def test_half_a_probe_is_never_drawn_as_if_complete(project):
    whole = project / "outputs" / "probes" / "entropy"
    part = project / "partial" / "entropy"
    shutil.copytree(whole, part)
    tokens = pd.read_csv(part / "tokens.csv")
    tokens.drop(columns="plain").to_csv(part / "tokens.csv", index=False)
    said = refusal("plot", "entropy-change", "--probes", "partial")
    assert "tokens.csv has no column plain" in said
    tokens.assign(plain=float("nan")).to_csv(part / "tokens.csv", index=False)
    said = refusal("plot", "entropy-change", "--probes", "partial")
    assert "plain is no number anywhere" in said
    (part / "manifest.json").unlink()
    assert "no complete probe" in refusal("plot", "entropy-change", "--probes", "partial")


def test_a_step_is_the_same_in_every_layout():
    result = dynamo("check", "invariance", "--method", "dynamo", "--method", "grpo")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 2 * 8 + 1 and all(line.startswith("ok ") for line in lines)
    assert "2 methods: within 1e-05 throughout" in lines[-1]


def test_a_loss_that_averages_over_its_micro_batch_is_found(monkeypatch):
    loss = Method.loss
    monkeypatch.setattr(
        Method, "loss", lambda self, tokens, weight: loss(self, tokens, weight) / tokens.mask.sum()
    )
    result = dynamo("check", "invariance", "--method", "grpo")
    assert result.exit_code == 2
    assert "error grpo, one row at a time: differs by" in result.output
    assert "gradients depend on the layout" in result.output.splitlines()[-1]


def test_only_known_things_are_checked():
    assert "there is no check 'invarianse'; known checks: invariance" in refusal(
        "check", "invarianse"
    )
    assert "no 'grpoo'" in refusal("check", "invariance", "--method", "grpoo")
