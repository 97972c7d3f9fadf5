"""The doors of `dynamo`.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dynamo_cli import __version__
from dynamo_cli.commands import (
    allocation,
    data,
    evaluation,
    inspection,
    models,
    plan,
    probe,
    reporting,
    study,
    training,
)
from dynamo_cli.errors import DynamoError


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


for command in (
    data.prepare,
    data.pretrain,
    training.train,
    evaluation.sample,
    evaluation.grade,
):
    app.command()(command)
app.command("eval")(evaluation.evaluate)
app.command()(probe.probe)
for command in (study.study, study.table, study.plot, study.check, study.params):
    app.command()(command)
for command in (reporting.report, inspection.inspect, inspection.trace):
    app.command()(command)
app.add_typer(plan.app, name="plan")
app.add_typer(allocation.app, name="allocation")
app.add_typer(models.app, name="models")


def main() -> None:
    """Entry point of the `dynamo` command.

    A rank that `dynamo train` has started ends here at once: what its libraries do while the
    interpreter goes takes seconds, fills stderr, and one that hung in it would hold up all ranks.
    """
    try:
        app()
    except SystemExit as end:
        if "DYNAMO_TETHER" not in os.environ:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
