"""The first-order formula against entropies that were really computed before and after a step."""

import numpy as np
import pytest
import torch
from method_cases import batch, objective

from dynamo_cli.methods.modulation import entropy_change
from dynamo_cli.methods.tokens import score_tokens


def softmax(z):
    weight = np.exp(z - z.max())
    return weight / weight.sum()


def entropy(z):
    pi = softmax(z)
    return -float(pi @ np.log(pi))


def sweep(count):
    random = np.random.default_rng(0)
    for _ in range(count):
        size = int(random.integers(2, 60))
        z = random.normal(size=size) * random.uniform(0.1, 4)
        yield z, int(random.integers(size))


def predicted(z, action, xi=1.0):
    logits = torch.tensor(z)[None]
    scores = score_tokens(logits, torch.eye(len(z), dtype=torch.float64), torch.tensor([action]))
    tokens = batch(
        [[1]],
        logp=scores.logp[None],
        logp_old=scores.logp[None],
        entropy=scores.entropy[None],
        expected_pi_lambda=scores.expected_pi_lambda[None],
        advantage=xi,
    )
    return float(entropy_change(tokens, active=objective().active))


def test_predicted_entropy_change_is_exactly_first_order():
    errors = {1e-3: [], 1e-4: [], 1e-5: []}
    for z, action in sweep(400):
        slope = predicted(z, action)
        direction = -softmax(z)
        direction[action] += 1
        if abs(slope) < 1e-3:
            continue  # the quotient would measure rounding
        for rate, found in errors.items():
            measured = entropy(z + rate * direction) - entropy(z)
            found.append(abs(measured / (rate * slope) - 1))
    medians = [float(np.median(found)) for found in errors.values()]
    assert len(errors[1e-3]) > 300
    # The remainder is of second order: a tenth of the rate, a tenth of the relative error.
    assert medians[0] < 1e-3
    assert medians[0] / medians[1] == pytest.approx(10, rel=0.05)
    assert medians[1] / medians[2] == pytest.approx(10, rel=0.05)


def test_mean_change_on_policy_is_minus_the_covariance_of_advantage_and_pi_lambda():
    random = np.random.default_rng(1)
    for z, _ in sweep(20):
        pi, advantage = softmax(z), random.normal(size=len(z))
        pi_lambda = pi * (np.log(pi) + entropy(z))
        changes = [predicted(z, a, xi=advantage[a]) for a in range(len(z))]
        covariance = pi @ (advantage * pi_lambda) - (pi @ advantage) * (pi @ pi_lambda)
        assert float(pi @ changes) == pytest.approx(-covariance, abs=1e-13)


def test_step_length_in_logits_lies_within_its_bounds():
    for z, action in sweep(300):
        logits = torch.tensor(z)[None].requires_grad_()
        weight = torch.eye(len(z), dtype=torch.float64)
        score_tokens(logits, weight, torch.tensor([action])).logp.sum().backward()
        norm, rest = float(logits.grad.norm()), 1 - softmax(z)[action]
        low, high = rest * np.sqrt(len(z) / (len(z) - 1)), rest * np.sqrt(2)
        assert low * (1 - 1e-9) <= norm <= high * (1 + 1e-9)
