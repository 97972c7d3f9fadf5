"""What a step tells of itself: one row of metrics, and one ledger row per problem."""

from typing import Any

import numpy as np
from torch import Tensor

from dynamo_cli.methods.objective import kl_estimate
from dynamo_cli.records import Completion, Problem, Verdict
from dynamo_cli.train.rollouts import Rollout


def sampler_gap(sampled: Tensor, logp: Tensor) -> float:
    """Mean k3 estimate of KL(sampler || trainer) over some tokens [M]; 0 where there are none.

    Zero but for rounding where the two run the same weights with the same arithmetic.
    """
    return kl_estimate(sampled, logp, kind="k3").sum().item() / max(1, len(logp))


def summarise(
    completions: list[Completion], verdicts: list[Verdict], counts: np.ndarray
) -> dict[str, float]:
    """What the step sampled. Correctness counts graded rollouts only."""
    graded = [v for v in verdicts if v.graded]
    right: dict[str, list[bool]] = {}
    for completion, verdict in zip(completions, verdicts, strict=True):
        if verdict.graded:
            right.setdefault(completion.problem_id, []).append(verdict.correct)
    return {
        "reward": float(np.mean([v.correct for v in graded])) if graded else 0.0,
        "unparsable": sum(v is Verdict.UNPARSABLE for v in verdicts) / len(verdicts),
        "ungraded": (len(verdicts) - len(graded)) / len(verdicts),
        "mixed_groups": sum(len(set(g)) > 1 for g in right.values()) / len(counts),
        "response_tokens": float(np.mean([len(c.tokens) for c in completions])),
        "truncated": sum(c.finish == "length" for c in completions) / len(completions),
        "rollouts_min": int(counts.min()),
        "rollouts_max": int(counts.max()),
    }


def ledger_rows(
    problems: list[Problem],
    counts: np.ndarray,
    rollouts: list[Rollout],
    known: tuple[np.ndarray, np.ndarray],
) -> list[dict[str, Any]]:
    """Per problem: what was known before the step, what it was given, what came out."""
    graded, correct = np.zeros(len(problems), int), np.zeros(len(problems), int)
    for rollout in rollouts:
        graded[rollout.problem] += 1
        correct[rollout.problem] += rollout.verdict.correct
    return [
        {
            "problem_id": problem.id,
            "level": problem.level,
            "correct_before": float(known[0][i]),
            "seen_before": float(known[1][i]),
            "rollouts": int(counts[i]),
            "graded": int(graded[i]),
            "correct": int(correct[i]),
        }
        for i, problem in enumerate(problems)
    ]
