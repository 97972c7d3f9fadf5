"""Ways to run a transformers model token by token over a batch that shrinks.

Both decoders have the same four verbs. `start` reads the prompts and returns the logits of each
row's first token; `step` appends one token to each row and returns the logits of the next; `drop`
forgets the rows that ended. `rest` lets go of the batch. What to sample is decided elsewhere.

P distinct prompts, L prompt width, B rows, S slots, H key-value heads, D head width, V vocabulary.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

TILE = 16  # widths are multiples of it, and so many rows at least are computed: see SlotDecoder
PREFILL_PROMPTS = 32  # prompts read at once
PREFILL_TOKENS = 8192
KEPT_BYTES = 2**28  # of cache between batches; more belongs to whoever trains meanwhile


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer. The token at position p of a row lies in slot p."""

    def __init__(self, decoder: "SlotDecoder") -> None:
        super().__init__()
        self.decoder = decoder
        self.storage: dict[str, Tensor] = {}  # outlives a batch: fresh pages cost more than zeroing

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = self._slots_like("keys", key_states)
        self.values = self._slots_like("values", value_states)
        self.is_initialized = True

    def _slots_like(self, name: str, states: Tensor) -> Tensor:
        """Zeros [B, S, H, D]: a masked slot enters the sum with weight 0, but 0 * NaN is NaN."""
        shape = (len(self.decoder.row), self.decoder.capacity, states.shape[1], states.shape[3])
        size = math.prod(shape)
        stored = self.storage.get(name, states.new_empty(0))
        if len(stored) < size or (stored.dtype, stored.device) != (states.dtype, states.device):
            stored = self.storage[name] = states.new_empty(size)
        return stored[:size].view(shape).zero_()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """New states [B or P, H, 1 or L, D] into their slots; returns what to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        decoder = self.decoder
        if decoder.reading is not None:  # a prompt's states go to each of its rows
            rows, prompts = decoder.reading
            width = key_states.shape[2]
            self.keys[rows, :width] = key_states.transpose(1, 2)[prompts]
            self.values[rows, :width] = value_states.transpose(1, 2)[prompts]
            return key_states, value_states
        place = (decoder.row, decoder.position)
        self.keys.index_put_(place, key_states[:, :, 0])
        self.values.index_put_(place, value_states[:, :, 0])
        seen = slice(len(decoder.row)), slice(decoder.slots)
        return self.keys[seen].transpose(1, 2), self.values[seen].transpose(1, 2)

    def get_seq_length(self) -> int:
        return self.decoder.slots

    def get_max_length(self) -> int:
        return self.decoder.capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.decoder.slots, 0


class SlotDecoder:
    """A preallocated cache with one slot per position, written in place.

    A row's numbers do not depend on its neighbours: no left padding moves its slots, prompts are
    read in widths rounded up to TILE, so are the slots that are attended to, and at least TILE
    rows are always computed (CPU matrix products sum in another order below that).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.cache = Cache(layer_class_to_replicate=partial(SlotLayer, self))

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether every layer is plain causal attention that obeys a mask given from outside."""
        config = model.config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        sliding = getattr(config, "sliding_window", None) and "layer_types" not in config.to_dict()
        return (
            kinds == {"full_attention"}
            and not sliding
            and not config.is_encoder_decoder
            and getattr(model, "_supports_attention_backend", False)
            and config._attn_implementation in ("sdpa", "eager")
        )

    def start(
        self, prompts: Sequence[tuple[int, ...]], prompt_of_row: np.ndarray, *, room: int
    ) -> Tensor:
        """Read each prompt once. room: most tokens that a response may have. Logits [B, V]."""
        self.dtype, self.device = self.model.dtype, self.model.device
        widths = np.array([len(prompt) for prompt in prompts])
        self.lengths = widths[prompt_of_row]  # [B] tokens in the cache of each row, on the host
        self.capacity = tiled(self.lengths.max() + room)
        self.row = torch.arange(len(prompt_of_row), device=self.device)
        self.position = torch.tensor(self.lengths, device=self.device)  # a copy, on any device
        self.slots = tiled(self.lengths.max())  # those in use, by the longest row
        self._clear()
        logits = [None] * len(prompts)
        for group in _groups(widths):
            rows = np.flatnonzero(np.isin(prompt_of_row, group))
            within = np.searchsorted(group, prompt_of_row[rows])
            self.reading = torch.as_tensor(rows), torch.as_tensor(within)
            for index, last in zip(group, self._read([prompts[i] for i in group]), strict=True):
                logits[index] = last
        self.reading = None
        self.mask = self._blocked(len(prompt_of_row), 1, 1, self.capacity)
        past = torch.arange(self.capacity, device=self.device) < self.position[:, None]
        self.mask.masked_fill_(past[:, None, None], 0)
        return torch.stack(logits)[torch.as_tensor(prompt_of_row, device=self.device)]

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens [B]; the logits [B, V] of the next."""
        self.mask[self.row, 0, 0, self.position] = 0
        self.lengths += 1
        self.slots = min(tiled(self.lengths.max()), self.capacity)
        logits = self._advance(tokens)
        # A row that ended but is still computed may run past the end; nobody reads it.
        self.position = (self.position + 1).clamp_(max=self.capacity - 1)
        return logits

    def drop(self, holes: np.ndarray, movers: np.ndarray, *, rows: int) -> None:
        """Move rows `movers` into the places `holes`, then keep the first `rows`.

        Copies as many rows as there are holes: a cache that is gathered anew would copy all.
        """
        self.lengths[holes] = self.lengths[movers]
        self.lengths = self.lengths[:rows]
        into, source = (torch.as_tensor(each, device=self.device) for each in (holes, movers))
        self._move(into, source)
        for state in (self.position, self.mask):
            state[into] = state[source]
        self.row, self.position, self.mask = self.row[:rows], self.position[:rows], self.mask[:rows]

    def rest(self) -> None:
        """Keep the storage for the next batch where it is small."""
        stored = [each for layer in self.cache.layers for each in layer.storage.values()]
        if sum(each.nbytes for each in stored) > KEPT_BYTES:
            self.cache = Cache(layer_class_to_replicate=partial(SlotLayer, self))

    def _clear(self) -> None:
        for layer in self.cache.layers:
            layer.is_initialized = False

    def _advance(self, tokens: Tensor) -> Tensor:
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask[:, :, :, : self.slots],
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def _move(self, into: Tensor, source: Tensor) -> None:
        for layer in self.cache.layers:
            layer.keys[into, : self.slots] = layer.keys[source, : self.slots]
            layer.values[into, : self.slots] = layer.values[source, : self.slots]

    def _read(self, prompts: list[tuple[int, ...]]) -> Tensor:
        """Logits [P, V] after prompts of one tiled width, padded on the right.

        No causal position sees the padding, and its keys are masked or overwritten later.
        """
        width = tiled(len(prompts[0]))
        tokens = np.zeros((len(prompts), width), dtype=np.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        output = self.model(
            input_ids=torch.as_tensor(tokens, device=self.device),
            attention_mask=self._blocked(1, 1, width, width).triu_(1),
            position_ids=torch.arange(width, device=self.device)[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=TILE,  # every last token is among them, and products keep TILE rows
        )
        last = [len(prompt) - 1 - (width - TILE) for prompt in prompts]
        return output.logits[torch.arange(len(prompts)), torch.as_tensor(last)]

    def _blocked(self, *shape: int) -> Tensor:
        # The lowest number, not -inf: a row that is blocked everywhere must not become NaN.
        lowest = torch.finfo(self.dtype).min
        return torch.full(shape, lowest, dtype=self.dtype, device=self.device)


class PaddedDecoder:
    """Left padding and the growing cache that transformers chooses: for every other model.

    Here padding does move sums by 1e-7, so once in millions of tokens a neighbour can matter.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        return True

    def start(
        self, prompts: Sequence[tuple[int, ...]], prompt_of_row: np.ndarray, *, room: int
    ) -> Tensor:
        """As SlotDecoder.start."""
        width = max(len(prompt) for prompt in prompts)
        tokens = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, seen, prompt in zip(tokens, mask, prompts, strict=True):
            row[width - len(prompt) :] = prompt
            seen[width - len(prompt) :] = 1
        device = self.model.device
        self.mask = torch.as_tensor(mask, device=device)
        output = self.model(
            input_ids=torch.as_tensor(tokens, device=device),
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(dim=-1) - 1).clamp_(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        rows = torch.as_tensor(prompt_of_row, device=device)
        self._select(rows)
        return output.logits[rows, -1]

    def step(self, tokens: Tensor) -> Tensor:
        """As SlotDecoder.step."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.mask.sum(dim=-1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        return output.logits[:, -1]

    def drop(self, holes: np.ndarray, movers: np.ndarray, *, rows: int) -> None:
        """As SlotDecoder.drop."""
        order = np.arange(rows)
        order[holes] = movers
        self._select(torch.as_tensor(order, device=self.model.device))

    def rest(self) -> None:
        """As SlotDecoder.rest; this cache is made anew for each batch."""
        self.cache = self.mask = None

    def _select(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        self.cache.reorder_cache(rows)


def tiled(length: int) -> int:
    """The next multiple of TILE."""
    return -(-int(length) // TILE) * TILE


def _groups(widths: np.ndarray) -> list[np.ndarray]:
    """Ascending indices of prompts that are read together: one tiled width, bounded memory."""
    tiled = -(-widths // TILE) * TILE
    groups = []
    for width in np.unique(tiled):
        members = np.flatnonzero(tiled == width)
        size = max(1, min(PREFILL_PROMPTS, PREFILL_TOKENS // width))
        groups += [members[start : start + size] for start in range(0, len(members), size)]
    return groups
