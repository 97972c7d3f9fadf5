"""One token from one uniform number: the random part of sampling, without a generator.

B rows, V vocabulary. Log-probabilities in nats, of the distribution that was sampled from.
"""

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


def draw(logits: Tensor, sampling: Sampling, *, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens by inversion of the cumulative distribution, and their log-probabilities.

    Logits are divided by the temperature; of that distribution the `top_k` likeliest tokens stay,
    and of those, renormalised, the fewest likeliest whose mass reaches `top_p`. Temperature 0
    takes the likeliest token, which then has log-probability 0.
    logits: [B, V]; uniform: float64 [B] in [0, 1). Returns int64 [B] and float32 [B].
    """
    if sampling.temperature == 0:
        token = logits.argmax(dim=-1)
        return token, torch.zeros_like(token, dtype=torch.float32)
    logits = logits.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1] or sampling.top_p < 1:
        logits = _truncated(logits, sampling)
    logp = logits.log_softmax(dim=-1)
    cumulative = logp.exp().cumsum(dim=-1, dtype=torch.float64)
    # Scaled to the sum that rounding left, so that a draw can never fall off the end.
    target = (uniform * cumulative[:, -1]).unsqueeze(-1)
    token = torch.searchsorted(cumulative, target, right=True)
    token.clamp_(max=logits.shape[-1] - 1)  # for NaN alone; its log-probability shows it
    return token.squeeze(-1), logp.gather(-1, token).squeeze(-1)


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
