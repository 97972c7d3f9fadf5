"""Shapes: parameters as published, as transformers counts them, and as hand arithmetic has them."""

import json
from dataclasses import replace

import pytest

from dynamo_cli.errors import DynamoError
from dynamo_cli.planning.shapes import Shape, find_shape, known_shapes, read_shape


def test_parameters_of_a_small_shape_are_those_counted_by_hand():
    shape = Shape(
        hidden=4, layers=2, heads=2, kv_heads=1, head_dim=3, intermediate=5, vocabulary=7,
        tied=False, attention_bias=True, context=16,
    )  # fmt: skip
    attention = 4 * 12 + 12 + 6 * 4  # q, k, v of 6 + 3 + 3, their biases, output
    layer = attention + 3 * 4 * 5 + 2 * 4
    assert shape.parameters == 2 * layer + 4 + 2 * 7 * 4
    assert replace(shape, tied=True).parameters == shape.parameters - 28
    assert replace(shape, attention_bias=False).parameters == shape.parameters - 24
    assert shape.cache_bytes(2) == 2 * 2 * 1 * 3 * 2


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen2.5-math-1.5b", 1.54),
        ("qwen2.5-math-7b", 7.62),
        ("qwen2.5-14b", 14.77),
        ("smollm2-135m", 0.1345),
    ],
)
def test_published_models_have_their_published_parameters(name, billions):
    digits = len(str(billions).partition(".")[2])
    assert round(known_shapes()[name].parameters / 1e9, digits) == billions


@pytest.mark.parametrize("name", ["ladder-small", "ladder-medium", "ladder-large"])
def test_a_model_folder_has_as_many_numbers_as_its_weights(root, name):
    from safetensors import safe_open

    folder = root / "dynamo_cli" / "models" / name
    with safe_open(folder / "model.safetensors", "np") as weights:
        sizes = [weights.get_tensor(key).size for key in weights.keys()]  # noqa: SIM118
    assert read_shape(folder).parameters == sum(sizes)


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-math-1.5b", "qwen2.5-math-7b"])
def test_transformers_counts_the_same_parameters(name):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    shape = known_shapes()[name]
    config, model = LlamaConfig, LlamaForCausalLM
    if shape.attention_bias:
        config, model = Qwen2Config, Qwen2ForCausalLM
    with torch.device("meta"):
        built = model(
            config(
                vocab_size=shape.vocabulary,
                hidden_size=shape.hidden,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                intermediate_size=shape.intermediate,
                tie_word_embeddings=shape.tied,
            )
        )
    assert sum(p.numel() for p in built.parameters()) == shape.parameters


def test_other_kinds_of_models_and_unknown_names_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    with pytest.raises(DynamoError, match="mixtral"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(DynamoError, match="lacks"):
        read_shape(tmp_path)
    with pytest.raises(DynamoError, match="did you mean 'qwen2.5-math-7b'"):
        find_shape("qwen2.5-math-7", {})


def test_a_known_model_under_models_is_known_without_its_folder_and_its_folder_wins(root, tmp_path):
    name = "qwen2_5-math-7b"  # a dot in params.yaml would lead into a block
    assert find_shape(name, {name: tmp_path / "absent"}) == known_shapes()["qwen2.5-math-7b"]
    small = root / "dynamo_cli" / "models" / "ladder-small"
    assert find_shape(name, {name: small}) == read_shape(small)
