"""Graded completions as rows of tokens.

S rollouts, T response positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as widen

from dynamo_cli.methods import Method
from dynamo_cli.methods.tokens import TokenBatch, TokenScores
from dynamo_cli.records import Completion, Problem, Verdict
from dynamo_cli.seeding import derive
from dynamo_cli.train.batching import mask_from_lengths


@dataclass(frozen=True, slots=True)
class Rollout:
    """A graded completion with what it is worth."""

    completion: Completion
    verdict: Verdict
    problem: int  # index of its problem in the step
    advantage: float

    @property
    def positions(self) -> int:
        """Prompt and response tokens: what it takes up in a batch."""
        return len(self.completion.prompt) + len(self.completion.tokens)


def credit(
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    method: Method,
) -> list[Rollout]:
    """Advantages of the graded rollouts, grouped by the problem that owns them.

    What the verifier could not judge is left out whole: it moves neither a baseline, nor the loss,
    nor the history. The reward is the correctness, 0 or 1.
    """
    index = {problem.id: number for number, problem in enumerate(problems)}
    graded = [(c, v) for c, v in zip(completions, verdicts, strict=True) if v.graded]
    problem = np.array([index[c.problem_id] for c, _ in graded], dtype=np.int64)
    correct = np.array([v.correct for _, v in graded], dtype=np.float64)
    advantage = method.advantage(correct, correct, problem)
    return [
        Rollout(completion=c, verdict=v, problem=int(p), advantage=float(a))
        for (c, v), p, a in zip(graded, problem, advantage, strict=True)
    ]


def as_tokens(rollouts: Sequence[Rollout], scores: TokenScores) -> TokenBatch:
    """The rollouts of a step under the policy that sampled them: logp_old equals logp here."""
    mask = mask_from_lengths(torch.tensor([len(r.completion.tokens) for r in rollouts]))
    advantage = torch.tensor([r.advantage for r in rollouts], dtype=scores.logp.dtype)
    keys = [derive(0, "key", r.completion.problem_id, r.completion.rollout) for r in rollouts]
    return TokenBatch(
        logp=scores.logp,
        logp_old=scores.logp,
        entropy=scores.entropy,
        expected_pi_lambda=scores.expected_pi_lambda,
        advantage=advantage[:, None] * mask,
        mask=mask,
        chosen=torch.zeros_like(mask),
        problem=torch.tensor([r.problem for r in rollouts], dtype=torch.int64),
        key=torch.tensor(keys, dtype=torch.int64),
    )


def reported_scores(rollouts: Sequence[Rollout]) -> TokenScores | None:
    """[S, T] what the sampler said of its tokens; None where it did not say all of it."""
    completions = [r.completion for r in rollouts]
    if any(c.entropy is None or c.expected_pi_lambda is None for c in completions):
        return None
    lengths = [len(c.tokens) for c in completions]
    mask = mask_from_lengths(torch.tensor(lengths))

    def table(name: str) -> Tensor:
        values = chain.from_iterable(getattr(c, name) for c in completions)
        flat = torch.from_numpy(np.fromiter(values, dtype=np.float32))
        return torch.zeros(mask.shape).masked_scatter_(mask, flat)

    return TokenScores(*map(table, TokenScores._fields))


def sampled_logp(rollouts: Sequence[Rollout]) -> Tensor:
    """[S, T] the log-probability under which the sampler says it drew each token; else 0."""
    mask = mask_from_lengths(torch.tensor([len(r.completion.tokens) for r in rollouts]))
    flat = torch.tensor([logp for r in rollouts for logp in r.completion.logp])
    return torch.zeros(mask.shape).masked_scatter_(mask, flat)


def with_scores(tokens: TokenBatch, scores: TokenScores) -> TokenBatch:
    """The same tokens under another policy; `scores` may be narrower than the step's longest."""
    width = tokens.mask.shape[1]

    def fit(values: Tensor) -> Tensor:
        return widen(values[:, :width], (0, max(0, width - values.shape[1])))

    return replace(
        tokens,
        logp=fit(scores.logp),
        entropy=fit(scores.entropy),
        expected_pi_lambda=fit(scores.expected_pi_lambda),
    )
