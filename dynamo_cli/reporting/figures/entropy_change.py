"""Changes of entropy: predicted by the first-order formula, and measured after an update."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting.figures.kind import ACCENT, COLOURS, FULL_WIDTH, OTHERS, Kind, Sources
from dynamo_cli.reporting.probing import PREDICTED, decimal, read_probe

SHOWN = 3000  # tokens at most in a panel
TITLES = {"exact": "Exact expectation", "sequence_mean": "Sequence-mean shortcut"}
LOOKS = {
    "exact": (COLOURS["dynamo"], "o", 0.27),
    "sequence_mean": (ACCENT, "s", 0.09),
    "prefix": (OTHERS[1], "^", -0.09),
    "entropy": ("#7f7f7f", "x", -0.27),
}
GROUPS = {
    ("alone", "token"): "token, alone",
    ("plain", "token"): "token, whole step",
    ("plain", "rollout"): "rollout, whole step",
    ("adamw", "token"): "token, AdamW",
    ("adamw", "rollout"): "rollout, AdamW",
}
COLUMNS = ["part", "prediction", "update", "unit", "statistic", "predicted", "measured"]
COLUMNS += ["value", "low", "high"]


def gather(sources: Sources) -> pd.DataFrame:
    """Tokens of the plain update, predicted and measured, and all agreements."""
    if sources.probes is None:
        raise DynamoError("the figure entropy-change needs the folder of the probes")
    folder = sources.probes / "entropy"
    tokens = read_probe(folder, name="entropy", table="tokens")
    agreement = read_probe(folder, name="entropy", table="agreement")
    kept = np.linspace(0, len(tokens) - 1, min(SHOWN, len(tokens))).round().astype(int)
    parts = [agreement.assign(part="agreement")]
    for prediction in TITLES:
        own = {"predicted": tokens[prediction], "measured": tokens["plain"]}
        points = pd.DataFrame(own).iloc[kept]
        parts.append(points.assign(part="token", prediction=prediction, update="plain"))
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def paint(data: pd.DataFrame) -> Figure:
    """Two scatters, exact beside shortcut, and rank correlations by update and unit."""
    figure = Figure(figsize=(FULL_WIDTH, 4.5))
    above, below = figure.subfigures(2, 1, height_ratios=[2.6, 1.9])
    panels = above.subplots(1, 2, sharey=True)
    points = data[data.part == "token"]
    for axes, (prediction, title) in zip(panels, TITLES.items(), strict=True):
        draw_tokens(axes, points[points.prediction == prediction])
        axes.set_title(title)
        write_ranks(axes, agreed(data, prediction))
    panels[0].set_ylabel("Measured change (nats)")
    left, right = below.subplots(1, 2, sharey=True)
    draw_agreement(left, data, statistic="rank", title="Rank correlation of changes")
    draw_agreement(right, data, statistic="rank_size", title="... of their sizes")
    handles, labels = right.get_legend_handles_labels()
    below.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def draw_tokens(axes: Axes, points: pd.DataFrame) -> None:
    """Measured against predicted, on scales that are logarithmic in both directions."""
    style = {"color": COLOURS["dynamo"], "markersize": 2, "alpha": 0.35, "mew": 0}
    axes.plot(points.predicted, points.measured, ".", **style)
    for values, scale, axis in (
        (points.predicted, axes.set_xscale, axes.xaxis),
        (points.measured, axes.set_yscale, axes.yaxis),
    ):
        least, most = powers(values)
        scale("symlog", linthresh=10.0**least)
        marks = np.arange(least, most + 1, max(1, -(-(most - least) // 3)))[1:]
        axis.set_major_locator(FixedLocator([0.0, *(s * 10.0**p for p in marks for s in (-1, 1))]))
        axis.set_minor_locator(NullLocator())
    for line in (axes.axhline, axes.axvline):
        line(0, color="#cccccc", linewidth=0.6, zorder=0)
    axes.set_xlabel("Predicted change (nats)")
    axes.grid(False)


def powers(values: pd.Series) -> tuple[int, int]:
    """Powers of ten that nine tenths of the sizes lie above, and that all lie below."""
    sizes = np.abs(values[values != 0])
    if not len(sizes):
        return 0, 1
    least = int(np.floor(np.log10(np.quantile(sizes, 0.1))))
    return least, max(least + 1, int(np.ceil(np.log10(sizes.max()))))


def agreed(data: pd.DataFrame, prediction: str) -> pd.DataFrame:
    """The agreement of tokens in the plain update, by statistic."""
    rows = data[(data.part == "agreement") & (data.prediction == prediction)]
    return rows[(rows["update"] == "plain") & (rows.unit == "token")].set_index("statistic")


def write_ranks(axes: Axes, rows: pd.DataFrame) -> None:
    """The correlations of the tokens that are drawn."""
    rank, size = (
        f"{decimal(row.value)} [{decimal(row.low)}, {decimal(row.high)}]"
        for row in (rows.loc["rank"], rows.loc["rank_size"])
    )
    text = f"rank {rank}\nof sizes {size}"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=7, bbox=box)


def draw_agreement(axes: Axes, data: pd.DataFrame, *, statistic: str, title: str) -> None:
    """One row per update and unit, one mark with an interval per prediction."""
    rows = data[(data.part == "agreement") & (data.statistic == statistic)]
    for prediction, (colour, marker, shift) in LOOKS.items():
        own = rows[rows.prediction == prediction].set_index(["update", "unit"])
        found = own.reindex(list(GROUPS))
        ends = np.stack([found.value - found.low, found.high - found.value])
        axes.errorbar(
            found.value,
            shift - np.arange(len(found)),
            xerr=np.nan_to_num(ends).clip(0),
            fmt=marker,
            color=colour,
            markersize=3.5,
            elinewidth=0.9,
            linestyle="none",
            label=PREDICTED[prediction],
        )
    axes.axvline(0, color="#999999", linewidth=0.7, linestyle=":")
    axes.set_yticks(-np.arange(len(GROUPS)), list(GROUPS.values()))
    axes.set_xlim(min(-0.15, float(rows.low.min()) - 0.05), 1.05)
    axes.set_title(title)
    axes.grid(True, axis="x")


ENTROPY_CHANGE = Kind(
    summary="predicted and measured change of entropy, exact beside shortcut",
    gather=gather,
    paint=paint,
)
