import numpy as np
import pytest
import torch
from probe_cases import OPTIMISER, PARAMS, completion, rollout

from dynamo_cli.methods import Method
from dynamo_cli.probes.bank import build_bank, score_gradients
from dynamo_cli.probes.invariance import LAYOUTS, TOLERANCE, deviations, distance
from dynamo_cli.probes.sketch import Sketch
from dynamo_cli.train.batching import pad
from dynamo_cli.train.local_engine import LocalEngine


class MeanOfMicroBatch(Method):
    """The defect that the check is for: a mean over whatever micro-batch arrives."""

    def loss(self, tokens, weight):
        return super().loss(tokens, weight) / tokens.mask.sum()


def step():
    source = np.random.default_rng(0)
    made = []
    for problem in range(4):
        prompt = tuple(source.integers(1, 200, size=4 + problem).tolist())
        for number in range(4):
            tokens = tuple(source.integers(1, 200, size=2 + 3 * number + problem).tolist())
            made.append(rollout(problem, number, prompt, tokens, (-1.0, 0.5, 1.5, -0.7)[number]))
    return made


def deviate(tiny, method):
    module, tokenizer = tiny[0].double(), tiny[1]
    policy = LocalEngine(module, tokenizer, OPTIMISER, temperature=1.0)
    return deviations(policy, module, step(), method, updates=2, room=60, pad_token=0, seed=1)


@pytest.mark.parametrize("name", ["dynamo", "clip_cov", "fork_tokens"])
def test_a_step_of_a_method_has_one_gradient_in_every_layout(tiny, name):
    before = {k: v.clone() for k, v in tiny[0].state_dict().items()}
    found = deviate(tiny, PARAMS.methods[name])
    assert [d.layout for d in found] == [layout.name for layout in LAYOUTS]
    assert all(d.relative < 1e-12 for d in found)
    assert found[0].equal and found[0].relative == 0
    assert any(d.relative > 0 for d in found)  # rounding shows that layouts do differ
    # The updates were made, so that later ones see ratios other than 1.
    assert any(not torch.equal(before[k], v) for k, v in tiny[0].state_dict().items())


def test_a_mean_over_a_micro_batch_is_found(tiny):
    method = MeanOfMicroBatch.model_validate(PARAMS.methods["grpo"].model_dump())
    found = {d.layout: d for d in deviate(tiny, method)}
    assert found["one row at a time"].relative > 100 * TOLERANCE
    assert not found["accumulated over 3 unsorted parts"].within
    assert found["37 columns of padding"].within


def test_distance_is_relative_and_no_number_is_far():
    one = torch.tensor([3.0, 4.0])
    assert distance(one, one) == 0
    assert distance(torch.tensor([3.0, 4.5]), one) == pytest.approx(0.1)
    assert distance(one, torch.zeros(2)) == float("inf")
    assert distance(torch.tensor([float("nan"), 4.0]), one) == float("inf")


def test_the_gradient_of_each_response_is_that_of_its_log_probability(tiny):
    module, tokenizer = tiny
    completions = [r.completion for r in step()[:5]]
    found = Sketch(None, seed=0)(score_gradients(module, completions, 0.8, 0))
    policy = LocalEngine(module, tokenizer, OPTIMISER, temperature=0.8)
    for row, one in enumerate(completions):
        total = policy.score(pad([one], pad_token=0), gradient=True).logp.sum()
        parts = torch.autograd.grad(total, list(module.parameters()))
        expected = torch.cat([part.flatten() for part in parts])
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_a_bank_keeps_the_order_of_its_rollouts_whatever_its_room(tiny):
    module, _ = tiny
    completions = [r.completion for r in step()[:6]]
    settings = {"temperature": 1.0, "pad_token": 0}
    correct = [True, False, True, True, False, False]
    sketch = Sketch(64, seed=0)
    wide = build_bank(module, completions, correct, sketch, room=10_000, **settings)
    narrow = build_bank(module, completions, correct, sketch, room=1, **settings)
    np.testing.assert_allclose(wide.gradient, narrow.gradient, rtol=1e-3, atol=1e-4)
    assert wide.length.tolist() == [len(c.tokens) for c in completions]
    squares = np.square(wide.gradient).sum(axis=1)
    assert wide.norm() == pytest.approx(squares.mean() / wide.length.mean() ** 2, rel=1e-5)
    right = squares[[0, 2, 3]].mean() / wide.length.mean() ** 2
    assert wide.norm(right=True) == pytest.approx(right, rel=1e-5)
    assert np.isnan(wide.part(slice(1, 2)).norm(right=True))


def test_a_model_that_looks_at_its_values_is_asked_one_rollout_at_a_time(tiny, monkeypatch):
    module, _ = tiny
    completions = [completion("p", i, (5, 6), (7, 8 + i)) for i in range(3)]
    expected = score_gradients(module, completions, 1.0, 0)
    forward = module.forward

    def curious(**inputs):
        assert int(inputs["input_ids"].sum()) > 0  # vmap refuses
        return forward(**inputs)

    monkeypatch.setattr(module, "forward", curious)
    found = score_gradients(module, completions, 1.0, 0)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
