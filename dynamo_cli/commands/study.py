"""Commands that concern the whole study."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dynamo_cli.commands.probe import chosen
from dynamo_cli.options import (
    DEFAULT_PARAMS,
    DataDir,
    Hostfile,
    Overrides,
    ParamsFile,
    Policy,
    Prepared,
    say,
)

Probes = Annotated[Path | None, typer.Option(help="Folder of what probes measured.")]


def study(
    out: Annotated[
        Path | None, typer.Argument(help="File that tells what came of each cell.")
    ] = None,
    pools: Annotated[Path | None, typer.Option(help="Folder of training problems.")] = None,
    data: Prepared = None,
    runs: Annotated[Path | None, typer.Option(help="Folder for trained cells.")] = None,
    evals: Annotated[Path | None, typer.Option(help="Folder for scored cells.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells at once. Default: one a core, or on a GPU 1.")
    ] = None,
    only: Annotated[
        Literal["main", "ablation", "allocators", "scales", "budget", "sensitivity"] | None,
        typer.Option(help="The cells of one table or figure."),
    ] = None,
    hostfile: Hostfile = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Train and score the cells beside the grid's: those of `studies`, several at once.

    Cells that are complete are left as they are. SIGTERM and Ctrl-C save the cells under way; the
    same command goes on from there.
    """
    from dynamo_cli.config import load_params
    from dynamo_cli.progress import progress
    from pipelines import study as stage

    loaded = load_params(params, overrides or ())
    paths, cells = loaded.paths, loaded.studies.cells(loaded.grid, only)
    places = stage.Places(
        params=params,
        overrides=tuple(overrides or ()),
        pools=pools or Path(paths.pools),
        suites=data or Path(paths.suites),
        runs=runs or Path(paths.runs),
        evals=evals or Path(paths.evals),
        logs=Path(paths.work) / "study",
        hostfile=hostfile,
    )
    # A part of the study is not the output of its stage.
    file = out or (Path(paths.study) if only is None else places.logs / f"{only}.json")
    at_once = 1 if loaded.compute.torch_device == "cuda" else os.cpu_count()
    with progress("study") as advance:
        left = stage.run(cells, places, jobs=jobs or at_once, out=file, report=advance)
    if left:
        typer.echo(f"interrupted, {len(left)} of {len(cells)} cells left; the same command goes on")
    else:
        typer.echo(f"{file}: {len(cells)} cells trained and scored")


def table(
    name: Annotated[
        str, typer.Argument(help="main, ablation, allocators or settings.", metavar="NAME")
    ] = "main",
    out: Annotated[Path | None, typer.Option(help="Folder for <name>.md, .csv, .tex.")] = None,
    evals: Annotated[Path | None, typer.Option(help="Folder of scored cells.")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of trained cells.")] = None,
    probes: Probes = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Draw up a table of the study as Markdown, CSV and LaTeX."""
    from dynamo_cli.config import load_params
    from pipelines import table as stage

    loaded = load_params(params, overrides or ())
    folder = out or Path(loaded.paths.report)
    stage.find(name)
    if name == "settings":
        stage.run_settings(
            {method: loaded.methods[method].model_dump() for method in loaded.grid.methods},
            common={
                part: getattr(loaded, part).model_dump()
                for part in ("training", "evaluation", "compute")
            },
            out=folder,
        )
    else:
        stage.run(
            name,
            **shown(name, loaded),
            ks=loaded.evaluation.ks,
            seed=loaded.evaluation.seed,
            resamples=loaded.evaluation.resamples,
            evals=evals or Path(loaded.paths.evals),
            runs=runs or Path(loaded.paths.runs),
            probes=probes or Path(loaded.paths.probes),
            out=folder,
        )
    typer.echo((folder / f"{name}.md").read_text(encoding="utf-8"))


def shown(name: str, params) -> dict[str, Any]:
    """Models, methods, seeds and suites of a table of scores."""
    if name == "main":
        return params.grid.model_dump() | {"seeds": params.seeds}
    studies = params.studies
    return {
        "models": studies.presets.models,
        "methods": getattr(studies, name),
        "seeds": studies.presets.seeds,
        "suites": params.grid.suites,
    }


def plot(
    name: Annotated[str, typer.Argument(help="Which figure.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for <name>.png, .svg, .pdf, .csv.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of trained cells.")] = None,
    evals: Annotated[Path | None, typer.Option(help="Folder of scored cells.")] = None,
    probes: Probes = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Draw a figure of the study as PNG, SVG and PDF, with the plotted data as CSV."""
    from dynamo_cli.config import load_params
    from pipelines import plot as stage

    loaded = load_params(params, overrides or ())
    files = stage.run(
        name,
        sources(
            loaded,
            runs=runs or Path(loaded.paths.runs),
            evals=evals or Path(loaded.paths.evals),
            probes=probes or Path(loaded.paths.probes),
        ),
        out=out or Path(loaded.paths.report),
        say=say,
    )
    for file in files:
        typer.echo(file)


def sources(params, *, runs: Path, evals: Path, probes: Path):
    """What figures may draw from, as the parameters have it."""
    from dynamo_cli.reporting.figures.kind import Sources, Varied
    from pipelines import plot as stage

    def varied(cells) -> Varied:
        names = getattr(cells, "variants", [])
        variants = {name: params.variants[name] for name in names}
        return Varied(cells.models, cells.methods, cells.seeds, variants)

    studies, grid, evaluation = params.studies, params.grid, params.evaluation
    named = (*studies.budget.variants, *studies.sensitivity.variants)
    keys = {key for name in named for key in params.variants[name]}
    method = params.methods.get("dynamo")
    return Sources(
        models=grid.models,
        seeds=params.seeds,
        runs=runs,
        evals=evals,
        probes=probes,
        grid_methods=grid.methods,
        suites=grid.suites,
        samples=evaluation.samples,
        seed=evaluation.seed,
        resamples=evaluation.resamples,
        bounds=params.allocation_bounds("dynamo"),
        larger=varied(studies.scales),
        budget=varied(studies.budget),
        sensitivity=varied(studies.sensitivity),
        in_use={key: value_at(params.model_dump(), key) for key in keys},
        formulas=stage.formulas(method.modulation) if method is not None else None,
    )


def value_at(tree: dict[str, Any], dotted: str) -> Any:
    """What stands under a dotted key. Raises DynamoError where nothing does."""
    from dynamo_cli.config import pick

    for key in dotted.split("."):
        tree = pick(tree, key, dotted)
    return tree


def check(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(metavar="[invariance]", help="Recompute a step under other layouts."),
    ] = None,
    pipeline: Annotated[Path, typer.Option(help="The pipeline to check.")] = Path("dvc.yaml"),
    data_dir: DataDir = None,
    policy: Policy = None,
    method: Annotated[
        list[str] | None, typer.Option(help="invariance: of these methods. Default: the grid's.")
    ] = None,
    data: Prepared = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Find now what would fail later: parameters, names, dvc.yaml, files, engines.

    `dynamo check invariance` samples one training step from a policy and computes its gradients
    under other micro-batch sizes, row orders, paddings and accumulation: any that differs by more
    than rounding is an error. Exit code 2 where anything is.
    """
    from pipelines import check as stage

    if what is None:
        findings = stage.run(
            params=params,
            overrides=overrides or (),
            pipeline=pipeline,
            commands=list(context.parent.command.commands),
            data_dir=data_dir,
        )
    else:
        stage.find(what)
        subject = chosen(params, overrides, policy, None, None, data)
        findings = stage.run_invariance(**subject, names=method)
    fatal = False
    for finding in findings:
        typer.echo(str(finding))
        fatal |= finding.fatal
    if fatal:
        raise typer.Exit(2)


def params(
    overlay: Annotated[
        list[Path] | None, typer.Option("--with", help="A file merged over the params.")
    ] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Print the parameters as they come out of the file, overlays and overrides."""
    from dynamo_cli.config import resolve_yaml

    typer.echo(resolve_yaml(params, overlay or (), overrides or ()), nl=False)
