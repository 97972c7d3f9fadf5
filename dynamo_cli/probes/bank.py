"""Rollouts of a problem with the gradient that each would give: what steps are drawn from.

M rollouts of a problem, K numbers of a gradient's sketch, D of a gradient, L positions.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from dynamo_cli.probes.sketch import Sketch
from dynamo_cli.records import Completion
from dynamo_cli.train.batching import microbatches, pad


@dataclass(frozen=True, slots=True)
class Bank:
    """What is known of M rollouts of one problem."""

    gradient: np.ndarray  # [M, K] sketch of grad log pi(response), summed over its tokens
    correct: np.ndarray  # [M] 0 or 1
    length: np.ndarray  # [M] tokens of the response

    def __len__(self) -> int:
        return len(self.correct)

    def part(self, rows: slice) -> "Bank":
        """Some of the rollouts."""
        return Bank(self.gradient[rows], self.correct[rows], self.length[rows])

    def norm(self, *, right: bool | None = None) -> float:
        """Mean squared norm of a rollout's gradient for each token of its problem: E|s|^2 / L^2.

        The problem mean multiplies rewards with gradients of that size. right: of the right, or of
        the wrong rollouts alone; NaN where there are none.
        """
        rows = np.ones(len(self), bool) if right is None else self.correct == right
        if not rows.any():
            return float("nan")
        squares = np.square(self.gradient[rows], dtype=np.float64).sum(axis=1)
        return float(squares.mean() / self.length.mean() ** 2)


def build_bank(
    module: Any,
    completions: Sequence[Completion],
    correct: Sequence[bool],
    sketch: Sketch,
    *,
    temperature: float,
    pad_token: int,
    room: int,
) -> Bank:
    """The bank of one problem's completions; `room` positions are held at a time."""
    parts = {}
    sizes = [len(c.prompt) + len(c.tokens) for c in completions]
    for rows in microbatches(sizes, tokens=room):
        chosen = [completions[row] for row in rows]
        found = sketch(score_gradients(module, chosen, temperature, pad_token)).numpy()
        parts |= dict(zip(rows, found, strict=True))
    return Bank(
        gradient=np.stack([parts[row] for row in range(len(completions))]),
        correct=np.array(correct, dtype=np.float64),
        length=np.array([len(c.tokens) for c in completions], dtype=np.int64),
    )


def score_gradients(
    module: Any, completions: Sequence[Completion], temperature: float, pad_token: int
) -> dict[str, Tensor]:
    """By parameter, [B, ...]: the gradient of each response's log-probability.

    A model whose code looks at its values cannot be run for several gradients at once; its
    rollouts are taken one by one.
    """
    batch = pad(completions, pad_token=pad_token)
    counted = torch.zeros(batch.tokens[:, 1:].shape)
    row, position = batch.response_index()
    counted[row, position - 1] = 1
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def log_probability(values: Mapping[str, Tensor], tokens: Tensor, mask: Tensor) -> Tensor:
        inputs = {"input_ids": tokens[None], "use_cache": False}
        logits = functional_call(module, dict(values), (), inputs).logits[0, :-1].float()
        logp = (logits / temperature).log_softmax(dim=-1)
        return (logp.gather(1, tokens[1:, None])[:, 0] * mask).sum()

    device = next(module.parameters()).device
    data = batch.tokens.to(device), counted.to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks that attention is not mapped, but looped
        try:
            return vmap(grad(log_probability), in_dims=(None, 0, 0))(parameters, *data)
        except RuntimeError:
            each = [grad(log_probability)(parameters, *one) for one in zip(*data, strict=True)]
            return {name: torch.stack([g[name] for g in each]) for name in parameters}
