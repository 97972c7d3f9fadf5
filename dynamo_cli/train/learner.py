"""From graded rollouts to optimiser updates. Knows no method and no engine by name.

S rollouts of a step, T response positions.
"""

from collections.abc import Sequence

import numpy as np
import torch

from dynamo_cli.methods import Method
from dynamo_cli.methods.tokens import TokenBatch, TokenScores
from dynamo_cli.seeding import derive
from dynamo_cli.train.batching import microbatches, pad, split_evenly
from dynamo_cli.train.engine import TrainEngine
from dynamo_cli.train.metrics import distribution_metrics
from dynamo_cli.train.rollouts import Rollout, as_tokens, with_scores


class Learner:
    """Turns the rollouts of one step into `updates_per_step` optimiser updates."""

    def __init__(
        self,
        method: Method,
        policy: TrainEngine,
        *,
        seed: int,
        updates_per_step: int,
        tokens_per_microbatch: int,
        pad_token: int,
    ) -> None:
        self._method, self._policy, self._seed = method, policy, seed
        self._updates = updates_per_step
        self._room = tokens_per_microbatch
        self._pad_token = pad_token

    def learn(self, step: int, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Update the policy; returns the step's metrics, averaged over its updates.

        Each update sees whole problems, so that a group is never cut.
        """
        tokens = as_tokens(rollouts, self.score(rollouts))
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
        return mean | distribution_metrics(tokens, rollouts)

    def update(
        self, minibatch: Sequence[Rollout], tokens: TokenBatch, *, salt: int
    ) -> dict[str, float]:
        """One optimiser update.

        All that is detached is decided once, over the whole mini-batch; micro-batches then only
        add up their shares of the loss.
        """
        planned, weight = self._method.plan(tokens, salt=salt, collective=self._policy.collective)
        live = self._method.objective.carries_gradient(planned).nonzero()[:, 0].tolist()
        sums = {"loss": 0.0, "clip_fraction": 0.0}
        for part in microbatches([minibatch[row].positions for row in live], tokens=self._room):
            rows = [live[i] for i in part]
            batch = pad([minibatch[row].completion for row in rows], pad_token=self._pad_token)
            scores = self._policy.score(batch, gradient=True)
            micro = with_scores(planned.rows(rows, columns=scores.logp.shape[1]), scores)
            share = self._method.loss(micro, weight[rows])
            self._policy.backward(share)
            sums["loss"] += share.item()
            clipped = self._method.objective.metrics(micro).get("clip_fraction")
            sums["clip_fraction"] += 0.0 if clipped is None else clipped[micro.mask].sum().item()
        sums["clip_fraction"] /= max(1, int(planned.mask.sum()))
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
