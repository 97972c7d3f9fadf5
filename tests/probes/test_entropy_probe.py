"""The entropy probe on policies whose logits are their parameters: there the theory is exact."""

import numpy as np
import pandas as pd
import pytest
import torch
from probe_cases import OPTIMISER, Table, grpo, rollout

from dynamo_cli.probes.agreement import agreement_table
from dynamo_cli.probes.entropy import Policy, observe, without_modulation


def apart(seed=0):
    """Six rollouts that never stand at the same state."""
    source = np.random.default_rng(seed)
    return [
        rollout(i // 2, i % 2, (10 + i,), tuple(source.integers(5, size=3 + i)), 1.0 - 2 * (i % 2))
        for i in range(6)
    ]


def observed(rollouts, *, rate, alone=100, aggregation="token_mean"):
    table = Table(rollouts, vocabulary=5, seed=1)
    policy = Policy(table, table.score, pad_token=0, room=12)
    before = table.logits.detach().clone()
    rows = observe(
        policy,
        rollouts,
        without_modulation(grpo(aggregation)),
        rate=rate,
        optimiser=OPTIMISER,
        alone=alone,
        source=np.random.default_rng(0),
    )
    assert torch.equal(table.logits.detach(), before)  # every update is taken back
    return rows


@pytest.mark.parametrize("aggregation", ["token_mean", "problem_mean"])
def test_the_formula_is_exact_for_logits_of_their_own(aggregation):
    errors = []
    for rate in (1e-3, 1e-4):
        rows = observed(apart(), rate=rate, aggregation=aggregation)
        assert len(rows) == sum(3 + i for i in range(6))
        errors.append(np.abs(rows.plain / rows.exact - 1).median())
        np.testing.assert_allclose(rows.alone, rows.plain, rtol=1e-6, atol=1e-16)
        np.testing.assert_array_equal(rows.prefix, rows.exact)
        assert not np.allclose(rows.sequence_mean, rows.exact, rtol=0.1)
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)  # the remainder is second order


def test_rollouts_at_one_state_move_it_together():
    first = rollout(0, 0, (7,), (1, 2, 3), 1.0)
    second = rollout(0, 1, (7,), (1, 4, 3), -1.0)
    rows = observed([first, second], rate=1e-5)
    np.testing.assert_allclose(rows.plain, rows.prefix, rtol=1e-3, atol=1e-14)
    shared = rows[rows.position == 0]  # the same token, up once and down once
    np.testing.assert_allclose(shared.prefix, 0, atol=1e-18)
    assert (shared.exact.abs() > 1e-8).all()
    np.testing.assert_allclose(shared.alone, shared.exact, rtol=1e-3)


def test_rollouts_without_advantage_are_no_points():
    rollouts = [*apart()[:2], rollout(3, 0, (40,), (1, 1), 0.0)]
    rows = observed(rollouts, rate=1e-4, alone=2)
    assert set(rows.rollout) == {0, 1}
    assert rows.alone.notna().sum() == 2


def test_agreement_is_full_where_the_theory_holds_and_says_what_its_units_are():
    parts = []
    for step in range(12):
        rows = observed(apart(step), rate=1e-4, alone=5)
        rows.insert(0, "step", step)
        parts.append(rows)
    tokens = pd.concat(parts, ignore_index=True)
    table = agreement_table(tokens, most=200, resamples=100, seed=0)
    keys = ["update", "unit", "prediction", "statistic"]
    found = table.set_index(keys)
    for unit in ("token", "rollout", "step"):
        assert found.loc[("plain", unit, "exact", "rank"), "value"] > 0.999
        assert found.loc[("plain", unit, "exact", "sign"), "value"] == 1
    assert found.loc[("alone", "token", "exact", "rank"), "value"] > 0.99
    assert found.loc[("plain", "token", "sequence_mean", "rank"), "value"] < 0.95
    points = table.groupby(["update", "unit"], sort=False).points.first()
    assert points["plain", "token"] == 200 and points["plain", "rollout"] == 72
    assert points["plain", "step"] == 12 and points["alone", "token"] == 60
    assert ("alone", "rollout", "exact", "rank") not in found.index
    assert found.loc[("plain", "token", "entropy", "rank_size"), "value"] < 0.9  # the control
    assert ("plain", "token", "entropy", "rank") not in found.index
    # By construction the shortcut predicts no change of any whole rollout.
    assert ("plain", "rollout", "sequence_mean", "rank") not in found.index
    sums = tokens.groupby(["step", "rollout"])[["sequence_mean", "exact"]].sum().abs().max()
    assert sums.sequence_mean < 1e-12 * sums.exact
    assert not table.duplicated(keys).any()
