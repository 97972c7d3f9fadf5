"""Memory of one GPU, phase by phase, under DeepSpeed and vLLM. All sizes are bytes.

P parameters, R ranks, w bytes of a number in weights and arithmetic (2: bfloat16, 4: float32),
T positions of a micro-batch; sizes of the model as in `shapes`.

State, after ZeRO (arXiv:1910.02054 section 3 and figure 1), with the accumulation of gradients in
float32 that the DeepSpeed engine asks for:

    weights     w P                      / R from stage 3 on
    gradients   4 P (stage 0: w P; stage 1 in bfloat16: 6 P)   / R from stage 2 on
    optimiser   12 P: float32 copy, and two moments of Adam   / R from stage 1 on
                (8 P at stage 0 in float32, where the weights are the copy)

Held beside the tensors that DeepSpeed 0.19.8 keeps on two ranks: equal, but for its padding and
for small parameters that stage 3 does not split. At stage 1 in bfloat16, DeepSpeed's other
optimiser keeps all gradients in float32 between updates, beside those of the micro-batch.

Activations were counted from the tensors that transformers' Qwen2 and Llama keep; the approach is
that of arXiv:2205.05198 section 4, whose formula is for another kind of layer.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

from dynamo_cli.planning.hardware import Assumptions
from dynamo_cli.planning.shapes import Shape

GIB = 2**30
BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in numbers
LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
CHUNK = 1 << 27  # logits that `score_tokens` holds at a time on a GPU, at least 256 tokens' worth

Offload = Literal["none", "optimiser", "all"]
Sampler = Literal["asleep", "awake", "served"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be turned to make a run fit."""

    zero: int  # stage 0 to 3
    offload: Offload  # to the main memory: nothing, optimiser, optimiser and parameters
    checkpointing: bool  # keep a layer's input alone, and compute the layer twice
    microbatch: int  # training.tokens_per_microbatch
    gpu_memory: float  # share of a GPU that vLLM takes
    sampler: Sampler = "asleep"  # vLLM on the trainer's GPUs, in training; served: on others

    @property
    def possible(self) -> bool:
        """Whether DeepSpeed takes this: offloading needs something that is split."""
        return not (
            (self.offload == "optimiser" and self.zero == 0)
            or (self.offload == "all" and self.zero != 3)
        )


@dataclass(frozen=True, slots=True)
class Phase:
    """Bytes of one rank in one phase, by what they hold."""

    weights: int = 0
    gradients: int = 0
    optimiser: int = 0
    gathered: int = 0  # whole parameters under ZeRO 3, and buckets of gradients
    activations: int = 0
    head: int = 0  # chunks of logits, and the output head's gradient in float32
    vllm: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The phases on a GPU, vLLM's cache, and what a rank keeps in the main memory."""

    sampling: Phase
    scoring: Phase  # a pass without gradient
    training: Phase
    cache: int  # of keys and values in vLLM's share; below 0: its weights alone do not fit
    host: int


def state_bytes(shape: Shape, *, zero: int, ranks: int, width: int) -> tuple[int, int, int]:
    """(weights, gradients, optimiser) of one rank, nothing offloaded; see the module."""
    total = shape.parameters
    copied = not (width == 4 and zero == 0)
    weights, gradients, optimiser = width * total, 4 * total, (12 if copied else 8) * total
    if zero == 0:
        gradients = width * total
    elif zero == 1 and width == 2:
        gradients = 6 * total
    split = [size // ranks for size in (weights, gradients, optimiser)]
    return (
        split[0] if zero >= 3 else weights,
        split[1] if zero >= 2 else gradients,
        split[2] if zero >= 1 else optimiser,
    )


def lasting_gradients(shape: Shape, *, zero: int, ranks: int, width: int) -> int:
    """Bytes of gradients that stay between updates."""
    if zero == 3:
        return 4 * shape.parameters // ranks
    return 4 * shape.parameters if zero == 1 and width == 2 else 0


def layer_bytes(shape: Shape, width: int) -> int:
    """What a layer keeps of a position: 2 (4 + 2 w) D + w ((Q + 2 H) W + Q W + 4 F) + 4 Q + 8.

    Each norm keeps its input in float32, the normalised input and its output; attention keeps
    queries, keys, values, its result, and a float32 for each head; the MLP gate, up, silu(gate)
    and their product. Scores of attention are never formed (FlashAttention, arXiv:2205.14135).
    """
    norms = 2 * (4 + 2 * width) * shape.hidden
    wide = shape.qkv + shape.mixed + 4 * shape.intermediate
    return norms + width * wide + 4 * shape.heads + 8


def activation_bytes(shape: Shape, *, positions: int, width: int, checkpointing: bool) -> int:
    """What the layers keep of `positions`, at most.

    Checkpointed (arXiv:1604.06174), w D of each layer and all of the one that is under way.
    """
    whole = layer_bytes(shape, width)
    if checkpointing:
        return positions * (shape.layers * width * shape.hidden + whole)
    return positions * shape.layers * whole


def head_bytes(shape: Shape, *, positions: int, width: int, gradient: bool) -> int:
    """The last norm, the hidden states and their gradients, and chunks of logits.

    A chunk is logits in w bytes and, in float32, up to three tensors as large; the gradient of
    the head adds up in float32 and is cast once. The fused head needs w bytes a logit, and only
    backwards: that is not counted on.
    """
    rows = min(positions, max(256, CHUNK // shape.vocabulary))
    chunk = rows * shape.vocabulary * (width + 3 * 4)
    hidden = positions * shape.hidden * (4 + (4 if gradient else 2) * width)
    return chunk + hidden + (shape.table * (4 + width) if gradient else 0)


def passing_bytes(shape: Shape, *, positions: int, width: int) -> int:
    """A layer at work, beyond what it keeps: gradients 3 F wide, and of a norm in float32."""
    return positions * (3 * width * shape.intermediate + 8 * shape.hidden)


def gpu_memory(
    shape: Shape,
    settings: Settings,
    assumed: Assumptions,
    *,
    ranks: int,
    width: int,
    memory: float,
    longest: int,
) -> GpuMemory:
    """What one GPU of `memory` bytes holds in each phase.

    longest: positions of the longest sequence; a micro-batch has room for it in any case.
    """
    weights, gradients, optimiser = state_bytes(shape, zero=settings.zero, ranks=ranks, width=width)
    lasting = lasting_gradients(shape, zero=settings.zero, ranks=ranks, width=width)
    host = 0
    if settings.offload != "none":
        host, optimiser = host + optimiser, 0
        if settings.zero >= 2:  # their gradients go where the optimiser is
            host, gradients, lasting = host + gradients, 0, 0
    if settings.offload == "all":
        host, weights = host + weights, 0
    positions = max(settings.microbatch, longest)
    whole = width * min(shape.parameters, LIVE) if settings.zero == 3 else 0
    buckets = width * BUCKET * (settings.zero >= (2 if width == 2 else 1))
    # Stage 3 keeps its bucket for good.
    state_buckets = buckets if settings.zero == 3 else 0
    share = int(settings.gpu_memory * memory) if settings.sampler != "served" else 0
    beside = {"awake": share, "asleep": int(assumed.vllm_asleep_gib * GIB), "served": 0}
    state = Phase(
        weights=weights, optimiser=optimiser, overhead=int(assumed.gpu_overhead_gib * GIB)
    )
    lost = 1 + assumed.fragmentation
    kept = activation_bytes(
        shape, positions=positions, width=width, checkpointing=settings.checkpointing
    )
    work = passing_bytes(shape, positions=positions, width=width)
    scored = head_bytes(shape, positions=positions, width=width, gradient=False)
    learnt = head_bytes(shape, positions=positions, width=width, gradient=True)
    return GpuMemory(
        sampling=replace(state, vllm=share, gradients=lasting, gathered=state_buckets),
        scoring=replace(
            state,
            vllm=beside[settings.sampler],
            gradients=lasting,
            gathered=whole + state_buckets,
            activations=int(lost * positions * layer_bytes(shape, width)),
            head=int(lost * scored),
        ),
        training=replace(
            state,
            vllm=beside[settings.sampler],
            gradients=gradients,
            gathered=whole + buckets,
            activations=int(lost * (kept + max(0, work - learnt))),
            head=int(lost * learnt),
        ),
        cache=int((settings.gpu_memory * memory) - assumed.vllm_working_gib * GIB)
        - width * shape.parameters
        - (width * shape.table if shape.tied else 0),
        host=host,
    )
