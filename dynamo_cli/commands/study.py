"""Commands that look at the whole study."""

from pathlib import Path
from typing import Annotated

import typer

from dynamo_cli.options import DEFAULT_PARAMS, DataDir, Overrides, ParamsFile


def table(
    name: Annotated[str, typer.Argument(help="Which table.")] = "main",
    out: Annotated[Path | None, typer.Option(help="Folder for <name>.md, .csv, .tex.")] = None,
    evals: Annotated[Path | None, typer.Option(help="Folder of scored cells.")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Draw up a table of the study as Markdown, CSV and LaTeX."""
    from dynamo_cli.config import load_params
    from pipelines import table as stage

    loaded = load_params(params, overrides or ())
    folder = out or Path(loaded.paths.report)
    grid, evaluation = loaded.grid, loaded.evaluation
    stage.run(
        name,
        **grid.model_dump(),
        ks=evaluation.ks,
        seed=evaluation.seed,
        resamples=evaluation.resamples,
        evals=evals or Path(loaded.paths.evals),
        out=folder,
    )
    typer.echo((folder / f"{name}.md").read_text(encoding="utf-8"))


def plot(
    name: Annotated[str, typer.Argument(help="Which figure.")],
    out: Annotated[Path | None, typer.Option(help="Folder for <name>.png, .svg, .csv.")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of trained cells.")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Draw a figure of the study as PNG and SVG, with the plotted data as CSV."""
    from dynamo_cli.config import load_params
    from pipelines import plot as stage

    loaded = load_params(params, overrides or ())
    files = stage.run(
        name,
        models=loaded.grid.models,
        seeds=loaded.grid.seeds,
        bounds=loaded.allocation_bounds("dynamo"),
        runs=runs or Path(loaded.paths.runs),
        out=out or Path(loaded.paths.report),
    )
    for file in files:
        typer.echo(file)


def check(
    context: typer.Context,
    pipeline: Annotated[Path, typer.Option(help="The pipeline to check.")] = Path("dvc.yaml"),
    data_dir: DataDir = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Find now what would fail later: parameters, names, dvc.yaml, files, engines."""
    from pipelines import check as stage

    findings = stage.run(
        params=params,
        overrides=overrides or (),
        pipeline=pipeline,
        commands=list(context.parent.command.commands),
        data_dir=data_dir,
    )
    for finding in findings:
        typer.echo(str(finding))
    if any(finding.fatal for finding in findings):
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
