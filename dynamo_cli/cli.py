"""The doors of `dynamo`: parse names and paths, load params, call one pipeline.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dynamo_cli import __version__
from dynamo_cli.errors import DynamoError
from dynamo_cli.options import (
    DEFAULT_PARAMS,
    Bench,
    DataDir,
    FramedAs,
    Overrides,
    ParamsFile,
    Policy,
    Prepared,
    Samples,
)


class Commands(TyperGroup):
    """Turns a user's mistake into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DynamoError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command goes on where it can", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Experiments in reinforcement learning with verifiable rewards: how to allocate rollouts "
    "to problems, how to shape advantages, and how sure we are that it helps.",
)


def main() -> None:
    """Entry point of the `dynamo` command."""
    app()


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dynamo {__version__}")
        raise typer.Exit()


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def prepare(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names under datasets:. Default: what the grid needs."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for <name>.jsonl. Default: the pipeline's.")
    ] = None,
    data_dir: DataDir = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Read, clean and check problems; write one JSONL file per data set."""
    from dynamo_cli.config import load_params, pick
    from pipelines import prepare as stage

    loaded = load_params(params, overrides or ())
    for name in names or [loaded.training.dataset, *loaded.grid.suites]:
        home = loaded.paths.pools if name == loaded.training.dataset else loaded.paths.suites
        file = (out or Path(home)) / f"{name}.jsonl"
        source = pick(loaded.datasets, name, "datasets")
        done = stage.run(source, name=name, out=file, data_dir=data_dir)
        typer.echo(f"{file}: {done.problems} problems")
        for remark in done.remarks:
            say(remark)


@app.command()
def pretrain(
    model: Annotated[str, typer.Argument(help="A ladder model under models:.")],
    out: Annotated[Path | None, typer.Option(help="Folder. Default: the model's path.")] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Rebuild a base model of the ladder (minutes)."""
    from dynamo_cli.config import load_params, pick
    from dynamo_cli.progress import progress
    from pipelines import pretrain as stage

    loaded = load_params(params, overrides or ())
    block = pick(loaded.models, model, "models")
    if None in (block.width, block.layers, block.learning_rate):
        raise DynamoError(
            f"models.{model} lacks width, layers or learning_rate: only a model of the ladder, "
            "which has them, is made here"
        )
    with progress(f"pretrain {model}") as advance:
        folder = out or Path(block.path)
        stage.run(
            loaded.pretraining,
            name=model,
            width=block.width,
            layers=block.layers,
            learning_rate=block.learning_rate,
            compute=loaded.compute,
            out=folder,
            report=advance,
        )


@app.command()
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
    from pipelines import train as stage

    loaded = load_params(params, overrides or ())
    model = model or loaded.grid.models[0]
    seed = loaded.grid.seeds[0] if seed is None else seed
    cell = cell_name(model, method, seed)
    # A changed value must not pass for the pipeline's own cell.
    home = Path(loaded.paths.adhoc) / "runs" if overrides else Path(loaded.paths.runs)
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


@app.command()
def sample(
    out: Annotated[Path | None, typer.Argument(help="Folder for completions/.")] = None,
    bench: Bench = None,
    policy: Policy = None,
    model: FramedAs = None,
    samples: Samples = None,
    data: Prepared = None,
    data_dir: DataDir = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Sample a policy's responses to benchmarks: the first half of eval."""
    from dynamo_cli.progress import progress
    from pipelines import eval as stage

    plan = evaluation_plan(out, bench, policy, model, samples, data, data_dir, params, overrides)
    with progress(f"sample {plan.policy}") as advance:
        stage.sample_half(plan, report=advance)
    typer.echo(f"{plan.out / 'completions'}: responses to {', '.join(plan.suites)}")


@app.command()
def grade(
    folder: Annotated[Path, typer.Argument(help="Folder with completions/.")],
    data: Prepared = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Grade stored responses, without a model: the second half of eval."""
    from dynamo_cli.config import load_params
    from pipelines import eval as evaluating
    from pipelines import grade as stage

    loaded = load_params(params, overrides or ())
    stage.run(folder, suites=evaluating.suites_of(folder, loaded, data))
    show_scores(folder, loaded.evaluation)


@app.command("eval")
def evaluate(
    out: Annotated[Path | None, typer.Argument(help="Folder for the scores.")] = None,
    bench: Bench = None,
    policy: Policy = None,
    model: FramedAs = None,
    samples: Samples = None,
    data: Prepared = None,
    data_dir: DataDir = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Sample, grade and score a policy on benchmarks."""
    from dynamo_cli.progress import progress
    from pipelines import eval as stage

    plan = evaluation_plan(out, bench, policy, model, samples, data, data_dir, params, overrides)
    with progress(f"sample {plan.policy}") as advance:
        stage.run(plan, report=advance)
    show_scores(plan.out, plan.evaluation)


@app.command()
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


@app.command()
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


@app.command()
def check(
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
        commands=[c.name or c.callback.__name__ for c in app.registered_commands],
        data_dir=data_dir,
    )
    for finding in findings:
        typer.echo(str(finding))
    if any(finding.fatal for finding in findings):
        raise typer.Exit(2)


@app.command()
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


def say(remark: str) -> None:
    """A remark about the work, apart from its result."""
    typer.echo(remark, err=True)


def evaluation_plan(out, bench, policy, model, samples, data, data_dir, params, overrides):
    """What `sample` and `eval` are to do, with the defaults filled in."""
    from dynamo_cli.config import load_params
    from pipelines import eval as stage

    changes = list(overrides or ())
    if samples is not None:
        changes.append(f"evaluation.samples={samples}")
    return stage.make_plan(
        load_params(params, changes),
        out=out,
        bench=bench,
        policy=policy,
        model=model,
        data=data,
        data_dir=data_dir,
        say=say,
    )


def show_scores(folder: Path, evaluation) -> None:
    """Print the scores of an eval folder as a table."""
    from rich.console import Console

    from dynamo_cli.reporting.markup import eval_rich
    from dynamo_cli.reporting.results import read_scores
    from dynamo_cli.reporting.tables import eval_table

    scores, _ = read_scores(folder)
    table = eval_table(
        scores, ks=evaluation.ks, seed=evaluation.seed, resamples=evaluation.resamples
    )
    Console().print(eval_rich(table))
    typer.echo(f"{folder}: completions, verdicts and scores")
