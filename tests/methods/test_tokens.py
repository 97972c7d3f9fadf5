"""The batch of tokens, the key of a token, and the pass over the vocabulary."""

from dataclasses import replace

import pytest
import torch
from method_cases import random_step
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dynamo_cli.methods.tokens import join, score_tokens, token_key


def scores_from_logits(logits, tokens):
    """The slow way: full tables, nothing shared with the code under test."""
    log_pi = logits.log_softmax(-1)
    pi = log_pi.exp()
    entropy = -(pi * log_pi).sum(-1)
    expected = (pi * pi * (log_pi + entropy[:, None])).sum(-1)
    return log_pi.gather(-1, tokens[:, None])[:, 0], entropy, expected


def layer(dtype, *, rows=37, width=5, vocabulary=11, seed=0):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=random).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=random).to(dtype).requires_grad_()
    bias = torch.randn(vocabulary, generator=random).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(vocabulary, (rows,), generator=random)


@pytest.mark.parametrize("chunk", [1, 8, 37, 100, None])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_bias", [True, False])
def test_scores_and_gradients_equal_those_of_full_tables(chunk, temperature, with_bias):
    hidden, weight, bias, tokens = layer(torch.float32)
    given = (hidden, weight, bias) if with_bias else (hidden, weight)
    found = score_tokens(
        hidden,
        weight,
        tokens,
        temperature=temperature,
        bias=bias if with_bias else None,
        chunk=chunk,
    )
    logits = hidden @ weight.T + (bias if with_bias else 0)
    expected = scores_from_logits(logits / temperature, tokens)
    for mine, slow in zip(found, expected, strict=True):
        assert_close(mine, slow, rtol=2e-5, atol=2e-6)
    share = torch.linspace(-1, 2, len(tokens))
    for pick in ((1, 0), (0, 1), (0.3, 0.7)):
        slopes = []
        for logp, entropy, _ in (found, expected):
            total = (share * (pick[0] * logp + pick[1] * entropy)).sum()
            slopes.append(torch.autograd.grad(total, given, retain_graph=True))
        for mine, slow in zip(*slopes, strict=True):
            assert_close(mine, slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output", [0, 1])
def test_gradients_alone_equal_finite_differences(output):
    hidden, weight, bias, tokens = layer(torch.float64, rows=5, width=3, vocabulary=6)

    def call(*tensors):
        h, w, b = tensors
        return score_tokens(h, w, tokens, bias=b, temperature=0.7, chunk=2)[output]

    assert torch.autograd.gradcheck(call, (hidden, weight, bias))


def test_expected_pi_lambda_carries_no_gradient():
    hidden, weight, _, tokens = layer(torch.float32)
    logp, entropy, expected = score_tokens(hidden, weight, tokens)
    assert logp.requires_grad
    assert entropy.requires_grad
    assert not expected.requires_grad


def test_only_the_wanted_gradients_are_computed():
    hidden, weight, _, tokens = layer(torch.float32)
    frozen = score_tokens(hidden, weight.detach(), tokens)
    expected = torch.autograd.grad(score_tokens(hidden, weight, tokens).logp.sum(), hidden)
    assert_close(torch.autograd.grad(frozen.logp.sum(), hidden), expected)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_tensor_is_larger_than_a_chunk_of_the_vocabulary():
    hidden, weight, _, tokens = layer(torch.float32, rows=400, width=4, vocabulary=300)
    with Largest() as seen:
        logp, entropy, _ = score_tokens(hidden, weight, tokens, chunk=16)
        (logp.sum() + entropy.sum()).backward()
    assert seen.numel == 16 * 300
    assert hidden.grad is not None


def test_the_logits_of_the_first_chunk_are_formed_once(monkeypatch):
    formed = []

    def counting(*args, **kwargs):
        formed.append(kwargs["out"].shape)
        return product(*args, **kwargs)

    product = torch.mm
    monkeypatch.setattr(torch, "mm", counting)
    hidden, weight, _, tokens = layer(torch.float32, rows=20, width=5, vocabulary=11)
    scores = score_tokens(hidden, weight, tokens, chunk=8)
    assert formed == [(4, 11), (8, 11), (8, 11)]
    once = torch.autograd.grad(scores.logp.sum(), (hidden, weight), retain_graph=True)
    assert formed[3:] == [(8, 5), (8, 11), (8, 5), (4, 11), (4, 5)]
    # Its gradient stands in its place by now, and a second pass must notice.
    again = torch.autograd.grad(scores.logp.sum(), (hidden, weight))
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))


def test_at_a_real_vocabulary_gradients_are_those_of_full_tables_and_no_table_is_full():
    hidden, weight, _, tokens = layer(torch.float32, rows=300, width=4, vocabulary=152_000)
    share = torch.linspace(-1, 2, 300)
    slopes = []
    for score in (score_tokens, lambda h, w, t: scores_from_logits(h @ w.T, t)):
        with Largest() as seen:
            logp, entropy, _ = score(hidden, weight, tokens)
            loss = (share * (logp + 0.1 * entropy)).sum()
            slopes.append((torch.autograd.grad(loss, (hidden, weight)), seen.numel))
    (ours, largest), (plain, full) = slopes
    assert full == 300 * 152_000
    assert largest == 256 * 152_000
    for mine, slow in zip(ours, plain, strict=True):
        assert (mine - slow).norm() <= 1e-5 * slow.norm()


def test_reduced_precision_weights_are_scored_in_float32():
    hidden, weight, _, tokens = layer(torch.bfloat16, rows=300, vocabulary=50)
    found = score_tokens(hidden, weight, tokens, chunk=7)
    expected = scores_from_logits(torch.nn.functional.linear(hidden, weight).float(), tokens)
    for mine, slow in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert_close(mine, slow, rtol=1e-4, atol=1e-4)


def test_weight_gradients_of_many_chunks_are_summed_in_float32():
    # A sum in bfloat16 would stand still: 1024 + 2 is 1024 there.
    hidden, weight = torch.ones(4000, 1).bfloat16(), torch.zeros(3, 1).bfloat16().requires_grad_()
    score_tokens(
        hidden, weight, torch.zeros(4000, dtype=torch.int64), chunk=3
    ).logp.sum().backward()
    expected = 4000 * torch.tensor([[2 / 3], [-1 / 3], [-1 / 3]])
    assert weight.grad.dtype == torch.bfloat16
    assert_close(weight.grad.float(), expected, rtol=0.01, atol=0)


def test_sure_and_uniform_distributions_have_their_known_scores():
    logits = torch.tensor([[300.0, 0, 0, 0], [0.0, 0, 0, 0]])
    found = score_tokens(logits, torch.eye(4), torch.tensor([0, 2]))
    quarter = torch.tensor(4.0).log()
    assert_close(found.logp, torch.stack([torch.tensor(0.0), -quarter]))
    assert_close(found.entropy, torch.stack([torch.tensor(0.0), quarter]))
    assert_close(found.expected_pi_lambda, torch.zeros(2), atol=1e-6, rtol=0)


def test_no_tokens_have_no_scores():
    hidden, weight, _, tokens = layer(torch.float32)
    found = score_tokens(hidden[:0], weight, tokens[:0])
    assert [x.shape for x in found] == [(0,)] * 3
    (slope,) = torch.autograd.grad(found.logp.sum(), weight)
    assert not slope.any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    hidden, weight, _, tokens = layer(torch.float32)
    with pytest.raises(ValueError, match="temperature"):
        score_tokens(hidden, weight, tokens, temperature=temperature)


def splitmix64(start, count):
    """The generator of Steele, Lea and Flood in Python integers."""
    outputs = []
    for _ in range(count):
        start = (start + 0x9E3779B97F4A7C15) % 2**64
        z = start
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs


def unmixed(z):
    """The finaliser alone: the first output from the state just before z."""
    return splitmix64((z - 0x9E3779B97F4A7C15) % 2**64, 1)[0]


@pytest.mark.parametrize("salt", [0, 5, 2**63 - 1])
def test_token_keys_are_outputs_of_splitmix64(salt):
    keys = torch.tensor([0, 1, -7, 2**62 + 12345])
    found = token_key(keys, 4, salt=salt)
    for key, row in zip(keys.tolist(), found.tolist(), strict=True):
        start = unmixed((key + unmixed(salt)) % 2**64)
        assert [number % 2**64 for number in row] == splitmix64(start, 4)


def test_token_keys_are_distinct_and_follow_their_rollout():
    keys = torch.arange(2000)
    found = token_key(keys, 50)
    assert len(found.unique()) == 100_000
    assert torch.equal(token_key(keys[[3, 1]], 20), found[[3, 1], :20])
    assert not torch.equal(token_key(keys, 50, salt=1), found)


def test_joining_trimming_and_picking_lose_no_token():
    tokens = random_step(1)
    parts = [tokens.rows([i]).trim() for i in range(12)]
    assert [part.mask.shape[1] for part in parts] == tokens.lengths().tolist()
    joined = join([*parts, tokens.rows([])])
    assert torch.equal(joined.mask, tokens.mask)
    for slot in ("logp", "entropy", "advantage", "expected_pi_lambda", "logp_old"):
        mine, theirs = (torch.where(x.mask, getattr(x, slot), 0) for x in (joined, tokens))
        assert torch.equal(mine, theirs)
    assert torch.equal(joined.key, tokens.key)
    assert torch.equal(joined.problem, tokens.problem)
    assert tokens.rows(slice(2, 5), columns=4).mask.shape == (3, 4)


@pytest.mark.parametrize(
    ("slot", "value", "words"),
    [
        ("entropy", torch.zeros(12, 8), "entropy has shape"),
        ("problem", torch.zeros(3, dtype=torch.int64), "problem has shape"),
        ("mask", torch.ones(12, 9), "mask is torch.float32"),
        ("key", torch.zeros(12), "key is torch.float32"),
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused(slot, value, words):
    with pytest.raises(ValueError, match=words):
        replace(random_step(1), **{slot: value})
