"""Where the uncertainty of a score comes from, against simulated worlds and by hand."""

import math

import numpy as np
import pytest

from dynamo_cli.evaluation.compare import AVERAGE
from dynamo_cli.evaluation.components import components, sampling_variance


def test_the_sampling_variance_of_a_share_by_hand():
    # 3 right of 4: (3/4)(1/4)/3 = 1/16; one response says nothing
    found = sampling_variance(np.array([3, 0, 1]), np.array([4, 4, 1]))
    assert found[:2].tolist() == [1 / 16, 0.0] and math.isnan(found[2])


def test_seeds_alone_by_hand():
    # Two seeds, one ahead by 0.2 on every problem: var(0.4, 0.6) / 2 = 0.01
    scores = {"a": np.array([[0.4, 0.4, 0.4], [0.6, 0.6, 0.6]])}
    found = components(scores, {"a": np.zeros((2, 3))})["a"]
    assert found.seeds == pytest.approx(0.1)
    assert found.problems == found.sampling == 0


def test_problems_alone_by_hand():
    # Equal seeds; problems 0.2, 0.4, 0.6: variance 0.04 over 3 problems
    scores = {"a": np.tile([0.2, 0.4, 0.6], (2, 1))}
    found = components(scores, {"a": np.zeros((2, 3))})["a"]
    assert found.problems == pytest.approx(math.sqrt(0.04 / 3))
    assert found.seeds == found.sampling == 0


def test_one_seed_tells_nothing_about_seeds():
    found = components({"a": np.array([[0.2, 0.4]])}, {"a": np.full((1, 2), 0.01)})["a"]
    assert math.isnan(found.seeds)
    assert found.problems == pytest.approx(math.sqrt((0.02 - 0.01) / 2))
    assert found.sampling == pytest.approx(math.sqrt(0.01 / 2))


def test_the_parts_are_those_of_a_simulated_world():
    """Mean estimates over 400 worlds with known parts, two suites that share the seeds' effect."""
    source = np.random.default_rng(5)
    seeds, samples, sizes = 4, 16, {"a": 30, "b": 50}
    of_seed, of_problem = 0.03, 0.15
    squares = []
    for _ in range(400):
        shift = source.normal(0, of_seed, (seeds, 1))
        scores, noise = {}, {}
        for name, problems in sizes.items():
            chance = 0.5 + source.normal(0, of_problem, problems) + shift
            correct = source.binomial(samples, chance.clip(0, 1))
            scores[name] = correct / samples
            noise[name] = sampling_variance(correct, np.full(correct.shape, samples))
        found = components(scores, noise)
        squares.append(
            [[p.problems**2, p.sampling**2, p.seeds**2] for p in (found["a"], found[AVERAGE])]
        )
    (problems, sampling, by_seed), (_, _, together) = np.mean(squares, axis=0)
    inside = 0.25 - of_problem**2 - of_seed**2  # E[p(1-p)]
    assert problems == pytest.approx(of_problem**2 / 30, rel=0.05)
    assert sampling == pytest.approx(inside / samples / (30 * seeds), rel=0.02)
    assert by_seed == pytest.approx(of_seed**2 / seeds, rel=0.12)
    assert together == pytest.approx(of_seed**2 / seeds, rel=0.12)
