"""Stage `table`: scores, or parameters, become a table in Markdown, CSV and LaTeX."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynamo_cli.errors import DynamoError
from dynamo_cli.evaluation.compare import RESAMPLES
from dynamo_cli.records import draft, write_text
from dynamo_cli.reporting import markup, spending, tables
from dynamo_cli.reporting.results import collect
from dynamo_cli.reporting.settings import Listing, settings


@dataclass(frozen=True, slots=True)
class Kind:
    """A table that can be drawn up by name."""

    summary: str
    reference: str | None = None  # the method that the others are compared with
    partial: bool = False  # whether it does with the cells that there are
    base: bool = False  # whether the untrained models have a row
    spending: bool = False  # whether it tells what each run spent


TABLES = {
    "main": Kind("all methods on all benchmarks", reference="grpo", base=True),
    "ablation": Kind("DynaMO without each of its parts", reference="dynamo", partial=True),
    "allocators": Kind(
        "ways of allocating rollouts", reference="allocation-uniform", partial=True, spending=True
    ),
    "settings": Kind("every hyperparameter by method"),
}


def find(name: str) -> Kind:
    """The table of that name. Raises DynamoError listing the known names."""
    if name not in TABLES:
        known = "; ".join(f"{key} ({kind.summary})" for key, kind in TABLES.items())
        raise DynamoError(f"there is no table {name!r}; known tables: {known}")
    return TABLES[name]


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
    runs: Path | None = None,
    probes: Path | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tables.MainTable:
    """Write a table of scores: `<name>.md`, `<name>.csv` and `<name>.tex` in `out`.

    Reads `evals`/<model>-<method>-<seed>/ for each cell, in `main` also `evals`/<model>-base/, for
    what they spent `runs`/<cell>/, and where it is there, `probes`/variance/. The first of `ks` is
    the headline. `seed` draws the resamples.
    """
    kind = find(name)
    results = collect(
        evals,
        models=models,
        methods=methods,
        seeds=seeds,
        suites=suites,
        base=kind.base,
        partial=kind.partial,
    )
    table = tables.main(results, ks=ks, reference=kind.reference, seed=seed, resamples=resamples)
    if kind.spending:
        extra = spending.with_variance(spending.spent(runs, results, seeds), probes)
        notes = (*table.notes, spending.NOTE) if spending.VARIANCE in extra else table.notes
        table = replace(table, extra=extra, notes=notes)
    write(table, name, out)
    return table


def run_settings(
    methods: Mapping[str, Mapping[str, Any]], *, common: Mapping[str, Any], out: Path
) -> Listing:
    """Write the table `settings`, from parameters alone: those of methods, and the common ones."""
    table = settings(methods, common)
    write(table, "settings", out)
    return table


def write(table: tables.MainTable | Listing, name: str, out: Path) -> None:
    """Write a table in its three forms."""
    write_text(out / f"{name}.md", markup.markdown(table))
    write_text(out / f"{name}.tex", markup.latex(table))
    with draft(out / f"{name}.csv") as scratch:
        table.rows.to_csv(scratch, index=False, lineterminator="\n")
