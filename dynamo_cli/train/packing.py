"""The tokens of a batch one after another, each prompt once, for `FusedDecoder`.

B sequences, P distinct prompts, L positions of the longest sequence, N tokens of all in a list.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dynamo_cli.rollout.fused import FusedDecoder, causal_attention
from dynamo_cli.train.batching import SequenceBatch


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each token of a batch lies in the list, and back.

    Under causal attention a prompt is the same in front of each of its responses. The list holds
    the P prompts, then the responses without their last tokens, which predict nothing.
    """

    tokens: Tensor  # [N]
    position: Tensor  # [N] in its own sequence
    place: Tensor  # [B, L] in the list; 0 in padding
    cell: Tensor  # [N] in the flattened [B, L] table; a prompt's lie in its first row

    @classmethod
    def of(cls, batch: SequenceBatch) -> Self:
        body = (batch.response_lengths - 1).clamp(min=0)
        ends = batch.prompt_lengths + body
        column = torch.arange(int(ends.max()))
        in_prompt = column < batch.prompt_lengths[:, None]
        real = column < ends[:, None]

        _, prompt = torch.unique(batch.prompt, return_inverse=True)
        first = torch.full((int(prompt.max()) + 1,), len(prompt))
        first.scatter_reduce_(0, prompt, torch.arange(len(prompt)), "amin")
        lengths = batch.prompt_lengths[first]
        prompt_start = (lengths.cumsum(0) - lengths)[prompt]
        body_start = lengths.sum() + body.cumsum(0) - body

        start = torch.where(
            in_prompt, prompt_start[:, None], (body_start - batch.prompt_lengths)[:, None]
        )
        place = (start + column).where(real, 0)
        owner = torch.zeros(len(prompt), dtype=torch.bool).index_fill_(0, first, True)
        own = (real & (~in_prompt | owner[:, None])).flatten()
        cell = torch.empty(int(lengths.sum() + body.sum()), dtype=torch.int64)
        cell[place.flatten()[own]] = own.nonzero()[:, 0]
        tokens = batch.tokens[:, : len(column)].flatten()[cell]
        return cls(tokens, cell % len(column), place, cell)

    def hidden(self, decoder: FusedDecoder, row: Tensor, position: Tensor) -> Tensor:
        """[M, D]: what the output head reads at M places (row, position) of the batch."""
        heads = [decoder.queries, decoder.keys, decoder.keys]
        flat = self.place.flatten()

        def attend(_: int, qkv: Tensor) -> Tensor:
            table = qkv.index_select(0, flat).unflatten(0, self.place.shape).transpose(1, 2)
            mixed = causal_attention(*table.split(heads, dim=1)).transpose(1, 2)
            return mixed.flatten(2).flatten(0, 1).index_select(0, self.cell)

        rotation = decoder.rotation(self.place.shape[1]).index_select(0, self.position)
        hidden = decoder.run(self.tokens, rotation, decoder.layers(), attend)
        return decoder.norm(hidden.index_select(0, self.place[row, position]))
