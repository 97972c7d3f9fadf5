"""Exact minimiser of sum s^2 / n over bounded integers n of a given sum. N = problems."""

import numpy as np


def integer_optimum(s: np.ndarray, *, budget: int, low: int, high: int) -> np.ndarray:
    """[N] int64 counts that minimise sum s^2 / n, with low <= n <= high and sum n = budget.

    The (n+1)-th rollout of a problem gains s^2 / (n (n + 1)), less than its n-th: so giving each
    rollout to the largest gain is optimal, and the optimum is the `budget` units of largest gain.
    Equal gains go to the lower index. Problems with s = 0 stay at `low` until all others are at
    `high`; then they share what is left as equally as possible.
    s: [N], >= 0. Raises ValueError for negative or infinite s, low < 1 and infeasible budgets.
    """
    s = np.asarray(s, dtype=np.float64)
    square = s * s
    if low < 1 or not np.isfinite(square).all() or (s < 0).any():
        raise ValueError(f"needs low >= 1 and finite s >= 0, got low {low} and s {s}")
    require_feasible(len(s), budget=budget, low=low, high=high)
    counts = np.full(len(s), low, dtype=np.int64)
    varies = np.flatnonzero(square > 0)
    fixed = np.flatnonzero(square == 0)
    left = budget - low * len(s)
    given = min(left, (high - low) * len(varies))
    if given:
        counts[varies] = _largest_gains(square[varies], given, low=low, high=high)
    counts[fixed] += level(len(fixed), left - given)
    return counts


def sampling_variance(s: np.ndarray, counts: np.ndarray) -> float:
    """sum s^2 / n: N^2 times the variance of the mean over problems of their rollouts' means."""
    return float((np.square(s) / counts).sum())


def level(size: int, budget: int) -> np.ndarray:
    """[size] int64 as equal as possible with sum `budget`; the first ones get the remainder."""
    if size == 0:
        return np.zeros(0, np.int64)
    share, rest = divmod(int(budget), size)
    return share + (np.arange(size) < rest).astype(np.int64)


def require_feasible(size: int, *, budget: int, low: int, high: int) -> None:
    """Raise ValueError where no counts in [low, high] of `size` problems sum to `budget`."""
    if not low * size <= budget <= high * size:
        raise ValueError(
            f"{budget} rollouts do not fit {size} problems with {low} to {high} each "
            f"({low * size} to {high * size})"
        )


def _largest_gains(square: np.ndarray, budget: int, *, low: int, high: int) -> np.ndarray:
    """[N] counts after `budget` units above `low`, each for the largest gain; square > 0.

    Bisection brackets the gain of the last unit until few units lie between the two ends; those
    are listed, and the best of them taken. Gains are compared in one expression throughout, so
    that rounding cannot break a tie in favour of a higher index.
    """
    root = np.sqrt(square)

    def counts_at(rate: float) -> np.ndarray:
        # Units with a gain of at least 1 / rate^2: n (n - 1) <= (rate s)^2.
        n = np.minimum(root * rate, 2.0 * high)  # enough for `high`, and its square is finite
        np.multiply(n, n, out=n)
        n += 0.25
        np.sqrt(n, out=n)
        n += 0.5
        np.floor(n, out=n)
        return np.clip(n, low, high, out=n)

    total = budget + low * len(square)
    few, many = 0.5 * low / root.max(), 2.0 * high / root.min()
    num_few, num_many = low * len(square), high * len(square)
    rate = total / root.sum()
    for step in range(400):
        if num_many - num_few <= len(square) // 4 or many <= few * (1 + 1e-12):
            break
        num = int(counts_at(rate).sum())
        if num <= total:
            few, num_few = rate, num
        if num >= total:
            many, num_many = rate, num
        share = (total - num_few) / max(1, num_many - num_few)
        # Interpolation is quick, halving the exponent is sure: take turns.
        rate = few + share * (many - few) if step % 2 == 0 else np.sqrt(few * many)
        if not few < rate < many:
            rate = np.sqrt(few * many)
    counts = counts_at(few * (1 - 1e-9)).astype(np.int64)
    spare = counts_at(many * (1 + 1e-9)).astype(np.int64) - counts
    return counts + _take(square, counts, spare, total - int(counts.sum()))


def _take(square: np.ndarray, counts: np.ndarray, spare: np.ndarray, budget: int) -> np.ndarray:
    """[N] how many of its `spare` next units each problem gets: the `budget` of largest gain."""
    owner = np.repeat(np.arange(len(square)), spare)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(spare) - spare, spare)
    n = counts[owner] + nth
    gain = square[owner] / (n * (n + 1))
    if budget == 0:
        return np.zeros_like(counts)
    border = np.partition(gain, len(gain) - budget)[len(gain) - budget]
    taken = gain > border
    tied = np.flatnonzero(gain == border)
    taken[tied[: budget - int(taken.sum())]] = True
    return np.bincount(owner[taken], minlength=len(square))
