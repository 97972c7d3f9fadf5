"""Commands that say what a run or an evaluation will take, before it is started."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dynamo_cli.errors import DynamoError
from dynamo_cli.options import DEFAULT_PARAMS, Overrides, ParamsFile, say

app = typer.Typer(
    help="Memory, time, tokens and disk of a run; samples and seeds of an evaluation."
)
Zero = Annotated[int | None, typer.Option(min=0, max=3, help="ZeRO stage.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Tables in Markdown.")]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="A name under models:, a known model, or a folder.")
    ] = None,
    method: Annotated[str, typer.Option(help="A name under methods:.")] = "dynamo",
    variant: Annotated[str | None, typer.Option(help="A name under variants:.")] = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="NAME", help="A machine under hardware:.")
    ] = None,
    zero: Zero = None,
    offload: Annotated[
        Literal["none", "optimiser", "all"] | None, typer.Option(help="To the main memory.")
    ] = None,
    checkpointing: Annotated[
        bool | None, typer.Option("--checkpointing/--no-checkpointing", help="Of activations.")
    ] = None,
    vllm: Annotated[
        Literal["asleep", "awake", "served"],
        typer.Option(help="vLLM while training: beside the trainer, or on other machines."),
    ] = "asleep",
    response_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean of a response.")
    ] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, help="Mean of a prompt.")] = None,
    longest_prompt: Annotated[int | None, typer.Option(min=1, help="Tokens at most.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="A run that tells its responses.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Measure this processor for two seconds.")
    ] = False,
    strict: Annotated[
        bool, typer.Option(help="Exit code 1 where what is asked does not fit.")
    ] = False,
    markdown: Markdown = False,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Plan a training run: memory by phase, tokens, time, disk; whether it fits, and what would.

    What params.yaml and options leave open (ZeRO stage, offloading, checkpointing) is chosen: the
    fastest that fits. Exit code 1 where nothing fits; with --strict, also where only other
    settings than those asked for do.
    """
    if context.invoked_subcommand is not None:
        return
    from dynamo_cli.config import load_params, pick
    from dynamo_cli.planning import workload
    from dynamo_cli.planning.fitting import choose
    from dynamo_cli.planning.shapes import find_shape

    loaded = load_params(params, overrides or (), variant=variant)
    name = hardware or loaded.hardware.default
    machine = pick(loaded.hardware.machines, name, "hardware.machines")
    model = model or loaded.grid.models[0]
    shape = find_shape(model, {key: Path(block.path) for key, block in loaded.models.items()})
    if calibrate:
        machine = calibrated(machine, loaded.compute.threads)
    assumed = loaded.hardware.assumptions
    tokens = workload.tokens(
        loaded,
        shape,
        prompt=prompt_tokens,
        longest_prompt=longest_prompt,
        response=response_tokens,
        run=source,
    )
    work = workload.build(
        loaded, shape, pick(loaded.methods, method, "methods"), tokens, machine=machine
    )
    asked, free = workload.settings(
        loaded, machine, zero=zero, offload=offload, checkpointing=checkpointing, sampler=vllm
    )
    if not machine.gpus and loaded.training.engine.kind != "local":
        say(f"{name} has no GPUs, so this is the plan of the local engine")
    made, nearest = choose(work, asked, machine, assumed, free=free)
    typer.echo(
        f"{model} ({shape.parameters:,} parameters), {method}, on {name}: {machine_line(machine)}"
    )
    typer.echo(tokens.told)
    show_plan(work, made, machine, markdown=markdown)
    verdict(made, nearest, machine, work, free)
    if nearest is None or (strict and not made.fits):
        raise typer.Exit(1)


@app.command("eval")
def evaluation(
    bench: Annotated[str, typer.Option(metavar="A,B", help="Names under datasets:.")],
    points: Annotated[
        float, typer.Option(min=0.01, help="Difference to resolve, in points.")
    ] = 1.0,
    k: Annotated[int, typer.Option("-k", min=1, help="Of Pass@k.")] = 1,
    samples: Annotated[int | None, typer.Option(min=1, help="Of the table of errors.")] = None,
    level: Annotated[
        str | None,
        typer.Option(metavar="P1,P32", help="Pass@1 and Pass@32 to plan for, in percent."),
    ] = None,
    like: Annotated[
        str, typer.Option(help="Take the levels that the paper has for GRPO on this model.")
    ] = "qwen2.5-math-7b",
    source: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="EVAL", help="Scored folders: one, or one a training seed."),
    ] = None,
    seed_sd: Annotated[
        float | None, typer.Option(min=0, help="Points between training seeds of one method.")
    ] = None,
    correlation: Annotated[
        float, typer.Option(min=0, max=1, help="Of two methods' values over problems; assumed.")
    ] = 0.9,
    response_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean of a response.")
    ] = None,
    markdown: Markdown = False,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Plan an evaluation: how many samples and seeds tell two methods apart by some points.

    95 % confidence, 80 % power, the same problems for both methods. On these very problems, and
    for problems like them: the latter no number of samples may resolve where problems are few.
    """
    from dynamo_cli.config import load_params
    from dynamo_cli.planning import benchmarks
    from dynamo_cli.reporting.published import published

    def level_of(suite: str) -> tuple[float, float] | None:
        chances = [published(like, "grpo", suite, k) for k in (1, benchmarks.LEVEL_K)]
        return None if None in chances else tuple(100 * chance for chance in chances)

    loaded = load_params(params, overrides or ())
    tokens = response_tokens
    if tokens is None:
        tokens = loaded.hardware.assumptions.response_share * loaded.evaluation.sampling.max_tokens
    for name in bench.split(","):
        known = benchmarks.describe(
            loaded,
            name.strip(),
            level=level,
            published=level_of,
            folders=source or (),
            seed_sd=seed_sd,
            correlation=correlation,
        )
        say(known.told)
        for table in benchmarks.tables(
            known.bench,
            points=points,
            k=k,
            samples=max(samples or loaded.evaluation.samples, k),
            tokens=tokens,
            name=name.strip(),
        ):
            show(table, markdown=markdown)
        typer.echo(benchmarks.answer(known.bench, points=points, k=k, name=name.strip()))


def calibrated(machine: Any, threads: int | None) -> Any:
    """The machine with this processor's speed. Raises DynamoError for one with GPUs."""
    from dynamo_cli.planning.calibration import calibrate

    if machine.gpus:
        raise DynamoError("--calibrate measures this processor; give --hardware without GPUs")
    measured = calibrate(machine, threads=threads)
    say(
        f"measured: {measured.cores} threads of {measured.core_gflops:.0f} GFLOP/s, "
        f"{measured.bandwidth_gb:.1f} GB/s"
    )
    return measured


def machine_line(machine: Any) -> str:
    """A machine in words."""
    if machine.gpus:
        nodes = f"{machine.nodes} nodes of " if machine.nodes > 1 else ""
        return f"{nodes}{machine.gpus} GPUs of {machine.gpu_memory_gib:g} GiB"
    return f"{machine.cores} cores, {machine.memory_gib:g} GiB"


def show_plan(work: Any, made: Any, machine: Any, *, markdown: bool) -> None:
    """All tables of a plan."""
    from dynamo_cli.planning import tables

    vllm = work.sampler == "vllm"
    typer.echo(tables.settings_line(made.settings, gpus=bool(machine.gpus), vllm=vllm))
    for table in (
        tables.memory_table(made),
        tables.token_table(work),
        tables.time_table(made),
        tables.disk_table(made),
    ):
        show(table, markdown=markdown)
    typer.echo(
        f"sampling: room for {made.cache_tokens:,} tokens in the cache of an engine, "
        f"{made.concurrent:,.0f} responses at a time"
    )
    if made.host and machine.gpus:
        typer.echo(f"main memory of a node: {tables.size(made.host)}")


def verdict(made: Any, nearest: Any, machine: Any, work: Any, free: Sequence[str]) -> None:
    """The last line: fits, does not fit, and what would."""
    from dynamo_cli.planning import tables

    if made.fits:
        typer.echo("fits" + (" (settings left open were chosen)" if free else ""))
        return
    typer.echo(f"does not fit: {tables.shortage_line(made.shortages)}")
    if nearest is None:
        typer.echo("nothing within reach fits: more GPUs, a smaller model or shorter sequences")
        return
    line = tables.settings_line(
        nearest.settings, gpus=bool(machine.gpus), vllm=work.sampler == "vllm"
    )
    typer.echo(f"nearest that fits: {line}; {tables.duration(nearest.seconds.total)} a step")


def show(table: Any, *, markdown: bool) -> None:
    """A table on a terminal, or as Markdown."""
    if markdown:
        typer.echo(f"\n{table.title}\n\n{table.markdown()}\n")
        return
    from rich.console import Console
    from rich.table import Table

    typer.echo(f"\n{table.title}")
    drawn = Table(box=None, pad_edge=False)
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        drawn.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(drawn)
