"""The paper's pipeline: its values, its costs, its commands, and every cell of it in small."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pandas as pd
import pytest
from ruamel.yaml import YAML
from typer.main import get_command
from typer.testing import CliRunner

from dynamo_cli.cli import app
from dynamo_cli.commands.study import study
from dynamo_cli.config import Params, load_params, resolve_yaml, validate
from dynamo_cli.planning import workload
from dynamo_cli.planning.fitting import choose
from dynamo_cli.planning.shapes import find_shape
from dynamo_cli.reporting.published import read_published
from dynamo_cli.studies import Cell
from pipelines import eval as evaluating
from pipelines import prepare, train

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "pipelines" / "paper"
REAL, TINY = [HOME / "params.yaml"], [HOME / "params.yaml", HOME / "tiny.yaml"]
SMALL, MIDDLE, LARGE = "qwen2_5-math-1_5b", "qwen2_5-math-7b", "qwen2_5-14b"
README = (HOME / "README.md").read_text(encoding="utf-8")
IN_SMALL = {SMALL: "ladder-small", MIDDLE: "ladder-medium", LARGE: "ladder-large"}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The files that `make paper-workspace` and `make paper DRY=1` put into their workspaces."""
    folder = tmp_path_factory.mktemp("params")
    for name, overlays in (("real", REAL), ("tiny", TINY)):
        text = resolve_yaml(ROOT / "params.yaml", overlays, ())
        (folder / f"{name}.yaml").write_text(text)
    return {name: folder / f"{name}.yaml" for name in ("real", "tiny")}


@pytest.fixture(scope="module")
def real(files) -> Params:
    return load_params(files["real"])


@pytest.fixture(scope="module")
def tiny(files) -> Params:
    return load_params(files["tiny"])


def test_what_the_released_script_establishes_stands_here(real):
    training, dynamo = real.training, real.methods["dynamo"]
    assert training.problems_per_step == 512
    assert training.problems_per_step / training.updates_per_step == 32
    assert training.rollouts_per_step == 512 * 16
    assert (dynamo.allocation.low, dynamo.allocation.high) == (8, 24)
    optimiser = training.optimiser
    assert (optimiser.learning_rate, optimiser.weight_decay) == (1e-6, 0.1)
    assert optimiser.warmup_updates == 10 * 16, "10 steps, in updates"
    assert optimiser.gradient_clip == 1.0
    sampling = training.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, -1)
    assert training.checkpoint_every == 20
    for method in (dynamo, real.methods["grpo"]):
        objective, advantage = method.objective, method.advantage
        assert (objective.clip_low, objective.clip_high) == (0.2, 0.2)
        assert (objective.dual_clip, objective.entropy_coefficient) == (10.0, 0.0)
        assert (advantage.kind, advantage.scale) == ("group_normalised", "std")
    assert dynamo.modulation.compensation.alpha == pytest.approx(1.2 - 1)
    damping = dynamo.modulation.stabilisation
    assert (damping.lambda_min, damping.gamma, damping.tau) == (0.6, 50.0, 0.99)


def test_the_grid_is_the_papers_main_table(real):
    models = {model.replace("_", ".") for model in real.grid.models}
    published = read_published()[1]
    assert models == {model for model, *_ in published}
    assert set(real.grid.methods) == {method for _, method, *_ in published}
    assert {*real.grid.suites, "average"} == {suite for _, _, suite, _ in published}
    assert real.evaluation.ks == [1, 32] and real.evaluation.samples == 32


def test_prompts_and_responses_share_what_the_models_have_positions_for(real):
    context = real.engines["vllm"].context
    assert context == 1024 + real.training.sampling.max_tokens == 1024 + 3072
    assert real.evaluation.sampling.max_tokens == 3072
    for name in (SMALL, MIDDLE, LARGE):
        assert find_shape(name, {}).context >= context


def test_the_engines_are_those_for_several_gpus_and_their_disagreement_is_scored(real):
    assert real.training.sampler == real.evaluation.engine == "vllm"
    assert real.training.engine.kind == "deepspeed" and real.training.engine.ranks is None
    assert real.training.old_scores == "trainer" and real.compute.dtype == "bfloat16"
    assert real.engines["vllm"].sleep


def test_nothing_that_is_trained_on_is_in_a_suite(real):
    assert set(real.grid.suites) <= set(real.datasets[real.training.dataset].clean.against)


def test_the_bounds_of_a_budget_are_to_its_mean_as_8_and_24_are_to_16(files):
    expected = {"budget-2048": (4, 2, 6), "budget-4096": (8, 4, 12), "budget-16384": (32, 16, 48)}
    varied = load_params(files["real"]).studies.budget.variants
    assert varied == list(expected)
    for variant, (mean, low, high) in expected.items():
        params = load_params(files["real"], variant=variant)
        assert params.training.rollouts_per_step == mean * 512
        assert params.allocation_bounds("dynamo") == (low, high)


def test_every_value_that_could_be_open_is_marked():
    """Of training, evaluation, grid and models each line with a value says where it is from."""
    text = (HOME / "params.yaml").read_text()
    unmarked = []
    for section in ("models", "grid", "training", "evaluation"):
        block = text.split(f"\n{section}:")[1].split("\n\n")[0]
        marked = False
        for line in block.splitlines()[1:]:
            above, marked = marked, bool(re.search(r"#.*\[(script|readme|open)\]", line))
            if line.strip().startswith("#"):
                marked |= above
            elif not (marked or above or line.rstrip().endswith(":")):
                unmarked.append(line.split(":")[0].strip())
    # These are no part of the study: how it is computed, not what.
    ours = {"sampler", "engine", "beta1", "beta2", "epsilon", "old_scores"}
    assert set(unmarked) <= ours | {"tokens_per_microbatch", "top_k", "qwen2_5-14b"}


def findings(file: Path, monkeypatch) -> list[str]:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("DYNAMO_DATA", raising=False)
    shown = CliRunner().invoke(app, ["check", "--params", str(file)]).stdout
    return [line for line in shown.splitlines() if not line.startswith("note")]


def test_check_passes_but_for_the_models_and_gpus_that_are_not_here(files, monkeypatch):
    lines = findings(files["real"], monkeypatch)
    assert "55 cells with those of the studies, each budget within its bounds" in lines[2]
    errors = [line for line in lines if line.startswith("error")]
    absent = [f"models.{name}" for name in IN_SMALL] + ["compute.device is cuda", "vllm", "vLLM"]
    absent += ["DeepSpeed is not installed"]
    assert all(any(word in line for word in absent) for line in errors), errors


def test_check_passes_in_small(files, monkeypatch):
    assert all(line.startswith("ok") for line in findings(files["tiny"], monkeypatch))


def cells_in_small() -> list[Cell]:
    """Read when tests are collected, for each is a test of its own."""
    text = resolve_yaml(ROOT / "params.yaml", TINY, ())
    return validate(TINY[-1], YAML(typ="safe").load(text)).cells()


def test_the_small_cells_are_those_of_the_paper_one_for_one(real, tiny):
    names = {cell._replace(model=IN_SMALL[cell.model]) for cell in real.cells()}
    assert names == set(tiny.cells())
    assert len(names) == len(real.cells()) == 18 + 17 + 2 + 6 + 12
    assert tiny.methods == real.methods
    for name, values in real.variants.items():
        ours = {key: value for key, value in tiny.variants[name].items() if "methods" in key}
        assert ours == {key: value for key, value in values.items() if "methods" in key}
    per_problem = [
        p.training.rollouts_per_step / p.training.problems_per_step for p in (real, tiny)
    ]
    assert per_problem == [16, 16]


@pytest.fixture(scope="module")
def bench(tiny, tmp_path_factory) -> Path:
    """A folder with the problems of the small study."""
    folder = tmp_path_factory.mktemp("paper")
    for name in (tiny.training.dataset, *tiny.grid.suites):
        prepare.run(tiny.datasets[name], name=name, out=folder / f"{name}.jsonl", data_dir=None)
    return folder


@pytest.mark.parametrize("cell", cells_in_small(), ids=lambda cell: cell.name)
def test_every_cell_runs(cell, files, bench):
    params = load_params(files["tiny"], variant=cell.variant)
    outcome = train.run(
        model=params.models[cell.model].model_copy(
            update={"path": str(ROOT / params.models[cell.model].path)}
        ),
        method=params.methods[cell.method],
        training=params.training,
        sampler=params.engines[params.training.sampler],
        seed=cell.seed,
        compute=params.compute,
        data=bench,
        out=bench / "runs" / cell.name,
        work=bench / "work",
        report=lambda *_, **__: None,
        say=pytest.fail,
    )
    assert outcome is train.Outcome.COMPLETE
    metrics = pd.read_csv(bench / "runs" / cell.name / "metrics.csv")
    ledger = pd.read_parquet(bench / "runs" / cell.name / "ledger.parquet")
    assert metrics.step.tolist() == [1, 2]
    assert metrics[["loss", "grad_norm", "entropy"]].notna().all(axis=None)
    assert (metrics.mixed_groups > 0).all() and (metrics.grad_norm > 0).all(), "there is a gradient"
    assert (ledger.groupby("step").rollouts.sum() == params.training.rollouts_per_step).all()
    low, high = params.allocation_bounds(cell.method) or (1, params.training.rollouts_per_step)
    assert ledger.rollouts.between(low, high).all()


def test_a_policy_is_scored_on_all_suites_with_32_samples(tiny, bench, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = evaluating.make_plan(
        tiny,
        out=bench / "evals" / "one",
        variant=None,
        bench=None,
        policy=ROOT / "dynamo_cli" / "models" / "ladder-small",
        model="ladder-small",
        template=None,
        data=bench,
        data_dir=None,
        say=lambda _: None,
    )
    evaluating.run(plan, report=lambda *_, **__: None, say=lambda _: None)
    scores = pd.read_csv(bench / "evals" / "one" / "scores.csv")
    assert scores.groupby("suite").size().to_dict() == dict.fromkeys(tiny.grid.suites, 4)
    assert (scores.samples == 32).all()


def hours(cell: Cell, file: Path, hardware: str) -> float:
    """What `dynamo plan` says a cell takes on a machine under hardware:."""
    params = load_params(file, variant=cell.variant)
    machine, shape = params.hardware.machines[hardware], find_shape(cell.model, {})
    lengths = workload.tokens(
        params, shape, prompt=None, longest_prompt=None, response=None, run=None
    )
    method = params.methods[cell.method]
    work = workload.build(params, shape, method, lengths, machine=machine)
    asked, free = workload.settings(
        params, machine, zero=None, offload=None, checkpointing=None, sampler="asleep"
    )
    made, _ = choose(work, asked, machine, params.hardware.assumptions, free=free)
    assert made.fits and not free, f"{cell} on {hardware}"
    return made.run_seconds / 3600


MACHINES = ("8x80", "4x8x80")
ROWS = {  # of README.md, by their first words
    "main table, 1.5B": lambda p: [cell for cell in p.grid.cells() if cell.model == SMALL],
    "main table, 7B": lambda p: [cell for cell in p.grid.cells() if cell.model == MIDDLE],
    "ablation": lambda p: p.studies.cells(p.grid, "ablation"),
    "allocators": lambda p: p.studies.cells(p.grid, "allocators"),
    "scales": lambda p: p.studies.cells(p.grid, "scales"),
    "budget": lambda p: list(p.studies.budget.cells()),
    "sensitivity": lambda p: p.studies.cells(p.grid, "sensitivity"),
    "everything": lambda p: p.cells(),
}


def row_of_readme(begins: str) -> list[str]:
    """The columns of the table's row after its name."""
    (line,) = re.findall(rf"^\| {re.escape(begins)}.*$", README, flags=re.MULTILINE)
    return [column.strip() for column in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("row", ROWS)
def test_the_costs_of_tables_in_the_readme_are_the_plans(real, files, monkeypatch, tmp_path, row):
    monkeypatch.chdir(tmp_path)  # where no pool is prepared
    cells = ROWS[row](real)
    spent = [sum(hours(cell, files["real"], name) for cell in cells) / 24 for name in MACHINES]
    assert row_of_readme(row) == [str(len(cells)), *(f"{days:.1f} days" for days in spent)]


@pytest.mark.parametrize(("size", "model"), [("1.5B", SMALL), ("7B", MIDDLE), ("14B", LARGE)])
def test_the_costs_of_cells_in_the_readme_are_the_plans(files, monkeypatch, tmp_path, size, model):
    monkeypatch.chdir(tmp_path)
    cells = [Cell(model, method, None, 1) for method in ("grpo", "dynamo")]
    spent = [[f"{hours(c, files['real'], name):.1f} h" for c in cells] for name in MACHINES]
    assert row_of_readme(f"one cell, {size}")[1:] == [" / ".join(both) for both in spent]


def commands_of_readme() -> list[list[str]]:
    """Every `dynamo ...` in its blocks of shell, as words."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL))
    found = re.findall(r"^[^#\n]*?\bdynamo ([^#&\"\n]*)", blocks, flags=re.MULTILINE)
    return [words.split() for words in found if not words.startswith("kl_cov")]


@pytest.mark.parametrize("words", commands_of_readme(), ids=" ".join)
def test_commands_of_the_readme_exist_with_their_options(words, real, tiny):
    command = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    options = {name: param for param in command.params for name in param.opts}
    given = {word: value for word, value in zip(words, [*words[1:], ""], strict=False)}
    for word, value in given.items():
        if word.startswith("--"):
            assert word in options, f"{command.name} has no {word}"
        if word == "--only":
            assert value in get_args(get_args(get_type_hints(study)["only"])[0])
    for option, section in (("--model", "models"), ("--method", "methods")):
        if option in given and "$" not in given[option]:
            assert given[option] in getattr(real, section), given[option]
    if "--variant" in given:
        assert given["--variant"] in real.variants


def what_make_would_do(*words: str) -> str:
    command = ["make", "--dry-run", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("words", "folder"), [((), "paper"), (("DRY=1",), "paper-dry")])
def test_make_lays_the_files_over_the_roots_in_a_workspace_of_their_own(words, folder):
    shown = what_make_would_do("paper-workspace", *words)
    overlays = " ".join(f"--with {path.relative_to(ROOT)}" for path in (TINY if words else REAL))
    assert f"dynamo params {overlays} > build/{folder}/params.yaml" in shown
    assert ("vllm,deepspeed" in shown) == (not words)
    assert "dvc repro" not in shown, "the workspace alone"
    everything = what_make_would_do("paper", *words)
    assert f"--directory build/{folder} reproduce" in everything
    assert ("JOBS=1" in everything) == (not words)


def test_dvc_makes_a_stage_of_each_cell_of_the_main_table(files, real, tmp_path):
    for name, source in (("dvc.yaml", ROOT / "dvc.yaml"), ("params.yaml", files["real"])):
        (tmp_path / name).write_text(source.read_text())
    for words in (["init", "--no-scm", "--quiet"], ["stage", "list", "--name-only"]):
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    cells = [cell.name for cell in real.grid.cells()]
    assert sorted(name for name in names if name.startswith("train@")) == sorted(
        f"train@{cell}" for cell in cells
    )
    assert {f"eval@{cell}" for cell in cells} < set(names)
    assert {"study", "table@main", "table_study@allocators", "plot_study@scales"} < set(names)
    assert not [name for name in names if "ladder" in name or name.startswith("pretrain")]
