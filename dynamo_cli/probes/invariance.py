"""One step recomputed under other layouts: its gradient must not know how it was laid out.

A layout is how the rollouts of an update become micro-batches: their size, the order of rows, the
padding, and which rows share one. The updates of the step are made for real, one after another, so
that the later ones see ratios other than 1; before each, its gradient is computed in every layout.
The policy is best given in double precision: in float32 a method may blow rounding up, as one that
divides by the range of nearly equal entropies, and that is no defect of a layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as widen

from dynamo_cli.methods import Method
from dynamo_cli.seeding import derive, generator
from dynamo_cli.train.batching import SequenceBatch
from dynamo_cli.train.engine import TrainEngine
from dynamo_cli.train.learner import Learner
from dynamo_cli.train.rollouts import Rollout, as_tokens, with_scores

TOLERANCE = 1e-5  # of the gradient's norm


@dataclass(frozen=True, slots=True)
class Layout:
    """A way of laying out the rows of an update."""

    name: str
    room: float = 1.0  # of a micro-batch, as a multiple of training.tokens_per_microbatch
    columns: int = 0  # of padding more than the longest row needs
    order: str = "given"  # or reversed, shuffled
    parts: int | None = None  # every so many-th row shares a micro-batch, whatever their lengths


REFERENCE = Layout("as in training")
LAYOUTS = (
    REFERENCE,
    Layout("all rows at once", room=float("inf")),
    Layout("micro-batches of an eighth", room=1 / 8),
    Layout("one row at a time", room=0),
    Layout("rows reversed", order="reversed"),
    Layout("rows shuffled", order="shuffled"),
    Layout("37 columns of padding", columns=37),
    Layout("accumulated over 3 unsorted parts", parts=3),
    Layout("shuffled, padded, in 5 parts", order="shuffled", columns=11, parts=5),
)


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the gradients of one layout lie from those of the reference, over all updates."""

    layout: str
    relative: float  # the largest |g - g0| / |g0|
    equal: bool  # to the bit

    @property
    def within(self) -> bool:
        return self.relative <= TOLERANCE


class Held:
    """A policy that gives its gradient out in place of making the step, and pads as told."""

    def __init__(self, policy: TrainEngine, module: Any, layout: Layout) -> None:
        self._policy, self._layout = policy, layout
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.collective = policy.collective
        self.gradient: Tensor | None = None

    def score(self, batch: SequenceBatch, *, gradient: bool):
        wider = widen(batch.tokens, (0, self._layout.columns))
        return self._policy.score(replace(batch, tokens=wider), gradient=gradient)

    def backward(self, share: Tensor) -> None:
        self._policy.backward(share)

    def step(self) -> float:
        self.gradient = torch.cat([p.grad.flatten().clone() for p in self._parameters])
        for parameter in self._parameters:
            parameter.grad.zero_()
        return float(self.gradient.norm())


class LaidOut(Learner):
    """A learner whose micro-batches are those of a layout."""

    def __init__(self, layout: Layout, *args: Any, **settings: Any) -> None:
        room = settings.pop("tokens_per_microbatch") * layout.room
        room = int(min(max(room, 1), 1 << 40))
        super().__init__(*args, tokens_per_microbatch=room, **settings)
        self._layout = layout

    def rounds(self, sizes: Sequence[int]) -> list[list[int]]:
        if self._layout.parts is None:
            return super().rounds(sizes)
        parts = [list(range(i, len(sizes), self._layout.parts)) for i in range(self._layout.parts)]
        return [part for part in parts if part]


def deviations(
    policy: TrainEngine,
    module: Any,
    rollouts: Sequence[Rollout],
    method: Method,
    *,
    updates: int,
    room: int,
    pad_token: int,
    seed: int,
    layouts: Sequence[Layout] = LAYOUTS,
) -> list[Deviation]:
    """Recompute the step of `rollouts` in every layout; the first one is the reference.

    Moves the policy: each update is made, with the reference's gradient, before the next one.
    """
    settings = {"seed": seed, "updates_per_step": updates, "tokens_per_microbatch": room}
    settings |= {"pad_token": pad_token}
    worlds = []
    for layout in layouts:
        held = Held(policy, module, layout)
        learner = LaidOut(layout, method, held, **settings)
        minibatches = [ordered(rows, layout, seed) for rows in learner.ours(rollouts)]
        tokens = [as_tokens(rows, learner.score(rows)) for rows in minibatches]
        worlds.append((held, learner, minibatches, tokens))
    count = len(worlds[0][2])
    worst, equal = [0.0] * len(layouts), [True] * len(layouts)
    for number in range(count):
        gradients = []
        for held, learner, minibatches, tokens in worlds:
            rows, current = minibatches[number], tokens[number]
            if number > 0 and method.needs_scores:
                current = with_scores(current, learner.score(rows))
            learner.update(rows, current, salt=derive(seed, "choice", 0, number))
            gradients.append(held.gradient)
        for i, gradient in enumerate(gradients):
            worst[i] = max(worst[i], distance(gradient, gradients[0]))
            equal[i] &= torch.equal(gradient, gradients[0])
        make_step(policy, module, gradients[0])
    return [
        Deviation(layout.name, relative, same)
        for layout, relative, same in zip(layouts, worst, equal, strict=True)
    ]


def ordered(rows: Sequence[Rollout], layout: Layout, seed: int) -> list[Rollout]:
    """The rows of a mini-batch in the order of the layout."""
    if layout.order == "reversed":
        return list(reversed(rows))
    if layout.order == "shuffled":
        return [rows[i] for i in generator(seed, "layout", len(rows)).permutation(len(rows))]
    return list(rows)


def distance(gradient: Tensor, reference: Tensor) -> float:
    """|g - g0| / |g0|; infinite where one of them alone is 0 or a number is missing."""
    gap, size = float((gradient - reference).norm()), float(reference.norm())
    if gap == 0:
        return 0.0
    return gap / size if size > 0 and gap == gap else float("inf")


def make_step(policy: TrainEngine, module: Any, gradient: Tensor) -> None:
    """The optimiser's step along a gradient."""
    start = 0
    for parameter in module.parameters():
        if parameter.requires_grad:
            end = start + parameter.numel()
            parameter.grad.copy_(gradient[start:end].view_as(parameter))
            start = end
    policy.step()
