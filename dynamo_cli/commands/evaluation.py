"""Commands that score policies."""

import sys
from pathlib import Path
from typing import Annotated

import typer

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
    say,
)


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
    # A pipe has no width; a table cut to 80 columns would lose numbers.
    Console(width=None if sys.stdout.isatty() else 200).print(eval_rich(table))
    typer.echo(f"{folder}: completions, verdicts and scores")
