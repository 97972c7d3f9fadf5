"""The vocabulary pass on a GPU: `score_tokens` as Triton kernels that form no logits in memory.

M tokens, V vocabulary, D hidden width. z the scaled logits, c = z - max z, and sums over the
vocabulary S1 = sum e^c, L1 = sum e^c c, S2 = sum e^2c, L2 = sum e^2c c. Then

    log_z = max + log S1,   H = log S1 - L1 / S1,   E[pi Lambda] = (L2 - S2 L1 / S1) / S1^2 .

Forwards, a program forms one tile of logits after another, keeps these sums of what it has seen
(arXiv:1805.02867: where the maximum moves by d, e^c and c of all before move by e^-d and -d), and
forgets the tile. Backwards, tiles are formed again and become, in the same registers, the gradient
of the logits: in the weights' type and for a chunk of tokens, for the two products that follow.

Sums run in a fixed order, without atomics: the same inputs on the same GPU give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from dynamo_cli.methods.tokens import HeadGradient, TokenScores

TILE = {"BM": 128, "BN": 128}  # tokens and vocabulary of a tile
DEPTH = 128  # bytes of the hidden width that are multiplied at a time
WARPS = 8
PROGRAMS = 1024  # so many at least, for a GPU to be busy with: the vocabulary is split for them
ELEMENTS = 1 << 27  # gradients of logits that are in memory at a time
LOW = tl.constexpr(-1e30)  # below every logit; -inf would make 0 * inf in the first tile


def fused_scores(
    hidden: Tensor, weight: Tensor, tokens: Tensor, *, temperature: float, bias: Tensor | None
) -> TokenScores:
    """`score_tokens` of the same arguments, which are float32, bfloat16 or float16; in float32.

    Logits are sums in float32, also of bfloat16, and are not rounded to it.
    """
    scale = 1 / temperature
    return TokenScores(*_Fused.apply(hidden.contiguous(), weight, bias, tokens, scale))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, tokens, scale):
        top, one, one_c, two, two_c, chosen = _statistics(hidden, weight, bias, tokens, scale)
        log_one = one.log()
        entropy = log_one - one_c / one
        expected = (two_c - two * one_c / one) / one.square()
        ctx.save_for_backward(hidden, weight, bias, tokens, entropy, top + log_one)
        ctx.scale = scale
        ctx.mark_non_differentiable(expected)
        ctx.set_materialize_grads(False)  # None tells that no entropy gradient is wanted
        return chosen - top - log_one, entropy, expected

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logp, grad_entropy, _):
        hidden, weight, bias, tokens, entropy, log_z = ctx.saved_tensors
        if grad_logp is None:
            grad_logp = torch.zeros_like(entropy)
        gradient = HeadGradient(hidden, weight, bias, ctx.needs_input_grad)
        chunk = max(TILE["BM"], ELEMENTS // len(weight))
        room = weight.new_empty(min(chunk, len(hidden)), len(weight))
        for start in range(0, len(hidden), chunk):
            part = slice(start, min(start + chunk, len(hidden)))
            grad = room[: part.stop - start]
            rows = (tokens[part], log_z[part], entropy[part], grad_logp[part])
            slope = None if grad_entropy is None else grad_entropy[part]
            _logit_gradient(hidden[part], weight, bias, rows, slope, ctx.scale, out=grad)
            gradient.add(part, grad)
        return *gradient.all(), None, None


def _statistics(hidden, weight, bias, tokens, scale) -> Tensor:
    """[6, M]: max z, S1, L1, S2, L2 of each token, and the z of the token itself."""
    blocks = triton.cdiv(len(hidden), TILE["BM"])
    tiles = triton.cdiv(len(weight), TILE["BN"])
    splits = min(tiles, triton.cdiv(PROGRAMS, max(1, blocks)))
    parts = hidden.new_empty(6, splits, len(hidden), dtype=torch.float32)
    if blocks:
        _statistics_kernel[blocks, splits](
            hidden,
            weight,
            weight if bias is None else bias,
            tokens,
            parts,
            scale,
            *_sizes(hidden, weight),
            triton.cdiv(tiles, splits) * TILE["BN"],
            HAS_BIAS=bias is not None,
            **_launch(weight),
        )
    tops, one, one_c, two, two_c, chosen = parts
    top = tops.amax(dim=0) if splits else tops.new_zeros(0)
    gap = tops - top
    once, twice = gap.exp(), (2 * gap).exp()
    sums = [once * one, once * (one_c + gap * one), twice * two, twice * (two_c + gap * two)]
    return torch.stack([top, *(x.sum(dim=0) for x in (*sums, chosen))])


def _logit_gradient(hidden, weight, bias, rows, grad_entropy, scale, *, out) -> None:
    """[m, V] into `out`: the gradient of the logits, of logp and, where wanted, of H."""
    tokens, log_z, entropy, grad_logp = rows
    grid = (triton.cdiv(len(hidden), TILE["BM"]), triton.cdiv(len(weight), TILE["BN"]))
    _gradient_kernel[grid](
        hidden,
        weight,
        weight if bias is None else bias,
        tokens,
        log_z,
        entropy,
        grad_logp.contiguous(),
        grad_logp if grad_entropy is None else grad_entropy.contiguous(),
        out,
        scale,
        *_sizes(hidden, weight),
        HAS_BIAS=bias is not None,
        HAS_ENTROPY=grad_entropy is not None,
        **_launch(weight),
    )


def _sizes(hidden, weight) -> tuple[int, int, int]:
    """M, V, D."""
    return len(hidden), *weight.shape


def _launch(weight) -> dict[str, int]:
    return TILE | {"BD": DEPTH // weight.element_size(), "num_warps": WARPS}


@triton.jit
def _logits(
    hidden,
    weight,
    bias,
    scale,
    rows,
    cols,
    M,
    V,
    D,
    HAS_BIAS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
):
    """[BM, BN] scaled logits of tokens `rows` and entries `cols`; 0 beyond M and V."""
    total = tl.zeros((BM, BN), dtype=tl.float32)
    # V D may exceed what 32 bits hold.
    of_hidden = hidden + rows[:, None].to(tl.int64) * D
    of_weight = weight + cols[None, :].to(tl.int64) * D
    for first in range(0, D, BD):
        inner = first + tl.arange(0, BD)
        left = tl.load(
            of_hidden + inner[None, :], mask=(rows < M)[:, None] & (inner < D)[None, :], other=0.0
        )
        right = tl.load(
            of_weight + inner[:, None], mask=(inner < D)[:, None] & (cols < V)[None, :], other=0.0
        )
        total = tl.dot(left, right, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + cols, mask=cols < V, other=0.0).to(tl.float32)[None, :]
    return total * scale


@triton.jit(do_not_specialize=["M"])  # it differs in every micro-batch
def _statistics_kernel(
    hidden,
    weight,
    bias,
    tokens,
    out,
    scale,
    M,
    V,
    D,
    width,
    HAS_BIAS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
):
    """The six numbers of BM tokens over the `width` entries of one split, into [6, splits, M]."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    target = tl.load(tokens + rows, mask=rows < M, other=-1)
    top = tl.full((BM,), LOW, dtype=tl.float32)
    one = tl.zeros((BM,), dtype=tl.float32)
    one_c = tl.zeros((BM,), dtype=tl.float32)
    two = tl.zeros((BM,), dtype=tl.float32)
    two_c = tl.zeros((BM,), dtype=tl.float32)
    chosen = tl.zeros((BM,), dtype=tl.float32)
    start = tl.program_id(1) * width
    for first in range(start, tl.minimum(start + width, V), BN):
        cols = first + tl.arange(0, BN)
        real = (cols < V)[None, :]
        z = _logits(hidden, weight, bias, scale, rows, cols, M, V, D, HAS_BIAS, BM, BN, BD)
        chosen += tl.sum(tl.where(cols[None, :] == target[:, None], z, 0.0), axis=1)
        highest = tl.maximum(top, tl.max(tl.where(real, z, LOW), axis=1))
        gap = top - highest
        shrink = tl.exp(gap)
        centred = tl.where(real, z - highest[:, None], 0.0)
        e = tl.where(real, tl.exp(centred), 0.0)
        square = e * e
        one_c = shrink * (one_c + gap * one) + tl.sum(e * centred, axis=1)
        one = shrink * one + tl.sum(e, axis=1)
        two_c = shrink * shrink * (two_c + gap * two) + tl.sum(square * centred, axis=1)
        two = shrink * shrink * two + tl.sum(square, axis=1)
        top = highest
    place = out + tl.program_id(1).to(tl.int64) * M + rows
    step = tl.num_programs(1).to(tl.int64) * M
    tl.store(place, top, mask=rows < M)
    tl.store(place + step, one, mask=rows < M)
    tl.store(place + 2 * step, one_c, mask=rows < M)
    tl.store(place + 3 * step, two, mask=rows < M)
    tl.store(place + 4 * step, two_c, mask=rows < M)
    tl.store(place + 5 * step, chosen, mask=rows < M)


@triton.jit(do_not_specialize=["M"])
def _gradient_kernel(
    hidden,
    weight,
    bias,
    tokens,
    log_z,
    entropy,
    grad_logp,
    grad_entropy,
    out,
    scale,
    M,
    V,
    D,
    HAS_BIAS: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
):
    """One tile of g (onehot - pi) - h pi (log pi + H), g and h the gradients of logp and of H."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    within = rows < M
    target = tl.load(tokens + rows, mask=within, other=-1)
    norm = tl.load(log_z + rows, mask=within, other=0.0)
    slope = tl.load(grad_logp + rows, mask=within, other=0.0)
    z = _logits(hidden, weight, bias, scale, rows, cols, M, V, D, HAS_BIAS, BM, BN, BD)
    log_pi = z - norm[:, None]
    pull = -slope[:, None]
    if HAS_ENTROPY:
        spread = tl.load(entropy + rows, mask=within, other=0.0)
        share = tl.load(grad_entropy + rows, mask=within, other=0.0)
        pull -= share[:, None] * (log_pi + spread[:, None])
    grad = pull * tl.exp(log_pi)
    grad += tl.where(cols[None, :] == target[:, None], slope[:, None], 0.0)
    tl.store(
        out + rows[:, None].to(tl.int64) * V + cols[None, :],
        (grad * scale).to(out.dtype.element_ty),
        mask=within[:, None] & (cols < V)[None, :],
    )
