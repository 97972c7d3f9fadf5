import pytest

from dynamo_cli.config import load_params, resolve_yaml
from dynamo_cli.errors import DynamoError


def test_an_override_of_a_block_that_an_alias_shares_changes_that_block_alone(root):
    before = load_params(root / "params.yaml")
    after = load_params(
        root / "params.yaml",
        ["methods.dynamo.advantage.eps=0.5", "datasets.gsm8k-train.clean.against=[gsm8k]"],
    )
    assert after.methods["dynamo"].advantage.eps == 0.5
    assert after.datasets["gsm8k-train"].clean.against == ["gsm8k"]
    for name in ("grpo", "clip_higher"):
        assert after.methods[name] == before.methods[name]
    assert after.datasets["math-train"] == before.datasets["math-train"]


@pytest.mark.parametrize("name", ["gsm8", "gsm8k-train"])
def test_a_pool_is_cleaned_against_another_block_that_there_is(root, name):
    with pytest.raises(DynamoError, match="datasets.gsm8k-train.clean.against names"):
        load_params(root / "params.yaml", [f"datasets.gsm8k-train.clean.against=[{name}]"])


def test_a_block_of_another_kind_replaces_the_one_below_and_one_of_the_same_is_merged(
    root, tmp_path
):
    overlay, merged = tmp_path / "overlay.yaml", tmp_path / "merged.yaml"
    overlay.write_text(
        "methods: {dynamo: {allocation: {kind: uniform}, modulation: {kind: gradient_aware, "
        "stabilisation: {tau: 0.5}}, aggregation: {kind: problem_mean}}}"
    )
    merged.write_text(resolve_yaml(root / "params.yaml", [overlay], ()))
    before = load_params(root / "params.yaml").methods["dynamo"]
    after = load_params(merged).methods["dynamo"]
    assert after.allocation == load_params(merged).methods["grpo"].allocation
    assert after.modulation.stabilisation.tau == 0.5
    assert after.modulation.stabilisation.gamma == before.modulation.stabilisation.gamma
    assert after.modulation.compensation == before.modulation.compensation
    assert after.aggregation == before.aggregation
