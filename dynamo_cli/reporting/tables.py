"""Tables as tidy data: scores, intervals, paired differences, and notes for the reader.

Scores are chances in [0, 1]. How they look in Markdown, LaTeX or a terminal is `markup.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dynamo_cli.errors import DynamoError
from dynamo_cli.evaluation.compare import (
    AVERAGE,
    RESAMPLES,
    Interval,
    Resamples,
    holm,
    interval,
)
from dynamo_cli.evaluation.components import Components, components
from dynamo_cli.reporting.names import display_name, metric_name
from dynamo_cli.reporting.published import published, read_published
from dynamo_cli.reporting.results import BASE, VERDICTS, Results, suite_scores
from dynamo_cli.seeding import generator

CLEAR = "*"  # marks a difference that holds after correction for the number of methods
LEVEL = 0.05
PARTS = ("problems", "sampling", "seeds")  # of a score's uncertainty
DIGITS = 6  # of a score in CSV files; further digits may differ between processors


@dataclass(frozen=True, slots=True)
class MainTable:
    """The numbers of a main table, and what a reader must know about them.

    rows: model, method, suite, metric (pass@k), value, low, high, diff_to_<reference>, diff_low,
    diff_high, p (two-sided, of the paired bootstrap), p_holm (adjusted over the trained methods of
    this model, suite and metric), seeds, problems, samples (graded, the fewest per problem), best
    (its paired interval against the next best excludes 0), published (the paper's number),
    diff_to_published, and for pass@1 se_problems, se_sampling, se_seeds and diff_se_... of the
    same: standard errors by what they come from (`evaluation/components.py`). The suite `average`
    is the mean over suites.
    """

    rows: pd.DataFrame
    reference: str  # the method that differences are taken against
    notes: tuple[str, ...]
    extra: pd.DataFrame | None = None  # texts for more columns, by (model, method)


def main(
    results: Results,
    *,
    ks: Sequence[int],
    reference: str,
    seed: int,
    resamples: int = RESAMPLES,
) -> MainTable:
    """Every method's pass@k with its interval and its paired difference to the reference.

    `seed` draws the resamples, the same ones for all methods of a model. Raises DynamoError where
    the reference is not among the methods, or a problem has too few graded samples.
    """
    for model in results.models:
        if reference not in (known := results.methods_of(model)):
            raise DynamoError(
                f"the table compares with {reference!r}, which is not among"
                f" {', '.join(known)} of {model}; add it to the methods, or finish its cells"
            )
    rows = [
        row
        for model in results.models
        for row in _block(results, model, ks, reference=reference, seed=seed, resamples=resamples)
    ]
    frame = _rounded(pd.DataFrame(rows))
    return MainTable(frame, reference, _notes(frame, results, reference))


def _block(
    results: Results, model: str, ks: Sequence[int], *, reference: str, seed: int, resamples: int
) -> list[dict]:
    methods = results.methods_of(model)
    scores = {(method, k): results.values(model, method, k=k) for method in methods for k in ks}
    shapes = {suite: values.shape for suite, values in scores[reference, ks[0]].items()}
    draws = Resamples.draw(
        {suite: shape[1] for suite, shape in shapes.items()},
        seeds=max(len(next(iter(values.values()))) for values in scores.values()),
        generator=generator(seed, "resamples", model),
        resamples=resamples,
    )
    means = {key: draws.intervals(values) for key, values in scores.items()}
    best = {k: _best(k, methods, scores, means, draws) for k in ks}
    # Against itself there is nothing to compare, so those cells stay empty.
    gaps = {
        (method, k): draws.differences(scores[method, k], scores[reference, k])
        for method in methods
        for k in ks
        if method != reference
    }
    adjusted = {
        (k, suite): holm(
            {m: own[suite].tail for (m, j), own in gaps.items() if j == k and m != BASE}
        )
        for k in ks
        for suite in means[reference, k]
    }
    rows = []
    for method in methods:
        samples = results.fewest_graded(model, method)
        parts = _parts(results, model, method, reference)
        for k in ks:
            for suite, mean in means[method, k].items():
                gap = gaps[method, k][suite] if method != reference else None
                paper = published(model, method, suite, k)
                rows.append(
                    {"model": model, "method": method, "suite": suite, "metric": f"pass@{k}"}
                    | {"value": mean.value, "low": mean.low, "high": mean.high}
                    | {
                        f"diff_to_{reference}": gap.value if gap else np.nan,
                        "diff_low": gap.low if gap else np.nan,
                        "diff_high": gap.high if gap else np.nan,
                        "p": gap.tail if gap else np.nan,
                        "p_holm": adjusted[k, suite].get(method, np.nan),
                    }
                    | {"seeds": 1 if method == BASE else mean.seeds, "problems": mean.problems}
                    | {"samples": samples[suite], "best": best[k].get(suite) == method}
                    | {
                        "published": np.nan if paper is None else paper,
                        "diff_to_published": np.nan if paper is None else mean.value - paper,
                    }
                    | {name: part[suite] if k == 1 else np.nan for name, part in parts.items()}
                )
    return rows


def _parts(
    results: Results, model: str, method: str, reference: str
) -> dict[str, dict[str, float]]:
    """Columns by suite: the standard errors of Pass@1, and of its difference to the reference."""
    values, noise = results.values(model, method, k=1), results.noise(model, method)
    unknown = dict.fromkeys([*values, AVERAGE], Components(np.nan, np.nan, np.nan))
    found = {"se": components(values, noise), "diff_se": unknown}
    if method not in (reference, BASE):  # the untrained model has no seeds to pair
        theirs, other = results.values(model, reference, k=1), results.noise(model, reference)
        found["diff_se"] = components(
            {suite: values[suite] - theirs[suite] for suite in values},
            {suite: noise[suite] + other[suite] for suite in values},
        )
    return {
        f"{name}_{part}": {suite: getattr(one, part) for suite, one in by_suite.items()}
        for name, by_suite in found.items()
        for part in PARTS
    }


def _best(k: int, methods: Sequence[str], scores: dict, means: dict, draws: Resamples) -> dict:
    """suite -> the method that is best beyond doubt, where there is one.

    Beyond doubt: the paired interval of its lead over the next best excludes 0.
    """
    found = {}
    if len(methods) < 2:
        return found
    for suite in means[methods[0], k]:
        first, second = sorted(methods, key=lambda name: -means[name, k][suite].value)[:2]
        lead = draws.differences(scores[first, k], scores[second, k])[suite]
        if lead.low > 0:
            found[suite] = first
    return found


def eval_table(
    scores: pd.DataFrame,
    *,
    summary: Mapping[str, Any],
    ks: Sequence[int],
    seed: int,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """One policy's scores by suite, and their average where there are several.

    scores: the rows of scores.csv; summary: of the same responses, as in summary.json. Columns:
    suite, problems, samples (responses in all), then for each k pass@k, pass@k_low, pass@k_high
    (95 %, over problems and sampling), then how many responses were ok, wrong, unparsable, timeout,
    error, then extraction_rate, truncation_rate, mean_tokens and tokens_<p> for quantiles of the
    length in percent. The average takes the mean over suites of scores, all responses of the rest.
    """
    suites = list(dict.fromkeys(scores.suite))
    groups = {suite: scores[scores.suite == suite] for suite in suites}
    found = {
        k: interval(
            {suite: suite_scores(rows, k=k)[None] for suite, rows in groups.items()},
            generator=generator(seed, "resamples", "eval"),
            resamples=resamples,
        )
        for k in ks
    }
    if len(suites) > 1:
        groups[AVERAGE] = scores
    rows = []
    for suite, part in groups.items():
        row = {"suite": suite, "problems": len(part), "samples": int(part.samples.sum())}
        for k in ks:
            cell = found[k][suite]
            row |= {f"pass@{k}": cell.value}
            row |= {f"pass@{k}_low": cell.low, f"pass@{k}_high": cell.high}
        row |= {name: int(part[name].sum()) for name in VERDICTS}
        rows.append(row | _rates(summary["all"] if suite == AVERAGE else summary["suites"][suite]))
    return _rounded(pd.DataFrame(rows))


def _rates(facts: Mapping[str, Any]) -> dict[str, float]:
    rates = {name: facts[name] for name in ("extraction_rate", "truncation_rate")}
    tokens = facts["tokens"]
    lengths = {f"tokens_{p}": length for p, length in (tokens["quantiles"] or {}).items()}
    return rates | {"mean_tokens": tokens["mean"]} | lengths


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    floats = frame.select_dtypes("float").columns
    return frame.assign(**(frame[floats].round(DIGITS) + 0.0))  # + 0.0 turns -0.0 into 0.0


def _notes(rows: pd.DataFrame, results: Results, reference: str) -> tuple[str, ...]:
    suites = rows[rows.suite != AVERAGE].drop_duplicates("suite")
    sizes = ", ".join(f"{display_name(row.suite)} {row.problems}" for row in suites.itertuples())
    trained = rows[rows.method != BASE]
    one = Interval(0, 0, 0, seeds=int(trained.seeds.max()), problems=0)
    fewest, most = rows.samples.min(), rows.samples.max()
    samples = str(fewest) if fewest == most else f"{fewest} to {most}"
    notes = [
        f"Cells are Pass@k in percent ({' / '.join(metric_name(m) for m in rows.metric.unique())}),"
        " unbiased, averaged over problems and training seeds; Average counts each suite the same.",
        f"Problems: {sizes}. Graded samples per problem: {samples}. Training seeds: {one.seeds}.",
        f"Brackets are 95 % bootstrap intervals over {one.covers}."
        f" Differences to {display_name(reference)} are paired by problem"
        + (" and seed." if one.seeds > 1 else "."),
        "Bold: the paired 95 % interval of the lead over the next best excludes 0. Each column is"
        " tested by itself, without correction for the number of columns and methods.",
        f"{CLEAR}: the difference to {display_name(reference)} is significant at 5 % after Holm's"
        " correction over the trained methods of a model (paired bootstrap, two-sided).",
    ]
    if rows.published.notna().any():
        notes.append(
            f"Italics: the numbers of {read_published()[0]}, in brackets ours minus these, in"
            " points."
        )
    if (told := _widths(rows)) is not None:
        notes.append(
            f"Where the width comes from: standard errors of the difference of the averages to"
            f" {display_name(reference)} (Pass@1, medians over models and methods): {told}."
        )
    if results.missing:
        notes.append(f"Not there yet, so left out: {', '.join(results.missing)}.")
    unlike = _unlike_settings(results)
    if unlike:
        notes.append(f"Evaluation settings differ between models in: {', '.join(unlike)}.")
    return tuple(notes)


def _widths(rows: pd.DataFrame) -> str | None:
    """The median parts of a difference of averages, in points; None where there are none."""
    names = [f"diff_se_{part}" for part in PARTS]
    known = rows.loc[rows.suite == AVERAGE, names].median().dropna() * 100
    return ", ".join(f"{n.removeprefix('diff_se_')} {v:.2f}" for n, v in known.items()) or None


def _unlike_settings(results: Results) -> list[str]:
    first, *others = results.settings.values()
    keys = sorted({key for settings in (first, *others) for key in settings} - {"settings_hash"})
    return [key for key in keys if any(first.get(key) != other.get(key) for other in others)]
