"""Commands that train."""

from pathlib import Path
from typing import Annotated

import typer

from dynamo_cli.options import DEFAULT_PARAMS, Overrides, ParamsFile, Prepared


def train(
    out: Annotated[
        Path | None, typer.Argument(help="Folder for the run. Default: the cell's place.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A name under models:.")] = None,
    method: Annotated[str, typer.Option(help="A name under methods:.")] = "dynamo",
    seed: Annotated[int | None, typer.Option(help="Seed of the run.")] = None,
    data: Prepared = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Train one cell of the grid. An interrupted run goes on from its last checkpoint."""
    from dynamo_cli.config import cell_name, load_params, pick
    from dynamo_cli.progress import progress
    from dynamo_cli.provenance import hash_json
    from pipelines import train as stage

    loaded = load_params(params, overrides or ())
    model = model or loaded.grid.models[0]
    seed = loaded.grid.seeds[0] if seed is None else seed
    cell = cell_name(model, method, seed)
    home = Path(loaded.paths.runs)
    if overrides or params != DEFAULT_PARAMS:
        # A changed value must not pass for the pipeline's own cell, nor for another try's.
        origin = hash_json([str(params), *sorted(overrides or ())])[:6]
        home = Path(loaded.paths.adhoc) / "runs" / origin
    with progress(f"train {cell}") as advance:
        folder = out or home / cell
        stage.run(
            model=pick(loaded.models, model, "models"),
            method=pick(loaded.methods, method, "methods"),
            training=loaded.training,
            seed=seed,
            compute=loaded.compute,
            data=data or Path(loaded.paths.pools),
            out=folder,
            work=Path(loaded.paths.work),
            report=advance,
        )
    typer.echo(f"{folder}: policy, metrics and ledger of {loaded.training.steps} steps")
