import numpy as np
import pandas as pd
import pytest
import torch

from dynamo_cli.probes import estimates
from dynamo_cli.probes.proxies import NORMS, fits, proxies
from dynamo_cli.probes.sketch import Sketch


def repeated(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.repeat(values, weights.astype(int))


@pytest.fixture
def series():
    source = np.random.default_rng(0)
    x = source.integers(6, size=40).astype(float)  # with ties
    y = x + source.normal(size=40).round(1)
    weights = source.integers(3, size=(5, 40)).astype(float)
    return x, y, weights


def test_a_weight_counts_as_that_many_points(series):
    x, y, weights = series
    for row, found in enumerate(estimates.rank_correlation(x, y, weights)):
        own = (pd.Series(repeated(v, weights[row])).rank() for v in (x, y))
        assert found == pytest.approx(np.corrcoef(*own)[0, 1])
    for row, found in enumerate(estimates.explained(x, y, weights)):
        own = (repeated(v, weights[row]) for v in (x, y))
        assert found == pytest.approx(np.corrcoef(*own)[0, 1] ** 2)
    for row, found in enumerate(estimates.same_sign(x - 3, y - 3, weights)):
        a, b = (repeated(v - 3, weights[row]) for v in (x, y))
        counts = (a != 0) & (b != 0)
        assert found == pytest.approx(((a > 0) == (b > 0))[counts].mean())


def test_a_line_through_zero_by_hand():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0])
    # c = 23 / 14; squares left: sum (y - c x)^2 = 41 - 23^2 / 14; about the mean 3: 14.
    expected = 1 - (41 - 23**2 / 14) / 14
    assert estimates.explained_in_proportion(x, y, np.ones((1, 3)))[0] == pytest.approx(expected)


def test_what_does_not_vary_correlates_with_nothing():
    flat = np.ones(5)
    assert np.isnan(estimates.rank_correlation(flat, np.arange(5.0), np.ones((1, 5))))[0]
    assert np.isnan(estimates.same_sign(np.zeros(5), flat, np.ones((1, 5))))[0]


def test_few_clusters_give_no_interval():
    source = np.random.default_rng(0)
    x = np.arange(30.0)
    few = estimates.points_of(x % 9, resamples=50, source=source)
    assert few.shape == (0, 30)
    found = estimates.estimate(estimates.rank_correlation, x, x, few)
    assert found.value == pytest.approx(1) and np.isnan(found.low)
    many = estimates.points_of(x % 10, resamples=50, source=source)
    assert many.shape == (50, 30) and (many.sum(axis=1) == 30).all()
    assert (many[:, :10] == many[:, 10:20]).all()  # whole clusters


def test_an_interval_covers_a_known_correlation():
    source, inside = np.random.default_rng(1), 0
    for _ in range(100):
        x = source.normal(size=60)
        y = 0.6 * x + 0.8 * source.normal(size=60)
        weights = estimates.resampled(60, resamples=200, source=source)
        found = estimates.estimate(estimates.correlation, x, y, weights)
        inside += found.low <= 0.6 <= found.high
    assert 85 <= inside <= 99


def test_proxies_by_hand():
    found = proxies(np.array([8.0, 16.0, 1.0]), np.full(3, 16.0), size=16)
    np.testing.assert_allclose(found["P"], [64 / 240, 0, 15 / 240])
    np.testing.assert_allclose(found["sqrt(P)"] ** 2, found["P"])
    mixed = 1 - (1 / 16) ** 16 - (15 / 16) ** 16
    np.testing.assert_allclose(found["mixed"], [1 - 2 / 2**16, 0, mixed])


@pytest.mark.parametrize(
    ("truth", "target", "best"),
    [("P", "variance", "P"), ("P", "std", "sqrt(P)"), ("mixed", "variance", "mixed")],
)
def test_the_proxy_that_made_the_variance_explains_all_of_it(truth, target, best):
    right = np.arange(2.0, 31, 2)
    candidates = proxies(right, np.full(15, 32.0), size=16)
    weights = estimates.resampled(15, resamples=100, source=np.random.default_rng(0))
    table = fits(candidates | {NORMS: np.ones(15)}, 7 * candidates[truth], weights)
    for statistic in ("r2", "r2_origin"):
        rows = table[(table.target == target) & (table.statistic == statistic)]
        rows = rows.set_index("proxy")
        assert rows.loc[best, "value"] == pytest.approx(1)
        assert rows.loc[best, ["behind", "behind_low", "behind_high"]].tolist() == [0, 0, 0]
        others = rows.drop([best, NORMS])
        assert (others.behind > 0).all() and (others.behind_low > 0).all()


def test_all_functions_of_the_success_rate_rank_problems_alike():
    right = np.arange(1.0, 32)
    candidates = proxies(right, np.full(31, 32.0), size=16)
    sigma = np.random.default_rng(2).random(31)
    table = fits(candidates, sigma, np.ones((1, 31)))
    assert table[table.statistic == "rank"].value.nunique() == 1


def test_a_sketch_keeps_inner_products_on_average():
    source = torch.Generator().manual_seed(0)
    x = {n: torch.randn(2, *s, generator=source) for n, s in (("a", (30, 4)), ("b", (17,)))}
    flat = Sketch(None, seed=0)(x)
    assert flat.shape == (2, 137)
    exact = flat @ flat.T
    found = torch.stack([(s := Sketch(32, seed=seed)(x)) @ s.T for seed in range(600)])
    error = found.std(dim=0) / 600**0.5
    assert ((found.mean(dim=0) - exact).abs() < 4 * error).all()
    bound = 2 * torch.outer(exact.diag(), exact.diag()) / 32
    assert (found.var(dim=0) < 1.15 * bound).all()
    assert torch.equal(Sketch(32, seed=3)(x), Sketch(32, seed=3)(x))
