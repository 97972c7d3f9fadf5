"""What probes measured: read from their folders, and shown in a terminal."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.table import Table as RichTable

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting.markup import MINUS, percent
from dynamo_cli.reporting.names import display_name

EQUAL = "equal"
COLUMNS = {
    "problems": ("problem_id", "rate", "size", "centred", "normalised"),
    "proxies": ("advantage", "target", "statistic", "proxy", "value", "low", "high", "best"),
    "allocations": ("advantage", "aggregation", "allocation", "measured", "measured_low",
                    "measured_high", "predicted", "predicted_low", "predicted_high"),
    "tokens": ("step", "problem", "exact", "sequence_mean", "plain"),
    "agreement": ("update", "unit", "prediction", "statistic", "value", "low", "high"),
}  # fmt: skip
RULES = {
    "P": "by P, rates known",
    "sqrt(P)": "by \N{SQUARE ROOT}P, rates known",
    "mixed": "by mixed, rates known",
    "sqrt(mixed)": "by \N{SQUARE ROOT}mixed, rates known",
    "P x norm": "by \N{SQUARE ROOT}(P norm), both known",
    "measured": "by measured \N{GREEK SMALL LETTER SIGMA}",
}
PREDICTED = {"exact": "exact", "sequence_mean": "shortcut", "prefix": "exact, by state"}
PREDICTED |= {"entropy": "the entropy itself"}
UPDATED = {"alone": "the token alone", "plain": "whole step, plain", "adamw": "whole step, AdamW"}


def read_probe(folder: Path, *, name: str, table: str) -> pd.DataFrame:
    """A table of a probe. Raises DynamoError where it is not there, not complete, or has gaps."""
    file = folder / f"{table}.csv"
    if not (folder / "manifest.json").is_file() or not file.is_file():
        what = "holds no complete probe" if folder.is_dir() else "no such folder"
        raise DynamoError(f"{folder}: {what}; run `dynamo probe {name} {folder}` first")
    rows = pd.read_csv(file)
    missing = [column for column in COLUMNS[table] if column not in rows]
    if missing or rows.empty:
        lacks = f"has no column {', '.join(missing)}" if missing else "holds no rows"
        raise DynamoError(f"{file} {lacks}; run `dynamo probe {name} {folder}` again")
    for column in ("value", "measured", "plain", "rate"):
        if column in COLUMNS[table] and rows[column].isna().all():
            raise DynamoError(
                f"{file}: {column} is no number anywhere; run `dynamo probe {name} {folder}` with "
                "more problems or rollouts"
            )
    return rows


def rule_name(allocation: str) -> str:
    """How an allocation is called in a figure or table."""
    return RULES.get(allocation) or display_name(allocation)


def shown(name: str, tables: Mapping[str, pd.DataFrame]) -> Iterator[RichTable]:
    """What a probe found, for a terminal."""
    if name == "variance":
        yield fits_rich(tables["proxies"])
        yield allocations_rich(tables["allocations"])
    else:
        yield agreement_rich(tables["agreement"])


def fits_rich(proxies: pd.DataFrame) -> RichTable:
    """How each proxy follows sigma, the spread of a problem's gradient, under each advantage."""
    titles = ["rank", "R\N{SUPERSCRIPT TWO} of \N{GREEK SMALL LETTER SIGMA}"]
    titles += ["R\N{SUPERSCRIPT TWO} of \N{GREEK SMALL LETTER SIGMA}\N{SUPERSCRIPT TWO}"]
    wanted = [("std", "rank"), ("std", "r2"), ("variance", "r2")]
    advantages = proxies.advantage.unique()
    grid = table_of("Proxy", [f"{a}: {t} [95 %]" for a in advantages for t in titles])
    rows = proxies.set_index(["advantage", "target", "statistic", "proxy"])
    for proxy in proxies.proxy.unique():
        cells = [
            interval(rows.loc[(advantage, *key, proxy)], "value", decimal)
            for advantage in advantages
            for key in wanted
        ]
        grid.add_row(proxy, *cells)
    return grid


def allocations_rich(allocations: pd.DataFrame) -> RichTable:
    """Variance of a step against equal counts, in percent: measured [95 %], and predicted."""
    rows = allocations[allocations.allocation != EQUAL]
    kinds = list(dict.fromkeys(zip(rows.advantage, rows.aggregation, strict=True)))
    heads = [f"{advantage}, {mean.replace('_', ' ')}" for advantage, mean in kinds]
    grid = table_of("Allocation", [t for h in heads for t in (f"{h} [95 %]", "predicted")])
    indexed = rows.set_index(["advantage", "aggregation", "allocation"])
    for name in rows.allocation.unique():
        cells = []
        for kind in kinds:
            row = indexed.loc[(*kind, name)]
            cells += [interval(row, "measured", signed), signed(row.predicted)]
        grid.add_row(rule_name(name), *cells)
    return grid


def agreement_rich(agreement: pd.DataFrame) -> RichTable:
    """How predicted and measured changes of entropy agree, by update and unit."""
    statistics = {"rank": "rank", "rank_size": "rank of sizes", "sign": "same sign"}
    heads = [f"{title} [95 %]" for title in statistics.values()]
    grid = table_of("Update", ["unit", "predicted", *heads, "points"], words=2)
    rows = agreement.set_index(["update", "unit", "prediction", "statistic"]).sort_index()
    for update, unit, prediction in dict.fromkeys(
        zip(agreement["update"], agreement.unit, agreement.prediction, strict=True)
    ):
        own = rows.loc[(update, unit, prediction)]
        cells = [
            interval(own.loc[key], "value", decimal) if key in own.index else ""
            for key in statistics
        ]
        points = f"{own.points.iloc[0]:.0f}"
        grid.add_row(UPDATED[update], unit, PREDICTED[prediction], *cells, points)
    return grid


def table_of(first: str, others: list[str], *, words: int = 0) -> RichTable:
    """An empty table; `words` columns after the first hold words."""
    grid = RichTable(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate([first, *others]):
        grid.add_column(name, justify="left" if number <= words else "right", no_wrap=True)
    return grid


def interval(row: pd.Series, name: str, write: Callable[[float], str]) -> str:
    """A value with its interval, where it has one."""
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    if pd.isna(row[low]):
        return write(row[name])
    return f"{write(row[name])} [{write(row[low])}, {write(row[high])}]"


def decimal(value: float) -> str:
    """Two decimals with a true minus sign, never a negative zero."""
    return "-" if pd.isna(value) else f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS)


def signed(value: float) -> str:
    """A share in percent, with its sign."""
    return percent(value, sign=True)


def variance_column(folder: Path, cells: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Measured variance of a step against equal counts, in percent, as texts by (model, method).

    Of allocations under the advantage and the mean that these methods have: divided by the std,
    problem mean. Empty where there is no probe; of the model whose policy was probed alone.
    """
    if not (folder / "variance" / "manifest.json").is_file():
        return {}
    rows = read_probe(folder / "variance", name="variance", table="allocations")
    own = rows[(rows.advantage == "normalised") & (rows.aggregation == "problem_mean")]
    probed = json.loads((folder / "variance" / "manifest.json").read_text(encoding="utf-8"))
    model = probed["parameters"]["probes"]["model"]
    texts = {row.allocation: interval(pd.Series(row._asdict()), "measured", signed) for row in
             own.itertuples(index=False)}  # fmt: skip
    return {key: texts[key[1]] for key in cells if key[0] == model and key[1] in texts}
