"""Commands that train."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dynamo_cli.errors import DynamoError
from dynamo_cli.options import DEFAULT_PARAMS, Hostfile, Overrides, ParamsFile, Prepared

# What `--engine` stands for; anything else is said in the file, or by --set training.engine={..}.
ENGINES = {
    "local": "{kind: local}",
    "deepspeed": "{kind: deepspeed, ranks: null, zero: 2, offload_optimiser: false, "
    "offload_parameters: false, gradient_checkpointing: true}",
}


def train(
    out: Annotated[
        Path | None, typer.Argument(help="Folder for the run. Default: the cell's place.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A name under models:.")] = None,
    method: Annotated[str, typer.Option(help="A name under methods:.")] = "dynamo",
    seed: Annotated[int | None, typer.Option(help="Seed of the run.")] = None,
    variant: Annotated[str | None, typer.Option(help="A name under variants:.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(help=f"Kind of training.engine with usual values: {', '.join(ENGINES)}."),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="training.engine.ranks. Default: one for each GPU."),
    ] = None,
    hostfile: Hostfile = None,
    steps: Annotated[int | None, typer.Option(min=1, help="training.steps.")] = None,
    data: Prepared = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Train one cell of the grid or of a study.

    With training.engine.kind deepspeed, the ranks are started from here (docs/cluster.md).

    SIGTERM and Ctrl-C save the run and end it with exit code 0 and without outputs; a second one
    ends it at once. The same command goes on from the last checkpoint, however the run ended.
    """
    from dynamo_cli.config import load_params, pick
    from dynamo_cli.progress import progress
    from dynamo_cli.studies import Cell
    from pipelines import train as stage

    overrides = list(overrides or ())
    overrides += [] if steps is None else [f"training.steps={steps}"]
    if engine is not None:
        overrides.insert(0, f"training.engine={pick(ENGINES, engine, '--engine')}")
    loaded = load_params(params, overrides, variant=variant)
    training = with_ranks(loaded.training, ranks)
    overrides += [] if ranks is None else [f"training.engine.ranks={ranks}"]
    model = model or loaded.grid.models[0]
    seed = loaded.grid.seeds[0] if seed is None else seed
    cell = Cell(model, method, variant, seed).name
    folder = out or home_of(loaded.paths, params, overrides) / cell
    given = {
        "model": pick(loaded.models, model, "models"),
        "method": pick(loaded.methods, method, "methods"),
        "training": training,
        "sampler": loaded.engines[loaded.training.sampler],
        "seed": seed,
        "compute": loaded.compute,
        "data": data or Path(loaded.paths.pools),
        "out": folder,
        "work": Path(loaded.paths.work),
        "say": partial(typer.echo, err=True),
    }
    if stage.starts_ranks(training):
        outcome = stage.launch(arguments=sys.argv[1:], hostfile=hostfile, **given)
        outcome = outcome if outcome == "known" else None  # else the first rank has said it
    else:
        with progress(f"train {cell}") as advance:
            outcome = stage.run(report=advance, **given)
    if outcome is not None:
        typer.echo(f"{folder}: {ENDED[outcome].format(steps=training.steps)}")


ENDED = {
    "complete": "policy, metrics and ledger of {steps} steps",
    "known": "this very run is complete already; nothing to do",
    "interrupted": "interrupted and saved; the same command goes on from there",
}


def home_of(paths: Any, params: Path, overrides: Sequence[str]) -> Path:
    """Where the run's folder goes.

    A changed value must not pass for the pipeline's own cell, nor for another try's.
    """
    if not overrides and params == DEFAULT_PARAMS:
        return Path(paths.runs)
    from dynamo_cli.provenance import hash_json

    return Path(paths.adhoc) / "runs" / hash_json([str(params), *sorted(overrides)])[:6]


def with_ranks(training: Any, ranks: int | None) -> Any:
    """The same training with so many ranks. Raises DynamoError for an engine without any."""
    if ranks is None:
        return training
    if training.engine.kind == "local":
        raise DynamoError(
            "--ranks: training.engine.kind is local, which is one process; add --engine deepspeed"
        )
    engine = training.engine.model_copy(update={"ranks": ranks})
    return training.model_copy(update={"engine": engine})
