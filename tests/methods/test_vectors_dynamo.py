"""Published numbers of DynaMO: entropy change, token-level factors, rollout counts."""

from math import comb

import numpy as np
import pytest
import torch
from method_cases import (
    AWARE,
    GRPO,
    VARIANCE,
    VECTORS,
    assert_vector,
    batch,
    both_types,
    modulation,
    objective,
)

from dynamo_cli.methods import Method
from dynamo_cli.methods.allocation import bernoulli_variance
from dynamo_cli.methods.collective import LOCAL
from dynamo_cli.methods.integer_optimum import integer_optimum, sampling_variance
from dynamo_cli.methods.modulation import Stabilisation, entropy_change, largest_in_scope
from dynamo_cli.methods.tokens import score_tokens

MODULATED = [name for name in VECTORS["dynamo_token"] if name.startswith(("decay5_", "decay6_"))]
INTEGER = [name for name in VECTORS["dynamo_alloc"] if name.startswith("integer_opt_B")]
RELEASED = [name for name in VECTORS["dynamo_alloc"] if name.startswith("released_heuristic")]


def scored(logits, actions):
    """Scores of one token per row of logits: hidden states times the identity."""
    logits = torch.as_tensor(logits)
    return score_tokens(logits, torch.eye(logits.shape[1], dtype=logits.dtype), actions)


@both_types
@pytest.mark.parametrize(
    "case", ["mid_confidence", "high_confidence_correct", "negative_advantage"]
)
def test_entropy_change_equals_the_vectors(case, dtype):
    given, expected = (VECTORS["theory_entropy_change"][case][p] for p in ("inputs", "expected"))
    logits = torch.tensor([given["logits"]], dtype=dtype, requires_grad=True)
    action = torch.tensor([given["action"]])
    scores = scored(logits, action)
    assert_vector(scores.entropy, [expected["H"]], dtype)
    assert_vector(scores.expected_pi_lambda, [expected["E_piLambda"]], dtype)
    assert_vector(scores.logp.exp(), [expected["pi"][given["action"]]], dtype)
    # On policy the ratio is 1, so the advantage is xi.
    tokens = batch(
        [[1]],
        dtype=dtype,
        logp=scores.logp[None].detach(),
        logp_old=scores.logp[None].detach(),
        entropy=scores.entropy[None].detach(),
        expected_pi_lambda=scores.expected_pi_lambda[None],
        advantage=given["xi"],
    )
    change = entropy_change(tokens, active=objective().active)
    assert_vector(change, [[expected["dH_per_eta"]]], dtype)
    scores.logp.sum().backward()
    assert_vector(logits.grad.square().sum(), expected["logit_grad_norm_sq_over_xi_sq"], dtype)


@pytest.mark.parametrize(
    "row", VECTORS["theory_entropy_change"]["attenuation_table"]["expected"]["rows"]
)
def test_step_on_a_confident_token_shrinks_as_the_vectors_say(row):
    size = VECTORS["theory_entropy_change"]["attenuation_table"]["inputs"]["vocab"]
    pi = torch.full((1, size), (1 - row["p"]) / (size - 1), dtype=torch.float64)
    pi[0, 0] = row["p"]
    logits = pi.log().requires_grad_()
    scored(logits, torch.tensor([0])).logp.sum().backward()
    assert_vector(logits.grad.norm(), row["norm_rest_uniform"])
    assert_vector(2**0.5 * (1 - row["p"]), row["upper"])


def common(dtype):
    given, expected = (VECTORS["dynamo_token"]["common"][part] for part in ("inputs", "expected"))
    logits = torch.tensor(given["logits"], dtype=dtype)
    old = torch.tensor(given["old_logits"], dtype=dtype)
    actions = torch.tensor(given["actions"])
    shape = actions.shape
    scores = scored(logits.flatten(0, 1), actions.flatten())
    reward = np.array(given["rewards"])
    advantage = Method.model_validate(GRPO).advantage(reward, reward, np.array(given["groups"]))
    return (
        given,
        expected,
        batch(
            given["mask"],
            dtype=dtype,
            logp=scores.logp.view(shape),
            logp_old=scored(old.flatten(0, 1), actions.flatten()).logp.view(shape),
            entropy=scores.entropy.view(shape),
            expected_pi_lambda=scores.expected_pi_lambda.view(shape),
            advantage=torch.as_tensor(advantage)[:, None] * torch.tensor(given["mask"]),
            problem=given["groups"],
        ),
    )


@both_types
def test_scores_and_entropy_change_of_the_common_batch_equal_the_vectors(dtype):
    given, expected, tokens = common(dtype)
    assert_vector(tokens.logp, expected["log_prob"], dtype)
    assert_vector(tokens.logp_old, expected["old_log_prob"], dtype)
    assert_vector(tokens.entropy, expected["entropy"], dtype)
    assert_vector(tokens.expected_pi_lambda, expected["E_piLambda_exact"], dtype)
    assert_vector(tokens.advantage, expected["advantages"], dtype)
    active = objective(clip_low=given["clip_low"], clip_high=given["clip_high"]).active
    assert torch.equal(active(tokens), torch.tensor(expected["xi"]) != 0)
    for kind, name in (("exact", "Xi_exact"), ("sequence_mean", "Xi_seq_mean")):
        change = entropy_change(tokens, active=active, expectation=kind)
        assert_vector(change.abs(), expected[name], dtype)


@both_types
@pytest.mark.parametrize("case", MODULATED)
def test_gradient_aware_modulation_equals_the_vectors(case, dtype):
    step, _, tokens = common(dtype)
    given, expected = (VECTORS["dynamo_token"][case][part] for part in ("inputs", "expected"))
    expectation = {"exact": "exact", "seq_mean": "sequence_mean"}[given["Xi"]]
    scope = {"batch": "step"}.get(given["scope"], given["scope"])
    scope = "position" if "position" in scope else scope
    stabilisation = {name: given[name] for name in ("lambda_min", "gamma", "tau")}
    rule = modulation(
        kind="gradient_aware",
        compensation={"alpha": given["alpha"]} if "alpha" in given else None,
        stabilisation=stabilisation | {"expectation": expectation},
        scope=scope,
    )
    active = objective(clip_low=step["clip_low"], clip_high=step["clip_high"]).active
    compensation, damping = rule.factors(tokens, active=active)
    assert_vector(damping, expected["beta_stab"], dtype)
    if "alpha" in given:
        assert_vector(compensation, expected["beta_comp"], dtype)
        assert_vector(rule(tokens, active=active).advantage, expected["A_final"], dtype)
    change = entropy_change(tokens, active=active, expectation=expectation).abs()
    assert_vector(change / (rule_maximum(change, tokens, scope) + 1e-8), expected["x"], dtype)


def rule_maximum(change, tokens, scope):
    largest = largest_in_scope(change, tokens, scope=scope, collective=LOCAL)
    return torch.where(tokens.mask, largest, 1)


def test_sigmoid_equals_the_vectors():
    vector = VECTORS["dynamo_token"]["sigmoid_values"]
    points = torch.tensor(vector["inputs"]["points"], dtype=torch.float64)
    fields = {"lambda_min": 0.6, "gamma": 50.0, "expectation": "exact"}
    for name, tau in (("decay6", 0.99), ("decay5", 0.9)):
        assert_vector(Stabilisation(tau=tau, **fields).decay(points), vector["expected"][name])


def test_constant_entropy_and_no_change_leave_every_factor_at_one():
    given, expected = (
        VECTORS["dynamo_token"]["degenerate_constant_entropy"][p] for p in ("inputs", "expected")
    )
    tokens = batch([[1, 1, 1]], entropy=given["entropy"], advantage=given["advantages"])
    rule = modulation(**AWARE | {"compensation": {"alpha": given["alpha"]}})
    compensation, damping = rule.factors(tokens, active=lambda t: torch.zeros_like(t.mask))
    assert_vector(compensation, expected["beta_comp"])
    assert_vector(damping, expected["beta_stab_all_Xi_zero"])


def test_bernoulli_variance_equals_the_vector():
    vector = VECTORS["dynamo_alloc"]["bernoulli_variance"]
    k, n = np.array(vector["inputs"]["k"]), np.array(vector["inputs"]["G"])
    undefined = -1.0
    found = np.nan_to_num(bernoulli_variance(k, n, prior="none"), nan=undefined)
    assert_vector(found, vector["expected"]["P"])


@pytest.mark.parametrize(("n", "p"), VECTORS["dynamo_alloc"]["unbiasedness"]["inputs"]["cases"])
def test_bernoulli_variance_is_unbiased(n, p):
    k = np.arange(n + 1)
    chance = np.array([comb(n, i) * p**i * (1 - p) ** (n - i) for i in k])
    mean = float(chance @ bernoulli_variance(k, np.full(n + 1, n), prior="none"))
    assert mean == pytest.approx(p * (1 - p), rel=1e-12)


@pytest.mark.parametrize("case", INTEGER)
def test_integer_optimum_equals_the_vectors(case):
    given, expected = (VECTORS["dynamo_alloc"][case][part] for part in ("inputs", "expected"))
    s = np.array(given["s"])
    counts = integer_optimum(s, budget=given["B"], low=given["lo"], high=given["hi"])
    assert counts.tolist() == expected["n"]
    assert sampling_variance(s, counts) == pytest.approx(expected["objective"], rel=1e-9)
    assert sampling_variance(s, counts) >= expected["continuous_objective"] * (1 - 1e-12)


def test_integer_optimum_of_many_problems_equals_the_vector():
    given, expected = (
        VECTORS["dynamo_alloc"]["integer_opt_N32_8_24"][p] for p in ("inputs", "expected")
    )
    p = (np.arange(32) + 0.5) / 32
    s = np.sqrt(p * (1 - p))
    counts = integer_optimum(s, budget=given["B"], low=given["lo"], high=given["hi"])
    assert counts.tolist() == expected["n"]
    assert sampling_variance(s, counts) == pytest.approx(expected["objective"], rel=1e-9)


@pytest.mark.parametrize("case", RELEASED)
@pytest.mark.parametrize(
    ("priority", "suffix"),
    [("unbiased_variance", "default_class"), ("scaled_variance", "recipe_file")],
)
def test_released_waterfill_equals_the_vectors(case, priority, suffix):
    given, expected = (VECTORS["dynamo_alloc"][case][part] for part in ("inputs", "expected"))
    fields = {name: VARIANCE[name] for name in ("refresh", "forgetting")}
    fields |= {"kind": "released_waterfill", "priority": priority, "mastery": 0.85}
    fields |= {"low": given["lo"], "high": given["hi"], "warm": given["warm"]}
    fields |= {"floor": 0.01, "min_seen": 4}
    rule = Method.model_validate(GRPO | {"allocation": fields}).allocation
    k, n = np.array(given["k"]), np.array(given["G"])
    # The released class writes -1 where it has seen too little, and then treats it as 0.
    wanted = np.maximum(expected[f"priority_{suffix}"], 0)
    assert_vector(rule.priorities(k, n), wanted)
    assert rule(k, n, budget=given["B"]).tolist() == expected[f"n_{suffix}"]
