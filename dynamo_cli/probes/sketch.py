"""Gradients of millions of numbers as a few hundred that keep their inner products on average.

D numbers of a gradient, K of its sketch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dynamo_cli.seeding import derive


class Sketch:
    """A count sketch: each number goes, with a random sign, into one of K sums.

    For any x and y, E <Sx, Sy> = <x, y> over seeds, with a variance of at most 2 |x|^2 |y|^2 / K;
    a trace of covariances over many directions comes out more exactly than that. Places and signs
    of a parameter derive from the seed and its name. dimension None: the gradient itself.
    Source: Charikar, Chen, Farach-Colton 2002; as a projection: Weinberger et al. 2009.
    """

    def __init__(self, dimension: int | None, *, seed: int) -> None:
        self._dimension, self._seed = dimension, seed
        self._plans: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """[B, K] float32: sketches of B gradients, [B, ...] by parameter."""
        if self._dimension is None:
            return torch.cat([g.flatten(1).float() for g in gradients.values()], dim=1)
        size = len(next(iter(gradients.values())))
        total = torch.zeros(size, self._dimension)
        for name, gradient in gradients.items():
            flat = gradient.flatten(1).float().cpu()
            place, sign = self._plan(name, flat.shape[1])
            total.index_add_(1, place, flat * sign)
        return total

    def _plan(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        """([D] place, [D] sign) of a parameter's numbers."""
        if name not in self._plans:
            source = torch.Generator().manual_seed(derive(self._seed, "sketch", name))
            place = torch.randint(self._dimension, (size,), generator=source)
            sign = torch.randint(2, (size,), generator=source, dtype=torch.int8) * 2 - 1
            self._plans[name] = place, sign
        return self._plans[name]
