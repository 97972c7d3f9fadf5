"""Where the uncertainty of a score comes from: problems, sampling, or training seeds.

The bootstrap of `compare` gives one interval for all three; this says which of them more of would
narrow. S training seeds, P problems of a suite, Q suites; score arrays are [S, P].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dynamo_cli.evaluation.compare import AVERAGE, Scores


@dataclass(frozen=True, slots=True)
class Components:
    """Standard errors of a mean score; their squares add up to its variance. NaN: not known."""

    problems: float  # other problems of the same kind
    sampling: float  # other responses of the same policies
    seeds: float  # other training runs


def sampling_variance(correct: np.ndarray, graded: np.ndarray) -> np.ndarray:
    """Unbiased variance of c/n, a problem's share of right responses: c/n (1 - c/n) / (n - 1).

    NaN for n = 1, which says nothing about it.
    """
    share = correct / graded
    return np.where(graded > 1, share * (1 - share) / np.maximum(graded - 1, 1), np.nan)


def components(scores: Scores, noise: Scores) -> dict[str, Components]:
    """The parts for each suite and, under `AVERAGE`, for the mean over suites.

    scores: suite -> [S, P]; noise: the variance of each score that comes from sampling. A score is
    mean + problem + seed + (problem x seed) + sampling, all independent. With m_s the mean of a
    seed, e_sp what is left of a score without its seed's and its problem's mean:

        sampling^2 = mean(noise) / (S P)
        seeds^2    = var_s(m_s) / S - sampling^2              (with the problem x seed part)
        problems^2 = (var_p(problem's mean) - var(e) / S) / P

    Over Q suites the first and last are sums over suites divided by Q^2; a seed's mean is that of
    the average, as its runs are the same in every suite. Estimates below 0 are 0. With one seed
    `seeds` is NaN, and `problems` holds the problem x seed part. (Two-way random effects, e.g.
    Searle, Casella and McCulloch, Variance Components, 1992.)
    """
    of_problems = {name: _of_problems(scores[name], noise[name]) for name in scores}
    of_sampling = {name: float(np.mean(values) / np.size(values)) for name, values in noise.items()}
    means = {name: np.asarray(values).mean(axis=1) for name, values in scores.items()}
    of_problems[AVERAGE] = _pooled(of_problems)
    of_sampling[AVERAGE] = _pooled(of_sampling)
    means[AVERAGE] = np.mean(list(means.values()), axis=0)
    return {
        name: Components(
            problems=of_problems[name] ** 0.5,
            sampling=of_sampling[name] ** 0.5,
            seeds=_of_seeds(means[name], of_sampling[name]) ** 0.5,
        )
        for name in means
    }


def _of_problems(scores: np.ndarray, noise: np.ndarray) -> float:
    """Variance of the mean that comes from which problems were chosen."""
    seeds, problems = scores.shape
    if problems == 1:
        return np.nan
    by_problem = scores.mean(axis=0)
    if seeds == 1:
        left = float(np.mean(noise))
    else:
        rest = scores - by_problem - scores.mean(axis=1, keepdims=True) + scores.mean()
        left = float((rest**2).sum() / ((seeds - 1) * (problems - 1)))
    return max(0.0, float(by_problem.var(ddof=1)) - left / seeds) / problems


def _of_seeds(means: np.ndarray, sampling: float) -> float:
    """Variance of the mean that comes from which training runs were made."""
    if len(means) == 1:
        return np.nan
    return max(0.0, float(means.var(ddof=1)) / len(means) - sampling)


def _pooled(variances: Mapping[str, float]) -> float:
    return sum(variances.values()) / len(variances) ** 2
