"""Per-token quantities of a batch of rollouts, and the vocabulary pass that computes them.

B = rollouts, T = response positions, M = tokens in a flat list, V = vocabulary, D = hidden width.
Responses start at column 0 and are padded on the right. Natural logarithms; entropy in nats.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, threshold_


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What the slots of a method see of some rollouts: one [B, T] tensor per quantity.

    Values under a False mask mean nothing, may be NaN, and must not matter.
    Raises ValueError when shapes or types disagree.
    """

    logp: Tensor  # [B, T] log pi(token) under the policy being trained; carries the gradient
    logp_old: Tensor  # [B, T] the same under the policy that sampled the tokens
    entropy: Tensor  # [B, T] H of the trained policy's next-token distribution
    expected_pi_lambda: Tensor  # [B, T] sum over the vocabulary of pi^2 (log pi + H)
    advantage: Tensor  # [B, T]
    mask: Tensor  # [B, T] bool, True on the tokens of the response that count
    chosen: Tensor  # [B, T] bool, tokens that a covariance objective singled out
    problem: Tensor  # [B] int64, index of the rollout's problem within the step
    key: Tensor  # [B] int64, the rollout's own number: decides ties, whatever the row order

    def __post_init__(self) -> None:
        shape = self.mask.shape
        for field in fields(self):
            value = getattr(self, field.name)
            expected = shape[:1] if field.name in ("problem", "key") else shape
            if len(shape) != 2 or value.shape != expected:
                raise ValueError(
                    f"{field.name} has shape {tuple(value.shape)} beside a mask of {tuple(shape)}"
                )
        for dtype, names in ((torch.bool, ("mask", "chosen")), (torch.int64, ("problem", "key"))):
            for name in names:
                if getattr(self, name).dtype != dtype:
                    raise ValueError(f"{name} is {getattr(self, name).dtype}, must be {dtype}")

    def rows(self, index: Tensor | Sequence[int] | slice, *, columns: int | None = None) -> Self:
        """The rollouts at `index`, as a TokenBatch; with `columns`, their first columns only."""
        if not isinstance(index, slice | Tensor):
            index = torch.tensor(index, dtype=torch.int64, device=self.mask.device)
        picked = {field.name: getattr(self, field.name)[index] for field in fields(self)}
        return TokenBatch(**{k: v[:, :columns] if v.dim() == 2 else v for k, v in picked.items()})

    def trim(self) -> Self:
        """The same rollouts without the trailing columns in which no token counts."""
        used = self.mask.any(dim=0).nonzero()
        return self.rows(slice(None), columns=int(used[-1]) + 1 if len(used) else 0)

    def lengths(self) -> Tensor:
        """[B] int64: how many tokens of each rollout count."""
        return self.mask.sum(dim=1)


def join(batches: Sequence[TokenBatch]) -> TokenBatch:
    """All rollouts of `batches` in one batch, padded with zeros to the longest."""
    width = max(batch.mask.shape[1] for batch in batches)

    def stack(name: str) -> Tensor:
        parts = [getattr(batch, name) for batch in batches]
        return torch.cat([pad(x, (0, width - x.shape[1])) if x.dim() == 2 else x for x in parts])

    return TokenBatch(**{field.name: stack(field.name) for field in fields(TokenBatch)})


def detached(tokens: TokenBatch) -> TokenBatch:
    """The same numbers without gradients."""
    return replace(tokens, logp=tokens.logp.detach(), entropy=tokens.entropy.detach())


def _wrapped(number: int) -> int:
    """A Python integer as the int64 with the same low 64 bits."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


_STEP = _wrapped(0x9E3779B97F4A7C15)
_FACTORS = (_wrapped(0xBF58476D1CE4E5B9), _wrapped(0x94D049BB133111EB))


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64; products wrap, which is wanted."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        # `>>` copies the sign bit; the mask makes it the unsigned shift of the algorithm.
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def token_key(key: Tensor, num_positions: int, *, salt: int = 0) -> Tensor:
    """[B, T] int64: a pseudo-random number of each token that only its identity decides.

    Token t of a rollout gets the t-th output of SplitMix64 started from the rollout's key [B] and
    `salt`. Ties and random choices made by it depend on neither row order nor batch.
    """
    position = torch.arange(1, num_positions + 1, device=key.device)
    start = _mix(key + _mix(torch.tensor(_wrapped(salt), device=key.device)))
    return _mix(start[:, None] + position * _STEP)


MIN_CHUNK = 256  # tokens whose logits are formed at a time, at least


class TokenScores(NamedTuple):
    """What the policy says of M tokens."""

    logp: Tensor  # [M] log pi(token); differentiable
    entropy: Tensor  # [M] H; differentiable
    expected_pi_lambda: Tensor  # [M] sum pi^2 log pi + H sum pi^2; no gradient


def score_tokens(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    chunk: int | None = None,
) -> TokenScores:
    """Log-probability, entropy and E[pi Lambda] of each token, from the last hidden states.

    pi = softmax((hidden weight^T + bias) / temperature), Lambda = log pi + H; exact over the
    vocabulary, in float32 (float64 for float64 inputs). `chunk` tokens are processed at a time,
    forwards and again backwards, so no tensor is larger than [chunk, V] or the inputs.
    hidden: [M, D] final hidden states; weight: [V, D]; bias: [V]; tokens: [M] ids.
    Logits must be finite. Raises ValueError for a temperature that is not positive.
    Gradients: d logp / d z = onehot - pi, d H / d z = -pi (log pi + H), z the scaled logits.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive to score tokens")
    # What is done to each logit is done where it stays in the cache of a CPU core, 1 MiB at a
    # time; products of matrices need tall ones, on a GPU very tall ones, to be at full speed.
    elements = 1 << (18 if hidden.device.type == "cpu" else 27)
    block = max(1, elements // weight.shape[0])
    chunk = chunk or max(MIN_CHUNK, block)
    return TokenScores(*_Score.apply(hidden, weight, bias, tokens, temperature, chunk, block))


class _Logits:
    """The logits of one chunk of tokens after another, all in the same place.

    Memory that the system hands out anew costs as much as the arithmetic on it. The forward pass
    goes from the last chunk to the first, so that the backward pass finds the first one there.
    """

    def __init__(self, hidden, weight, bias, temperature, chunk, block) -> None:
        self._given, self._bias = (hidden, weight), bias
        self._temperature, self._block = temperature, block
        starts = range(0, len(hidden), chunk)
        self.chunks = [slice(start, min(start + chunk, len(hidden))) for start in starts]
        self._room = hidden.new_empty(min(chunk, len(hidden)), len(weight))
        self._holds: slice | None = None  # the chunk whose logits are there

    def of(self, part: slice) -> Tensor:
        """[m, V] logits of a chunk, in the weights' type."""
        out = self._room[: part.stop - part.start]
        if part != self._holds:
            hidden, weight = self._given
            if self._bias is None:
                torch.mm(hidden[part], weight.T, out=out)
            else:
                torch.addmm(self._bias, hidden[part], weight.T, out=out)
            self._holds = part
        return out

    def blocks(self, part: slice) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Tokens of each block of a chunk, their logits, and these scaled, in float32 (float64)."""
        logits = self.of(part)
        for start in range(0, len(logits), self._block):
            rows = logits[start : start + self._block]
            scaled = rows if rows.dtype == torch.float64 else rows.float()
            if self._temperature != 1:
                scaled = scaled / self._temperature
            first = part.start + start
            yield slice(first, first + len(rows)), rows, scaled


def _probabilities(log_pi: Tensor) -> Tensor:
    """[m, V] pi, with 0 for what is below 1e-18 and adds nothing to any sum.

    Its products would be subnormal numbers, which make a CPU twenty times slower.
    """
    return threshold_(log_pi.exp(), 1e-18, 0.0)


class HeadGradient:
    """What gradients of the logits, chunk by chunk, are for hidden states, head and bias.

    Those of head and bias are summed over chunks in float32, also where they are bfloat16.
    """

    def __init__(self, hidden, weight, bias, wanted: Sequence[bool]) -> None:
        self._given = hidden, weight, bias
        work = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._hidden = torch.empty_like(hidden) if wanted[0] else None
        self._weight = torch.zeros_like(weight, dtype=work) if wanted[1] else None
        self._bias = torch.zeros_like(bias, dtype=work) if wanted[2] else None

    def add(self, part: slice, grad: Tensor) -> None:
        """Take in [m, V] of the tokens `part`, in the weights' type."""
        hidden, weight, _ = self._given
        if self._bias is not None:
            self._bias += grad.sum(dim=0, dtype=self._bias.dtype)
        if self._hidden is not None:
            torch.mm(grad, weight, out=self._hidden[part])
        if self._weight is not None and weight.dtype == self._weight.dtype:
            self._weight.addmm_(grad.T, hidden[part])
        elif self._weight is not None:
            self._weight += grad.T @ hidden[part]

    def all(self) -> tuple[Tensor | None, ...]:
        """The three, in the types of what they belong to; None for what was not wanted."""
        sums = zip((self._hidden, self._weight, self._bias), self._given, strict=True)
        return tuple(None if grad is None else grad.to(given.dtype) for grad, given in sums)


class _Score(torch.autograd.Function):
    """`score_tokens`; the backward pass computes each chunk's probabilities again."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, tokens, temperature, chunk, block):
        work = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logp, entropy, expected, log_z = hidden.new_empty(4, len(hidden), dtype=work)
        logits = _Logits(hidden, weight, bias, temperature, chunk, block)
        for whole in reversed(logits.chunks):
            for part, _, scaled in logits.blocks(whole):
                log_z[part] = scaled.logsumexp(dim=1)
                log_pi = scaled - log_z[part, None]
                logp[part] = log_pi.gather(1, tokens[part, None])[:, 0]
                pi = _probabilities(log_pi)
                product = log_pi.mul_(pi)  # pi log pi
                entropy[part] = -product.sum(dim=1)
                expected[part] = product.mul_(pi).sum(dim=1)  # sum pi^2 log pi
                expected[part] += entropy[part] * pi.square_().sum(dim=1)
        ctx.save_for_backward(hidden, weight, bias, tokens, entropy, log_z)
        ctx.logits = logits if any(ctx.needs_input_grad) else None
        ctx.given = temperature, chunk, block
        ctx.mark_non_differentiable(expected)
        ctx.set_materialize_grads(False)  # None tells that no entropy gradient is wanted
        return logp, entropy, expected

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logp, grad_entropy, _):
        hidden, weight, bias, tokens, entropy, log_z = ctx.saved_tensors
        if grad_logp is None:
            grad_logp = torch.zeros_like(entropy)
        if grad_entropy is not None and not grad_entropy.any():
            grad_entropy = None  # scores that were stacked come back with zeros
        temperature = ctx.given[0]
        # Dropped here, for the node may live as long as the loss; a second pass begins anew.
        logits, ctx.logits = ctx.logits or _Logits(hidden, weight, bias, *ctx.given), None
        gradient = HeadGradient(hidden, weight, bias, ctx.needs_input_grad)
        for whole in logits.chunks:
            for part, rows, scaled in logits.blocks(whole):
                grad = _logit_gradient(
                    scaled.sub_(log_z[part, None]),
                    tokens[part],
                    grad_logp[part],
                    None if grad_entropy is None else grad_entropy[part],
                    entropy[part],
                )
                if temperature != 1:
                    grad = grad.div_(temperature)
                rows.copy_(grad)  # the gradient takes the place of the logits
            gradient.add(whole, logits.of(whole))
        return *gradient.all(), None, None, None, None


def _logit_gradient(log_pi, tokens, grad_logp, grad_entropy, entropy) -> Tensor:
    """[m, V] gradient with respect to the scaled logits; overwrites `log_pi`."""
    pi = _probabilities(log_pi)
    if grad_entropy is None:
        grad = pi.mul_(-grad_logp[:, None])
    else:
        slope = log_pi.add_(entropy[:, None]).mul_(-grad_entropy[:, None])
        grad = slope.sub_(grad_logp[:, None]).mul_(pi)
    return grad.scatter_add_(1, tokens[:, None], grad_logp[:, None])
