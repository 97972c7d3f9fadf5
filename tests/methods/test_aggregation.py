"""One weight per rollout for the whole step."""

from fractions import Fraction

import pytest
import torch
from method_cases import GRPO
from simulated_ranks import on_ranks

from dynamo_cli.methods import Method
from dynamo_cli.methods.aggregation import weighted_sum

LENGTHS, PROBLEM = torch.tensor([3, 5, 2, 0]), torch.tensor([40, 40, 7, 7])
BY_HAND = {
    "token_mean": [Fraction(1, 10)] * 4,
    "sequence_mean": [Fraction(1, 12), Fraction(1, 20), Fraction(1, 8), Fraction(1, 4)],
    "sequence_sum": [Fraction(1, 4)] * 4,
    "constant": [Fraction(1, 32)] * 4,
    # 40 has 8 tokens and 7 has 2: each problem holds half the weight.
    "problem_mean": [Fraction(1, 16), Fraction(1, 16), Fraction(1, 4), Fraction(1, 4)],
}


def rule(kind):
    fields = {"kind": kind} | ({"divisor": 32.0} if kind == "constant" else {})
    return Method.model_validate(GRPO | {"aggregation": fields}).aggregation


@pytest.mark.parametrize("kind", BY_HAND)
def test_weights_equal_hand_arithmetic(kind):
    weight = rule(kind)(LENGTHS, PROBLEM)
    assert weight.dtype == torch.float64
    torch.testing.assert_close(weight, torch.tensor([float(x) for x in BY_HAND[kind]]).double())


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("cut", range(5))
def test_ranks_weigh_as_one_would(kind, cut):
    parts = slice(0, cut), slice(cut, 4)

    def work(number, collective):
        return rule(kind)(LENGTHS[parts[number]], PROBLEM[parts[number]], collective=collective)

    assert torch.equal(torch.cat(on_ranks(2, work)), rule(kind)(LENGTHS, PROBLEM))


@pytest.mark.parametrize("kind", ["token_mean", "problem_mean"])
def test_weights_of_a_mean_sum_to_one_over_tokens(kind):
    weight = rule(kind)(LENGTHS, PROBLEM)
    assert float((weight * LENGTHS).sum()) == pytest.approx(1, rel=1e-14)


def test_a_problem_weighs_the_same_however_many_rollouts_it_gets():
    problem = torch.tensor([0] * 24 + [1] * 8)
    lengths = torch.randint(1, 50, (32,), generator=torch.Generator().manual_seed(0))
    held = rule("problem_mean")(lengths, problem) * lengths
    assert float(held[:24].sum()) == pytest.approx(0.5)
    held = rule("token_mean")(torch.full((32,), 9), problem) * 9
    assert float(held[:24].sum()) == pytest.approx(0.75)  # under the token mean it triples


@pytest.mark.parametrize("kind", BY_HAND)
def test_nothing_to_weigh_is_no_error(kind):
    nothing = torch.zeros(0, dtype=torch.int64)
    assert rule(kind)(nothing, nothing).shape == (0,)
    assert torch.isfinite(rule(kind)(torch.zeros(2, dtype=torch.int64), torch.arange(2))).all()


def test_weighted_sum_ignores_what_the_mask_hides():
    per_token = torch.tensor([[1.0, 2.0], [4.0, float("nan")]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    total = weighted_sum(per_token, mask, torch.tensor([0.5, 0.25]))
    total.backward()
    assert total.item() == 0.5 * 3 + 0.25 * 4
    assert per_token.grad.tolist() == [[0.5, 0.5], [0.25, 0.0]]
