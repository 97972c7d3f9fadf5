import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_cli.evaluation.passk import pass_at_k, problem_scores

counts = st.integers(1, 40).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))
)


def test_pass_at_k_equals_enumeration_of_all_draws():
    for n in range(1, 8):
        for correct in range(n + 1):
            samples = [True] * correct + [False] * (n - correct)
            for k in range(1, n + 1):
                draws = [any(draw) for draw in itertools.combinations(samples, k)]
                assert pass_at_k(correct, n, k) == float(Fraction(sum(draws), len(draws)))


def test_one_right_of_four_is_certain_when_all_four_are_drawn():
    # Drawing with replacement would give 1 - (3/4)^4 = 0.684.
    assert pass_at_k(1, 4, 4) == 1.0


@given(counts)
def test_pass_at_one_is_the_share_of_right_samples(case):
    correct, total, _ = case
    assert pass_at_k(correct, total, 1) == correct / total


@given(counts)
def test_all_samples_drawn_leave_no_chance(case):
    correct, total, _ = case
    assert pass_at_k(correct, total, total) == float(correct > 0)


@given(counts)
def test_pass_at_k_grows_with_k_and_with_right_samples(case):
    correct, total, k = case
    value = pass_at_k(correct, total, k)
    assert 0 <= value <= 1
    assert k == total or value <= pass_at_k(correct, total, k + 1)
    assert correct == total or value <= pass_at_k(correct + 1, total, k)


@given(st.lists(counts, min_size=1, max_size=20))
def test_arrays_give_what_a_product_of_fractions_gives(cases):
    k = min(case[2] for case in cases)
    correct, total = np.array([case[0] for case in cases]), np.array([case[1] for case in cases])
    for value, c, n in zip(pass_at_k(correct, total, k), correct, total, strict=True):
        missed = Fraction(1)
        for i in range(k):
            missed *= Fraction(max(int(n) - int(c) - i, 0), int(n) - i)
        assert value == float(1 - missed)


def test_an_array_keeps_its_shape_and_meets_a_common_total():
    value = pass_at_k(np.array([[0, 1, 2], [2, 1, 0]]), 2, 1)
    assert value.tolist() == [[0, 0.5, 1], [1, 0.5, 0]]
    assert pass_at_k(np.zeros((0,), int), 4, 2).shape == (0,)


def test_huge_counts_stay_exact_where_floats_would_cancel():
    # C(n - 1, k) / C(n, k) = 1 - k / n
    assert pass_at_k(1, 10**6, 10) == 1e-5


@pytest.mark.parametrize(
    ("correct", "total", "k", "message"),
    [
        (1, 4, 5, "pass@5 needs 1 <= k <= 4"),
        (1, 4, 0, "pass@0 needs"),
        (0, 0, 1, "pass@1 needs 1 <= k <= 0"),
        (5, 4, 1, "5 correct of 4"),
        (-1, 4, 1, "-1 correct of 4"),
        (1.0, 4, 1, "whole numbers"),
        (True, 4, 1, "whole numbers"),
        (np.array([1, 5]), 4, 1, "5 correct of 4"),
        (np.array([0.5]), 4, 1, "whole numbers"),
    ],
)
def test_impossible_counts_are_refused(correct, total, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(correct, total, k)


def test_a_problem_with_too_few_graded_samples_is_named():
    with pytest.raises(ValueError, match=r"problem b has 3 graded .* pass@4 \(1 of 2 problems"):
        problem_scores(np.array([1, 3]), np.array([4, 3]), k=4, problem_ids=["a", "b"])


def test_ungraded_samples_are_absent_from_both_counts():
    scores = problem_scores(np.array([1, 1]), np.array([4, 2]), k=1, problem_ids=["a", "b"])
    assert scores.tolist() == [0.25, 0.5]
