"""Laws of the modulations."""

from dataclasses import replace

import pytest
import torch
from method_cases import AWARE, COMPENSATION, FORK, batch, modulation, objective, random_step

from dynamo_cli.methods.modulation import entropy_change

ACTIVE = objective().active


def test_none_returns_the_tokens_as_they_are():
    tokens = random_step(0)
    assert modulation(kind="none")(tokens, active=ACTIVE) is tokens


def test_constant_scales_the_positive_advantages_only():
    tokens = batch([[1, 1, 1]], advantage=[[2.0, 0.0, -2.0]])
    found = modulation(kind="constant", positive=1.5)(tokens, active=ACTIVE)
    assert found.advantage.tolist() == [[3.0, 0.0, -2.0]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scope", ["step", "sequence", "group", "position"])
def test_factors_stay_within_their_bounds(seed, scope):
    tokens = random_step(seed)
    rule = modulation(**AWARE | {"scope": scope})
    compensation, damping = rule.factors(tokens, active=ACTIVE)
    assert ((compensation >= 1) & (compensation <= 1.2)).all()
    assert ((damping > 0.75) & (damping <= 1)).all()
    lifted = compensation > 1
    assert not (lifted & ~(tokens.mask & (tokens.advantage > 0))).any()
    assert not (damping[~tokens.mask] != 1).any()
    found = rule(tokens, active=ACTIVE).advantage
    assert torch.equal(found.sign()[tokens.mask], tokens.advantage.sign()[tokens.mask])


def test_the_surest_token_gains_most_and_the_least_sure_nothing():
    tokens = batch([[1, 1, 1, 0]], entropy=[[2.0, 0.5, 1.25, 0.0]], advantage=1.0)
    rule = modulation(**AWARE | {"stabilisation": None, "compensation": {"alpha": 0.4}})
    compensation, damping = rule.factors(tokens, active=ACTIVE)
    wanted = torch.tensor([[1.0, 1.4, 1.2, 1.0]]).double()
    torch.testing.assert_close(compensation, wanted, rtol=1e-7, atol=0)
    assert damping.tolist() == [[1.0] * 4]


def test_the_token_that_moves_the_entropy_most_is_damped_most():
    tokens = random_step(3)
    change = entropy_change(tokens, active=ACTIVE).abs()
    _, damping = modulation(**AWARE | {"compensation": None}).factors(tokens, active=ACTIVE)
    assert damping.argmin() == change.argmax()
    order = change[tokens.mask].argsort()
    assert (damping[tokens.mask][order].diff() <= 1e-15).all()


def test_clipped_tokens_change_no_entropy():
    tokens = random_step(4)
    change = entropy_change(tokens, active=ACTIVE)
    assert not change[~ACTIVE(tokens)].any()
    assert change[ACTIVE(tokens)].all()


def test_exact_expectation_does_not_look_at_the_rest_of_the_response():
    tokens = random_step(5, rows=3)
    alone = tokens.rows(slice(None), columns=1)
    for expectation, same in (("exact", True), ("sequence_mean", False)):
        whole = entropy_change(tokens, active=ACTIVE, expectation=expectation)[:, :1]
        cut = entropy_change(alone, active=ACTIVE, expectation=expectation)
        assert torch.equal(whole, cut) == same


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 1.0])
def test_top_fork_tokens_are_as_many_as_asked_for_though_entropies_tie(fraction):
    tokens = random_step(6)
    tokens = replace(tokens, entropy=tokens.entropy.round(decimals=0))
    narrowed = modulation(**FORK | {"fraction": fraction})(tokens, active=ACTIVE).mask
    num_tokens = int(tokens.mask.sum())
    assert int(narrowed.sum()) == max(1, -int(-(fraction * num_tokens) // 1))
    assert not (narrowed & ~tokens.mask).any()
    if fraction < 1:
        left = tokens.mask & ~narrowed
        assert tokens.entropy[narrowed].min() >= tokens.entropy[left].max()


@pytest.mark.parametrize("fraction", [0.1, 0.35, 0.8])
def test_quantile_fork_tokens_follow_torch_quantile(fraction):
    tokens = random_step(7)
    rule = modulation(**FORK | {"fraction": fraction, "select": "quantile"})
    threshold = tokens.entropy[tokens.mask].quantile(1 - fraction)
    expected = tokens.mask & (tokens.entropy >= threshold)
    assert torch.equal(rule(tokens, active=ACTIVE).mask, expected)


def test_quantile_keeps_all_tied_tokens():
    tokens = batch([[1, 1, 1, 1, 1]], entropy=[[0.0, 0.0, 0.0, 0.0, 0.0]])
    rule = modulation(**FORK | {"select": "quantile"})
    assert rule(tokens, active=ACTIVE).mask.all()


def test_entropy_term_never_flips_a_sign_and_leaves_zero_alone():
    tokens = random_step(8)
    found = modulation(kind="entropy_advantages", alpha=9.0, kappa=2.0)(tokens, active=ACTIVE)
    before, after = tokens.advantage[tokens.mask], found.advantage[tokens.mask]
    assert torch.equal(before.sign(), after.sign())
    assert (after >= before).all()
    assert ((after - before) <= before.abs() / 2 + 1e-15).all()


def test_compensation_and_stabilisation_multiply():
    tokens = random_step(9)
    both = modulation(**AWARE)(tokens, active=ACTIVE).advantage
    compensation, damping = modulation(**AWARE).factors(tokens, active=ACTIVE)
    expected = tokens.advantage * compensation * damping
    torch.testing.assert_close(both[tokens.mask], expected[tokens.mask])
    neither = modulation(**AWARE | {"compensation": None, "stabilisation": None})
    found = neither(tokens, active=ACTIVE).advantage
    assert torch.equal(found[tokens.mask], tokens.advantage[tokens.mask])
    assert modulation(**AWARE).compensation.alpha == COMPENSATION["alpha"]
