"""The options that several commands share, spelt once; and how a command remarks on its work."""

from pathlib import Path
from typing import Annotated

import typer

ParamsFile = Annotated[
    Path, typer.Option("--params", help="The file with every value that changes a result.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one dotted key of the params."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="DYNAMO_DATA",
        help="Folder of JSONL files that stand in for the hub's data sets.",
    ),
]
Bench = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Names under datasets:. Default: the grid's suites."),
]
Policy = Annotated[
    Path | None, typer.Option(help="A model folder. Default: the newest trained policy.")
]
FramedAs = Annotated[
    str | None,
    typer.Option("--model", help="Model under models: whose template frames the questions."),
]
FramedBy = Annotated[
    str | None,
    typer.Option(
        "--template", metavar="NAME", help="Template that frames the questions; wins over --model."
    ),
]
Engine = Annotated[
    str | None, typer.Option(metavar="NAME", help="Engine under engines: that samples.")
]
Server = Annotated[
    str | None,
    typer.Option(metavar="URL", help="A running `vllm serve` that samples; implies --engine vllm."),
]
Samples = Annotated[
    int | None,
    typer.Option(min=1, help="Responses per problem; more of them add to those there."),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest response, the end token included.")
]
Hostfile = Annotated[
    Path | None,
    typer.Option(
        envvar="DYNAMO_HOSTFILE",
        help="Machines for the ranks, a line each: `worker-1 slots=8`. Default: this one, or "
        "the Slurm allocation.",
    ),
]
Prepared = Annotated[Path | None, typer.Option("--data", help="Folder of prepared problems.")]
DEFAULT_PARAMS = Path("params.yaml")


def say(remark: str) -> None:
    """A remark about the work, apart from its result."""
    typer.echo(remark, err=True)
