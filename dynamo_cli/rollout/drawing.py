"""One token from one uniform number: the random part of sampling, without a generator.

B rows, V vocabulary. Log-probabilities in nats, of the distribution that was sampled from.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dynamo_cli.rollout.engine import Sampling

# The increment and the two multipliers of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
WEYL = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: np.ndarray, position: int) -> np.ndarray:
    """Uniform numbers in [0, 1) that depend on (seed, position) alone.

    mix(mix(seed) + (position + 1) * WEYL) with SplitMix64's finaliser, its upper 53 bits.
    seeds: [B] uint64; position: 0 for the first token of a response. Returns float64 [B].
    """
    # Mixed before the walk as well: else seeds one WEYL apart would share their numbers.
    step = np.uint64((position + 1) * int(WEYL) % 2**64)
    return (_mix(_mix(seeds) + step) >> np.uint64(11)) * 2.0**-53


class Draw(NamedTuple):
    """Tokens, and what the distributions they were drawn from say of them; see `TokenScores`."""

    token: Tensor  # [B] int64
    logp: Tensor  # [B]
    entropy: Tensor | None = None  # [B], where asked for
    expected_pi_lambda: Tensor | None = None  # [B], likewise


def draw(logits: Tensor, sampling: Sampling, *, uniform: Tensor, scores: bool = False) -> Draw:
    """Tokens by inversion of the cumulative distribution, and their log-probabilities.

    Logits are divided by the temperature; of that distribution the `top_k` likeliest tokens stay,
    and of those, renormalised, the fewest likeliest whose mass reaches `top_p`. Temperature 0
    takes the likeliest token, which then has log-probability 0.
    logits: [B, V]; uniform: float64 [B] in [0, 1). With `scores`, the entropy and E[pi Lambda] of
    each whole distribution too; raises ValueError where `sampling` does not draw from it.
    """
    if scores and not sampling.whole:
        raise ValueError(f"only the whole distribution has scores, and this is {sampling}")
    if sampling.temperature == 0:
        token = logits.argmax(dim=-1)
        return Draw(token, torch.zeros_like(token, dtype=torch.float32))
    logits = logits.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1] or sampling.top_p < 1:
        logits = _truncated(logits, sampling)
    logp = logits.log_softmax(dim=-1)
    pi = logp.exp()
    cumulative = pi.cumsum(dim=-1, dtype=torch.float64)
    # Scaled to the sum that rounding left, so that a draw can never fall off the end.
    target = (uniform * cumulative[:, -1]).unsqueeze(-1)
    token = torch.searchsorted(cumulative, target, right=True)
    token.clamp_(max=logits.shape[-1] - 1)  # for NaN alone; its log-probability shows it
    drawn = Draw(token.squeeze(-1), logp.gather(-1, token).squeeze(-1))
    if not scores:
        return drawn
    product = logp.mul_(pi)
    entropy = -product.sum(dim=-1)
    expected = product.mul_(pi).sum(dim=-1) + entropy * pi.square_().sum(dim=-1)
    return drawn._replace(entropy=entropy, expected_pi_lambda=expected)


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * SECOND
    return bits ^ (bits >> np.uint64(31))


def _truncated(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits with -inf outside top_k and top_p; at equal logits the smaller token id stays."""
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k > 0:
        ranked[:, sampling.top_k :] = -torch.inf
    mass = ranked.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # The mass before a token decides: the token that reaches top_p belongs to the set.
    ranked[:, 1:].masked_fill_(mass[:, :-1] >= sampling.top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ranked)
