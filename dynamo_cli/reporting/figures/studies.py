"""Scores against what a study changes: the budget, the values of DynaMO, the size of the model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dynamo_cli.errors import DynamoError
from dynamo_cli.evaluation.compare import AVERAGE
from dynamo_cli.reporting.figures.kind import (
    ACCENT,
    COLOURS,
    FULL_WIDTH,
    MARKERS,
    ROUND,
    Kind,
    Sources,
    Varied,
)
from dynamo_cli.reporting.figures.scores import bars, draws_of, intervals, read, rounded
from dynamo_cli.reporting.names import display_name

BUDGET_KEY = "training.rollouts_per_step"
SYMBOLS = {"alpha": r"$\alpha$", "lambda_min": r"$\lambda_{\min}$", "gamma": r"$\gamma$"}
SYMBOLS |= {"tau": r"$\tau$", "low, high": "Bounds of the allocation"}


def read_varied(sources: Sources, study: Varied, *, name: str) -> pd.DataFrame:
    """Pass@1 of the study's cells, with columns for method and variant."""
    if not study.variants:
        raise DynamoError(
            f"studies.{name}.variants is empty, so there is nothing to draw; studies.yaml fills "
            "it: `make repro PARAMS=studies.yaml`"
        )
    cells = {f"{m}-{v}": (m, v) for m in study.methods for v in study.variants}
    results = read(sources, models=study.models, methods=list(cells), seeds=study.seeds)
    rows = intervals(results, sources, ks=[1])
    rows[["method", "variant"]] = [cells[name] for name in rows.method]
    return rows


def gather_budget(sources: Sources) -> pd.DataFrame:
    """Pass@1 of the average over suites, for each budget, the one in use among them."""
    study = sources.budget
    varied = read_varied(sources, study, name="budget")
    budgets = {name: values.get(BUDGET_KEY) for name, values in study.variants.items()}
    unset = [name for name, budget in budgets.items() if budget is None]
    if unset:
        raise DynamoError(f"variants.{unset[0]} does not set {BUDGET_KEY}")
    varied["rollouts"] = varied.variant.map(budgets)
    usual = read(sources, models=study.models, methods=study.methods, seeds=study.seeds)
    plain = intervals(usual, sources, ks=[1])
    plain = plain.assign(variant="", rollouts=sources.in_use[BUDGET_KEY])
    rows = pd.concat([varied, plain])
    rows = rows[rows.suite == AVERAGE].sort_values(["model", "method", "rollouts"])
    rows.attrs["missing"] = (*varied.attrs["missing"], *usual.missing)
    return rows.reset_index(drop=True)


def paint_budget(data: pd.DataFrame) -> Figure:
    """One panel per model; the methods solid and dashed, budgets evenly spaced."""
    models = list(dict.fromkeys(data.model))
    figure = Figure(figsize=(min(FULL_WIDTH, 1.2 + 2.5 * len(models)), 2.7))
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    budgets = sorted(data.rollouts.unique())
    for axes, model in zip(panels, models, strict=True):
        own = data[data.model == model]
        for number, (method, rows) in enumerate(own.groupby("method", sort=True)):
            dashed = method.endswith("-uniform")
            place = np.searchsorted(budgets, rows.rollouts) + 0.06 * (number - 0.5)
            style = {"linestyle": "--" if dashed else "-", "marker": "s" if dashed else "o"}
            style |= {"color": COLOURS["grpo" if dashed else "dynamo"], "markersize": 4}
            label = "DynaMO, uniform allocation" if dashed else display_name(method)
            bars(axes, place, rows, label=label, **style)
        axes.set_xticks(range(len(budgets)), [f"{budget:g}" for budget in budgets])
        axes.set(xlabel="Rollouts a step", title=model, xlim=(-0.4, len(budgets) - 0.6))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    panels[0].set_ylabel("Pass@1, average (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure


def gather_sensitivity(sources: Sources) -> pd.DataFrame:
    """Pass@1 on the last two suites for each value of each parameter, the one in use among them."""
    study = sources.sensitivity
    rows = read_varied(sources, study, name="sensitivity")
    found = [described(study.variants[name]) for name in rows.variant]
    rows[["parameter", "setting", "order"]] = found
    parts = [rows.assign(in_use=False)]
    usual = read(sources, models=study.models, methods=study.methods, seeds=study.seeds)
    plain = intervals(usual, sources, ks=[1])
    for parameter, setting, order in in_use_points(sources):
        parts.append(
            plain.assign(variant="", parameter=parameter, setting=setting, order=order, in_use=True)
        )
    data = pd.concat(parts, ignore_index=True)
    data = data[data.suite.isin(list(sources.suites)[-2:])]
    data = data.sort_values(["parameter", "suite", "order"], kind="stable", ignore_index=True)
    data.attrs["missing"] = (*rows.attrs["missing"], *usual.missing)
    return data


def described(variant: Mapping[str, Any]) -> tuple[str, str, float]:
    """A variant as a parameter's name, its setting in words, and a number to sort by."""
    leaves = {key.rsplit(".", 1)[1]: value for key, value in variant.items()}
    setting = " to ".join(f"{value:g}" for value in leaves.values())
    values = [float(value) for value in leaves.values()]
    # Of bounds, the width: the narrowest comes first.
    return ", ".join(leaves), setting, values[-1] - values[0] if len(values) > 1 else values[0]


def in_use_points(sources: Sources) -> list[tuple[str, str, float]]:
    """For each parameter that is varied, the setting that params.yaml has."""
    found = {}
    for variant in sources.sensitivity.variants.values():
        name = ", ".join(key.rsplit(".", 1)[1] for key in variant)
        found[name] = described({key: sources.in_use[key] for key in variant})
    return list(found.values())


def paint_sensitivity(data: pd.DataFrame) -> Figure:
    """A panel per parameter, a line per suite; the value in use is the filled mark."""
    parameters = list(dict.fromkeys(sorted(data.parameter, key=panel_order)))
    columns = 3
    height = -(-len(parameters) // columns)
    figure = Figure(figsize=(FULL_WIDTH, 0.4 + 2.0 * height))
    grid = figure.subplots(height, columns, squeeze=False, sharey=True)
    suites = list(dict.fromkeys(data.suite))
    styles = dict(zip(suites, (("o", "-", COLOURS["dynamo"]), ("s", "--", ACCENT)), strict=False))
    for axes, parameter in zip(grid.ravel(), parameters, strict=False):
        own = data[data.parameter == parameter].drop_duplicates(["suite", "setting"])
        order = own.sort_values("order").setting.drop_duplicates().tolist()
        for number, suite in enumerate(suites):
            rows = own[own.suite == suite].sort_values("order")
            place = np.array([order.index(x) for x in rows.setting]) + 0.08 * (number - 0.5)
            marker, line, colour = styles[suite]
            bars(axes, place, rows, label=display_name(suite), color=colour, linestyle=line)
            for spot, row in zip(place, rows.itertuples(), strict=True):
                inside = colour if row.in_use else "white"
                axes.plot(spot, 100 * row.value, marker, color=colour, mfc=inside, markersize=4.5)
        axes.set_xticks(range(len(order)), order)
        axes.set_xlim(-0.5, len(order) - 0.5)
        axes.set_title(SYMBOLS.get(parameter, parameter))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    for axes in grid.ravel()[len(parameters) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("Pass@1 (%)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure


def panel_order(parameter: str) -> tuple[int, str]:
    known = list(SYMBOLS)
    return (known.index(parameter) if parameter in known else len(known), parameter)


def gather_scales(sources: Sources) -> pd.DataFrame:
    """Pass@1 of the average, and the paired difference of the last method to the first."""
    methods = list(sources.methods or ("grpo", "dynamo"))
    models = list(dict.fromkeys([*sources.models, *sources.larger.models]))
    parts, missing = [], []
    for model in models:
        seeds = sources.seeds if model in sources.models else sources.larger.seeds
        try:
            results = read(sources, models=[model], methods=methods, seeds=seeds)
        except DynamoError:
            missing.append(model)
            continue
        missing += results.missing
        rows = intervals(results, sources, ks=[1])
        parts.append(rows[rows.suite == AVERAGE].drop(columns=["suite", "k"]).assign(part="score"))
        if len(results.methods_of(model)) == len(methods):
            one, two = (results.values(model, m, k=1) for m in (methods[-1], methods[0]))
            gap = draws_of(results, model, sources).differences(one, two)[AVERAGE]
            row = {"model": model, "method": methods[-1], "part": "difference"}
            parts.append(
                pd.DataFrame([row | {"value": gap.value, "low": gap.low, "high": gap.high}])
            )
    if not parts:
        raise DynamoError(f"{sources.evals} holds no finished cell of {', '.join(models)}")
    data = rounded(pd.concat(parts, ignore_index=True))
    data.attrs["missing"] = tuple(missing)
    return data


def paint_scales(data: pd.DataFrame) -> Figure:
    """Left, the scores by model; right, how far the second method is from the first."""
    models = list(dict.fromkeys(data.model))
    figure = Figure(figsize=(5.5, 2.7))
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.2, 1]})
    scores = data[data.part == "score"]
    methods = list(dict.fromkeys(scores.method))
    for number, method in enumerate(methods):
        rows = scores[scores.method == method]
        place = np.array([models.index(x) for x in rows.model]) + 0.08 * (number - 0.5)
        line = "--" if method == "grpo" else "-"
        style = {"color": COLOURS.get(method, ACCENT), "marker": MARKERS.get(method, "D")}
        bars(left, place, rows, label=display_name(method), markersize=4, linestyle=line, **style)
    gaps = data[data.part == "difference"]
    place = np.array([models.index(x) for x in gaps.model])
    bars(right, place, gaps, fmt="o", color=COLOURS["dynamo"], markersize=4)
    right.axhline(0, color="#555555", linewidth=0.8)
    left.set(ylabel="Pass@1, average (%)")
    right.set(ylabel="Difference (points)", title="DynaMO less GRPO, paired")
    for axes in (left, right):
        axes.set_xticks(range(len(models)), [name.replace("-", "\n", 1) for name in models])
        axes.set_xlim(-0.4, len(models) - 0.6)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    left.legend(loc="lower right")
    return figure


BUDGET = Kind(
    summary="Pass@1 against the rollouts of a step", gather=gather_budget, paint=paint_budget
)
SENSITIVITY = Kind(
    summary="Pass@1 against each value of DynaMO",
    gather=gather_sensitivity,
    paint=paint_sensitivity,
)
SCALES = Kind(
    summary="DynaMO and GRPO on models of several sizes", gather=gather_scales, paint=paint_scales
)
