"""Laws of the objectives, and hand arithmetic."""

from dataclasses import replace
from math import exp

import pytest
import torch
from method_cases import ALL, batch, method, objective, poisoned, random_step
from simulated_ranks import on_ranks

from dynamo_cli.methods.collective import LOCAL
from dynamo_cli.methods.objective import covariance, kl_estimate

OBJECTIVES = ["grpo", "clip_higher", "w_reinforce", "clip_cov_many", "kl_cov_many"]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (2.0, 1.0, -1.28),  # gain capped at 1 + clip_high
        (2.0, -1.0, 2.0),  # a loss is not capped by the clip
        (0.5, -1.0, 0.8),  # gain capped at 1 - clip_low
        (0.5, 1.0, -0.5),
        (50.0, -1.0, 10.0),  # but by the dual clip
        (1.1, 2.0, -2.2),
    ],
)
def test_clipped_equals_hand_arithmetic(ratio, advantage, expected):
    tokens = batch([[1]], logp=torch.tensor(ratio, dtype=torch.float64).log(), advantage=advantage)
    loss = objective(clip_high=0.28)(tokens)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(4))
def test_active_tokens_are_those_with_a_policy_gradient(name, seed):
    rule, tokens = method(name).objective, random_step(seed)
    drift = torch.tensor([0.0, 3.0, -3.0, 0.25, 25.0, -25.0, -0.1, 0.1, 2.4], dtype=torch.float64)
    logp = (tokens.logp_old + drift).requires_grad_()
    tokens = replace(tokens, logp=logp)
    loss = rule(tokens).masked_fill(~tokens.mask, 0).sum()
    (slope,) = torch.autograd.grad(loss, logp)
    active = rule.active(tokens)
    assert torch.equal(active, slope != 0)
    assert active.any()
    assert not active.all()


@pytest.mark.parametrize("name", ALL)
def test_huge_log_ratios_give_finite_losses_and_gradients(name):
    rule, tokens = method(name).objective, random_step(2)
    logp = (tokens.logp_old + 500).requires_grad_()
    loss = rule(replace(tokens, logp=logp)).masked_fill(~tokens.mask, 0).sum()
    (slope,) = torch.autograd.grad(loss, logp)
    assert torch.isfinite(loss)
    assert torch.isfinite(slope).all()
    assert loss.abs() <= 108 * exp(20) * 4


@pytest.mark.parametrize("name", ALL)
def test_losses_and_metrics_are_finite_also_where_the_padding_is_not(name):
    rule, tokens = method(name).objective, poisoned(random_step(1), float("nan"))
    planned = rule.choose(tokens, collective=LOCAL, salt=0)
    assert torch.isfinite(rule(planned)).all()
    for value in rule.metrics(planned).values():
        assert torch.isfinite(value).all()
        assert not value[~tokens.mask].any()


def test_entropy_bonus_moves_every_token_of_the_mask_by_the_coefficient():
    rule, tokens = objective(entropy_coefficient=0.25), random_step(3)
    entropy = tokens.entropy.clone().requires_grad_()
    loss = rule(replace(tokens, entropy=entropy)).sum()
    (slope,) = torch.autograd.grad(loss, entropy)
    assert torch.equal(slope, torch.where(tokens.mask, -0.25, 0.0).double())
    assert rule.needs_entropy_gradient
    assert rule.carries_gradient(tokens).tolist() == tokens.mask.any(dim=1).tolist()
    assert not objective(entropy_coefficient=0).needs_entropy_gradient


def test_covariances_of_a_step_sum_to_the_covariance():
    tokens = random_step(4)
    cov = covariance(tokens, collective=LOCAL)
    table = torch.stack([tokens.advantage[tokens.mask], tokens.logp[tokens.mask]])
    expected = torch.cov(table, correction=0)[0, 1] * tokens.mask.sum()
    torch.testing.assert_close(cov.sum(), expected)


def test_clip_cov_draws_the_right_number_among_the_candidates_only():
    rule, tokens = method("clip_cov_many").objective, random_step(5, rows=40)
    cov = covariance(tokens, collective=LOCAL)
    ratio = (tokens.logp - tokens.logp_old).exp()
    clipped = ((tokens.advantage > 0) & (ratio > 1.2)) | ((tokens.advantage < 0) & (ratio < 0.8))
    candidates = tokens.mask & (cov > 0.1) & (cov < 5) & ~clipped
    wanted = int(0.1 * int(tokens.mask.sum()))
    assert candidates.sum() > wanted  # so that there is a draw
    draws = [rule.choose(tokens, collective=LOCAL, salt=salt).chosen for salt in range(200)]
    assert all(int(chosen.sum()) == wanted for chosen in draws)
    assert not any((chosen & ~candidates).any() for chosen in draws)
    # Over many salts every candidate has the same chance, 5 standard deviations allowed.
    share = torch.stack(draws).double().mean(dim=0)[candidates]
    chance = wanted / int(candidates.sum())
    assert (share - chance).abs().max() < 5 * (chance * (1 - chance) / 200) ** 0.5


def test_clip_cov_silences_exactly_the_chosen_tokens():
    rule, tokens = method("clip_cov_many").objective, random_step(6)
    planned = rule.choose(tokens, collective=LOCAL, salt=1)
    loss, before = rule(planned), rule(tokens)
    assert planned.chosen.any()
    assert not loss[planned.chosen].any()
    assert torch.equal(loss[~planned.chosen], before[~planned.chosen])


def test_kl_cov_penalises_the_largest_covariances_with_their_sign():
    rule, tokens = method("kl_cov_many").objective, random_step(7)
    chosen = rule.choose(tokens, collective=LOCAL, salt=0).chosen
    cov = covariance(tokens, collective=LOCAL)
    assert int(chosen.sum()) == int(0.2 * int(tokens.mask.sum()))
    assert cov[chosen].min() >= cov[tokens.mask & ~chosen].max()
    penalty = rule(replace(tokens, chosen=chosen)) - rule(tokens)
    distance = (tokens.logp - tokens.logp_old).abs()
    torch.testing.assert_close(penalty, torch.where(chosen, 0.5 * distance, 0))


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_at_least_one_token_is_singled_out_where_the_fraction_is_less(name):
    # A sure token of a good answer and a sure one of a bad answer: cov +2 and -2, and so on.
    tokens = batch([[1, 1], [1, 1]], logp=[[-0.1, -4.1], [-0.1, -4.1]], advantage=[[1.0], [-1.0]])
    tokens = replace(tokens, logp_old=tokens.logp)
    chosen = method(name).objective.choose(tokens, collective=LOCAL, salt=3).chosen
    assert int(chosen.sum()) == 1
    assert chosen[0, 0] or chosen[1, 1]


def test_fraction_of_a_count_is_not_spoilt_by_binary_rounding():
    rule = method("kl_cov_many").objective.model_copy(update={"fraction": 0.29})
    tokens = batch(torch.ones(10, 10), logp=torch.arange(100.0).view(10, 10), advantage=1.0)
    assert int(rule.choose(tokens, collective=LOCAL, salt=0).chosen.sum()) == 29


def test_covariances_use_the_means_of_all_ranks():
    tokens = random_step(8)
    expected = covariance(tokens, collective=LOCAL)
    parts = tokens.rows(slice(0, 4)), tokens.rows(slice(4, None))
    found = on_ranks(2, lambda number, c: covariance(parts[number], collective=c))
    torch.testing.assert_close(torch.cat(found), expected)


def test_kl_estimates_are_unbiased_or_have_the_right_slope():
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(6, generator=random).double().requires_grad_()
    reference = torch.randn(6, generator=random).double().log_softmax(0)
    logp = logits.log_softmax(0)
    pi = logp.exp().detach()
    exact = (logp.exp() * (logp - reference)).sum()
    for kind in ("k1", "k3"):
        mean = (pi * kl_estimate(logp, reference, kind=kind)).sum()
        torch.testing.assert_close(mean, exact)
    slopes = {}
    for kind in ("k1", "k2"):
        mean = (pi * kl_estimate(logp, reference, kind=kind)).sum()
        (slopes[kind],) = torch.autograd.grad(mean, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(exact, logits)
    torch.testing.assert_close(slopes["k2"], wanted)
    torch.testing.assert_close(slopes["k1"], torch.zeros(6).double(), atol=1e-12, rtol=0)


def test_k3_is_clamped_and_an_unknown_estimate_is_refused():
    far = torch.tensor([-1000.0, 1000.0])
    assert kl_estimate(far, torch.zeros(2), kind="k3").tolist() == [10.0, 10.0]
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(far, far, kind="k4")
