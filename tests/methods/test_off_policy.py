"""Truncated importance weights between the policy that sampled and the one taken for it."""

from dataclasses import replace

import pytest
import torch
from method_cases import ALL, batch, method, random_step
from pydantic import ValidationError
from torch.testing import assert_close

from dynamo_cli.methods.off_policy import OffPolicy, weighted

CORRECTION = OffPolicy(kind="truncated", cap=2.0)
EVEN = [name for name in ALL if "bonus" not in name and name != "entropy_loss"]


def test_weights_are_ratios_up_to_the_cap():
    half, same, triple, certain = -0.6931471805599453, 0.0, 1.0986122886681098, 90.0
    sampler = torch.tensor([[-1.0, -2.0, -3.0, -100.0, 0.0]], dtype=torch.float64)
    gap = torch.tensor([[half, same, triple, certain, -certain]], dtype=torch.float64)
    found = CORRECTION.weight(sampler + gap, sampler)
    # exp(-20) is the least: further apart, a ratio says nothing.
    expected = torch.tensor([[0.5, 1.0, 2.0, 2.0, 2.061153622438558e-09]], dtype=torch.float64)
    assert_close(found, expected, rtol=1e-12, atol=0)


def test_weights_carry_no_gradient():
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    assert not CORRECTION.weight(logp, torch.tensor([-1.5, -1.5])).requires_grad


@pytest.mark.parametrize("cap", [0.0, 0.5, -1.0])
def test_a_cap_below_one_would_lower_what_agrees_and_is_refused(cap):
    with pytest.raises(ValidationError, match="cap"):
        OffPolicy(kind="truncated", cap=cap)


@pytest.mark.parametrize("name", EVEN)
def test_the_loss_of_every_objective_is_multiplied_clipped_or_not(name):
    rule = method(name)
    planned, _ = rule.plan(random_step(21), salt=4)
    random = torch.Generator().manual_seed(22)
    weight = torch.rand(planned.mask.shape, generator=random).double() + 0.1
    penalised = planned.chosen if "kl_cov" in name else torch.zeros_like(planned.mask)
    loss, found = rule.objective(planned), rule.objective(weighted(planned, weight))
    usual = planned.mask & ~penalised
    assert usual.any()
    assert_close(found[usual], (weight * loss)[usual], rtol=1e-12, atol=0)
    # On penalised tokens the surrogate alone is multiplied.
    penalty = loss - rule.objective(replace(planned, chosen=torch.zeros_like(planned.chosen)))
    expected = weight * (loss - penalty) + penalty
    assert_close(found[penalised], expected[penalised], rtol=1e-12, atol=1e-15)


def test_an_entropy_bonus_keeps_its_weight():
    rule = method("dynamo_entropy_bonus").objective
    tokens = batch([[True, True]], entropy=2.0, advantage=[[1.0, -1.0]])
    # ratio 1: loss = -A - 0.1 * 2, and with the weights 0.5 and 2: -w A - 0.2.
    assert_close(rule(tokens), torch.tensor([[-1.2, 0.8]], dtype=torch.float64))
    found = rule(weighted(tokens, torch.tensor([[0.5, 2.0]])))
    assert_close(found, torch.tensor([[-0.7, 1.8]], dtype=torch.float64))
