"""Laws of the advantages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from method_cases import GRPO
from pydantic import ValidationError

from dynamo_cli.methods import Method

SIGNS = {"kind": "weighted_signs", "positive_weight": 0.1, "negative_weight": 1.0}


def rule(**changes):
    return Method.model_validate(GRPO | {"advantage": GRPO["advantage"] | changes}).advantage


rewards = st.lists(
    st.tuples(st.floats(-2, 2, width=32), st.integers(0, 3)), min_size=1, max_size=24
)


@pytest.mark.parametrize("scale", ["std", "none"])
@given(rows=rewards)
def test_advantages_of_a_problem_sum_to_zero(scale, rows):
    reward, problem = np.array([r for r, _ in rows]), np.array([p for _, p in rows])
    shaped = rule(scale=scale)(reward, reward, problem)
    for group in np.unique(problem):
        assert abs(shaped[problem == group].sum()) < 1e-9


@given(rows=rewards, random=st.randoms(use_true_random=False))
def test_groups_follow_ids_and_never_positions(rows, random):
    reward, problem = np.array([r for r, _ in rows]), np.array([p for _, p in rows])
    order = np.array(random.sample(range(len(rows)), len(rows)))
    here = rule()(reward, reward, problem)
    there = rule()(reward[order], reward[order], problem[order])
    np.testing.assert_allclose(there, here[order], rtol=1e-9, atol=1e-9)
    names = np.array(["zebra", "ant", "cow", "bee"])[problem]
    np.testing.assert_allclose(rule()(reward, reward, names), here, rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -0.7, 1e-9, 5.3])
@pytest.mark.parametrize("size", [2, 3, 7, 10])
@pytest.mark.parametrize("changes", [{}, {"scale": "none"}, {"eps": 0.0}, {"ddof": 0, "eps": 0.0}])
def test_equal_rewards_give_exactly_zero_also_where_their_mean_is_rounded(value, size, changes):
    reward = np.full(size, value)
    assert rule(**changes)(reward, reward, np.zeros(size)).tolist() == [0.0] * size


@given(rows=rewards)
def test_one_problem_does_not_see_another(rows):
    reward, problem = np.array([r for r, _ in rows]), np.array([p for _, p in rows])
    shaped = rule()(reward, reward, problem)
    for group in np.unique(problem):
        alone = problem == group
        expected = rule()(reward[alone], reward[alone], problem[alone])
        np.testing.assert_allclose(shaped[alone], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("ddof", "length"), [(0, 4.0), (1, 3.0)])
def test_advantages_divided_by_the_std_have_unit_variance(ddof, length):
    reward = np.array([1.0, 0, 0, 0])
    shaped = rule(ddof=ddof, eps=0.0)(reward, reward, np.zeros(4))
    assert (shaped**2).sum() == pytest.approx(length)


def test_the_largest_advantage_of_one_in_n_is_known():
    # 1 of 16 right, ddof 1: (1 - 1/16) / sqrt(1/16) = 15/4.
    reward = (np.arange(16) == 3).astype(float)
    assert rule(eps=0.0)(reward, reward, np.zeros(16)).max() == pytest.approx(3.75)


def test_weighted_signs_read_correctness_and_nothing_else():
    signs = Method.model_validate(GRPO | {"advantage": SIGNS}).advantage
    correct = np.array([True, False, True])
    assert signs(np.array([-3.0, 8.0, 0.0]), correct, np.zeros(3)).tolist() == [0.1, -1.0, 0.1]
    with pytest.raises(ValueError, match="correctness must be 0 or 1"):
        signs(correct, np.array([1, -1, 1]), np.zeros(3))


def test_every_choice_must_be_written_down():
    with pytest.raises(ValidationError, match="Field required"):
        Method.model_validate(GRPO | {"advantage": {"kind": "group_normalised", "ddof": 1}})
