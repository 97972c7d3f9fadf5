"""The command line: what it prints, what it writes, and how it refuses."""

import json
import re
import resource
import shutil
import subprocess
import sys

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from dynamo_cli.cli import app
from dynamo_cli.config import load_params


@pytest.fixture
def project(root, tmp_path, monkeypatch):
    """A folder with params.yaml, small suites and the smallest base model; the working folder."""
    params = YAML(typ="safe").load(root / "params.yaml")
    for name in ("ladder-2", "ladder-4"):
        params["datasets"][name]["problems"] = 3
    params["grid"] |= {"models": ["ladder-small"], "suites": ["ladder-2", "ladder-4"]}
    params["evaluation"] |= {"samples": 4, "ks": [1, 4], "resamples": 200}
    for group in ("presets", "scales", "budget", "sensitivity"):
        params["studies"][group]["methods"] = []
    base = root / "dynamo_cli" / "models" / "ladder-small"
    shutil.copytree(base, tmp_path / "dynamo_cli" / "models" / "ladder-small")
    YAML(typ="safe").dump(params, tmp_path / "params.yaml")
    shutil.copy(root / "dvc.yaml", tmp_path / "dvc.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DYNAMO_DATA", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def dynamo(*words: str):
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words: str) -> str:
    """What a refused command says: one line on stderr, exit code 2, no traceback."""
    result = dynamo(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == errors[0]
    return errors[0]


def cpu_seconds(*words: str) -> float:
    """The least of five runs of Python with these arguments."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    return min(once() for _ in range(5))


def test_help_takes_little_more_than_its_libraries():
    """In proportion, as cores differ. Importing torch takes 15 times as long as the libraries."""
    libraries = cpu_seconds("-c", "import typer, rich.console")
    assert cpu_seconds("-m", "dynamo_cli", "--help") < 3 * libraries
    assert "eval" in dynamo("--help").output


def test_no_command_shows_the_help():
    assert "Usage: " in dynamo().output


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("training.stepz=3", "no key 'stepz'.*did you mean 'steps'"),
        ("training.steps=0", "training.steps: Input should be greater than or equal to 1, got 0"),
        ("training.steps=many", "training.steps: .*got 'many'"),
        ("grid.methods=[grpo, dynamoo]", "grid.methods names 'dynamoo'.*did you mean 'dynamo'"),
        ("grid.suites=[ladder-3]", "grid.suites names 'ladder-3'"),
        ("evaluation.ks=[64]", "Pass@64 needs as many samples, but samples is 4"),
        ("methods.grpo.objective.clip_low=-1", "methods.grpo.objective.clipped.clip_low"),
        ("training", "expected key=value"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_remedy(project, override, complaint):
    assert re.search(complaint, refusal("params", "--set", override))


def test_an_unknown_key_in_the_file_names_the_nearest_valid_one(project):
    file = project / "params.yaml"
    tree = YAML(typ="safe").load(file)
    tree["methods"]["grpo"]["objective"]["clip_hihg"] = 0.3
    tree["training"]["optimizer"] = 1
    YAML(typ="safe").dump(tree, file)
    line = refusal("params")
    assert (
        "methods.grpo.objective.clipped.clip_hihg: unknown key; did you mean 'clip_high'?" in line
    )
    assert "training.optimizer: unknown key; did you mean 'optimiser'?" in line


def test_yaml_that_cannot_be_read_is_named_with_its_line(project):
    (project / "params.yaml").write_text("grid: {models: [a\ntraining: 3\n")
    line = refusal("params")
    assert "params.yaml" in line
    assert "line 2" in line


def test_without_a_params_file_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "run in a checkout's root, or give --params FILE" in refusal("train")


def test_an_overlay_is_merged_key_by_key(project):
    (project / "overlay.yaml").write_text("training: {steps: 3}\ngrid: {seeds: [4, 5]}\n")
    shown = dynamo("params", "--with", "overlay.yaml", "--set", "training.steps=2")
    (project / "merged.yaml").write_text(shown.stdout)
    merged, plain = load_params(project / "merged.yaml"), load_params(project / "params.yaml")
    assert merged.training.steps == 2
    assert merged.grid.seeds == [4, 5]
    assert merged.methods == plain.methods


def test_eval_without_options_scores_the_base_model_on_the_suites(project):
    result = dynamo("eval")
    assert result.exit_code == 0, result.output
    assert "base model: nothing is trained yet" in result.stderr
    for word in ("ladder-2", "ladder-4", "Pass@1", "Pass@4"):
        assert word in result.stdout
    folder = next((project / "outputs" / "adhoc" / "evals").iterdir())
    scores = (folder / "scores.csv").read_text().splitlines()
    assert len(scores) == 1 + 2 * 3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["samples"] == 4
    assert manifest["settings"]["grader"]
    stored = (folder / "completions" / "ladder-2.jsonl").read_text().splitlines()
    assert len(stored) == 3 * 4
    assert {"problem_id", "rollout", "finish", "text", "num_tokens"} <= set(json.loads(stored[0]))


def test_grade_scores_stored_text_again_without_a_model(project):
    dynamo("eval", "scored")
    before = (project / "scored" / "scores.csv").read_bytes()
    (project / "scored" / "scores.csv").unlink()
    shutil.rmtree(project / "dynamo_cli")
    result = dynamo("grade", "scored")
    assert result.exit_code == 0, result.output
    assert (project / "scored" / "scores.csv").read_bytes() == before


def test_train_then_eval_uses_the_newest_policy(project):
    small = ["--set", "training.steps=1", "--set", "training.problems_per_step=4"]
    small += ["--set", "training.rollouts_per_step=32"]
    assert dynamo("prepare").exit_code == 0
    trained = dynamo("train", "outputs/runs/ladder-small-dynamo-1", *small)
    assert trained.exit_code == 0, trained.output
    result = dynamo("eval", "--bench", "ladder-2", "--samples", "4")
    assert result.exit_code == 0, result.output
    assert "ladder-small-dynamo-1/policy (the newest trained one)" in result.stderr


def test_what_the_pipeline_does_not_use_is_prepared_apart_from_its_files(project):
    write_benchmark(project / "mine" / "benchmarks", "aime24.jsonl", 30)
    assert dynamo("prepare", "aime24", "ladder-2", "--data-dir", "mine").exit_code == 0
    assert [p.name for p in (project / "data" / "suites").iterdir()] == ["ladder-2.jsonl"]
    assert (project / "outputs" / "adhoc" / "data" / "aime24.jsonl").is_file()


def test_runs_with_other_overrides_do_not_overwrite_each_other(project):
    assert dynamo("prepare").exit_code == 0
    small = ["--set", "training.problems_per_step=4", "--set", "training.rollouts_per_step=32"]
    for steps in (1, 2):
        assert dynamo("train", *small, "--set", f"training.steps={steps}").exit_code == 0
    runs = list((project / "outputs" / "adhoc" / "runs").glob("*/ladder-small-dynamo-1/policy"))
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["eval", "--bench", "aime42"], "datasets: no 'aime42'"),
        (["eval", "--policy", "nowhere"], "nowhere: no such folder"),
        (["train", "--method", "grpoo"], "did you mean 'grpo'"),
        (["train"], "run `dynamo prepare`"),
        (["grade", "nowhere"], "holds no completions"),
        (["plot", "sensitivitty"], "dynamics"),
        (["table", "mane"], "known tables: main"),
        (["table"], "dvc repro"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(project, words, complaint):
    assert complaint in refusal(*words)
    assert not (project / "report").exists()


def write_benchmark(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as stream:
        for number in range(rows):
            row = {"id": f"q{number}", "problem": f"What is {number} + 1?", "answer": number + 1}
            stream.write(json.dumps(row) + "\n")


def test_a_real_benchmark_is_read_from_a_local_folder(project):
    write_benchmark(project / "mine" / "benchmarks", "aime24.jsonl", 30)
    settings = ["--set", "evaluation.sampling.max_tokens=8", "--samples", "4"]
    result = dynamo("eval", "--bench", "aime24", "--data-dir", "mine", *settings)
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if line.startswith("AIME24"))
    assert row.split()[1:3] == ["30", "120"]


def test_a_benchmark_with_another_number_of_rows_is_refused_with_a_guess(project):
    write_benchmark(project / "mine" / "benchmarks", "aime24.jsonl", 90)
    line = refusal("eval", "--bench", "aime24", "--data-dir", "mine")
    assert "90" in line
    assert "30" in line
    assert "2022 to 2024" in line
    assert not (project / "outputs").exists(), "nothing half-written"


def test_a_cut_off_file_is_named_with_its_line(project):
    write_benchmark(project / "mine" / "benchmarks", "aime24.jsonl", 30)
    file = project / "mine" / "benchmarks" / "aime24.jsonl"
    file.write_text(file.read_text()[:-20])
    assert "line 30" in refusal("eval", "--bench", "aime24", "--data-dir", "mine")


def test_a_prompt_longer_than_the_context_is_named(project):
    write_benchmark(project / "mine" / "benchmarks", "aime24.jsonl", 30)
    file = project / "mine" / "benchmarks" / "aime24.jsonl"
    lines = file.read_text().splitlines()
    lines[7] = json.dumps({"id": "long", "problem": "x" * 5000, "answer": 1})
    file.write_text("\n".join(lines) + "\n")
    line = refusal("eval", "--bench", "aime24", "--data-dir", "mine")
    assert "long" in line
    assert "5000" in line
    assert "4096" in line


def test_check_finds_what_would_fail_later(project):
    assert dynamo("check").exit_code == 0
    pipeline = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(pipeline.replace("dynamo plot", "dynamo plott"))
    (project / "dynamo_cli" / "models" / "ladder-small" / "model.safetensors").unlink()
    result = dynamo("check")
    assert result.exit_code == 2
    errors = [line for line in result.stdout.splitlines() if line.startswith("error")]
    *misspelt, missing = errors
    assert len(misspelt) == pipeline.count("dynamo plot")
    assert "stage plot runs 'plott'" in misspelt[0]
    assert all("did you mean 'plot'" in line for line in misspelt)
    assert "ladder-small" in missing
    assert "dynamo pretrain" in missing


def errors_of_check(*words: str) -> list[str]:
    result = dynamo("check", *words)
    errors = [line for line in result.stdout.splitlines() if line.startswith("error")]
    assert (result.exit_code == 2) == bool(errors)
    return errors


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        (
            "studies.presets={models: [ladder-small], methods: [dynamo, grpo-2], seeds: [1]}",
            "studies.presets.methods names 'grpo-2'",
        ),
        (
            "studies.presets={models: [ladder-small], methods: [dynamo], seeds: [1]}",
            "cell ladder-small-dynamo-1 is in the grid and in the studies",
        ),
        (
            "studies.scales={models: [ladder-large], methods: [grpo], seeds: [1]}",
            "models.ladder-large: .* lacks config.json",
        ),
        ("studies.sensitivity.variants=[alpha-40, beta]", "sensitivity.variants names 'beta'"),
        ("training.rollouts_per_step=64", "^error methods.dynamo: .* 64 cannot be shared out"),
    ],
)
def test_check_looks_at_every_cell_of_the_studies(project, setting, complaint):
    (error,) = errors_of_check("--set", setting)
    assert re.search(complaint, error)


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (
            {"training.rollouts_per_step": 64},
            "variants.mine, methods.dynamo: .*rollouts_per_step 64 cannot be shared out",
        ),
        ({"training.rollout_per_step": 64}, "variants.mine training.rollout_per_step: no key"),
        ({"training.rollouts_per_step": "many"}, "training.rollouts_per_step: .*got 'many'"),
    ],
)
def test_check_tries_each_variant_that_a_study_names(project, variant, complaint):
    params = YAML(typ="safe").load(project / "params.yaml")
    params["variants"]["mine"] = variant
    YAML(typ="safe").dump(params, project / "params.yaml")
    assert not errors_of_check()
    cells = "{models: [ladder-small], methods: [dynamo], variants: [mine, budget-128], seeds: [1]}"
    (error,) = errors_of_check("--set", f"studies.budget={cells}")
    assert re.search(complaint, error)


def test_check_refuses_a_name_that_dvc_would_read_as_a_path(project):
    params = YAML(typ="safe").load(project / "params.yaml")
    params["models"]["mine-1.5b"] = params["models"]["ladder-small"]
    YAML(typ="safe").dump(params, project / "params.yaml")
    (error,) = errors_of_check()
    assert "models.mine-1.5b" in error and "name it mine-1_5b" in error


def test_interrupted_training_exits_with_130(project, monkeypatch):
    from pipelines import train as stage

    def interrupted(*args):
        raise KeyboardInterrupt

    dynamo("prepare")
    monkeypatch.setattr(stage, "train_step", interrupted)
    result = dynamo("train")
    assert result.exit_code == 130
    assert "goes on" in result.stderr


def test_the_version_is_that_of_the_package():
    from dynamo_cli import __version__

    assert dynamo("--version").output.strip() == f"dynamo {__version__}"
