"""The entropy probe: the first-order change of a token's entropy against the one measured.

S rollouts of a step, T response positions. Every entropy is that of the next token after the same
tokens as before the update, so a difference is what the update did to that state.

The theory looks at a token as if its logits were parameters of their own, moved by its own
advantage alone. Three updates are measured, from the theory's world to training's: `alone`, a
plain gradient step on the loss of that one token; `plain`, on the loss of the whole step; `adamw`,
training's optimiser on it, with fresh moments.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dynamo_cli.methods import Method
from dynamo_cli.methods.modulation import Unmodulated, entropy_change
from dynamo_cli.methods.tokens import TokenBatch, TokenScores
from dynamo_cli.train.batching import SequenceBatch, microbatches, pad
from dynamo_cli.train.engine import Optimiser
from dynamo_cli.train.rollouts import Rollout, as_tokens, with_scores

Score = Callable[[SequenceBatch, bool], TokenScores]  # of a batch; whether with gradient
Update = Callable[[list[Tensor]], None]  # moves parameters along their gradients
UPDATES = ("alone", "plain", "adamw")
PREDICTIONS = ("exact", "sequence_mean", "prefix")


class Policy:
    """Parameters and how they score tokens; an update can be tried and taken back."""

    def __init__(self, module: Any, score: Score, *, pad_token: int, room: int) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._score, self._pad_token, self._room = score, pad_token, room

    def batches(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[list[int], SequenceBatch]]:
        """Rows and their batch, a micro-batch at a time."""
        for rows in microbatches([r.positions for r in rollouts], tokens=self._room):
            chosen = [rollouts[row].completion for row in rows]
            yield rows, pad(chosen, pad_token=self._pad_token)

    def score(self, batch: SequenceBatch, *, gradient: bool) -> TokenScores:
        return self._score(batch, gradient)

    def scores(self, rollouts: Sequence[Rollout]) -> TokenScores:
        """[S, T] of all rollouts, without gradient."""
        width = max(1, *(len(r.completion.tokens) for r in rollouts))
        table = None
        for rows, batch in self.batches(rollouts):
            found = self.score(batch, gradient=False)
            if table is None:
                shape = len(rollouts), width
                table = TokenScores(*(values.new_zeros(shape) for values in found))
            for whole, values in zip(table, found, strict=True):
                whole[rows, : values.shape[1]] = values
        return table

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    @contextmanager
    def tried(self, update: Update) -> Iterator[None]:
        """The policy after an update, within the block alone."""
        before = [p.detach().clone() for p in self.parameters]
        update(self.parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, before, strict=True):
                    parameter.copy_(value)


def plain(rate: float) -> Update:
    """theta <- theta - rate gradient."""

    def update(parameters: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(rate * parameter.grad)

    return update


def adamw(settings: Optimiser) -> Update:
    """Training's optimiser at its first update: clipped gradient, fresh moments."""

    def update(parameters: list[Tensor]) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
        torch.optim.AdamW(
            parameters,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        ).step()

    return update


def observe(
    policy: Policy,
    rollouts: Sequence[Rollout],
    method: Method,
    *,
    rate: float,
    optimiser: Optimiser,
    alone: int,
    source: np.random.Generator,
) -> pd.DataFrame:
    """One row per token of the step that carries a gradient: predicted and measured changes.

    Columns: problem (its number), rollout (the row), position; `exact`, `sequence_mean`, `prefix`:
    predicted for the plain update; `plain`, `adamw`, `alone`: measured, nats (`alone` for some
    tokens, drawn by `source`, NaN for the others); entropy, before; advantage.
    method: its loss is the one that is followed, its modulation left out by the caller.
    """
    tokens = as_tokens(rollouts, policy.scores(rollouts))
    planned, weight = method.plan(tokens)
    active = planned.mask & method.objective.active(planned)
    backward(policy, rollouts, planned, weight, method)
    table = {name: rate * value for name, value in predictions(planned, weight, method).items()}
    table["prefix"] = by_prefix(table["exact"], rollouts)
    for name, update in (("plain", plain(rate)), ("adamw", adamw(optimiser))):
        with policy.tried(update):
            table[name] = policy.scores(rollouts).entropy - tokens.entropy
    row, position = active.nonzero(as_tuple=True)
    chosen = source.permutation(len(row))[:alone]
    table["alone"] = torch.full_like(tokens.entropy, torch.nan)
    for i in chosen:
        r, t = int(row[i]), int(position[i])
        one = planned.rows([r])
        share = rate * float(weight[r])
        table["alone"][r, t] = alone_change(policy, rollouts[r], one, t, method, share)
    table |= {"entropy": tokens.entropy, "advantage": planned.advantage}
    columns = {name: values[active].double().numpy() for name, values in table.items()}
    problem = np.array([r.problem for r in rollouts])[row.numpy()]
    place = {"problem": problem, "rollout": row.numpy(), "position": position.numpy()}
    return pd.DataFrame(place | columns)


def predictions(planned: TokenBatch, weight: Tensor, method: Method) -> dict[str, Tensor]:
    """[S, T] each: a token's change of entropy by its own share of the step, per learning rate."""
    return {
        name: weight[:, None]
        * entropy_change(planned, active=method.objective.active, expectation=name)
        for name in PREDICTIONS[:2]
    }


def by_prefix(change: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
    """[S, T]: the changes of all rollouts of the step that stand at the same state, added up.

    Rollouts of a problem share their beginnings; the first token's state is that of all of them.
    """
    total: dict[tuple[int, ...], float] = {}
    places = [
        (row, t, (*r.completion.prompt, *r.completion.tokens[:t]))
        for row, r in enumerate(rollouts)
        for t in range(len(r.completion.tokens))
    ]
    for row, t, state in places:
        total[state] = total.get(state, 0.0) + float(change[row, t])
    found = torch.zeros_like(change)
    for row, t, state in places:
        found[row, t] = total[state]
    return found


def backward(
    policy: Policy,
    rollouts: Sequence[Rollout],
    planned: TokenBatch,
    weight: Tensor,
    method: Method,
) -> None:
    """Leave the gradient of the step's loss in the parameters."""
    policy.clear()
    for rows, batch in policy.batches(rollouts):
        scores = policy.score(batch, gradient=True)
        micro = with_scores(planned.rows(rows, columns=scores.logp.shape[1]), scores)
        method.loss(micro, weight[rows]).backward()


def alone_change(
    policy: Policy, rollout: Rollout, one: TokenBatch, t: int, method: Method, share: float
) -> float:
    """The entropy after minus before, at token t of a rollout, of an update by its loss alone."""
    ((_, batch),) = policy.batches([rollout])
    policy.clear()
    scores = policy.score(batch, gradient=True)
    loss = method.objective(with_scores(one, scores))[0, t]
    loss.backward()
    with policy.tried(plain(share)):
        after = policy.score(batch, gradient=False).entropy[0, t]
    return float(after - scores.entropy[0, t].detach())


def without_modulation(method: Method) -> Method:
    """The method whose tokens keep the advantage of their rollout, as the theory has them."""
    return method.model_copy(update={"modulation": Unmodulated(kind="none")})
