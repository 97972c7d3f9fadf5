"""Commands that hold the theory against a policy."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dynamo_cli.options import (
    DEFAULT_PARAMS,
    FramedAs,
    FramedBy,
    Overrides,
    ParamsFile,
    Policy,
    Prepared,
    say,
)


def probe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="variance or entropy.")],
    out: Annotated[Path | None, typer.Argument(help="Folder for what is measured.")] = None,
    policy: Policy = None,
    model: FramedAs = None,
    template: FramedBy = None,
    data: Prepared = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
) -> None:
    """Measure on a trained policy what the theory takes for granted.

    variance: whether the variance of a problem's gradient follows its success rate, and that of a
    step's gradient under each allocation. entropy: whether the first-order formula tells how an
    update changes the entropy of each token.
    """
    from dynamo_cli.progress import progress
    from pipelines import probe as stage

    stage.find(name)
    subject = chosen(params, overrides, policy, model, template, data)
    home = Path(subject["params"].paths.adhoc) / "probes"
    folder = out or home / f"{stage.run_name(subject['policy'])}-{name}"
    with progress(f"probe {name}") as advance:
        tables = stage.run(name, **subject, out=folder, report=advance)
    from rich.console import Console

    from dynamo_cli.reporting import probing

    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in probing.shown(name, tables):
        console.print(table)
    typer.echo(f"{folder}: {', '.join(f'{stem}.csv' for stem in tables)}, summary.json")


def chosen(
    file: Path,
    overrides: list[str] | None,
    policy: Path | None,
    model: str | None,
    template: str | None,
    data: Path | None,
) -> dict[str, Any]:
    """Parameters, policy, template and problems, with every default filled in."""
    from dynamo_cli.config import load_params
    from dynamo_cli.errors import DynamoError
    from pipelines import eval as evaluating

    loaded = load_params(file, overrides or ())
    if policy is not None and not policy.is_dir():
        raise DynamoError(f"{policy}: no such folder; give a model folder, or leave --policy out")
    folder = policy or evaluating.default_policy(loaded, say)
    return {
        "params": loaded,
        "policy": folder,
        "template": evaluating.template_for(folder, template, model, loaded),
        "problems": (data or Path(loaded.paths.pools)) / f"{loaded.training.dataset}.jsonl",
    }
