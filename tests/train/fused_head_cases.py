"""The fused head beside `score_tokens` and beside full tables; run by test_fused_head.py.

On a CPU Triton interprets its kernels, which it decides when it is imported: hence a process of
its own. `python fused_head_cases.py cuda` runs the same on a GPU.
"""

import sys

import torch
from torch.testing import assert_close

from dynamo_cli.methods.tokens import score_tokens
from dynamo_cli.train import fused_head


def inputs(rows, width, vocabulary, *, dtype=torch.float32, sharp=1.0):
    random = torch.Generator().manual_seed(rows + vocabulary)
    hidden = sharp * torch.randn(rows, width, generator=random)
    weight = torch.randn(vocabulary, width, generator=random) * width**-0.5
    bias = torch.randn(vocabulary, generator=random)
    tokens = torch.randint(vocabulary, (rows,), generator=random)
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in (hidden, weight, bias)]
    return *leaves, tokens.to(DEVICE)


def passed(score, hidden, weight, tokens, bias, *, temperature, entropy):
    """Scores and gradients of a loss in which every token has another share."""
    scores = score(hidden, weight, tokens, temperature=temperature, bias=bias)
    share = torch.linspace(-1, 2, len(tokens), device=DEVICE, dtype=scores.logp.dtype)
    loss = (share * scores.logp).sum()
    if entropy:
        loss = loss + 0.3 * (share.flip(0) * scores.entropy).sum()
    given = [x for x in (hidden, weight, bias) if x is not None]
    return [*scores, *torch.autograd.grad(loss, given)]


def exact(hidden, weight, tokens, *, temperature, bias):
    """Full tables in float64."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    log_pi = (logits / temperature).log_softmax(-1)
    pi = log_pi.exp()
    entropy = -(pi * log_pi).sum(-1)
    expected = (pi * pi * (log_pi + entropy[:, None])).sum(-1)
    logp = log_pi.gather(-1, tokens[:, None])[:, 0]
    return fused_head.TokenScores(logp, entropy, expected.detach())


def compare(shape, *, temperature=1.0, with_bias=False, entropy=False, sharp=1.0):
    hidden, weight, bias, tokens = inputs(*shape, sharp=sharp)
    bias = bias if with_bias else None
    options = {"temperature": temperature, "entropy": entropy}
    ours = passed(fused_head.fused_scores, hidden, weight, tokens, bias, **options)
    for other in (score_tokens, exact):
        theirs = passed(other, hidden, weight, tokens, bias, **options)
        for mine, value in zip(ours[:3], theirs[:3], strict=True):
            assert_close(mine, value.to(mine), rtol=2e-5, atol=1e-6 * sharp + 1e-6)
        for mine, value in zip(ours[3:], theirs[3:], strict=True):
            assert (mine - value).norm() <= 1e-5 * value.norm()


def small_tiles():
    """Several tiles of each kind also in small cases, for interpreting is slow."""
    fused_head.TILE, fused_head.DEPTH = {"BM": 16, "BN": 16}, 64
    fused_head.PROGRAMS, fused_head.ELEMENTS = 6, 16 * 70


def check_all():
    compare((37, 20, 70))  # whole tiles and parts of them, several chunks
    compare((37, 20, 70), temperature=0.6, with_bias=True, entropy=True)
    compare((5, 16, 16), entropy=True)  # a tile exactly
    compare((16, 33, 200), sharp=30.0, entropy=True)  # nearly sure: maxima move late and far
    compare((3, 4, 7), with_bias=True)  # less than a tile of everything


def check_reduced_precision():
    # Triton's interpreter multiplies bfloat16 as if it were integers.
    dtype = torch.float16 if DEVICE == "cpu" else torch.bfloat16
    hidden, weight, _, tokens = inputs(20, 24, 60, dtype=dtype)
    options = {"temperature": 1.0, "entropy": True}
    ours = passed(fused_head.fused_scores, hidden, weight, tokens, None, **options)
    theirs = passed(exact, hidden, weight, tokens, None, **options)
    for mine, value in zip(ours[:3], theirs[:3], strict=True):
        assert mine.dtype == torch.float32
        assert_close(mine, value.float(), rtol=2e-5, atol=2e-5)  # logits are not rounded
    for mine, value in zip(ours[3:], theirs[3:], strict=True):
        assert mine.dtype == dtype
        assert (mine - value).norm() <= torch.finfo(dtype).eps * value.norm()


def check_edges():
    hidden, weight, _, tokens = inputs(4, 8, 9)
    none = fused_head.fused_scores(hidden[:0], weight, tokens[:0], temperature=1.0, bias=None)
    assert [x.shape for x in none] == [(0,)] * 3
    (slope,) = torch.autograd.grad(none.logp.sum(), weight)
    assert not slope.any()
    scores = fused_head.fused_scores(hidden, weight, tokens, temperature=1.0, bias=None)
    assert not scores.expected_pi_lambda.requires_grad
    frozen = fused_head.fused_scores(hidden, weight.detach(), tokens, temperature=1.0, bias=None)
    pair = [torch.autograd.grad(s.logp.sum(), hidden)[0] for s in (scores, frozen)]
    assert torch.equal(*pair)
    again = fused_head.fused_scores(hidden, weight, tokens, temperature=1.0, bias=None)
    assert all(torch.equal(a, b) for a, b in zip(scores, again, strict=True))


if __name__ == "__main__":
    DEVICE = sys.argv[1]
    torch.backends.cuda.matmul.allow_tf32 = False
    if DEVICE == "cpu":
        small_tiles()
    for check in (check_all, check_reduced_precision, check_edges):
        check()
        print(f"{check.__name__} holds")
    if DEVICE == "cuda":
        small_tiles()
        check_all()
