"""Figures from the records of training runs.

Each figure names the file of a run that it reads, selects the columns that it draws (which become
its CSV), and draws them. Figures are built without pyplot, so nothing here has global state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting.names import display_name

STYLE = Path(__file__).with_name("dynamo.mplstyle")
KEYS = ("model", "method", "seed")
FULL_WIDTH = 6.75  # inches: two columns of a paper
# Okabe and Ito's palette, told apart by colour-blind readers; grey for the reference.
COLOURS = {"grpo": "#7f7f7f", "dynamo": "#0072B2"}
OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ACCENT = "#D55E00"
ROUND = [1, 2, 2.5, 5, 10]  # distances between ticks
SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#bcd9ea", "#0072B2"])
PANELS = {
    "reward": "Reward",
    "entropy": "Entropy (nats per token)",
    "grad_norm": "Gradient norm",
    "response_tokens": "Response length (tokens)",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A figure that can be drawn by name."""

    summary: str
    file: str  # of a run folder
    methods: tuple[str, ...]  # whose runs it shows unless others are asked for
    columns: tuple[str, ...]  # that it draws, besides model, method and seed
    paint: Callable[..., Figure]

    def select(self, records: pd.DataFrame) -> pd.DataFrame:
        """The columns that are drawn. Raises DynamoError where the records lack one."""
        missing = [name for name in (*KEYS, *self.columns) if name not in records]
        if missing:
            raise DynamoError(
                f"{self.file} has no column {', '.join(missing)}; run the training stage again"
            )
        return records[[*KEYS, *self.columns]].reset_index(drop=True)

    def draw(self, data: pd.DataFrame, **options: object) -> Figure:
        """The figure in the project's style, whatever the caller's settings are."""
        with matplotlib.style.context(["default", STYLE]):
            return self.paint(data, **options)


def find(name: str) -> Kind:
    """The figure of that name. Raises DynamoError listing the known names."""
    if name not in FIGURES:
        known = "; ".join(f"{key} ({kind.summary})" for key, kind in FIGURES.items())
        raise DynamoError(f"there is no figure {name!r}; known figures: {known}")
    return FIGURES[name]


def save(figure: Figure, path: Path, *, kind: str) -> None:
    """Write a figure as "png" or "svg"; the same figure gives the same bytes."""
    stamp = {"png": {"Software": None}, "svg": {"Date": None}}[kind]
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(path, format=kind, metadata=stamp)


def paint_dynamics(data: pd.DataFrame) -> Figure:
    """Methods over training steps; several models stand side by side.

    One seed: its raw values thin, smoothed ones bold (moving mean of five steps, or of 4 % of a
    long run). Several: the mean of the smoothed seeds, in a band from the lowest to the highest.
    """
    models = list(dict.fromkeys(data.model))
    colours = _colours(data)
    figure, panels, bottom = _dynamics_panels(models)
    for (model, quantity), axes in panels.items():
        for method, runs in data[data.model == model].groupby("method", sort=False):
            _draw_curves(axes, runs[["step", "seed", quantity]], colour=colours[method])
            axes.lines[-1].set_label(display_name(method))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND, integer=True))
    for axes in bottom:
        axes.set_xlabel("Training step")
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure


def _dynamics_panels(models: list[str]) -> tuple[Figure, dict[tuple[str, str], Axes], list[Axes]]:
    """The figure, its panels by model and quantity, and those at the bottom."""
    if len(models) == 1:
        figure = Figure(figsize=(5.5, 3.9))
        grid = figure.subplots(2, 2, sharex=True).ravel()
        for axes, title in zip(grid, PANELS.values(), strict=True):
            axes.set_title(title)
        keys = [(models[0], quantity) for quantity in PANELS]
        return figure, dict(zip(keys, grid, strict=True)), list(grid[2:])
    figure = Figure(figsize=(min(FULL_WIDTH, 1.2 + 2.4 * len(models)), 6.0))
    grid = figure.subplots(len(PANELS), len(models), sharex="col", sharey="row")
    for axes, model in zip(grid[0], models, strict=True):
        axes.set_title(model)
    for axes, title in zip(grid[:, 0], PANELS.values(), strict=True):
        axes.set_ylabel(title.replace(" (", "\n("))
    figure.align_ylabels(grid[:, 0])
    keys = [(model, quantity) for quantity in PANELS for model in models]
    return figure, dict(zip(keys, grid.ravel(), strict=True)), list(grid[-1])


def _colours(data: pd.DataFrame) -> dict[str, str]:
    others = [name for name in dict.fromkeys(data.method) if name not in COLOURS]
    return COLOURS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}


def _draw_curves(axes: Axes, runs: pd.DataFrame, *, colour: str) -> None:
    raw = runs.pivot(index="step", columns="seed").sort_index()
    window = max(min(5, len(raw) // 3), len(raw) // 25, 1)
    smooth = raw.rolling(window, center=True, min_periods=1).mean()
    if raw.shape[1] == 1:
        axes.plot(raw.index, raw, color=colour, linewidth=0.5, alpha=0.35)
    else:
        low, high = smooth.min(axis=1), smooth.max(axis=1)
        axes.fill_between(raw.index, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(raw.index, smooth.mean(axis=1), color=colour)


def paint_allocation(data: pd.DataFrame, *, bounds: tuple[int, int] | None = None) -> Figure:
    """Where rollouts go: by known success rate, by level over training, and how many problems get
    how many. One row of panels per model; problems of all steps, methods and seeds given.

    bounds: fewest and most rollouts that a problem may get; by default the observed ones.
    """
    models = list(dict.fromkeys(data.model))
    figure = Figure(figsize=(FULL_WIDTH, 0.3 + 2.2 * len(models)))
    panels = figure.subplots(
        len(models), 3, squeeze=False, gridspec_kw={"width_ratios": [1.15, 1.15, 1]}
    )
    for (left, middle, right), model in zip(panels, models, strict=True):
        rows = data[data.model == model]
        _draw_by_success_rate(left, rows, bounds)
        _draw_by_level(figure, middle, rows)
        _draw_distribution(right, rows)
    for axes, title in zip(
        panels[0],
        ("By known success rate", "By difficulty", "Distribution"),
        strict=True,
    ):
        axes.set_title(title)
    if len(models) > 1:
        for axes, model in zip(panels[:, 0], models, strict=True):
            axes.set_ylabel(f"{model}\nRollouts")
    return figure


def success_rate(rows: pd.DataFrame) -> pd.Series:
    """Share of right rollouts known before the step; NaN for a problem not seen yet."""
    return rows.correct_before / rows.seen_before.where(rows.seen_before > 0)


def square_root_rule(
    rate: np.ndarray, known: np.ndarray, *, mean: float, bounds: tuple[float, float]
) -> np.ndarray:
    """Rollouts at success rates `rate` under n = clip(c sqrt(p (1 - p)), bounds).

    c is such that problems of the success rates `known` get `mean` rollouts on average: the
    continuous optimum of the summed variance p (1 - p) / n under that budget.
    """

    def rollouts(p: np.ndarray, c: float) -> np.ndarray:
        return np.clip(c * np.sqrt(p * (1 - p)), *bounds)

    low, high = 0.0, 100 * bounds[1]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rollouts(known, middle).mean() < mean else (low, middle)
    return rollouts(rate, (low + high) / 2)


def _draw_by_success_rate(axes: Axes, rows: pd.DataFrame, bounds: tuple[int, int] | None) -> None:
    rate = success_rate(rows)
    known, given = rate.dropna().to_numpy(), rows.rollouts[rate.notna()].to_numpy()
    axes.set(xlabel="Success rate before the step", ylabel="Rollouts", xlim=(-0.03, 1.03))
    if not known.size:
        axes.text(
            0.5,
            0.5,
            "no problem has\ncome up twice",
            ha="center",
            va="center",
            transform=axes.transAxes,
        )
        return
    low, high = bounds or (rows.rollouts.min(), rows.rollouts.max())
    columns, levels = np.linspace(0, 1, 21), np.arange(low, high + 2) - 0.5
    counts, *_ = np.histogram2d(known, given, bins=(columns, levels))
    # The share within each column, so that frequent success rates do not drown the others.
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.pcolormesh(columns, levels, np.sqrt(share).T, cmap=SHADES, vmin=0, vmax=1.2)
    if low < high:
        grid = np.linspace(0, 1, 201)
        rule = square_root_rule(grid, known, mean=given.mean(), bounds=(low, high))
        axes.plot(grid, rule, color=ACCENT, linewidth=1.3)
        # The foot of the arch is empty by nature: medium success rates get the most rollouts.
        label = "optimum\n" + r"$\propto\sqrt{p\,(1-p)}$"
        axes.text(0.5, 0.12, label, color=ACCENT, ha="center", transform=axes.transAxes)
    axes.set_ylim(low - 1, high + 1)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.grid(False)


def _draw_by_level(figure: Figure, axes: Axes, rows: pd.DataFrame) -> None:
    if rows.level.notna().any():
        level, label, blank = rows.level, "Level", "none"
    else:
        # Without levels, fifths of the known success rate; problems not seen yet stand apart.
        level, label, blank = (success_rate(rows) * 4.999) // 1 / 5, "Success rate from", "new"
    steps = np.unique(rows.step)
    edges = np.linspace(steps[0], steps[-1] + 1, min(len(steps), 12) + 1)
    span = np.digitize(rows.step, edges[1:-1])
    means = rows.rollouts.groupby([level, span], dropna=False).mean().unstack()
    means = means.reindex(columns=range(len(edges) - 1))
    heat = axes.pcolormesh(edges, np.arange(len(means) + 1) - 0.5, means, cmap="cividis")
    names = [blank if pd.isna(value) else f"{value:g}" for value in means.index]
    every = -(-len(names) // 10)
    axes.set_yticks(range(0, len(names), every), names[::every])
    axes.set(xlabel="Training step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(False)
    bar = figure.colorbar(heat, ax=axes, pad=0.03, aspect=16)
    bar.outline.set_visible(False)
    bar.ax.set_title("rollouts", fontsize=7, fontweight="normal", pad=3, loc="center")
    bar.locator = MaxNLocator(4)
    bar.update_ticks()


def _draw_distribution(axes: Axes, rows: pd.DataFrame) -> None:
    low, high, mean = rows.rollouts.min(), rows.rollouts.max(), rows.rollouts.mean()
    shares = rows.rollouts.value_counts(normalize=True).reindex(range(low, high + 1), fill_value=0)
    axes.bar(shares.index, 100 * shares, width=0.8, color=COLOURS["dynamo"])
    axes.axvline(mean, color=ACCENT, linewidth=1.3)
    axes.set_ylim(top=115 * shares.max())
    axes.annotate(
        f"uniform: {mean:.3g}",
        (mean, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -1),
        textcoords="offset points",
        va="top",
        color=ACCENT,
    )
    axes.set(xlabel="Rollouts", ylabel="Problems (%)")
    axes.set_xlim(low - 1, high + 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


FIGURES = {
    "dynamics": Kind(
        summary="reward, entropy, gradient norm and response length over training",
        file="metrics.csv",
        methods=("grpo", "dynamo"),
        columns=("step", *PANELS),
        paint=paint_dynamics,
    ),
    "allocation": Kind(
        summary="how DynaMO spreads rollouts over problems",
        file="ledger.parquet",
        methods=("dynamo",),
        columns=(
            "step",
            "epoch",
            "problem_id",
            "level",
            "rollouts",
            "seen_before",
            "correct_before",
        ),
        paint=paint_allocation,
    ),
}
