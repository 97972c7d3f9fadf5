"""The vocabulary pass where the policy lies: fused on a GPU, in chunks elsewhere."""

from importlib.util import find_spec

import torch
from torch import Tensor

from dynamo_cli.methods.tokens import TokenScores, score_tokens

FUSED = (torch.float32, torch.bfloat16, torch.float16)


def score_on_device(
    hidden: Tensor, weight: Tensor, tokens: Tensor, *, temperature: float, bias: Tensor | None
) -> TokenScores:
    """`score_tokens`, by Triton kernels where there is a GPU that runs them."""
    if is_fused(hidden, weight):
        from dynamo_cli.train.fused_head import fused_scores

        return fused_scores(hidden, weight, tokens, temperature=temperature, bias=bias)
    return score_tokens(hidden, weight, tokens, temperature=temperature, bias=bias)


def is_fused(hidden: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take these; PyTorch for CUDA brings Triton with it."""
    return (
        hidden.device.type == "cuda"
        and hidden.dtype == weight.dtype
        and hidden.dtype in FUSED
        and find_spec("triton") is not None
    )
