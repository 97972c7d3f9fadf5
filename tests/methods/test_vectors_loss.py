"""Published numbers of the baselines: advantages, clipped losses, KL, entropy, covariances."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch
from method_cases import GRPO, VECTORS, assert_vector, batch, both_types, modulation, objective

from dynamo_cli.methods import Method
from dynamo_cli.methods.aggregation import weighted_sum
from dynamo_cli.methods.collective import LOCAL
from dynamo_cli.methods.objective import covariance, kl_estimate

AGGREGATIONS = {
    "token-mean": {"kind": "token_mean"},
    "seq-mean-token-sum": {"kind": "sequence_sum"},
    "seq-mean-token-mean": {"kind": "sequence_mean"},
    "seq-mean-token-sum-norm": {"kind": "constant", "divisor": 4.0},
    "prompt-mean-token-mean": {"kind": "problem_mean"},
}


def aggregate(name, per_token, mask, groups):
    mask = torch.as_tensor(mask).bool()
    rule = Method.model_validate(GRPO | {"aggregation": AGGREGATIONS[name]}).aggregation
    weight = rule(mask.sum(dim=1), torch.as_tensor(groups))
    return weighted_sum(per_token, mask, weight)


def advantage(**changes):
    fields = GRPO["advantage"] | changes
    return Method.model_validate(GRPO | {"advantage": fields}).advantage


@pytest.mark.parametrize(
    "case", ["mixed_group", "unequal_sizes_singleton_and_constant", "pm1_rewards"]
)
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("verl_std_ddof1", {"singleton": "raw"}),
        ("population_std_ddof0", {"ddof": 0, "singleton": "raw"}),
        ("no_std_dr_grpo", {"scale": "none", "singleton": "raw"}),
        ("singleton_zero_variant", {}),
    ],
)
def test_advantages_equal_the_vectors(case, name, changes):
    vector = VECTORS["grpo_advantage"][case]
    if name not in vector["expected"]:
        pytest.fail(f"{case} has no {name}")
    reward, groups = np.array(vector["inputs"]["rewards"]), vector["inputs"]["group_ids"]
    rule = advantage(eps=vector["inputs"]["eps"], **changes)
    assert_vector(rule(reward, reward, np.array(groups)), vector["expected"][name])


@pytest.mark.parametrize(
    "row", VECTORS["grpo_advantage"]["second_moment_by_normalisation"]["expected"]["rows"]
)
def test_second_moment_of_advantages_equals_the_vectors(row):
    p, n = row["p"], row["n"]
    moments = {"std": 0.0, "none": 0.0}
    for correct in range(n + 1):
        reward = np.arange(n) < correct
        chance = comb(n, correct) * p**correct * (1 - p) ** (n - correct)
        for scale in moments:
            shaped = advantage(scale=scale, eps=0.0)(reward, reward, np.zeros(n))
            moments[scale] += chance * float((shaped**2).mean())
    assert_vector(moments["std"], row["mean_square_std_normalised"])
    assert_vector(moments["none"], row["mean_square_centered"])


@both_types
@pytest.mark.parametrize("case", ["grpo_sym_c3", "clip_higher_c10"])
def test_clipped_loss_equals_the_vectors(case, dtype):
    given, expected = (VECTORS["policy_loss"][case][part] for part in ("inputs", "expected"))
    rule = objective(
        clip_low=given["clip_low"], clip_high=given["clip_high"], dual_clip=given["clip_c"]
    )
    tokens = batch(
        given["mask"],
        dtype=dtype,
        logp=given["log_prob"],
        logp_old=given["old_log_prob"],
        advantage=given["advantages"],
    )
    loss = rule(tokens)
    assert_vector(loss, expected["token_loss"], dtype)
    for name in AGGREGATIONS:
        total = aggregate(name, loss, given["mask"], given["groups"])
        assert_vector(total, expected[name], dtype)
    curves = {
        name: aggregate("token-mean", value, given["mask"], given["groups"])
        for name, value in rule.metrics(tokens).items()
    }
    assert_vector(curves["clip_fraction"], expected["clip_fraction"], dtype)
    assert_vector(curves["dual_clip_fraction"], expected["dual_clip_fraction"], dtype)
    assert_vector(curves["approx_kl"], expected["approx_kl"], dtype)


def test_dual_clip_equals_the_vector():
    given, expected = (
        VECTORS["policy_loss"]["dual_clip_binding"][p] for p in ("inputs", "expected")
    )
    tokens = batch(
        [[1]],
        logp=given["log_prob"],
        logp_old=given["old_log_prob"],
        advantage=given["advantages"],
    )
    assert_vector(objective(dual_clip=None)(tokens), [[expected["loss_without_dual"]]])
    assert_vector(objective(dual_clip=given["clip_c"])(tokens), [[expected["loss_with_dual"]]])


def test_token_mean_is_global_where_micro_batches_would_disagree():
    given, expected = (
        VECTORS["policy_loss"]["micro_batch_dependence"][p] for p in ("inputs", "expected")
    )
    masks = [torch.tensor(given[f"mask_{i}"]).bool() for i in (1, 2)]
    losses = [torch.tensor(given[f"loss_micro_{i}"]) for i in (1, 2)]
    lengths = torch.cat([mask.sum(dim=1) for mask in masks])
    for kind, name in (("token_mean", "global_token_mean"), ("sequence_mean",) * 2):
        rule = Method.model_validate(GRPO | {"aggregation": {"kind": kind}}).aggregation
        weights = rule(lengths, torch.arange(3)).split([2, 1])
        shares = map(weighted_sum, losses, masks, weights)
        assert_vector(sum(shares), expected[name if name in expected else "seq_mean_token_mean"])


@both_types
@pytest.mark.parametrize("kind", ["k1", "abs", "k2", "k3"])
def test_kl_estimates_equal_the_vectors(kind, dtype):
    given, expected = (VECTORS["kl_estimators"]["basic"][p] for p in ("inputs", "expected"))
    logp, reference = (torch.tensor(given[n], dtype=dtype) for n in ("log_prob", "ref_log_prob"))
    mask = torch.tensor(given["mask"])
    value = kl_estimate(logp, reference, kind=kind)
    assert_vector(value * mask, expected[kind], dtype)
    if kind != "abs":
        mean = aggregate("token-mean", value, mask, [0, 0, 1])
        assert_vector(mean, expected[f"{kind}_token_mean"], dtype)


@both_types
def test_entropy_bonus_equals_the_vector(dtype):
    given, expected = (VECTORS["entropy_loss"]["basic"][p] for p in ("inputs", "expected"))
    base = VECTORS["policy_loss"]["grpo_sym_c3"]["inputs"]
    rule = objective(dual_clip=base["clip_c"], entropy_coefficient=given["coef"])
    tokens = batch(
        base["mask"],
        dtype=dtype,
        logp=base["log_prob"],
        logp_old=base["old_log_prob"],
        advantage=base["advantages"],
        entropy=given["entropy"],
    )
    total = aggregate("token-mean", rule(tokens), base["mask"], base["groups"])
    assert_vector(total, expected["total_loss"], dtype)
    mean = aggregate("token-mean", tokens.entropy, base["mask"], base["groups"])
    assert_vector(mean, expected["mean_entropy"], dtype)


@both_types
@pytest.mark.parametrize("case", ["rho_0.2", "rho_0.5"])
@pytest.mark.parametrize("select", ["topk", "quantile"])
def test_fork_tokens_equal_the_vectors(case, select, dtype):
    given, expected = (VECTORS["fork_tokens"][case][part] for part in ("inputs", "expected"))
    tokens = batch(given["mask"], dtype=dtype, entropy=given["entropy"], advantage=1.0)
    rule = {"kind": "fork_tokens", "fraction": given["rho"], "select": select}
    narrowed = modulation(**rule, denominator="selected")(tokens, active=None)
    kept = modulation(**rule, denominator="valid")(tokens, active=None)
    name = "topk_mask" if select == "topk" else "quantile_mask"
    assert narrowed.mask.tolist() == torch.tensor(expected[name]).bool().tolist()
    assert torch.equal(kept.advantage != 0, narrowed.mask)
    assert torch.equal(kept.mask, tokens.mask)
    if select == "topk":
        assert int(narrowed.mask.sum()) == expected["k"]
    loss = torch.tensor(given["token_loss"], dtype=dtype)
    over_selected = aggregate("token-mean", loss, narrowed.mask, [0, 0, 0])
    over_valid = aggregate("token-mean", loss * kept.advantage, kept.mask, [0, 0, 0])
    assert_vector(over_selected, expected["loss_mean_over_selected"], dtype)
    assert_vector(over_valid, expected["loss_mean_over_all_valid"], dtype)


@both_types
@pytest.mark.parametrize("case", VECTORS["entropy_advantages"])
def test_entropy_advantages_equal_the_vectors(case, dtype):
    given, expected = (VECTORS["entropy_advantages"][case][p] for p in ("inputs", "expected"))
    rule = modulation(kind="entropy_advantages", alpha=given["alpha"], kappa=given["kappa"])
    tokens = batch(
        given["mask"], dtype=dtype, entropy=given["entropy"], advantage=given["advantages"]
    )
    shaped = rule(tokens, active=None).advantage
    assert_vector(shaped, expected["shaped"], dtype)
    assert_vector(shaped - tokens.advantage, expected["bonus"], dtype)


def covariance_case(section, case, dtype, fields):
    given, expected = (VECTORS[section][case][part] for part in ("inputs", "expected"))
    rule = Method.model_validate(GRPO | {"objective": {"kind": section} | fields(given)}).objective
    tokens = batch(
        given["mask"],
        dtype=dtype,
        logp=given["log_prob"],
        logp_old=given["old_log_prob"],
        advantage=given["advantages"],
    )
    return rule, tokens, rule.choose(tokens, collective=LOCAL, salt=5), expected


@both_types
def test_clip_cov_equals_the_vector(dtype):
    rule, tokens, planned, expected = covariance_case(
        "clip_cov",
        "all_eligible_selected",
        dtype,
        lambda given: {
            "clip_low": given["clip_low"],
            "clip_high": given["clip_high"],
            "fraction": given["ratio"],
            "covariance_low": given["cov_lb"],
            "covariance_high": given["cov_ub"],
        },
    )
    cov = torch.where(tokens.mask, torch.tensor(expected["cov"]).double(), 0)
    assert_vector(covariance(tokens, collective=LOCAL), cov, dtype)
    clipped = rule.metrics(tokens)["clip_fraction"].bool()
    assert clipped.tolist() == expected["ppo_clipped"]
    assert planned.chosen.tolist() == expected["eligible"]
    assert_vector(aggregate("token-mean", rule(planned), tokens.mask, [0, 1]),
          expected["loss_token_mean"], dtype)  # fmt: skip
    nothing = replace(planned, chosen=torch.zeros_like(planned.chosen))
    assert_vector(aggregate("token-mean", rule(nothing), tokens.mask, [0, 1]),
          expected["loss_without_cov_clip"], dtype)  # fmt: skip


@both_types
def test_kl_cov_equals_the_vector(dtype):
    rule, tokens, planned, expected = covariance_case(
        "kl_cov",
        "basic",
        dtype,
        lambda given: {"fraction": given["ratio"], "coefficient": given["coef"]},
    )
    assert planned.chosen.tolist() == torch.tensor(expected["picked_mask"]).bool().tolist()
    assert_vector(aggregate("token-mean", rule(planned), tokens.mask, [0, 1]),
          expected["loss_token_mean"], dtype)  # fmt: skip
    assert_vector(aggregate("token-mean", rule(tokens), tokens.mask, [0, 1]),
          expected["loss_without_penalty"], dtype)  # fmt: skip
    distance = (tokens.logp - tokens.logp_old).abs()
    assert_vector(aggregate("token-mean", distance, tokens.mask, [0, 1]),
          expected["mean_abs_log_ratio"], dtype)  # fmt: skip


@both_types
@pytest.mark.parametrize("case", VECTORS["w_reinforce"])
def test_w_reinforce_equals_the_vectors(case, dtype):
    given, expected = (VECTORS["w_reinforce"][case][part] for part in ("inputs", "expected"))
    fields = {"kind": "weighted_signs", "positive_weight": given["lam"], "negative_weight": 1.0}
    rule = Method.model_validate(GRPO | {"advantage": fields}).advantage
    shaped = rule(np.full(3, 9.0), np.array(given["correct"]), np.arange(3))
    mask = torch.tensor(given["mask"])
    assert_vector(torch.as_tensor(shaped)[:, None] * mask, expected["advantages"])
    tokens = batch(
        mask,
        dtype=dtype,
        logp=given["log_prob"],
        logp_old=given["old_log_prob"],
        advantage=shaped[:, None],
    )
    loss = objective(dual_clip=None)
    assert_vector(aggregate("token-mean", loss(tokens), mask, [0, 0, 0]),
          expected["loss_token_mean_ppo_clip"], dtype)  # fmt: skip
    on_policy = replace(tokens, logp_old=tokens.logp)
    assert_vector(aggregate("token-mean", loss(on_policy), mask, [0, 0, 0]),
          expected["loss_token_mean_on_policy"], dtype)  # fmt: skip
