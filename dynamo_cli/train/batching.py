"""Rollouts as padded batches, and their split into mini- and micro-batches.

B sequences, L prompt and response positions, T response positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamo_cli.records import Completion


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Prompts and responses side by side, padded on the right.

    Under causal attention nothing real looks at padding on its right, so no attention mask is
    needed. Masks come from lengths alone: the padding token may equal the end token.
    """

    tokens: Tensor  # [B, L] prompt, response, padding
    prompt_lengths: Tensor  # [B]
    response_lengths: Tensor  # [B], 0 for an empty response
    prompt: Tensor  # [B], equal numbers where prompts are equal

    @property
    def mask(self) -> Tensor:
        """[B, T] bool, True on response tokens."""
        return mask_from_lengths(self.response_lengths)

    def response_index(self) -> tuple[Tensor, Tensor]:
        """(row [M], position [M]) of every response token in `tokens`, row by row."""
        row, offset = self.mask.nonzero(as_tuple=True)
        return row, self.prompt_lengths[row] + offset


def mask_from_lengths(lengths: Tensor) -> Tensor:
    """[B] -> [B, T] bool with T the longest length (at least one column)."""
    longest = max(1, int(lengths.max())) if len(lengths) else 1
    return torch.arange(longest) < lengths[:, None]


def pad(completions: Sequence[Completion], *, pad_token: int) -> SequenceBatch:
    """One batch of the given completions, in their order."""
    rows = [torch.tensor(c.prompt + c.tokens, dtype=torch.int64) for c in completions]
    number: dict[tuple[int, ...], int] = {}
    return SequenceBatch(
        tokens=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token),
        prompt_lengths=torch.tensor([len(c.prompt) for c in completions]),
        response_lengths=torch.tensor([len(c.tokens) for c in completions]),
        prompt=torch.tensor([number.setdefault(c.prompt, len(number)) for c in completions]),
    )


def idle_batch() -> SequenceBatch:
    """One token after a prompt of one: what a rank without rows computes beside the others."""
    one = torch.ones(1, dtype=torch.int64)
    return SequenceBatch(torch.zeros(1, 2, dtype=torch.int64), one, one, one)


def microbatches(lengths: Sequence[int], *, tokens: int) -> Iterator[list[int]]:
    """Split rows so that each part holds at most `tokens` positions, padding included.

    Rows are taken from long to short, so neighbours have like lengths and little is padded: over
    all parts at most (longest - shortest) * (rows of the largest part - 1) positions. A row longer
    than `tokens` gets a part of its own. Yields row numbers.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        size = max(1, tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def split_evenly(items: Sequence, parts: int) -> list[list]:
    """Cut a sequence into `parts` runs of nearly equal length; shorter when items run out."""
    parts = min(parts, len(items))
    cuts = [len(items) * part // parts for part in range(parts + 1)]
    return [list(items[low:high]) for low, high in zip(cuts, cuts[1:], strict=False)]
