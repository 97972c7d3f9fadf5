"""Agreement of two series of numbers, with bootstrap intervals over clusters.

n points, each in one of C clusters; R resamples. Every statistic takes weights [R, n], how often
each point counts in each resample, and gives [R] values: all resamples at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
FEWEST = 10  # clusters of which an interval is given: with fewer, resampling shows too little

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Estimate(NamedTuple):
    """A value with the ends of its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


def resampled(clusters: int, *, resamples: int, source: np.random.Generator) -> np.ndarray:
    """[R, C] how often each cluster occurs in each resample of as many, with replacement."""
    drawn = source.integers(clusters, size=(resamples, clusters))
    drawn += clusters * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * clusters)
    return counts.reshape(resamples, clusters).astype(np.float64)


def points_of(labels: np.ndarray, *, resamples: int, source: np.random.Generator) -> np.ndarray:
    """[R, n] weights of points whose clusters, by label, are drawn anew; R = 0 for few clusters."""
    known, index = np.unique(labels, return_inverse=True)
    if len(known) < FEWEST:
        resamples = 0
    return resampled(len(known), resamples=resamples, source=source)[:, index]


def estimate(statistic: Statistic, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Estimate:
    """A statistic of all points with its percentile interval."""
    value = float(statistic(x, y, np.ones((1, len(x))))[0])
    return Estimate(value, *ends(statistic(x, y, weights)))


def ends(found: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled values; those that are not defined are left out."""
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R, n] ranks from 0 among points that count so often; equal values share their mean rank."""
    _, index = np.unique(values, return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(index.max() + 1))
    size = np.add.reduceat(weights[:, order], starts, axis=1)
    return (size.cumsum(axis=1) - (size + 1) / 2)[:, index]


def correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] Pearson's; NaN where one of them does not vary. x, y: [n] or [R, n]."""
    x, y = (_centred(values, weights) for values in (x, y))
    both = (weights * x * y).sum(axis=1)
    size = np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))
    return np.divide(both, size, out=np.full(len(weights), np.nan), where=size > 0)


def rank_correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] Spearman's."""
    return correlation(ranks(x, weights), ranks(y, weights), weights)


def size_correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] Spearman's, of the sizes |x| and |y|."""
    return rank_correlation(np.abs(x), np.abs(y), weights)


def explained(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] share of the variance of y that the best line in x explains: R^2."""
    return correlation(x, y, weights) ** 2


def explained_in_proportion(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] the same for the line y = c x; negative where the mean of y does better than it."""
    square, total = weights @ (x * x), (weights * _centred(y, weights) ** 2).sum(axis=1)
    fine = (square > 0) & (total > 0)
    slope = np.divide(weights @ (x * y), square, out=np.zeros(len(weights)), where=fine)
    left = (weights * np.square(y - slope[:, None] * x)).sum(axis=1)
    return 1 - np.divide(left, total, out=np.full(len(weights), np.nan), where=fine)


def same_sign(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] share of points in which both have the same sign; with a 0 a point does not count."""
    both = weights @ ((x != 0) & (y != 0))
    return np.divide(weights @ (x * y > 0), both, out=np.full(len(weights), np.nan), where=both > 0)


def _centred(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    values = np.broadcast_to(values, weights.shape)
    mean = (weights * values).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
    return values - mean[:, None]
