"""Memory of the local engine: one process on a CPU, float32, layers run by `FusedDecoder`.

Tensors are counted from what that code keeps for its backward pass; one share for what the process
holds beyond them was measured. `benchmarks/plan_check.py` holds the sum beside measured peaks.

N tokens of a micro-batch with each prompt once, M response tokens, B rows of L positions; sizes of
the model as in `shapes`. Every number takes 4 bytes, and all sizes are bytes.
"""

from dataclasses import dataclass, fields

from dynamo_cli.planning.shapes import Shape

NUMBER = 4  # bytes of a float32
HELD = 0.14  # of the tensors: what malloc and the libraries hold beyond them, as measured
CHUNK = 1 << 18  # logits that `score_tokens` holds at a time on a CPU, at least 256 tokens' worth


@dataclass(frozen=True, slots=True)
class LocalBatch:
    """A micro-batch of rows of equal length."""

    prompt: int  # tokens of a prompt
    response: int  # tokens of a response
    prompts: int  # different ones
    rows: int

    @property
    def packed(self) -> int:
        """N: each prompt once, and the responses without their last tokens."""
        return self.prompts * self.prompt + self.rows * (self.response - 1)

    @property
    def padded(self) -> int:
        """B L: positions of the table that attention works on."""
        return self.rows * (self.prompt + self.response - 1)

    @property
    def scored(self) -> int:
        """M: response tokens."""
        return self.rows * self.response


@dataclass(frozen=True, slots=True)
class LocalMemory:
    """Bytes at the peak of an update, by what they hold."""

    weights: int  # 4 P
    gradients: int  # 4 P, kept between updates
    optimiser: int  # 8 P: two moments of Adam
    fused: int  # 8 bytes for each number of qkv, gate and up: the matrices as fused, twice
    activations: int  # what the layers keep for the backward pass
    head: int  # hidden states, chunks of logits, gradient of the output head
    passing: int  # what the update needs beyond that at its worst moment
    held: int  # HELD of all that

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def local_memory(shape: Shape, batch: LocalBatch) -> LocalMemory:
    """Bytes at the peak of an update. P parameters, each counted once.

    The worst moment is one of four: the first chunks of the backward pass through the head, when
    all activations are there; the backward pass of the last layer's MLP; the end of the backward
    pass, where the two gradients of a tied table meet; the optimiser's step on the largest matrix.
    """
    kept = shape.layers * layer_bytes(shape, batch) + rotation_bytes(shape, batch)
    table = NUMBER * shape.table
    chunk = NUMBER * max(256 * shape.vocabulary, CHUNK)
    block = NUMBER * max(shape.vocabulary, CHUNK)  # what is done to each logit is done on blocks
    hidden = NUMBER * batch.scored * shape.hidden
    head = 2 * hidden
    moments = {
        "scores": kept + head + chunk + 3 * block,
        "head": kept + head + hidden + table + chunk + 2 * block,
        "layer": kept + (table if shape.tied else 0) + layer_passing(shape, batch),
        "embedding": 2 * table,
        "optimiser": 2 * max(table, NUMBER * shape.hidden * shape.intermediate),
    }
    fused = fused_bytes(shape)
    state = 4 * NUMBER * shape.parameters
    # The fused matrices go when the backward pass is over, before the optimiser moves.
    moments["optimiser"] -= min(moments["optimiser"], 2 * fused)
    worst = max(moments.values())
    activations = min(kept, worst)
    at_head = min(head, worst - activations)
    return LocalMemory(
        weights=NUMBER * shape.parameters,
        gradients=NUMBER * shape.parameters,
        optimiser=2 * NUMBER * shape.parameters,
        fused=2 * fused,
        activations=activations,
        head=at_head,
        passing=worst - activations - at_head,
        held=int(HELD * (state + 2 * fused + worst)),
    )


def fused_bytes(shape: Shape) -> int:
    """Queries, keys, values, gate and up of all layers: 4 layers D ((Q + 2 H) W + 2 F)."""
    return NUMBER * shape.layers * shape.hidden * (shape.qkv + 2 * shape.intermediate)


def layer_bytes(shape: Shape, batch: LocalBatch) -> int:
    """What one layer keeps: 4 N (2 D + Q W + 4 F) + 4 B L ((Q + 2 H) W + Q W).

    The two normalised inputs, what attention gave, gate and up, silu(gate), and their product;
    attention's own inputs and result are in a padded table.
    """
    packed = 2 * shape.hidden + shape.mixed + 4 * shape.intermediate
    padded = shape.qkv + shape.mixed + shape.heads
    return NUMBER * (batch.packed * packed + batch.padded * padded)


def rotation_bytes(shape: Shape, batch: LocalBatch) -> int:
    """Complex numbers that turn queries and keys, kept once for all layers: 4 N (Q + 2 H) W.

    And the places of tokens, as int64.
    """
    places = 8 * (batch.padded + 2 * batch.packed + 4 * batch.scored)
    return NUMBER * batch.packed * shape.qkv + places


def layer_passing(shape: Shape, batch: LocalBatch) -> int:
    """The backward pass of an MLP: 4 N (3 F + D), three gradients as wide as F at a time."""
    return NUMBER * batch.packed * (3 * shape.intermediate + shape.hidden)


def sampling_bytes(shape: Shape, *, slots: int, rows: int) -> int:
    """Sampling in the trainer's process: keys and values of `slots` tokens, logits of `rows`.

    And the fused matrices, once.
    """
    cache = slots * shape.cache_bytes(NUMBER)
    return cache + fused_bytes(shape) + 3 * NUMBER * rows * shape.vocabulary
