"""The gradient's variance: of a step under each allocation, and of a problem by success rate."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting.figures.kind import ACCENT, COLOURS, FULL_WIDTH, OTHERS, Kind, Sources
from dynamo_cli.reporting.figures.scores import rounded
from dynamo_cli.reporting.probing import EQUAL, decimal, read_probe, rule_name

TITLES = {"centred": "Advantage not divided", "normalised": "Advantage divided by its std"}
# Proxies of sigma that are drawn through 0, each with a line of its own.
DRAWN = {
    "sqrt(P)": (r"$\sqrt{P}$", ACCENT, "-"),
    "P": (r"$P$", OTHERS[1], "--"),
    "sqrt(mixed)": (r"$\sqrt{1-p^n-(1-p)^n}$", OTHERS[2], ":"),
}
MEANS = {"problem_mean": "problem mean", "token_mean": "token mean"}
GRID = np.linspace(0, 1, 101)
COLUMNS = ["part", "advantage", "aggregation", "name", "x", "value", "low", "high", "predicted"]


def gather(sources: Sources) -> pd.DataFrame:
    """Variances of a step against equal counts, sigma by success rate, and how proxies fit it."""
    if sources.probes is None:
        raise DynamoError("the figure variance needs the folder of the probes")
    folder = sources.probes / "variance"
    parts = [steps(read_probe(folder, name="variance", table="allocations"))]
    problems = read_probe(folder, name="variance", table="problems")
    proxies = read_probe(folder, name="variance", table="proxies")
    for advantage in TITLES:
        sigma = np.sqrt(problems[advantage].clip(lower=0))
        own = {"part": "problem", "advantage": advantage, "x": problems.rate, "value": sigma}
        parts.append(pd.DataFrame(own).sort_values(["x", "value"]))
        for proxy in DRAWN:
            slope = float(problems[proxy] @ sigma / (problems[proxy] @ problems[proxy]))
            value = slope * curve_of(proxy, size=float(problems["size"].iloc[0]))
            own = {"part": "proxy", "advantage": advantage, "name": proxy}
            parts.append(pd.DataFrame(own | {"x": GRID, "value": value}))
    parts.append(fit(proxies))
    return rounded(pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS))


def curve_of(proxy: str, *, size: float) -> np.ndarray:
    """A proxy over all success rates."""
    if proxy == "sqrt(mixed)":
        return np.sqrt(1 - GRID**size - (1 - GRID) ** size)
    variance = GRID * (1 - GRID)
    return variance if proxy == "P" else np.sqrt(variance)


def steps(allocations: pd.DataFrame) -> pd.DataFrame:
    """The rows of allocations that differ from equal counts, as they are drawn."""
    rows = allocations[~allocations.allocation.isin([EQUAL, "allocation-uniform"])]
    names = {"allocation": "name", "measured": "value"}
    names |= {"measured_low": "low", "measured_high": "high"}
    return rows.rename(columns=names).assign(part="step")


def fit(proxies: pd.DataFrame) -> pd.DataFrame:
    """R^2 of the best line in each proxy, for sigma."""
    rows = proxies[(proxies.target == "std") & (proxies.statistic == "r2")]
    return rows.rename(columns={"proxy": "name"}).assign(part="fit")


def paint(data: pd.DataFrame) -> Figure:
    """Above, allocations by advantage; below, sigma of each problem by success rate."""
    names = list(dict.fromkeys(data.name[data.part == "step"]))
    figure = Figure(figsize=(FULL_WIDTH, 3.1 + 0.17 * len(names)))
    above, below = figure.subplots(
        2, 2, gridspec_kw={"height_ratios": [0.6 + 0.17 * len(names), 1.9]}
    )
    for axes, under, (advantage, title) in zip(above, below, TITLES.items(), strict=True):
        rows = data[data.advantage == advantage]
        draw_steps(axes, rows[rows.part == "step"], names)
        draw_problems(under, rows)
        axes.set_title(title)
    above[1].set_yticklabels([])
    handles, labels = above[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    below[0].set_ylabel(r"Measured $\sigma$ of a problem")
    return figure


def draw_steps(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    """Measured with intervals, predicted beside it, for both means."""
    place = {name: -number for number, name in enumerate(names)}
    looks = {"problem_mean": (COLOURS["dynamo"], "o", 0.16), "token_mean": (ACCENT, "s", -0.2)}
    for mean, (colour, marker, shift) in looks.items():
        own = rows[rows.aggregation == mean]
        y = own.name.map(place) + shift
        value = 100 * own.value
        reach = np.stack([value - 100 * own.low, 100 * own.high - value]).clip(0)
        style = {"color": colour, "markersize": 3.5, "linestyle": "none"}
        axes.errorbar(
            value,
            y,
            xerr=reach,
            fmt=marker,
            elinewidth=0.9,
            label=f"{MEANS[mean]}, measured [95 %]",
            **style,
        )
        axes.plot(
            100 * own.predicted,
            y,
            marker,
            markerfacecolor="white",
            label=f"{MEANS[mean]}, predicted",
            **style,
        )
    axes.axvline(0, color="#999999", linewidth=0.7, linestyle=":")
    axes.set_yticks(list(place.values()), [rule_name(name) for name in names])
    axes.set_ylim(min(place.values()) - 0.6, 0.6)
    axes.set_xlabel("Variance of a step against equal counts (%)")
    axes.grid(True, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(6))


def draw_problems(axes: Axes, rows: pd.DataFrame) -> None:
    """Each problem's sigma by its success rate, under the best multiple of each proxy."""
    problems = rows[rows.part == "problem"]
    axes.plot(problems.x, problems.value, "o", color=COLOURS["dynamo"], markersize=3, alpha=0.6)
    shares = rows[rows.part == "fit"].set_index("name").value
    for proxy, (label, colour, style) in DRAWN.items():
        curve = rows[(rows.part == "proxy") & (rows.name == proxy)]
        label = f"{label}: $R^2$ {decimal(shares[proxy])}"
        axes.plot(curve.x, curve.value, style, color=colour, label=label)
    # Room for the legend above all that is drawn.
    axes.set(xlabel="Success rate", xlim=(-0.03, 1.03), ylim=(0, 1.45 * rows.value.max()))
    axes.legend(loc="upper left", fontsize=7)
    axes.yaxis.set_major_locator(MaxNLocator(5))


VARIANCE = Kind(
    summary="variance of the gradient, by allocation and by success rate",
    gather=gather,
    paint=paint,
)
