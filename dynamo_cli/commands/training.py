"""Commands that train."""

from functools import partial
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
    variant: Annotated[str | None, typer.Option(help="A name under variants:.")] = None,
    data: Prepared = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Train one cell of the grid or of a study.

    SIGTERM and Ctrl-C save the run and end it with exit code 0 and without outputs; a second one
    ends it at once. The same command goes on from the last checkpoint, however the run ended.
    """
    from dynamo_cli.config import load_params, pick
    from dynamo_cli.progress import progress
    from dynamo_cli.provenance import hash_json
    from dynamo_cli.studies import Cell
    from pipelines import train as stage

    loaded = load_params(params, overrides or (), variant=variant)
    model = model or loaded.grid.models[0]
    seed = loaded.grid.seeds[0] if seed is None else seed
    cell = Cell(model, method, variant, seed).name
    home = Path(loaded.paths.runs)
    if overrides or params != DEFAULT_PARAMS:
        # A changed value must not pass for the pipeline's own cell, nor for another try's.
        origin = hash_json([str(params), *sorted(overrides or ())])[:6]
        home = Path(loaded.paths.adhoc) / "runs" / origin
    with progress(f"train {cell}") as advance:
        folder = out or home / cell
        outcome = stage.run(
            model=pick(loaded.models, model, "models"),
            method=pick(loaded.methods, method, "methods"),
            training=loaded.training,
            sampler=loaded.engines[loaded.training.sampler],
            seed=seed,
            compute=loaded.compute,
            data=data or Path(loaded.paths.pools),
            out=folder,
            work=Path(loaded.paths.work),
            report=advance,
            say=partial(typer.echo, err=True),
        )
    steps = loaded.training.steps
    typer.echo(
        {
            "complete": f"{folder}: policy, metrics and ledger of {steps} steps",
            "known": f"{folder}: this very run is complete already; nothing to do",
            "interrupted": f"{folder}: interrupted and saved; the same command goes on from there",
        }[outcome]
    )
