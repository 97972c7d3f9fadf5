"""The fourth slot: the loss of each token, as a function of the policy's log-probability.

Every objective maps [B, T] to [B, T]; gradients flow through `logp` (and `entropy`) only.
B = rollouts, T = response positions. r = exp(logp - logp_old), A = advantage, H = entropy.
"""

import math
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from dynamo_cli.methods.collective import Collective, count, masked_mean, select_top
from dynamo_cli.methods.tokens import TokenBatch, token_key
from dynamo_cli.schema import Section

MAX_LOG_RATIO = 20.0  # beyond it a ratio says nothing, and its gradient is cut


def log_ratio(tokens: TokenBatch) -> Tensor:
    """[B, T]: logp - logp_old within [-20, 20], and 0 where the mask is False."""
    # Padding may hold inf or NaN: it must go before exp, for after it 0 * NaN is a gradient.
    difference = torch.where(tokens.mask, tokens.logp - tokens.logp_old, 0)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _within_clamp(tokens: TokenBatch) -> Tensor:
    return tokens.mask & ((tokens.logp - tokens.logp_old).abs() <= MAX_LOG_RATIO)


def _has_signal(tokens: TokenBatch) -> Tensor:
    """[B, T] bool: the token counts and its advantage is not 0."""
    return tokens.mask & (tokens.advantage != 0)


def covariance(tokens: TokenBatch, *, collective: Collective) -> Tensor:
    """[B, T] float64: (A - mean A)(logp - mean logp), means over the tokens of the whole step.

    Source: arXiv:2505.22617 Eq. 10. Where it is large, the policy grows surer: entropy falls.
    """
    advantage = tokens.advantage.double() - masked_mean(tokens.advantage, tokens.mask, collective)
    logp = tokens.logp.double() - masked_mean(tokens.logp, tokens.mask, collective)
    return torch.where(tokens.mask, advantage * logp, 0)


class _Clip(Section):
    """The bounds of PPO's clip, and all that follows from them."""

    clip_low: float = Field(gt=0, le=1)
    clip_high: float = Field(gt=0)

    def _surrogate(self, tokens: TokenBatch) -> Tensor:
        """[B, T]: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)."""
        ratio = log_ratio(tokens).exp()
        bounded = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        advantage = torch.where(tokens.mask, tokens.advantage, 0)
        return -torch.minimum(ratio * advantage, bounded * advantage)

    def _clipped(self, tokens: TokenBatch) -> Tensor:
        """[B, T] bool: the clip holds the loss constant, so the token has no gradient."""
        ratio = log_ratio(tokens).exp()
        above = (tokens.advantage > 0) & (ratio > 1 + self.clip_high)
        below = (tokens.advantage < 0) & (ratio < 1 - self.clip_low)
        return tokens.mask & (above | below)


class Clipped(_Clip):
    """PPO's clipped surrogate with separate bounds, a dual clip and an entropy bonus.

    loss = max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A) - entropy_coefficient H,
    where A < 0 the first part is at most -dual_clip A.
    Source: arXiv:1707.06347 Eq. 7; clip_high > clip_low is clip-higher (arXiv:2503.14476); the
    dual clip is arXiv:1912.09729 Eq. 5. `dual_clip: null` leaves it out.
    The bonus has the weight of the tokens it stands on, and is the one term with a gradient in H.
    """

    kind: Literal["clipped"]
    dual_clip: float | None = Field(gt=1)
    entropy_coefficient: float = Field(ge=0)

    needs_scores: ClassVar[bool] = False  # whether `choose` reads the current policy's scores

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """[B, T] loss of each token."""
        loss = self._surrogate(tokens)
        if self.dual_clip is not None:
            advantage = torch.where(tokens.mask, tokens.advantage, 0)
            loss = torch.where(advantage < 0, loss.clamp(max=-self.dual_clip * advantage), loss)
        if self.entropy_coefficient:
            loss = loss - self.entropy_coefficient * torch.where(tokens.mask, tokens.entropy, 0)
        return loss

    def active(self, tokens: TokenBatch) -> Tensor:
        """[B, T] bool: the policy gradient of the token is not cut off by a clip, nor 0."""
        passing = _has_signal(tokens) & _within_clamp(tokens)
        return passing & ~self._clipped(tokens) & ~self._dual_clipped(tokens)

    def choose(self, tokens: TokenBatch, *, collective: Collective, salt: int) -> TokenBatch:
        """The tokens as they are: nothing is singled out."""
        return tokens

    def carries_gradient(self, tokens: TokenBatch) -> Tensor:
        """[B] bool: rollouts that may have a gradient; the others need no forward pass."""
        useful = tokens.mask if self.entropy_coefficient else _has_signal(tokens)
        return useful.any(dim=1)

    def metrics(self, tokens: TokenBatch) -> dict[str, Tensor]:
        """Per-token quantities whose mean under the mask is worth a curve; [B, T] each."""
        return {
            "clip_fraction": self._clipped(tokens).float(),
            "dual_clip_fraction": self._dual_clipped(tokens).float(),
            "approx_kl": -log_ratio(tokens).detach(),
        }

    @property
    def needs_entropy_gradient(self) -> bool:
        return self.entropy_coefficient > 0

    def _dual_clipped(self, tokens: TokenBatch) -> Tensor:
        bound = torch.inf if self.dual_clip is None else self.dual_clip
        return tokens.mask & (tokens.advantage < 0) & (log_ratio(tokens).exp() > bound)


class ClipCov(_Clip):
    """The clipped surrogate without the gradient of a few tokens of high covariance.

    Of the unclipped tokens with covariance_low < cov < covariance_high, max(1, fraction * tokens
    of the step) are drawn at random; their loss is 0. cov = (A - mean A)(logp - mean logp).
    Source: arXiv:2505.22617 Eq. 11. Its authors draw in each micro-batch; here the means and the
    draw are over the whole step.
    """

    kind: Literal["clip_cov"]
    fraction: float = Field(gt=0, le=1)
    covariance_low: float
    covariance_high: float

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """[B, T] loss of each token."""
        return torch.where(tokens.chosen, 0, self._surrogate(tokens))

    def active(self, tokens: TokenBatch) -> Tensor:
        """[B, T] bool: the policy gradient of the token is not cut off by a clip, nor 0."""
        passing = _has_signal(tokens) & _within_clamp(tokens)
        return passing & ~self._clipped(tokens) & ~tokens.chosen

    def choose(self, tokens: TokenBatch, *, collective: Collective, salt: int) -> TokenBatch:
        """The tokens with the drawn ones marked; `salt` makes the draws of two steps differ."""
        cov = covariance(tokens, collective=collective)
        candidates = tokens.mask & ~self._clipped(tokens)
        candidates &= (cov > self.covariance_low) & (cov < self.covariance_high)
        chosen = select_top(
            torch.zeros_like(cov),
            candidates,
            k=_share(self.fraction, tokens, collective),
            key=token_key(tokens.key, tokens.mask.shape[1], salt=salt),
            collective=collective,
        )
        return replace(tokens, chosen=chosen)

    def carries_gradient(self, tokens: TokenBatch) -> Tensor:
        """[B] bool: rollouts that may have a gradient; the others need no forward pass."""
        return (_has_signal(tokens) & ~tokens.chosen).any(dim=1)

    def metrics(self, tokens: TokenBatch) -> dict[str, Tensor]:
        """Per-token quantities whose mean under the mask is worth a curve; [B, T] each."""
        return {
            "clip_fraction": self._clipped(tokens).float(),
            "chosen_fraction": tokens.chosen.float(),
            "approx_kl": -log_ratio(tokens).detach(),
        }

    needs_entropy_gradient: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = True


class KLCov(Section):
    """The policy gradient without any clip, and a penalty on the tokens of highest covariance.

    loss = -r A, plus coefficient |logp - logp_old| on the max(1, fraction * tokens of the step)
    tokens with the largest cov = (A - mean A)(logp - mean logp), largest with its sign.
    Source: arXiv:2505.22617 Eq. 12. The slope of |x| at 0 is 0: the first update after sampling
    has no penalty.
    """

    kind: Literal["kl_cov"]
    fraction: float = Field(gt=0, le=1)
    coefficient: float = Field(ge=0)

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """[B, T] loss of each token."""
        difference = log_ratio(tokens)
        loss = -difference.exp() * torch.where(tokens.mask, tokens.advantage, 0)
        return loss + self.coefficient * torch.where(tokens.chosen, difference.abs(), 0)

    def active(self, tokens: TokenBatch) -> Tensor:
        """[B, T] bool: the policy gradient of the token is not 0; there is no clip."""
        return _has_signal(tokens) & _within_clamp(tokens)

    def choose(self, tokens: TokenBatch, *, collective: Collective, salt: int) -> TokenBatch:
        """The tokens with the penalised ones marked; equal covariances are told apart by key."""
        chosen = select_top(
            covariance(tokens, collective=collective),
            tokens.mask,
            k=_share(self.fraction, tokens, collective),
            key=token_key(tokens.key, tokens.mask.shape[1], salt=salt),
            collective=collective,
        )
        return replace(tokens, chosen=chosen)

    def carries_gradient(self, tokens: TokenBatch) -> Tensor:
        """[B] bool: rollouts that may have a gradient; the others need no forward pass."""
        return (_has_signal(tokens) | (tokens.mask & tokens.chosen)).any(dim=1)

    def metrics(self, tokens: TokenBatch) -> dict[str, Tensor]:
        """Per-token quantities whose mean under the mask is worth a curve; [B, T] each."""
        return {
            "chosen_fraction": tokens.chosen.float(),
            "approx_kl": -log_ratio(tokens).detach(),
        }

    needs_entropy_gradient: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = True


def _share(fraction: float, tokens: TokenBatch, collective: Collective) -> int:
    """max(1, fraction of the step's tokens, rounded down)."""
    # 0.29 * 100 is 28.999999999999996: rounding first keeps the 29 that was meant.
    return max(1, math.floor(round(fraction * count(tokens.mask, collective), 9)))


Objective = Annotated[Clipped | ClipCov | KLCov, Field(discriminator="kind")]


def kl_estimate(
    logp: Tensor, ref_logp: Tensor, *, kind: Literal["k1", "abs", "k2", "k3"]
) -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) from tokens that pi sampled; same shape.

    With d = logp - ref_logp: k1 = d, abs = |d|, k2 = d^2 / 2, k3 = exp(-d) + d - 1, the last with
    -d within [-20, 20] and the result within [-10, 10].
    As a loss, on tokens of pi itself: k1 has no gradient in expectation, k2 that of the reverse
    KL. Source: J. Schulman, Approximating KL Divergence (2020). Mask the result, not the inputs.
    """
    difference = logp - ref_logp
    if kind == "k1":
        return difference
    if kind == "abs":
        return difference.abs()
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        minus = (-difference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return (minus.exp() - minus - 1).clamp(-10, 10)
    raise ValueError(f"kind {kind!r} is none of k1, abs, k2, k3")
