"""What the tests of the methods share: the nine methods, random steps, vectors."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dynamo_cli.methods import Method
from dynamo_cli.methods.tokens import TokenBatch

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "algorithm_vectors.json").read_text())

TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-5}
both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])


def assert_vector(actual, expected, dtype=torch.float64):
    """Equal to a published number within what the type can hold, relative and absolute."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(
        torch.as_tensor(actual).double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


UNIFORM = {"kind": "uniform"}
NORMALISED = {
    "kind": "group_normalised",
    "scale": "std",
    "ddof": 1,
    "eps": 1e-6,
    "singleton": "zero",
}
NONE = {"kind": "none"}
CLIPPED = {
    "kind": "clipped",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": 10.0,
    "entropy_coefficient": 0.0,
}
TOKEN_MEAN = {"kind": "token_mean"}
GRPO = {
    "allocation": UNIFORM,
    "advantage": NORMALISED,
    "modulation": NONE,
    "objective": CLIPPED,
    "aggregation": TOKEN_MEAN,
    "timing": "update",
}
VARIANCE = {
    "kind": "variance",
    "low": 8,
    "high": 24,
    "proxy": "sqrt",
    "prior": "none",
    "target": "centred",
    "refresh": "step",
    "forgetting": 1.0,
}
FORK = {"kind": "fork_tokens", "fraction": 0.2, "select": "topk", "denominator": "selected"}
COMPENSATION = {"alpha": 0.2}
STABILISATION = {"lambda_min": 0.6, "gamma": 50.0, "tau": 0.99, "expectation": "exact"}
AWARE = {
    "kind": "gradient_aware",
    "compensation": COMPENSATION,
    "stabilisation": STABILISATION,
    "scope": "step",
}
DYNAMO = GRPO | {
    "allocation": VARIANCE,
    "modulation": AWARE,
    "aggregation": {"kind": "problem_mean"},
}

METHODS = {
    "grpo": GRPO,
    "clip_higher": GRPO | {"objective": CLIPPED | {"clip_high": 0.28}},
    "entropy_loss": GRPO | {"objective": CLIPPED | {"entropy_coefficient": 0.001}},
    "fork_tokens": GRPO | {"modulation": FORK},
    "entropy_advantages": GRPO
    | {"modulation": {"kind": "entropy_advantages", "alpha": 0.4, "kappa": 2.0}},
    "clip_cov": GRPO
    | {
        "objective": {
            "kind": "clip_cov",
            "clip_low": 1.0,
            "clip_high": 1.0,
            "fraction": 0.0002,
            "covariance_low": 1.0,
            "covariance_high": 5.0,
        }
    },
    "kl_cov": GRPO | {"objective": {"kind": "kl_cov", "fraction": 0.002, "coefficient": 1.0}},
    "w_reinforce": GRPO
    | {
        "advantage": {"kind": "weighted_signs", "positive_weight": 0.1, "negative_weight": 1.0},
        "objective": CLIPPED | {"dual_clip": None},
    },
    "dynamo": DYNAMO,
}

# Every other value of every slot, so that a law that holds for all methods is tried on all parts.
VARIANTS = {
    "fork_quantile_valid": GRPO
    | {"modulation": FORK | {"select": "quantile", "denominator": "valid"}},
    "constant": GRPO | {"modulation": {"kind": "constant", "positive": 1.18}},
    "clip_cov_many": GRPO
    | {
        "objective": {
            "kind": "clip_cov",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "fraction": 0.1,
            "covariance_low": 0.1,
            "covariance_high": 5.0,
        }
    },
    "kl_cov_many": GRPO | {"objective": {"kind": "kl_cov", "fraction": 0.2, "coefficient": 0.5}},
    "compensation_alone": DYNAMO | {"modulation": AWARE | {"stabilisation": None}},
    "stabilisation_alone": DYNAMO | {"modulation": AWARE | {"compensation": None}},
    "dynamo_sequence_mean": DYNAMO
    | {"modulation": AWARE | {"stabilisation": STABILISATION | {"expectation": "sequence_mean"}}},
    "dynamo_entropy_bonus": DYNAMO | {"objective": CLIPPED | {"entropy_coefficient": 0.1}},
    "dynamo_kl_cov": DYNAMO
    | {"objective": {"kind": "kl_cov", "fraction": 0.2, "coefficient": 0.5}},
    **{f"dynamo_{s}": DYNAMO | {"modulation": AWARE | {"scope": s}} for s in ("sequence", "group")},
    "dynamo_position": DYNAMO | {"modulation": AWARE | {"scope": "position"}},
    "sequence_mean": GRPO | {"aggregation": {"kind": "sequence_mean"}},
    "sequence_sum": GRPO | {"aggregation": {"kind": "sequence_sum"}},
    "constant_divisor": GRPO | {"aggregation": {"kind": "constant", "divisor": 50.0}},
}
ALL = METHODS | VARIANTS


def method(name: str) -> Method:
    return Method.model_validate(ALL[name])


def objective(**changes):
    return Method.model_validate(GRPO | {"objective": CLIPPED | changes}).objective


def modulation(**fields):
    return Method.model_validate(GRPO | {"modulation": fields}).modulation


def batch(mask, *, dtype=torch.float64, **given) -> TokenBatch:
    """A TokenBatch with zeros wherever nothing is given; lists become tensors."""
    mask = torch.as_tensor(mask).bool()
    names = ("logp", "logp_old", "entropy", "expected_pi_lambda", "advantage")
    tensors = {name: torch.as_tensor(given.pop(name, 0.0), dtype=dtype) for name in names}
    rows = torch.arange(len(mask))
    chosen = torch.as_tensor(given.pop("chosen", False)).expand(mask.shape)
    problem = torch.as_tensor(given.pop("problem", torch.zeros_like(rows)))
    assert not given, given
    return TokenBatch(
        **{name: value.expand(mask.shape) for name, value in tensors.items()},
        mask=mask,
        chosen=chosen,
        problem=problem,
        key=rows * 7919 + 3,
    )


def random_step(seed: int, *, rows: int = 12, columns: int = 9, vocabulary: int = 8) -> TokenBatch:
    """A step of float64 rollouts with exact entropies, ties, an empty and a worthless rollout."""
    random = torch.Generator().manual_seed(seed)
    shape = (rows, columns)
    log_pi = torch.randn(*shape, vocabulary, generator=random).double().mul(2).log_softmax(-1)
    log_pi[:, 2] = log_pi[0, 2]  # the same distribution at many tokens: ties
    token = torch.randint(vocabulary, (*shape, 1), generator=random)
    token[:, 2] = 1
    pi = log_pi.exp()
    entropy = -(pi * log_pi).sum(-1)
    logp = log_pi.gather(-1, token)[..., 0]
    drift = 0.4 * torch.randn(*shape, generator=random).double()
    drift[:, 2] = 0
    advantage = torch.randn(rows, 1, generator=random).double().mul(2).round() / 2
    advantage[1] = 0
    lengths = torch.randint(1, columns + 1, (rows,), generator=random)
    lengths[2] = 0
    return TokenBatch(
        logp=logp,
        logp_old=logp + drift,
        entropy=entropy,
        expected_pi_lambda=(pi**2 * log_pi).sum(-1) + entropy * (pi**2).sum(-1),
        advantage=advantage.expand(shape).clone(),
        mask=torch.arange(columns) < lengths[:, None],
        chosen=torch.zeros(shape, dtype=torch.bool),
        problem=torch.randint(4, (rows,), generator=random) * 10,
        key=torch.randperm(1000, generator=random)[:rows],
    )


def poisoned(tokens: TokenBatch, value: float) -> TokenBatch:
    """The same rollouts with `value` in every number outside the mask."""
    names = ("logp", "logp_old", "entropy", "expected_pi_lambda", "advantage")
    changed = {n: torch.where(tokens.mask, getattr(tokens, n), value) for n in names}
    return dataclasses.replace(tokens, **changed)
