"""From graded rollouts to optimiser updates. Knows no method and no engine by name.

S rollouts of a step, T response positions.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from dynamo_cli.errors import DynamoError
from dynamo_cli.methods import Method
from dynamo_cli.methods.tokens import TokenBatch, TokenScores
from dynamo_cli.seeding import derive
from dynamo_cli.train.batching import microbatches, pad, split_evenly
from dynamo_cli.train.engine import TrainEngine
from dynamo_cli.train.metrics import sampler_gap
from dynamo_cli.train.rollouts import Rollout, as_tokens, reported_scores, with_scores

OldScores = Literal["sampler", "trainer"]
AGREEMENT = 1e-3  # largest difference, in nats, of sampler and trainer that share arithmetic


class Learner:
    """Turns the rollouts of one step into `updates_per_step` optimiser updates.

    `old_scores` says who scores the sampled tokens under the policy that sampled them. "trainer"
    runs it over all of them once more. "sampler" takes what the sampler reported, for nothing;
    that is right where sampler and trainer share weights and arithmetic, which the first step
    verifies. A sampler that reports nothing leaves it to the trainer.
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
    ) -> None:
        self._method, self._policy, self._seed = method, policy, seed
        self._updates = updates_per_step
        self._room = tokens_per_microbatch
        self._pad_token = pad_token
        self._old_scores = old_scores
        self._verified = False

    def learn(self, step: int, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Update the policy; returns the step's metrics, averaged over its updates.

        Each update sees whole problems, so that a group is never cut.
        """
        reported = self.reported(rollouts) if self._old_scores == "sampler" else None
        tokens = as_tokens(rollouts, self.score(rollouts) if reported is None else reported)
        rows_of: dict[int, list[int]] = {}
        for row, rollout in enumerate(rollouts):
            rows_of.setdefault(rollout.problem, []).append(row)
        updates = []
        for number, part in enumerate(split_evenly(sorted(rows_of), self._updates)):
            rows = [row for problem in part for row in rows_of[problem]]
            minibatch = [rollouts[row] for row in rows]
            current = tokens.rows(rows)
            if number > 0 and self._method.needs_scores:  # at first nothing has moved yet
                current = with_scores(current, self.score(minibatch))
            salt = derive(self._seed, "choice", step, number)
            updates.append(self.update(minibatch, current, salt=salt))
        mean = {name: float(np.mean([u[name] for u in updates])) for name in updates[0]}
        if reported is None:
            sampled = torch.tensor([logp for r in rollouts for logp in r.completion.logp])
            mean["sampler_gap"] = sampler_gap(sampled, tokens.logp_old[tokens.mask])
        else:  # the first update's own pass is the trainer's word on it
            mean["sampler_gap"] = updates[0]["sampler_gap"]
        return mean | {"entropy": tokens.entropy[tokens.mask].mean().item()}

    def reported(self, rollouts: Sequence[Rollout]) -> TokenScores | None:
        """What the sampler says of all its tokens; None where it does not report.

        Raises DynamoError where the trainer says otherwise, the first time.
        """
        scores = reported_scores(rollouts)
        if scores is not None and not self._verified:
            for name, ours, theirs in zip(
                scores._fields, self.score(rollouts), scores, strict=True
            ):
                gap = (ours - theirs).abs().max().item()
                if not gap <= AGREEMENT:  # NaN too
                    raise DynamoError(
                        f"sampler and trainer differ by {gap:.2g} nats in the {name} of a token, "
                        f"more than {AGREEMENT:g}: they do not run the same policy; "
                        "set training.old_scores to trainer"
                    )
            self._verified = True
        return scores

    def update(
        self, minibatch: Sequence[Rollout], tokens: TokenBatch, *, salt: int
    ) -> dict[str, float]:
        """One optimiser update.

        All that is detached is decided once, over the whole mini-batch; micro-batches then only
        add up their shares of the loss. Its sampler_gap lies between `logp_old` and the policy
        before the update, over the tokens that carry a gradient.
        """
        planned, weight = self._method.plan(tokens, salt=salt, collective=self._policy.collective)
        live = self._method.objective.carries_gradient(planned).nonzero()[:, 0].tolist()
        sums = {"loss": 0.0, "clip_fraction": 0.0}
        pairs = [(planned.logp.new_empty(0),) * 2]
        for part in microbatches([minibatch[row].positions for row in live], tokens=self._room):
            rows = [live[i] for i in part]
            batch = pad([minibatch[row].completion for row in rows], pad_token=self._pad_token)
            scores = self._policy.score(batch, gradient=True)
            micro = with_scores(planned.rows(rows, columns=scores.logp.shape[1]), scores)
            share = self._method.loss(micro, weight[rows])
            self._policy.backward(share)
            sums["loss"] += share.item()
            pairs.append((micro.logp_old[micro.mask], micro.logp[micro.mask].detach()))
            clipped = self._method.objective.metrics(micro).get("clip_fraction")
            sums["clip_fraction"] += 0.0 if clipped is None else clipped[micro.mask].sum().item()
        sums["clip_fraction"] /= max(1, int(planned.mask.sum()))
        sums["sampler_gap"] = sampler_gap(*map(torch.cat, zip(*pairs, strict=True)))
        return sums | {"grad_norm": self._policy.step()}

    def score(self, rollouts: Sequence[Rollout]) -> TokenScores:
        """Scores [S, T] of all rollouts under the current policy, without gradient."""
        width = max(1, *(len(r.completion.tokens) for r in rollouts))
        table = TokenScores(*(torch.zeros(len(rollouts), width) for _ in TokenScores._fields))
        for part in microbatches([r.positions for r in rollouts], tokens=self._room):
            batch = pad([rollouts[row].completion for row in part], pad_token=self._pad_token)
            scores = self._policy.score(batch, gradient=False)
            for whole, values in zip(table, scores, strict=True):
                whole[part, : values.shape[1]] = values.to(whole)
        return table
