"""Packed batches under the fused decoder give what transformers gives, and the same gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from dynamo_cli.records import Completion
from dynamo_cli.rollout.fused import FusedDecoder
from dynamo_cli.train.batching import pad
from dynamo_cli.train.packing import Packing

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 3,
    "rms_norm_eps": 1e-3,  # so large that leaving it out would show
}


def build(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        if kind == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
        else:  # grouped heads whose width is not that of the residual stream
            odd = {"num_key_value_heads": 2, "head_dim": 10, "attention_bias": False}
            model = LlamaForCausalLM(LlamaConfig(**SHAPE | odd))
        for parameter in model.parameters():  # norms and biases too
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def batch_of(sizes):
    """Completions of (prompt number, response length); prompt n has 1 + 2n tokens."""
    return pad(
        [
            Completion(
                "p",
                row,
                0,
                tuple((7 * i + n) % 40 for i in range(1 + 2 * n)),
                tuple((5 * i + 11 * row) % 40 for i in range(length)),
                (0.0,) * length,
                "stop",
                "",
            )
            for row, (n, length) in enumerate(sizes)
        ],
        pad_token=3,
    )


RAGGED = [(3, 5), (0, 1), (3, 9), (1, 0), (0, 4), (3, 1), (2, 7), (0, 0)]


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_hidden_states_and_gradients_are_those_of_the_module(kind):
    model = build(kind).double()  # so that nothing hides behind rounding
    batch = batch_of(RAGGED)
    row, position = batch.response_index()
    weight = torch.randn(len(row), 24, generator=torch.Generator().manual_seed(1)).double()
    results = []
    for hidden in (
        model.base_model(batch.tokens, use_cache=False).last_hidden_state[row, position - 1],
        Packing.of(batch).hidden(FusedDecoder(model), row, position - 1),
    ):
        model.zero_grad()
        (hidden * weight).sum().backward()
        results.append((hidden, {n: p.grad for n, p in model.base_model.named_parameters()}))
    (theirs, expected), (ours, gradient) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for name, value in expected.items():
        assert (gradient[name] - value).norm() <= 1e-6 * value.norm(), name


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=9))
def test_every_token_that_predicts_has_its_place_and_each_prompt_stands_once(sizes):
    batch = batch_of(sizes)
    packing = Packing.of(batch)
    prompts = sum(1 + 2 * n for n in {n for n, _ in sizes})
    assert len(packing.tokens) == prompts + sum(max(0, length - 1) for _, length in sizes)
    for b in range(len(sizes)):
        for column in range(int(batch.prompt_lengths[b] + batch.response_lengths[b]) - 1):
            place = packing.place[b, column]
            assert packing.tokens[place] == batch.tokens[b, column]
            assert packing.position[place] == column


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(len(RAGGED))), st.integers(1, len(RAGGED)))
def test_a_row_does_not_see_the_others(order, size):
    model = build("qwen2")
    decoder = FusedDecoder(model)

    def states(rows):
        batch = batch_of([RAGGED[r] if r in rows else (0, 0) for r in range(len(RAGGED))])
        row, position = batch.response_index()
        hidden = Packing.of(batch).hidden(decoder, row, position - 1)
        return {r: hidden[row == r] for r in rows}

    with torch.no_grad():
        whole, part = states(range(len(RAGGED))), states(order[:size])
    for r in order[:size]:
        torch.testing.assert_close(part[r], whole[r], rtol=1e-5, atol=1e-5)


def test_only_modules_of_this_kind_are_fused():
    assert FusedDecoder.fits(build("qwen2"))
    assert FusedDecoder.fits(build("llama"))
    assert not FusedDecoder.fits(build("qwen2").to(torch.bfloat16))
    adapted = build("qwen2")
    adapted.model.layers[1].mlp.up_proj = torch.nn.Sequential(adapted.model.layers[1].mlp.up_proj)
    assert not FusedDecoder.fits(adapted)
    hooked = build("qwen2")  # changes what the module computes, without a trace in its parts
    hooked.model.layers[0].register_forward_hook(lambda *args: args[2] * 1.5)
    assert not FusedDecoder.fits(hooked)
    biased = LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True))
    assert not FusedDecoder.fits(biased)
    stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert not FusedDecoder.fits(LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=stretched)))
