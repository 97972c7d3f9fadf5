"""Repeated draws against known variances: of a Bernoulli bandit, of independent gradients."""

from math import comb

import numpy as np
import pytest

from dynamo_cli.probes.bank import Bank
from dynamo_cli.probes.draws import (
    Draws,
    contributions,
    predicted,
    spread,
    step_advantages,
    step_weights,
    values,
)
from dynamo_cli.probes.variance import ADVANTAGES, AGGREGATIONS


def bandit(right: int, total: int) -> Bank:
    """An arm that is right in some of its pulls. Its policy is a sigmoid of one number, whose
    score function is R - p."""
    correct = np.repeat([1.0, 0.0], [right, total - right])
    gradient = (correct - right / total)[:, None].astype(np.float32)
    return Bank(gradient, correct, np.ones(total, np.int64))


def independent(right: int, total: int, *, size: float = 1.0) -> Bank:
    """Rollouts whose gradients are +size or -size, whatever their reward."""
    correct = np.repeat([1.0, 0.0], [right, total - right])
    signs = np.tile([size, -size], total // 2)[:, None].astype(np.float32)
    return Bank(signs, correct, np.ones(total, np.int64))


def binomial_variance(gradient, n: int, p: float) -> float:
    """Variance of a function of the share of right rollouts, summed over all outcomes."""
    chances = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    found = [gradient(k / n) for k in range(n + 1)]
    mean = sum(c * g for c, g in zip(chances, found, strict=True))
    return sum(c * (g - mean) ** 2 for c, g in zip(chances, found, strict=True))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_a_bandit_has_the_variance_of_its_closed_form(p):
    n, bank = 8, bandit(round(1000 * p), 1000)
    # sum (R - mean)(R - p) / n = mean (1 - mean); divided by the std, its root times (n-1)/n.
    forms = {
        "centred": lambda m: m * (1 - m),
        "normalised": lambda m: np.sqrt((n - 1) / n * m * (1 - m)),
    }
    for name, form in forms.items():
        source = np.random.default_rng(3)
        found = spread(bank, n, ADVANTAGES[name], number=20_000, source=source)
        assert found == pytest.approx(n * binomial_variance(form, n, p), rel=0.05)


@pytest.mark.parametrize(
    ("p", "centred", "normalised"), [(0.5, 0.234375, 0.9374714), (0.1, 0.084375, 0.7637794)]
)
def test_independent_gradients_have_the_second_moment_of_their_advantages(p, centred, normalised):
    """(n-1)/n p(1-p), and divided by the std (n-1)/n (1 - p^n - (1-p)^n), at n = 16."""
    bank = independent(round(2000 * p), 2000)
    for name, expected in (("centred", centred), ("normalised", normalised)):
        source = np.random.default_rng(5)
        found = spread(bank, 16, ADVANTAGES[name], number=20_000, source=source)
        assert found == pytest.approx(expected, rel=0.05)


def test_draws_from_a_small_bank_are_mended_for_its_size():
    """The spread of a mean drawn from M values is (M - 1) / M of theirs, on average."""
    source, found = np.random.default_rng(0), []
    for _ in range(400):
        x = source.normal(size=(6, 1)).astype(np.float32)
        bank = Bank(x, np.ones(6), np.ones(6, np.int64))
        counts = np.array([4])
        taken = Draws.of([bank], 4, 200, source).taken(counts)
        found.append(contributions([bank], taken, counts, np.full(taken.shape, 0.25))[0])
    assert np.mean(found) == pytest.approx(1 / 4, abs=4 * np.std(found) / np.sqrt(400))


def test_contributions_add_up_to_the_trace_of_the_covariance():
    source = np.random.default_rng(1)
    banks = [
        Bank(
            source.normal(size=(9, 5)).astype(np.float32),
            source.integers(2, size=9).astype(float),
            source.integers(1, 8, size=9),
        )
        for _ in range(3)
    ]
    counts = np.array([2, 5, 3])
    taken = Draws.of(banks, 5, 50, source).taken(counts)
    coefficient = source.normal(size=taken.shape)
    owner = np.repeat(np.arange(3), counts)
    steps = np.zeros((50, 5))
    for row in range(50):
        for column in range(10):
            gradient = banks[owner[column]].gradient[taken[row, column]]
            steps[row] += coefficient[row, column] * gradient
    expected = np.cov(steps.T).trace() * 9 / 8
    assert contributions(banks, taken, counts, coefficient).sum() == pytest.approx(expected)


def test_allocations_share_their_draws():
    banks = [independent(5, 10), independent(2, 10)]
    draws = Draws.of(banks, 4, 7, np.random.default_rng(2))
    few, many = draws.taken(np.array([1, 2])), draws.taken(np.array([3, 4]))
    np.testing.assert_array_equal(few, many[:, [0, 3, 4]])


def test_advantages_stay_within_a_problem_of_a_draw():
    correct = np.array([[1.0, 0, 1, 1], [0, 0, 1, 0]])
    found = step_advantages(correct, np.array([2, 2]), ADVANTAGES["centred"])
    np.testing.assert_allclose(found, [[0.5, -0.5, 0, 0], [0, 0, 0.5, -0.5]])


def test_weights_are_those_of_the_aggregation_in_each_draw():
    lengths = np.array([[1, 3, 4], [2, 2, 6]])
    problem = step_weights(lengths, np.array([2, 1]), AGGREGATIONS["problem_mean"])
    np.testing.assert_allclose(problem, [[1 / 8, 1 / 8, 1 / 8], [1 / 8, 1 / 8, 1 / 12]])
    token = step_weights(lengths, np.array([2, 1]), AGGREGATIONS["token_mean"])
    np.testing.assert_allclose(token, [[1 / 8] * 3, [1 / 10] * 3])


def test_predictions_by_hand():
    sigma, counts = np.array([4.0, 1.0]), np.array([3, 1])
    even = np.array([5.0, 5.0])
    found = predicted(sigma, counts, even, pooled=False)
    np.testing.assert_allclose(found, [4 / 3 / 4, 1 / 4])
    found = predicted(sigma, counts, even, pooled=True)
    np.testing.assert_allclose(found, [3 * 4 / 16, 1 / 16])
    found = predicted(sigma, counts, np.array([2.0, 10.0]), pooled=True)
    np.testing.assert_allclose(found, [3 * 4 * 4 / 256, 100 / 256])


def test_favouring_the_noisy_problem_calms_the_problem_mean_and_not_the_token_mean():
    banks = [independent(500, 1000, size=3), independent(500, 1000)]
    found = {}
    for counts in ((16, 16), (24, 8)):
        counts = np.array(counts)
        taken = Draws.of(banks, 24, 6000, np.random.default_rng(4)).taken(counts)
        lengths = values(banks, "length", taken, counts)
        worth = step_advantages(
            values(banks, "correct", taken, counts), counts, ADVANTAGES["centred"]
        )
        for name, aggregation in AGGREGATIONS.items():
            weight = step_weights(lengths[:1], counts, aggregation)  # equal in all draws
            total = contributions(banks, taken, counts, weight * worth).sum()
            found[name, counts[0]] = total
            # The second moment of a centred advantage is p (1 - p) (n - 1) / n.
            sigma = np.array([9.0, 1.0]) / 4 * (counts - 1) / counts
            theory = predicted(sigma, counts, np.ones(2), pooled=name == "token_mean").sum()
            assert total == pytest.approx(theory, rel=0.08)
    assert found["problem_mean", 24] < 0.8 * found["problem_mean", 16]
    assert found["token_mean", 24] > 1.2 * found["token_mean", 16]
