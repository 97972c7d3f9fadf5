"""From graded rollouts to optimiser updates. Knows no method and no engine by name.

S rollouts of a step, T response positions.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dynamo_cli.errors import DynamoError
from dynamo_cli.methods import Method
from dynamo_cli.methods.collective import count
from dynamo_cli.methods.off_policy import OffPolicy, weighted
from dynamo_cli.methods.tokens import TokenBatch, TokenScores
from dynamo_cli.seeding import derive
from dynamo_cli.train.batching import idle_batch, microbatches, pad, split_evenly
from dynamo_cli.train.engine import TrainEngine
from dynamo_cli.train.metrics import gap_metrics, sampler_gap
from dynamo_cli.train.ranks import shares
from dynamo_cli.train.rollouts import (
    Rollout,
    as_tokens,
    reported_scores,
    sampled_logp,
    with_scores,
)

OldScores = Literal["sampler", "trainer"]
# Is shown each update before it is made: step, its rollouts, their tokens, and as planned.
Watch = Callable[[int, Sequence[Rollout], TokenBatch, TokenBatch], None]
AGREEMENT = 1e-3  # largest difference, in nats, of sampler and trainer that share arithmetic


class Learner:
    """Turns the rollouts of one step into `updates_per_step` optimiser updates.

    Where the policy has several ranks, each is given all rollouts, scores and learns from its
    share of each mini-batch, and returns the metrics of all: the updates do not depend on how many
    ranks there are.

    `old_scores` says who scores the sampled tokens under the policy that sampled them. "trainer"
    runs it over all of them once more. "sampler" takes what the sampler reported, for nothing;
    that is right where sampler and trainer share weights and arithmetic, which the first step
    verifies. A sampler that reports nothing leaves it to the trainer.

    `off_policy` weighs each token by how much likelier the trainer finds it than the sampler did;
    it has nothing to go by where the sampler's word is taken.
    """

    def __init__(
        self,
        method: Method,
        policy: TrainEngine,
        *,
        seed: int,
        updates_per_step: int,
        tokens_per_microbatch: int,
        pad_token: int,
        old_scores: OldScores = "trainer",
        off_policy: OffPolicy | None = None,
    ) -> None:
        self._method, self._policy, self._seed = method, policy, seed
        self._updates = updates_per_step
        self._room = tokens_per_microbatch
        self._pad_token = pad_token
        self._old_scores, self._off_policy = old_scores, off_policy
        self._verified = False
        self.watch: Watch | None = None

    def learn(self, step: int, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Update the policy; returns the step's metrics, averaged over its updates.

        Each update sees whole problems, so that a group is never cut.
        """
        ours = self.ours(rollouts)
        rollouts = [rollout for minibatch in ours for rollout in minibatch]
        reported = self.reported(rollouts) if self._old_scores == "sampler" else None
        tokens = as_tokens(rollouts, self.score(rollouts) if reported is None else reported)
        sampled = sampled_logp(rollouts) if reported is None else None
        importance = None
        if sampled is not None and self._off_policy is not None:
            importance = self._off_policy.weight(tokens.logp_old, sampled)
        updates, first = [], 0
        for number, minibatch in enumerate(ours):
            rows = slice(first, first + len(minibatch))
            current, first = tokens.rows(rows), rows.stop
            if number > 0 and self._method.needs_scores:  # at first nothing has moved yet
                current = with_scores(current, self.score(minibatch))
            salt = derive(self._seed, "choice", step, number)
            share = None if importance is None else importance[rows]
            updates.append(self.update(minibatch, current, step=step, salt=salt, importance=share))
        mean = {name: float(np.mean([u[name] for u in updates])) for name in updates[0]}
        ranks = self._policy.collective
        if sampled is not None:
            words = sampled[tokens.mask], tokens.logp_old[tokens.mask]
            mean |= gap_metrics(*words, self._off_policy, ranks)
        else:  # the first update's own pass is the trainer's word on it
            mean["sampler_gap"] = updates[0]["sampler_gap"]
        total = ranks.sum(tokens.entropy[tokens.mask].sum())
        return mean | {"entropy": (total / count(tokens.mask, ranks)).item()}

    def ours(self, rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
        """This rank's share of each mini-batch: of whole problems, as even in tokens as it goes."""
        ranks = self._policy.collective
        rows_of: dict[int, list[Rollout]] = {}
        for rollout in rollouts:
            rows_of.setdefault(rollout.problem, []).append(rollout)
        parts = []
        for problems in split_evenly(sorted(rows_of), self._updates):
            minibatch = [rollout for problem in problems for rollout in rows_of[problem]]
            rows = shares([rollout.positions for rollout in minibatch], ranks.size)[ranks.rank]
            parts.append([minibatch[row] for row in rows])
        return parts

    def reported(self, rollouts: Sequence[Rollout]) -> TokenScores | None:
        """What the sampler says of all its tokens; None where it does not report.

        Raises DynamoError where the trainer says otherwise, the first time.
        """
        ranks, scores = self._policy.collective, reported_scores(rollouts)
        if ranks.max(torch.tensor(scores is None, dtype=torch.int64)):
            return None  # of one rank's rollouts, and so of none
        if not self._verified:
            for name, ours, theirs in zip(
                scores._fields, self.score(rollouts), scores, strict=True
            ):
                gaps = (ours - theirs).abs().nan_to_num(torch.inf).flatten()
                gap = float(ranks.max(gaps.max() if len(gaps) else gaps.new_zeros(())))
                if gap > AGREEMENT:
                    raise DynamoError(
                        f"sampler and trainer differ by {gap:.2g} nats in the {name} of a token, "
                        f"more than {AGREEMENT:g}: they do not run the same policy; "
                        "set training.old_scores to trainer"
                    )
            self._verified = True
        return scores

    def update(
        self,
        minibatch: Sequence[Rollout],
        tokens: TokenBatch,
        *,
        salt: int,
        step: int = 0,
        importance: Tensor | None = None,
    ) -> dict[str, float]:
        """One optimiser update; `importance` [B, T] multiplies the tokens' policy-gradient loss.

        All that is detached is decided once, over the whole mini-batch; micro-batches then only
        add up their shares of the loss. Its sampler_gap lies between `logp_old` and the policy
        before the update, over the tokens that carry a gradient.
        """
        ranks = self._policy.collective
        planned, weight = self._method.plan(tokens, salt=salt, collective=ranks)
        if self.watch is not None:
            self.watch(step, minibatch, tokens, planned)
        if importance is not None:
            planned = weighted(planned, importance)
        live = self._method.objective.carries_gradient(planned).nonzero()[:, 0].tolist()
        loss = num_clipped = 0.0
        pairs = [(planned.logp.new_empty(0),) * 2]
        for part in self.rounds([minibatch[row].positions for row in live]):
            if not part:
                idle = self._policy.score(idle_batch(), gradient=True)
                self._policy.backward(0 * idle.logp.sum())
                continue
            rows = [live[i] for i in part]
            batch = pad([minibatch[row].completion for row in rows], pad_token=self._pad_token)
            scores = self._policy.score(batch, gradient=True)
            micro = with_scores(planned.rows(rows, columns=scores.logp.shape[1]), scores)
            share = self._method.loss(micro, weight[rows])
            self._policy.backward(share)
            loss += share.item()
            pairs.append((micro.logp_old[micro.mask], micro.logp[micro.mask].detach()))
            clipped = self._method.objective.metrics(micro).get("clip_fraction")
            num_clipped += 0.0 if clipped is None else clipped[micro.mask].sum().item()
        sums = torch.tensor([loss, num_clipped], dtype=torch.float64)
        loss, num_clipped = ranks.sum(sums).tolist()
        return {
            "loss": loss,
            "clip_fraction": num_clipped / max(1, count(planned.mask, ranks)),
            "sampler_gap": sampler_gap(*map(torch.cat, zip(*pairs, strict=True)), ranks),
            "grad_norm": self._policy.step(),
        }

    def rounds(self, sizes: Sequence[int]) -> list[list[int]]:
        """Rows of each micro-batch; at the end empty ones, up to the number of the busiest rank.

        What an engine does in a micro-batch is collective: with fewer on one rank, all would hang.
        """
        parts = list(microbatches(sizes, tokens=self._room))
        most = int(self._policy.collective.max(torch.tensor(len(parts))))
        return parts + [[]] * (most - len(parts))

    def score(self, rollouts: Sequence[Rollout]) -> TokenScores:
        """Scores [S, T] of all rollouts under the current policy, without gradient."""
        width = max([1, *(len(r.completion.tokens) for r in rollouts)])
        table = TokenScores(*(torch.zeros(len(rollouts), width) for _ in TokenScores._fields))
        for part in self.rounds([r.positions for r in rollouts]):
            if not part:
                self._policy.score(idle_batch(), gradient=False)
                continue
            batch = pad([rollouts[row].completion for row in part], pad_token=self._pad_token)
            scores = self._policy.score(batch, gradient=False)
            for whole, values in zip(table, scores, strict=True):
                whole[part, : values.shape[1]] = values.to(whole)
        return table
