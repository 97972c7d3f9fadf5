"""Stage `table`: the scores of a grid become a table in Markdown, CSV and LaTeX."""

from collections.abc import Sequence
from pathlib import Path

from dynamo_cli.errors import DynamoError
from dynamo_cli.evaluation.compare import RESAMPLES
from dynamo_cli.records import draft, write_text
from dynamo_cli.reporting import markup, tables
from dynamo_cli.reporting.results import collect


def run(
    name: str = "main",
    *,
    models: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    suites: Sequence[str],
    ks: Sequence[int],
    evals: Path,
    out: Path,
    reference: str = "grpo",
    base: bool = True,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tables.MainTable:
    """Write `<name>.md`, `<name>.csv` and `<name>.tex` into `out`. The one table is `main`.

    Reads `evals`/<model>-<method>-<seed>/ for each cell of the grid and, if `base`,
    `evals`/<model>-base/. The first of `ks` is the headline. `seed` draws the resamples.
    """
    if name != "main":
        raise DynamoError(f"there is no table {name!r}; the known table is main")
    results = collect(evals, models=models, methods=methods, seeds=seeds, suites=suites, base=base)
    table = tables.main(results, ks=ks, reference=reference, seed=seed, resamples=resamples)
    write_text(out / f"{name}.md", markup.markdown(table))
    write_text(out / f"{name}.tex", markup.latex(table))
    with draft(out / f"{name}.csv") as scratch:
        table.rows.to_csv(scratch, index=False, lineterminator="\n")
    return table
