"""Command `trace`: from a table's cell to the parameters, data and code that made it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dynamo_cli.config import Params, pick, unknown
from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting import tracing
from dynamo_cli.reporting.names import BASE, display_name
from dynamo_cli.reporting.results import Cell, read_scores


def run(
    name: str,
    *,
    params: Params,
    row: str,
    column: str | None,
    model: str | None,
    report: Path | None,
) -> dict[str, Any]:
    """All that is known of a cell: `cell`, its `sources` by seed, and the `changes` since.

    Raises DynamoError for a table, row, column or model that is not there.
    """
    file = (report or Path(params.paths.report)) / f"{name}.csv"
    table = read_table(file)
    model = model or params.grid.models[0]
    pick(params.models, model, "models")
    rows = table[table.model == model]
    method = named(row, list(rows.method.unique()), f"{file}, {model}")
    suite = None
    if column is not None:
        suite = named(column, list(rows.suite.unique()), f"{file}, {model}")
    cells = [Cell(model, method, seed) for seed in ([0] if method == BASE else params.seeds)]
    evals = Path(params.paths.evals)
    now = standing(params, model, method)
    paths = params.paths
    places = {suite: f"{paths.suites}/{suite}.jsonl" for suite in params.grid.suites}
    places["problems"] = f"{paths.pools}/{params.training.dataset}.jsonl"
    sources = [
        tracing.trace_cell(cell, evals, suite=suite, now=now, places=places) for cell in cells
    ]
    values = tracing.values(rows, model=model, method=method, suite=suite)
    wrong = tracing.follows(values, [read_scores(evals / cell.name)[0] for cell in cells])
    return {
        "cell": {
            "table": name,
            "model": model,
            "method": method,
            "suite": suite,
            "values": values,
            "source": f"as in {file}, and as the scores give it now" if not wrong else str(file),
        },
        "sources": sources,
        "changes": [*wrong, *tracing.changes(sources)],
    }


def read_table(file: Path) -> pd.DataFrame:
    """A table's CSV. Raises DynamoError where it is missing, or its rows are no methods."""
    if not file.is_file():
        known = [path.stem for path in sorted(file.parent.glob("*.md"))]
        told = unknown(file.stem, known, str(file.parent)) if known else "nothing is there"
        raise DynamoError(f"{file}: no such table, {told}; run `dynamo table {file.stem}`")
    table = pd.read_csv(file)
    missing = [name for name in ("model", "method", "suite", "metric") if name not in table]
    if missing:
        raise DynamoError(f"{file}: its cells are no scores (no column {', '.join(missing)})")
    return table


def named(name: str, known: Sequence[str], place: str) -> str:
    """A row or column by its name in the parameters or in the table."""
    shown = {display_name(each): each for each in known}
    if name in known or name in shown:
        return name if name in known else shown[name]
    raise DynamoError(f"{place}: no {name!r}, {unknown(name, known, 'the table')}")


def standing(params: Params, model: str, method: str) -> Mapping[str, Any]:
    """The parameters of a cell as they stand, by the names in manifests."""
    training = params.training
    return {
        "evaluation": params.evaluation.model_dump(),
        "model": params.models[model].model_dump(),
        "method": params.methods[method].model_dump() if method in params.methods else None,
        "training": training.model_dump(),
        "sampler": params.engines[training.sampler].model_dump(),
        "compute": params.compute.model_dump(),
    }
