"""The correction for sampler and trainer within an update, and what the metrics say of the gap."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from rank_cases import METHODS, TELLING, fresh_model, some_rollouts
from simulated_ranks import on_ranks
from test_learner import Recorder

from dynamo_cli.methods.off_policy import OffPolicy
from dynamo_cli.pretraining import build_tokenizer
from dynamo_cli.train.learner import Learner
from dynamo_cli.train.metrics import gap_metrics

CORRECTION = OffPolicy(kind="truncated", cap=1.5)


def learn(method, rollouts, *, off_policy, room=10_000):
    """Gradient and metrics of a step whose old log-probabilities are the trainer's."""
    engine = Recorder(fresh_model(), build_tokenizer(), TELLING, temperature=1.0)
    learner = Learner(
        method,
        engine,
        seed=1,
        updates_per_step=1,
        tokens_per_microbatch=room,
        pad_token=0,
        old_scores="trainer",
        off_policy=off_policy,
    )
    metrics = learner.learn(0, rollouts)
    return engine.gradient, metrics, learner


def sampled_elsewhere(method, *, gap):
    """Rollouts whose sampler found each token less likely than the trainer does, by gap(number)."""
    rollouts = some_rollouts()
    scores = learn(method, rollouts, off_policy=None)[2].score(rollouts)
    moved = []
    for row, rollout in enumerate(rollouts):
        logp = [
            scores.logp[row, t].item() - gap(31 * row + t)
            for t in range(len(rollout.completion.tokens))
        ]
        completion = dataclasses.replace(rollout.completion, logp=tuple(logp))
        moved.append(dataclasses.replace(rollout, completion=completion))
    return moved


def uneven(number):
    return float(np.random.default_rng(number).normal(scale=0.5))


@pytest.mark.parametrize("name", METHODS)
def test_a_corrected_step_does_not_depend_on_splits_or_order(name, params):
    method = params.methods[name]
    rollouts = sampled_elsewhere(method, gap=uneven)
    whole, metrics, _ = learn(method, rollouts, off_policy=CORRECTION)
    plain, _, _ = learn(method, rollouts, off_policy=None)
    assert (whole - plain).norm() > 0.01 * plain.norm(), "the correction does something"
    shuffled = [rollouts[i] for i in np.random.default_rng(3).permutation(len(rollouts))]
    for others, room in ((rollouts, 1), (rollouts, 40), (shuffled, 25)):
        gradient, found, _ = learn(method, others, off_policy=CORRECTION, room=room)
        assert (gradient - whole).norm() <= 1e-5 * whole.norm()
        assert found == pytest.approx(metrics, rel=1e-5, abs=1e-6)


def test_an_even_gap_scales_the_gradient_by_its_ratio_until_the_cap(params):
    method = params.methods["grpo"]
    plain, _, _ = learn(method, some_rollouts(), off_policy=None)
    for gap, factor in ((math.log(1.25), 1.25), (-math.log(2), 0.5), (math.log(3), 1.5)):
        rollouts = sampled_elsewhere(method, gap=lambda _, gap=gap: gap)
        gradient, metrics, _ = learn(method, rollouts, off_policy=CORRECTION)
        assert (gradient - factor * plain).norm() <= 1e-5 * plain.norm()
        assert metrics["importance"] == pytest.approx(factor, rel=1e-5)
        assert metrics["importance_cut"] == (factor == 1.5)
        assert metrics["sampler_gap_max"] == pytest.approx(abs(gap), rel=1e-5)


def test_where_both_agree_a_correction_moves_no_bit(params):
    method = params.methods["dynamo"]
    rollouts = sampled_elsewhere(method, gap=lambda _: 0.0)
    plain, expected, _ = learn(method, rollouts, off_policy=None)
    gradient, metrics, _ = learn(method, rollouts, off_policy=CORRECTION)
    assert torch.equal(gradient, plain)
    assert metrics == expected | {"importance": 1.0, "importance_cut": 0.0}


def test_gaps_of_all_ranks_are_one_number():
    sampled = torch.tensor([-1.0, -2.0, -0.5, -3.0])
    logp = sampled + torch.tensor([0.1, -0.7, 0.0, 2.0])
    whole = gap_metrics(sampled, logp, CORRECTION)
    # Weights e^0.1, e^-0.7, 1, and 1.5 in place of e^2.
    assert whole["importance"] == pytest.approx((math.exp(0.1) + math.exp(-0.7) + 1 + 1.5) / 4)
    assert whole["importance_cut"] == 0.25
    assert whole["sampler_gap_max"] == pytest.approx(2.0)
    for cut in (0, 1, 4):
        halves = (slice(None, cut), slice(cut, None))

        def work(number, collective, halves=halves):
            part = halves[number]
            return gap_metrics(sampled[part], logp[part], CORRECTION, collective)

        for found in on_ranks(2, work):
            assert found == pytest.approx(whole)
