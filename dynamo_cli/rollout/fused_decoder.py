"""`SlotDecoder` for models that `FusedDecoder` runs: the same numbers in half the time.

P prompts, B rows, C slots of the cache, S slots in use, L prompt width, D hidden width,
Q query and H key-value heads, W head width.
"""

import math

import numpy as np
import torch
from torch import Tensor

from dynamo_cli.rollout.fused import FusedDecoder, causal_attention
from dynamo_cli.rollout.hf_decoders import KEPT_BYTES, TILE, SlotDecoder, tiled

SMALL_PRODUCT = 400


class FusedSlotDecoder(SlotDecoder):
    """Keys and values [B, H, C, W] of each layer, a head's slots side by side."""

    def __init__(self, model) -> None:
        self.model = model
        self.fused = FusedDecoder(model)
        self.heads = [self.fused.queries, self.fused.keys, self.fused.keys]
        self.storage: list[tuple[Tensor, Tensor]] = []  # outlives a batch, as in SlotLayer

    @staticmethod
    def fits(model) -> bool:
        """Whether `FusedDecoder` runs it, and its heads are wide enough.

        Of fewer than 400 multiplications, torch sums a batched product in another order; which way
        it goes may depend on nothing but the model, so the least number of slots must suffice.
        """
        if not (SlotDecoder.fits(model) and FusedDecoder.fits(model)):
            return False
        fused = FusedDecoder(model)
        return fused.queries // fused.keys * fused.width * TILE >= SMALL_PRODUCT

    def rest(self) -> None:
        """As SlotDecoder.rest."""
        if sum(each.nbytes for pair in self.storage for each in pair) > KEPT_BYTES:
            self.storage = []

    def _clear(self) -> None:
        self.layers = self.fused.layers()
        self.rotation = self.fused.rotation(self.capacity)
        self.shape = (len(self.row), self.fused.keys, self.capacity, self.fused.width)
        size = math.prod(self.shape)
        if not self.storage or len(self.storage[0][0]) < size:
            self.storage = [(torch.empty(size), torch.empty(size)) for _ in self.layers]
        # Zeros: a masked slot enters the sum with weight 0, but 0 * NaN is NaN.
        self.cache = [
            tuple(each[:size].view(self.shape).zero_() for each in pair) for pair in self.storage
        ]

    def _read(self, prompts: list[tuple[int, ...]]) -> Tensor:
        """Logits [P, V] after prompts of one tiled width, padded on the right."""
        width = tiled(len(prompts[0]))
        tokens = np.zeros((len(prompts), width), dtype=np.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        rows, within = self.reading

        def attend(number: int, qkv: Tensor) -> Tensor:
            table = qkv.view(len(prompts), width, -1, self.fused.width).transpose(1, 2)
            queries, keys, values = table.split(self.heads, dim=1)
            for slots, states in zip(self.cache[number], (keys, values), strict=True):
                slots[rows, :, :width] = states[within]
            mixed = causal_attention(queries, keys, values)
            return mixed.transpose(1, 2).reshape(len(qkv), -1)

        rotation = self.rotation[:width].repeat(len(prompts), 1)
        hidden = self.fused.run(torch.from_numpy(tokens.ravel()), rotation, self.layers, attend)
        # Every last token is among the last TILE, and products keep that many rows.
        logits = self._logits(hidden.view(len(prompts), width, -1)[:, -TILE:])
        last = [len(prompt) - 1 - (width - TILE) for prompt in prompts]
        return logits[torch.arange(len(prompts)), torch.as_tensor(last)]

    def _advance(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token of each row."""
        rows, (_, heads, slots, width) = len(tokens), self.shape
        first = (self.row[:, None] * heads + torch.arange(heads)) * slots
        place = (first + self.position[:, None]).flatten()  # of each row and head
        mask = self.mask[:, :, 0, : self.slots].expand(-1, heads, -1).reshape(-1, 1, self.slots)

        def attend(number: int, qkv: Tensor) -> Tensor:
            queries, *states = qkv.split(self.heads, dim=1)
            seen = []
            for cached, new in zip(self.cache[number], states, strict=True):
                cached.view(-1, width).index_copy_(0, place, new.reshape(-1, width))
                seen.append(cached[:rows].view(-1, slots, width)[:, : self.slots])
            # A product of small matrices, and no attention kernel: those are made for many queries.
            queries = queries.reshape(rows * heads, -1, width)
            scores = torch.baddbmm(mask, queries, seen[0].transpose(1, 2))
            return torch.bmm(scores.softmax(dim=-1), seen[1]).view(rows, -1)

        rotation = self.rotation.index_select(0, self.position)
        return self._logits(self.fused.run(tokens, rotation, self.layers, attend))

    def _move(self, into: Tensor, source: Tensor) -> None:
        for pair in self.cache:
            for states in pair:
                states[into, :, : self.slots] = states[source, :, : self.slots]

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(self.fused.norm(hidden))
