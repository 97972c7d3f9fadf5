"""How far predicted changes of entropy agree with measured ones.

Rows of tokens come from `entropy.observe`, with a column `step`.
"""

import numpy as np
import pandas as pd

from dynamo_cli.probes.entropy import PREDICTIONS, UPDATES
from dynamo_cli.probes.estimates import (
    estimate,
    points_of,
    rank_correlation,
    same_sign,
    size_correlation,
)
from dynamo_cli.seeding import generator

UNITS = {"token": None, "rollout": ["step", "rollout"], "step": ["step"]}
CONTROL = "entropy"  # of the token before: it tells sizes too, without any formula
STATISTICS = {"rank": rank_correlation, "rank_size": size_correlation, "sign": same_sign}


def agreement_table(tokens: pd.DataFrame, *, most: int, resamples: int, seed: int) -> pd.DataFrame:
    """One row per update, unit, prediction and statistic: value, low, high, points.

    Units: the token, and the means over tokens of a rollout and of a step. statistic: Spearman's
    `rank` correlation, that of the changes' sizes (`rank_size`, which is what a stabilisation
    reads), and the share of equal signs (`sign`). Intervals are bootstrap over problems, of steps
    over steps. At most `most` tokens count, drawn evenly. Tokens that were updated alone have no
    rollout's mean. `entropy` as a prediction is the control: where changes are large because the
    entropy is, a formula must rank sizes better than that.
    """
    rows = []
    for update in UPDATES:
        for unit, keys in UNITS.items():
            if update == "alone" and unit != "token":
                continue
            points = grouped(tokens.dropna(subset=update), keys)
            source = generator(seed, "agreement", update, unit)
            if len(points) > most:
                points = points.iloc[np.sort(source.permutation(len(points))[:most])]
            label = points.step if unit == "step" else points.step * 10**6 + points.problem
            weights = points_of(label.to_numpy(), resamples=resamples, source=source)
            measured = points[update].to_numpy()
            for prediction in told_for(update, unit):
                told = points[prediction].to_numpy()
                for name, statistic in STATISTICS.items():
                    if prediction == CONTROL and name != "rank_size":
                        continue
                    found = estimate(statistic, told, measured, weights)
                    rows.append((update, unit, prediction, name, *found, len(points)))
    columns = ["update", "unit", "prediction", "statistic", "value", "low", "high", "points"]
    return pd.DataFrame(rows, columns=columns)


def told_for(update: str, unit: str) -> list[str]:
    """What predicts an update. A token alone shares its state with nobody; and the sequence mean
    makes the sum over a rollout 0 by its construction, which predicts nothing of rollouts."""
    absent = {"prefix"} if update == "alone" else set()
    absent |= {"sequence_mean"} if unit != "token" else set()
    return [*(name for name in PREDICTIONS if name not in absent), CONTROL]


def grouped(tokens: pd.DataFrame, keys: list[str] | None) -> pd.DataFrame:
    """The tokens, or means over those that share the keys."""
    if keys is None:
        return tokens
    return tokens.groupby(keys, as_index=False).mean()


def summary(tokens: pd.DataFrame, agreement: pd.DataFrame) -> dict:
    """Rank correlation of signed changes by update, unit and prediction; null where undefined."""
    ranks = agreement.query("statistic == 'rank'")
    keys = ranks["update"] + ", " + ranks.unit + ", " + ranks.prediction
    values = [None if np.isnan(value) else round(value, 6) for value in ranks.value]
    return {"tokens": len(tokens), "rank_correlation": dict(zip(keys, values, strict=True))}
