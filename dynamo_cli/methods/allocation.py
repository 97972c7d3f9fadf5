"""The first slot: how many rollouts each problem of a step gets.

N = problems of the step. `correct` and `total` are what is remembered of each: how many of how
many rollouts were right (fractions where old ones are forgotten). Counts sum to the budget.
"""

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from dynamo_cli.methods.integer_optimum import integer_optimum, level, require_feasible
from dynamo_cli.schema import Section


class Uniform(Section):
    """The same for every problem; what is left over goes one each to the first in order."""

    kind: Literal["uniform"]
    refresh: ClassVar[str] = "step"  # it reads no history; the loop need not know
    forgetting: ClassVar[float] = 1.0

    def __call__(self, correct: np.ndarray, total: np.ndarray, *, budget: int) -> np.ndarray:
        """[N] int64 counts that sum to `budget`."""
        return level(len(total), budget)


class _Bounded(Section):
    """What the allocators that learn from history share."""

    low: int = Field(ge=1)  # a normalised advantage needs at least 2 to tell anything
    high: int = Field(ge=1)
    refresh: Literal["step", "epoch"]  # when new results reach the allocation
    forgetting: float = Field(gt=0, le=1)  # a problem's counts are multiplied by it at each visit

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} exceeds high {self.high}")
        return self


class Variance(_Bounded):
    """Counts that minimise the variance of the step's gradient: min sum s^2 / n, sum n = budget.

    Without bounds and rounding n is proportional to s. The integer problem within [low, high] is
    solved exactly (`integer_optimum`).
    target: what a problem's s^2 stands for. `centred`: the variance p (1 - p) of its reward, which
    matches advantages without division by the std; `normalised`: 1 - p^n - (1-p)^n at the mean
    count n, the chance of a mixed group, which matches advantages divided by it.
    prior: `none` estimates p (1 - p) without bias by k (G - k) / (G (G - 1)) and p by k / G; a
    problem with G < 2 gets the uniform share. `jeffreys` takes the mean under the posterior
    Beta(k + 1/2, G - k + 1/2), also for problems never seen.
    proxy: `sqrt` takes s as the root of the estimate, `identity` as the estimate itself.
    Source: arXiv:2602.19208 (proxy and optimum); bounds, prior and target are ours.
    """

    kind: Literal["variance"]
    proxy: Literal["sqrt", "identity"]
    prior: Literal["none", "jeffreys"]
    target: Literal["centred", "normalised"]

    def __call__(self, correct: np.ndarray, total: np.ndarray, *, budget: int) -> np.ndarray:
        """[N] int64 counts that sum to `budget`; ValueError where the bounds cannot hold it."""
        correct, total = _history(correct, total)
        size, low, high = len(total), self.low, self.high
        require_feasible(size, budget=budget, low=low, high=high)
        known = np.ones(size, bool) if self.prior == "jeffreys" else total >= 2
        share = budget / size if size else 0.0
        spread = self.spread(correct[known], total[known], share=share)
        counts = np.empty(size, np.int64)
        num_new = int((~known).sum())
        # The bounds are integers, so rounding leaves both parts within theirs.
        reserved = round(share * num_new)
        counts[~known] = level(num_new, reserved)
        counts[known] = integer_optimum(spread, budget=budget - reserved, low=low, high=high)
        return counts

    def spread(self, correct: np.ndarray, total: np.ndarray, *, share: float) -> np.ndarray:
        """[N] s, the standard deviation that a problem stands for; `share` is the mean count."""
        correct, total = _history(correct, total)
        if self.target == "centred":
            estimate = bernoulli_variance(correct, total, prior=self.prior)
        else:
            estimate = mixed_group_chance(correct, total, size=share, prior=self.prior)
        return np.sqrt(estimate) if self.proxy == "sqrt" else estimate


def bernoulli_variance(
    correct: np.ndarray, total: np.ndarray, *, prior: Literal["none", "jeffreys"]
) -> np.ndarray:
    """[N] estimate of p (1 - p) from k correct of G.

    `none`: k (G - k) / (G (G - 1)), unbiased, NaN where G < 2; `jeffreys`: its posterior mean
    (k + 1/2)(G - k + 1/2) / ((G + 1)(G + 2)), which is 1/8 for G = 0.
    """
    k, n = _history(correct, total)
    if prior == "jeffreys":
        return (k + 0.5) * (n - k + 0.5) / ((n + 1) * (n + 2))
    n = np.where(n < 2, np.nan, n)
    return k * (n - k) / (n * (n - 1))


def mixed_group_chance(
    correct: np.ndarray, total: np.ndarray, *, size: float, prior: Literal["none", "jeffreys"]
) -> np.ndarray:
    """[N] chance that `size` rollouts are neither all right nor all wrong: 1 - p^n - (1-p)^n.

    `none` puts k / G for p; `jeffreys` takes the mean under Beta(k + 1/2, G - k + 1/2), with
    `size` rounded to an integer.
    """
    k, n = _history(correct, total)
    if prior == "none":
        p = k / np.where(n > 0, n, np.nan)
        return np.maximum(1 - p**size - (1 - p) ** size, 0)
    draws = np.arange(round(size))[:, None]
    right = ((k + 0.5 + draws) / (n + 1 + draws)).prod(axis=0)
    wrong = ((n - k + 0.5 + draws) / (n + 1 + draws)).prod(axis=0)
    return np.maximum(1 - right - wrong, 0)


class ReleasedWaterfill(_Bounded):
    """The rule of the released DynaMO code, for comparison.

    Problems with fewer than max(low, warm) results are brought to that many, all to `low`; the
    rest is shared out in proportion to a priority, cut at `high`, until nothing is left; once no
    priority is left, one each in turn.
    priority `unbiased_variance`: 0 where G < min_seen, else k (G - k) / (G (G - 1))
    + 1e-6 (1 - k/G); `scaled_variance`: 4 (k/G)(1 - k/G), and 1 where G = 0. Both are at least
    `floor`, and `floor` from k/G = `mastery` on.
    Its shares follow a variance, not a standard deviation, and it is not an optimum.
    """

    kind: Literal["released_waterfill"]
    warm: int = Field(ge=0)
    priority: Literal["unbiased_variance", "scaled_variance"]
    mastery: float = Field(ge=0, le=1)
    floor: float = Field(ge=0)
    min_seen: int = Field(ge=2)

    def __call__(self, correct: np.ndarray, total: np.ndarray, *, budget: int) -> np.ndarray:
        """[N] int64 counts that sum to `budget`; ValueError where the bounds cannot hold it."""
        correct, total = _history(correct, total)
        require_feasible(len(total), budget=budget, low=self.low, high=self.high)
        counts = self._warmed(total, budget)
        priority = self.priorities(correct, total)
        while (left := budget - counts.sum()) > 0:
            open_ = (counts < self.high) & (priority > 1e-8)
            if not open_.any():
                return _in_turn(counts, budget=budget, high=self.high)
            claim = np.where(open_, priority, 0)
            counts = np.minimum(counts + _largest_fractions(claim, left), self.high)
        return counts

    def priorities(self, correct: np.ndarray, total: np.ndarray) -> np.ndarray:
        """[N] claim of each problem on what is left above the bounds."""
        k, n = _history(correct, total)
        seen = np.maximum(n, 1e-300)
        accuracy = k / seen
        if self.priority == "scaled_variance":
            claim, new, value = 4 * accuracy * (1 - accuracy), n == 0, 1.0
        else:
            variance = bernoulli_variance(k, np.maximum(n, 2), prior="none")
            claim, new, value = variance + 1e-6 * (1 - accuracy), n < self.min_seen, 0.0
        claim = np.where(accuracy >= self.mastery, self.floor, np.maximum(claim, self.floor))
        return np.where(new, value, claim)

    def _warmed(self, total: np.ndarray, budget: int) -> np.ndarray:
        """[N] counts before anything is shared out by priority."""
        wanted = np.clip(np.ceil(max(self.low, self.warm) - total), 0, self.high).astype(np.int64)
        if wanted.sum() > budget:
            wanted = wanted * budget // wanted.sum()
        counts = np.maximum(wanted, self.low)
        while counts.sum() > budget:
            counts[np.argmax(counts)] -= 1
        return counts


def _history(correct: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    correct, total = np.asarray(correct, np.float64), np.asarray(total, np.float64)
    wrong = ~((correct >= 0) & (correct <= total))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"problem {first}: {correct[first]} correct of {total[first]} rollouts")
    return correct, total


def _largest_fractions(claim: np.ndarray, budget: int) -> np.ndarray:
    """[N] int64: `budget` in proportion to `claim`; units lost to rounding by largest fraction."""
    ideal = claim * (budget / claim.sum())
    share = np.floor(ideal).astype(np.int64)
    first = np.argsort(share - ideal, kind="stable")[: budget - share.sum()]
    share[first] += 1
    return share


def _in_turn(counts: np.ndarray, *, budget: int, high: int) -> np.ndarray:
    """One more to each problem below `high`, in order, again and again, until all is spent."""
    counts = counts.copy()
    while (left := budget - counts.sum()) > 0:
        counts[np.flatnonzero(counts < high)[:left]] += 1
    return counts


Allocation = Annotated[Uniform | Variance | ReleasedWaterfill, Field(discriminator="kind")]
