"""DynaMO at a glance: who gets rollouts, and what a token's advantage is multiplied by."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dynamo_cli.reporting.figures.allocation import square_root_rule, success_rate
from dynamo_cli.reporting.figures.kind import ACCENT, COLOURS, FULL_WIDTH, Kind, Records, Sources

LEDGER = Records("ledger.parquet", ("dynamo",), ("rollouts", "seen_before", "correct_before"))
RECORD = "rollouts.parquet"  # token by token; without rows where training.record is null
SHOWN = 4000  # tokens at most in each panel
FORMULAS = {"compensation": "entropy", "stabilisation": "change"}
COLUMNS = ["part", "x", "value", "low", "high", "count"]


def gather(sources: Sources) -> pd.DataFrame:
    """Of DynaMO's runs on the first model: rollouts by known success rate, and tokens' factors.

    Tokens come from the runs' records; without these, from the method's own functions, which
    `sources.formulas` tabulates.
    """
    model = sources.models[0]
    one = Sources(models=[model], seeds=sources.seeds, runs=sources.runs)
    parts = [allocation(LEDGER(one), sources.bounds)]
    records = [sources.runs / f"{model}-dynamo-{seed}" / RECORD for seed in sources.seeds]
    tokens = pd.concat([factors(path) for path in records if path.is_file()] or [pd.DataFrame()])
    if len(tokens):
        parts += [thinned(own) for _, own in tokens.groupby("part")]
    elif sources.formulas is not None:
        parts.append(sources.formulas)
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def allocation(ledger: pd.DataFrame, bounds: tuple[int, int] | None) -> pd.DataFrame:
    """Rollouts by known success rate in 20 bins: mean, and the 10 % and 90 % quantiles."""
    known = ledger.assign(rate=success_rate(ledger)).dropna(subset="rate")
    place = (known.rate * 20 + 0.5).astype(int) / 20
    rows = known.groupby(place).rollouts.agg(
        value="mean",
        low=lambda x: x.quantile(0.1),
        high=lambda x: x.quantile(0.9),
        count="size",
    )
    rows = rows.rename_axis("x").reset_index().assign(part="rollouts")
    if known.empty:
        return rows
    low, high = bounds or (known.rollouts.min(), known.rollouts.max())
    grid = np.linspace(0, 1, 101)
    rule = square_root_rule(
        grid, known.rate.to_numpy(), mean=known.rollouts.mean(), bounds=(low, high)
    )
    return pd.concat([rows, pd.DataFrame({"part": "optimum", "x": grid, "value": rule})])


def factors(path: Path) -> pd.DataFrame:
    """Recorded tokens: by entropy where the advantage is positive, by its change where negative.

    Compensation touches positive advantages alone, so negative ones show the stabilisation.
    """
    record = pd.read_parquet(
        path, columns=["advantage", *("entropy", "entropy_change"), "modulation"]
    )
    parts = []
    for row in record.itertuples():
        positive = row.advantage > 0
        x = row.entropy if positive else np.abs(row.entropy_change)
        own = pd.DataFrame({"x": x, "value": row.modulation})
        parts.append(own.assign(part="compensated tokens" if positive else "stabilised tokens"))
    return pd.concat(parts, ignore_index=True).dropna() if parts else pd.DataFrame()


def thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """At most SHOWN rows, evenly over the order of x."""
    rows = rows.sort_values(["x", "value"], ignore_index=True)
    kept = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int)
    return rows.iloc[kept].round(6)


def paint(data: pd.DataFrame) -> Figure:
    """Allocation, compensation, stabilisation, side by side."""
    figure = Figure(figsize=(FULL_WIDTH, 2.5))
    left, middle, right = figure.subplots(1, 3)
    draw_allocation(left, data)
    factor = data.value[~data.part.isin(["rollouts", "optimum"])]
    recorded = data.part.str.endswith("tokens").any()
    draw_factors(middle, data, recorded, part="compensat")
    draw_factors(right, data, recorded, part="stabilis")
    middle.set_title("Advantage above 0")
    right.set_title("Advantage below 0")
    middle.set(ylabel="Factor on the advantage")
    for axes in (middle, right):
        axes.set_ylim(min(0.55, 0.95 * factor.min()), max(1.25, 1.05 * factor.max()))
    if recorded:
        middle.set(xlabel="Entropy (nats)")
        right.set(xlabel="Entropy change, size (nats)")
    else:
        middle.set(xlabel="Entropy, within its range")
        right.set(xlabel="Entropy change, of the largest")
        for axes in (middle, right):
            axes.text(
                0.04, 0.06, "formula", transform=axes.transAxes, style="italic", color="#555555"
            )
    return figure


def draw_allocation(axes: Axes, data: pd.DataFrame) -> None:
    rows, rule = data[data.part == "rollouts"], data[data.part == "optimum"]
    axes.set(xlabel="Success rate before the step", ylabel="Rollouts", title="Allocation")
    if rows.empty:
        axes.text(0.5, 0.5, "no problem has\ncome up twice", ha="center", va="center")
        axes.set(xticks=[], yticks=[])
        return
    axes.plot(rule.x, rule.value, "--", color=ACCENT, label=r"optimum $\propto\sqrt{p\,(1-p)}$")
    reach = np.stack([rows.value - rows.low, rows.high - rows.value]).clip(0)
    axes.errorbar(
        rows.x,
        rows.value,
        yerr=reach,
        fmt="o",
        color=COLOURS["dynamo"],
        markersize=3,
        elinewidth=0.8,
        label="given (10 to 90 %)",
    )
    axes.set_xlim(-0.05, 1.05)
    axes.margins(y=0.25)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend(loc="lower center", fontsize=7)


def draw_factors(axes: Axes, data: pd.DataFrame, recorded: bool, *, part: str) -> None:
    rows = data[data.part.str.startswith(part)]
    if recorded:
        axes.plot(rows.x, rows.value, ".", color=COLOURS["dynamo"], markersize=2, alpha=0.35, mew=0)
    else:
        axes.plot(rows.x, rows.value, color=COLOURS["dynamo"])
    axes.axhline(1, color="#999999", linewidth=0.7, linestyle=":")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(4))


OVERVIEW = Kind(
    summary="allocation by success rate, modulation by entropy and its change",
    gather=gather,
    paint=paint,
)
