"""The law of the plan: a step's loss and gradient do not depend on how its rollouts are laid out.

Every method and every variant of a slot is tried on random steps with ties, an empty rollout and
a rollout whose advantages are all 0, in float64.
"""

from dataclasses import replace

import pytest
import torch
from method_cases import ALL, METHODS, method, poisoned, random_step
from simulated_ranks import on_ranks
from torch.testing import assert_close

from dynamo_cli.methods.collective import LOCAL
from dynamo_cli.methods.tokens import join

everything = pytest.mark.parametrize("name", ALL)
SIZES = ([12], [5, 7], [1, 4, 0, 3, 4], [1] * 12)


def gradients(rule, planned, weight):
    """Loss, and its gradients in logp and entropy, of some rows of a plan."""
    logp, entropy = (x.clone().requires_grad_() for x in (planned.logp, planned.entropy))
    loss = rule.loss(replace(planned, logp=logp, entropy=entropy), weight)
    found = torch.autograd.grad(loss, (logp, entropy), allow_unused=True, materialize_grads=True)
    return loss.detach(), *found


def whole(rule, tokens):
    planned, weight = rule.plan(tokens, salt=4)
    return planned, weight, gradients(rule, planned, weight)


def assert_same_plan(planned, weight, expected, expected_weight):
    assert torch.equal(planned.key, expected.key)
    assert torch.equal(planned.mask, expected.mask)
    assert torch.equal(planned.chosen & planned.mask, expected.chosen & expected.mask)
    advantage = (torch.where(x.mask, x.advantage, 0) for x in (planned, expected))
    assert_close(*advantage, rtol=1e-12, atol=1e-12)
    assert_close(weight, expected_weight, rtol=1e-12, atol=0)


@everything
def test_plan_does_not_depend_on_row_order(name):
    rule, tokens = method(name), random_step(1)
    expected, weight, (loss, *slopes) = whole(rule, tokens)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    planned, shuffled, (found, *changed) = whole(rule, tokens.rows(order))
    assert_same_plan(planned, shuffled, expected.rows(order), weight[order])
    assert_close(found, loss, rtol=1e-12, atol=1e-14)
    for before, after in zip(slopes, changed, strict=True):
        assert_close(after, before[order], rtol=1e-11, atol=1e-14)


@everything
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_padding_matters_to_nothing_whatever_it_holds(name, value):
    rule, tokens = method(name), random_step(3)
    _, _, (loss, *slopes) = whole(rule, tokens)
    wider = poisoned(join([tokens, random_step(9, columns=14).rows([])]), value)
    assert wider.mask.shape == (12, 14)
    _, _, (found, *changed) = whole(rule, wider)
    assert torch.equal(found, loss)
    for before, after in zip(slopes, changed, strict=True):
        assert torch.equal(after[:, :9], before)
        assert torch.equal(after[:, 9:], torch.zeros(12, 5, dtype=torch.float64))


@everything
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_shares_of_micro_batches_add_up_to_the_step(name, sizes):
    rule, tokens = method(name), random_step(5)
    planned, weight, (loss, *slopes) = whole(rule, tokens)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(6))
    total = torch.zeros_like(loss)
    for part in order.split(sizes):
        share, *found = gradients(rule, planned.rows(part).trim(), weight[part])
        total += share
        for before, after in zip(slopes, found, strict=True):
            width = after.shape[1]
            assert_close(after, before[part, :width], rtol=1e-12, atol=1e-15)
            assert not before[part, width:].any()
    assert_close(total, loss, rtol=1e-12, atol=1e-14)


@everything
@pytest.mark.parametrize("cut", [0, 3, 7])
def test_two_ranks_plan_what_one_rank_plans(name, cut):
    rule, tokens = method(name), random_step(7)
    expected, weight = rule.plan(tokens, salt=4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(8))
    halves = order[:cut], order[cut:]

    def work(number, collective):
        return rule.plan(tokens.rows(halves[number]).trim(), salt=4, collective=collective)

    plans = on_ranks(2, work)
    joined = join([*(planned for planned, _ in plans), expected.rows([])])
    assert_same_plan(joined, torch.cat([w for _, w in plans]), expected.rows(order), weight[order])


@everything
def test_plan_changes_none_of_its_input(name):
    rule, tokens = method(name), random_step(11)
    before = {slot: getattr(tokens, slot).clone() for slot in tokens.__slots__}
    once, _ = rule.plan(tokens, salt=1)
    twice, _ = rule.plan(tokens, salt=1)
    assert all(torch.equal(getattr(tokens, slot), before[slot]) for slot in before)
    assert torch.equal(once.advantage, twice.advantage)


@everything
def test_plan_carries_no_gradient(name):
    tokens = random_step(12)
    tokens = replace(tokens, logp=tokens.logp.clone().requires_grad_())
    planned, weight = method(name).plan(tokens)
    tensors = [getattr(planned, slot) for slot in planned.__slots__]
    assert not any(x.requires_grad for x in [*tensors, weight])


@everything
def test_rollouts_said_to_carry_no_gradient_have_none(name):
    rule = method(name)
    planned, weight, (_, *slopes) = whole(rule, random_step(13))
    carries = rule.objective.carries_gradient(planned)
    moves = sum(slope.abs().sum(dim=1) for slope in slopes) > 0
    assert not (moves & ~carries).any()
    assert moves.any()
    assert not carries[2]  # the empty one


@pytest.mark.parametrize("name", [n for n in ALL if not method(n).needs_scores])
def test_a_method_without_need_of_scores_plans_the_same_without_them(name):
    rule, tokens = method(name), random_step(14)
    zeros = torch.zeros_like(tokens.entropy)
    bare = replace(tokens, logp=tokens.logp_old, entropy=zeros, expected_pi_lambda=zeros)
    assert_same_plan(*rule.plan(bare), *rule.plan(tokens))


def test_only_four_of_the_nine_methods_plan_without_scores():
    bare = {name for name in METHODS if not method(name).needs_scores}
    assert bare == {"grpo", "clip_higher", "entropy_loss", "w_reinforce"}


def test_a_step_without_any_token_plans_and_costs_nothing():
    empty = random_step(15)
    empty = replace(empty, mask=torch.zeros_like(empty.mask))
    for name in ALL:
        planned, weight, (loss, *slopes) = whole(method(name), empty)
        assert loss == 0
        assert not any(slope.any() for slope in slopes)
        assert torch.isfinite(weight).all()
        method(name).plan(empty.rows([]), collective=LOCAL)
