"""The command that puts everything on one page."""

from pathlib import Path
from typing import Annotated

import typer

from dynamo_cli.options import DEFAULT_PARAMS, Overrides, ParamsFile


def report(
    out: Annotated[
        Path | None, typer.Argument(help="The page. Default: the report's folder, as .html.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--from", help="Folder of tables and figures.")
    ] = None,
    evals: Annotated[Path | None, typer.Option(help="Folder of scored cells.")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Put every table and figure that is there on one page that needs nothing else.

    Each cell of a table leads to the manifests that it comes from.
    """
    from dynamo_cli.config import load_params
    from pipelines import report as stage

    loaded = load_params(params, overrides or ())
    source = folder or Path(loaded.paths.report)
    page = out or source.with_name(f"{source.name}.html")
    size = stage.run(
        **loaded.grid.model_dump() | {"seeds": loaded.seeds},
        folder=source,
        evals=evals or Path(loaded.paths.evals),
        out=page,
    )
    typer.echo(f"{page}: {size / 1e6:.2f} MB")
