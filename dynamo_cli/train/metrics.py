"""What a step tells of itself: one row of metrics, and one ledger row per problem."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_cli.methods.collective import LOCAL, Collective
from dynamo_cli.methods.objective import kl_estimate
from dynamo_cli.methods.off_policy import OffPolicy
from dynamo_cli.methods.posterior import posterior_interval, posterior_mean
from dynamo_cli.records import Completion, Problem, Verdict
from dynamo_cli.train.rollouts import Rollout


def sampler_gap(sampled: Tensor, logp: Tensor, collective: Collective = LOCAL) -> float:
    """Mean k3 estimate of KL(sampler || trainer) over tokens of all ranks, [M]; 0 without any.

    Zero but for rounding where the two run the same weights with the same arithmetic.
    """
    # In float64: float32 rounding would show where there is nothing to see, even below zero.
    gaps = kl_estimate(sampled.double(), logp.double(), kind="k3")
    total, num = collective.sum(gaps.sum()), collective.sum(torch.tensor(len(gaps)))
    return total.item() / max(1, int(num))


def gap_metrics(
    sampled: Tensor, logp: Tensor, off_policy: OffPolicy | None, collective: Collective = LOCAL
) -> dict[str, float]:
    """How far sampler and trainer are apart, over tokens of all ranks, [M] each; 0 without any.

    And, where it is corrected, the mean weight and the share of the tokens whose weight is cut.
    """
    largest = (logp - sampled).abs().max() if len(logp) else logp.new_zeros(())
    found = {
        "sampler_gap": sampler_gap(sampled, logp, collective),
        "sampler_gap_max": collective.max(largest).item(),
    }
    if off_policy is None:
        return found
    weight = off_policy.weight(logp.double(), sampled.double())
    cut = (logp.double() - sampled.double() > math.log(off_policy.cap)).sum()
    total = collective.sum(torch.stack([weight.sum(), cut.double()]))
    num = max(1, int(collective.sum(torch.tensor(len(weight)))))
    mean, share = (total / num).tolist()
    return found | {"importance": mean, "importance_cut": share}


def summarise(
    completions: list[Completion], verdicts: list[Verdict], counts: np.ndarray
) -> dict[str, float]:
    """What the step sampled. Correctness counts graded rollouts only.

    Reward and length are means over problems of the mean over their rollouts: an allocation that
    gives hard problems more rollouts must not look worse for it.
    """
    right: dict[str, list[bool]] = {}
    tokens: dict[str, list[int]] = {}
    for completion, verdict in zip(completions, verdicts, strict=True):
        tokens.setdefault(completion.problem_id, []).append(len(completion.tokens))
        if verdict.graded:
            right.setdefault(completion.problem_id, []).append(verdict.correct)
    return {
        "reward": mean_of_means(right),
        "unparsable": sum(v is Verdict.UNPARSABLE for v in verdicts) / len(verdicts),
        "ungraded": sum(not v.graded for v in verdicts) / len(verdicts),
        "mixed_groups": sum(len(set(g)) > 1 for g in right.values()) / len(counts),
        "response_tokens": mean_of_means(tokens),
        "generated_tokens": sum(len(c.tokens) for c in completions),
        "truncated": sum(c.finish == "length" for c in completions) / len(completions),
        "rollouts_min": int(counts.min()),
        "rollouts_max": int(counts.max()),
    }


def mean_of_means(groups: dict[str, list]) -> float:
    """Mean over groups of the mean of each; 0 where there are none."""
    return float(np.mean([np.mean(group) for group in groups.values()])) if groups else 0.0


def ledger_rows(
    problems: list[Problem],
    counts: np.ndarray,
    rollouts: list[Rollout],
    known: tuple[np.ndarray, np.ndarray],
) -> list[dict[str, Any]]:
    """Per problem: what was known before the step, what it was given, what came out.

    The posterior is that of the success rate, given what was known: its mean and 95 % interval.
    """
    graded, correct = np.zeros(len(problems), int), np.zeros(len(problems), int)
    for rollout in rollouts:
        graded[rollout.problem] += 1
        correct[rollout.problem] += rollout.verdict.correct
    mean, (low, high) = posterior_mean(*known), posterior_interval(*known)
    return [
        {
            "problem_id": problem.id,
            "level": problem.level,
            "correct_before": float(known[0][i]),
            "seen_before": float(known[1][i]),
            # Rounded, so that the last bit of a machine's exp does not show in the file.
            "posterior_mean": round(float(mean[i]), 6),
            "posterior_low": round(float(low[i]), 6),
            "posterior_high": round(float(high[i]), 6),
            "rollouts": int(counts[i]),
            "graded": int(graded[i]),
            "correct": int(correct[i]),
        }
        for i, problem in enumerate(problems)
    ]
