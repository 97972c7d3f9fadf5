"""Pass@k from counts of correct samples: unbiased and exact."""

import math
from collections.abc import Sequence
from typing import overload

import numpy as np


@overload
def pass_at_k(correct: int, total: int, k: int) -> float: ...
@overload
def pass_at_k(correct: np.ndarray, total: np.ndarray | int, k: int) -> np.ndarray: ...
def pass_at_k(correct, total, k):
    """Chance that k of `total` samples, drawn without replacement, contain a correct one.

    1 - C(total - correct, k) / C(total, k), the unbiased estimate of pass@k (arXiv:2107.03374
    Eq. 1). Counts, or integer arrays of them that broadcast together; arrays give a float64 array.
    Each value is the correctly rounded quotient of two integers, whatever the counts.
    Raises ValueError where k exceeds the samples there are (a smaller k is another metric), or
    where a count is out of range.
    """
    if np.ndim(correct) == np.ndim(total) == 0:
        return _exact(_count(correct), _count(total), _count(k))
    correct, total = np.broadcast_arrays(np.asarray(correct), np.asarray(total))
    for name, counts in (("correct", correct), ("total", total)):
        if not np.issubdtype(counts.dtype, np.integer):
            raise ValueError(f"{name} must hold whole numbers, got an array of {counts.dtype}")
    # Few distinct pairs occur (at most samples + 1 in a suite), so exact arithmetic is cheap.
    pairs, place = np.unique(
        np.stack([correct.ravel(), total.ravel()]), axis=1, return_inverse=True
    )
    values = [_exact(int(c), int(n), _count(k)) for c, n in pairs.T]
    return np.array(values, dtype=np.float64)[place.reshape(-1)].reshape(correct.shape)


def problem_scores(
    correct: np.ndarray, graded: np.ndarray, *, k: int, problem_ids: Sequence[str]
) -> np.ndarray:
    """Pass@k of each problem, [P], from its graded samples.

    Samples that could not be graded (timeout, error) say nothing about the policy, so they are
    absent from both counts. Raises ValueError naming the first problem with fewer than k graded
    samples: leaving it out, or lowering its k, would change the metric unseen.
    """
    short = np.flatnonzero(np.asarray(graded) < k)
    if short.size:
        first = short[0]
        raise ValueError(
            f"problem {problem_ids[first]} has {graded[first]} graded samples, too few for"
            f" pass@{k} ({short.size} of {len(problem_ids)} problems have too few)"
        )
    return pass_at_k(np.asarray(correct), np.asarray(graded), k)


def _count(value: object) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ValueError(f"counts must be whole numbers, got {value!r}")
    return int(value)


def _exact(correct: int, total: int, k: int) -> float:
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} samples")
    if not 1 <= k <= total:
        raise ValueError(f"pass@{k} needs 1 <= k <= {total} samples")
    draws = math.comb(total, k)
    return (draws - math.comb(total - correct, k)) / draws
