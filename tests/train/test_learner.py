"""One optimiser step is the same however it is split, ordered or padded, for every method."""

import dataclasses

import numpy as np
import pytest
import torch
from rank_cases import some_rollouts

from dynamo_cli.errors import DynamoError
from dynamo_cli.records import Verdict
from dynamo_cli.rollout.engine import Request, Sampling
from dynamo_cli.rollout.hf_engine import HFEngine
from dynamo_cli.train.engine import Optimiser
from dynamo_cli.train.learner import Learner
from dynamo_cli.train.local_engine import LocalEngine
from dynamo_cli.train.rollouts import Rollout, as_tokens, with_scores

METHODS = (
    "grpo",
    "clip_higher",
    "entropy_loss",
    "fork_tokens",
    "entropy_advantages",
    "clip_cov",
    "kl_cov",
    "w_reinforce",
    "dynamo",
    "dynamo-released",
)
SGD_LIKE = Optimiser(
    learning_rate=1e-3,
    warmup_updates=0,
    weight_decay=0.0,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    gradient_clip=1e9,
)


class Recorder(LocalEngine):
    """Keeps the gradient of the step instead of applying it."""

    def step(self) -> float:
        self.gradient = torch.cat([p.grad.flatten() for p in self._parameters]).clone()
        self._adam.zero_grad(set_to_none=False)
        return float(self.gradient.norm())


def gradient(tiny, method, rollouts, *, room):
    """The step's gradient with the policy moved away from the one that sampled."""
    model, tokenizer = tiny
    engine = Recorder(model, tokenizer, SGD_LIKE, temperature=1.0)
    learner = Learner(
        method, engine, seed=1, updates_per_step=1, tokens_per_microbatch=room, pad_token=0
    )
    fresh = learner.score(rollouts)
    noise = [np.random.default_rng(len(r.completion.tokens) * 31 + r.problem) for r in rollouts]
    width = fresh.logp.shape[1]
    shift = torch.stack([torch.tensor(g.normal(scale=0.2, size=50)[:width]) for g in noise])
    tokens = as_tokens(rollouts, fresh)
    tokens = dataclasses.replace(tokens, logp_old=(fresh.logp + shift).float())
    learner.update(rollouts, with_scores(tokens, fresh), salt=5)
    return engine.gradient


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_of_a_step_does_not_depend_on_splits_or_order(name, params, tiny):
    rollouts = some_rollouts()
    method = params.methods[name]
    whole = gradient(tiny, method, rollouts, room=10_000)
    assert whole.norm() > 0
    shuffled = [rollouts[i] for i in np.random.default_rng(3).permutation(len(rollouts))]
    for other in (
        gradient(tiny, method, rollouts, room=1),
        gradient(tiny, method, rollouts, room=40),
        gradient(tiny, method, shuffled, room=25),
    ):
        assert (other - whole).norm() <= 1e-5 * whole.norm()


def test_scores_are_those_of_the_plain_forward_pass(tiny):
    model, tokenizer = tiny
    engine = LocalEngine(model, tokenizer, SGD_LIKE, temperature=0.7)
    learner = Learner(
        None, engine, seed=1, updates_per_step=1, tokens_per_microbatch=30, pad_token=0
    )
    rollouts = some_rollouts()
    scores = learner.score(rollouts)
    for row, rollout in enumerate(rollouts):
        c = rollout.completion
        with torch.no_grad():
            logits = model(torch.tensor([c.prompt + c.tokens])).logits[0, len(c.prompt) - 1 : -1]
        log_pi = (logits / 0.7).double().log_softmax(dim=-1)
        entropy = -(log_pi.exp() * log_pi).sum(dim=-1)
        expected = (log_pi.exp() ** 2 * (log_pi + entropy[:, None])).sum(dim=-1)
        length = len(c.tokens)
        picked = log_pi.gather(1, torch.tensor(c.tokens)[:, None])[:, 0]
        for ours, theirs in zip(scores, (picked, entropy, expected), strict=True):
            torch.testing.assert_close(ours[row, :length].double(), theirs, rtol=1e-5, atol=1e-5)


def sampled_rollouts(tiny, *, report_scores=True):
    model, tokenizer = tiny
    with torch.no_grad():  # entropies that differ: an untrained model's are all but equal
        model.lm_head.weight.mul_(20)
    sampler = HFEngine(model, tokenizer, report_scores=report_scores)
    requests = [
        Request(f"p{p}", n, tuple(range(40, 43 + p)), 100 * p + n)
        for p in range(3)
        for n in range(4)
    ]
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=9)
    return [
        Rollout(c, Verdict.OK, int(c.problem_id[1]), (-1.0) ** c.rollout * (1 + c.rollout))
        for c in sampler.generate(requests, sampling)
    ]


def learn(tiny, method, rollouts, old_scores):
    model, tokenizer = tiny
    policy = Recorder(model, tokenizer, SGD_LIKE, temperature=1.0)
    learner = Learner(
        method,
        policy,
        seed=1,
        updates_per_step=1,
        tokens_per_microbatch=60,
        pad_token=0,
        old_scores=old_scores,
    )
    return policy, learner, learner.learn(0, rollouts)


@pytest.mark.parametrize("name", METHODS)
def test_scores_of_the_sampler_give_the_gradient_that_another_pass_gives(name, params, tiny):
    rollouts = sampled_rollouts(tiny)
    trainer, _, expected = learn(tiny, params.methods[name], rollouts, "trainer")
    sampler, learner, metrics = learn(tiny, params.methods[name], rollouts, "sampler")
    assert trainer.gradient.norm() > 0
    assert (sampler.gradient - trainer.gradient).norm() <= 1e-5 * trainer.gradient.norm()
    assert expected.pop("sampler_gap_max") < 1e-4  # known where the trainer scores
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert abs(metrics["sampler_gap"]) < 1e-6
    # Verified once; from then on the sampler's word is taken, and only gradients are computed.
    learner.score = None
    learner.learn(1, rollouts)


def test_a_sampler_that_reports_nothing_leaves_the_scores_to_the_trainer(params, tiny):
    silent = sampled_rollouts(tiny, report_scores=False)
    trainer, _, expected = learn(tiny, params.methods["dynamo"], silent, "trainer")
    sampler, _, metrics = learn(tiny, params.methods["dynamo"], silent, "sampler")
    assert (sampler.gradient == trainer.gradient).all()
    assert metrics == expected


@pytest.mark.parametrize("field", ["logp", "entropy", "expected_pi_lambda"])
def test_a_sampler_of_another_policy_is_noticed_in_the_first_step(field, params, tiny):
    rollouts = sampled_rollouts(tiny)
    honest = rollouts[5].completion
    shifted = tuple(value - 0.01 for value in getattr(honest, field))
    off = dataclasses.replace(honest, **{field: shifted})
    rollouts[5] = dataclasses.replace(rollouts[5], completion=off)
    with pytest.raises(DynamoError, match=rf"differ by 0\.01 nats in the {field} .*old_scores"):
        learn(tiny, params.methods["grpo"], rollouts, "sampler")
    _, _, metrics = learn(tiny, params.methods["grpo"], rollouts, "trainer")
    assert metrics["sampler_gap"] > 0 or field != "logp"


def test_a_step_without_any_signal_still_decays_the_weights(params, tiny):
    model, tokenizer = tiny
    decaying = SGD_LIKE.model_copy(update={"weight_decay": 0.1})
    engine = LocalEngine(model, tokenizer, decaying, temperature=1.0)
    learner = Learner(
        params.methods["grpo"],
        engine,
        seed=1,
        updates_per_step=1,
        tokens_per_microbatch=1000,
        pad_token=0,
    )
    silent = [dataclasses.replace(r, advantage=0.0) for r in some_rollouts()]
    before = model.lm_head.weight.detach().clone()
    metrics = learner.learn(0, silent)
    assert metrics["grad_norm"] == 0
    torch.testing.assert_close(model.lm_head.weight.detach(), before * (1 - 1e-3 * 0.1))


def test_a_model_that_changes_its_logits_is_refused(tiny):
    model, tokenizer = tiny
    plain = model.forward

    def capped(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = 0.5 * out.logits
        return out

    model.forward = capped
    model.lm_head.weight.data.mul_(100)
    with pytest.raises(DynamoError, match="logit"):
        LocalEngine(model, tokenizer, SGD_LIKE, temperature=1.0)


@pytest.mark.parametrize("name", ["grpo", "dynamo", "kl_cov", "fork_tokens"])
def test_an_empty_response_adds_nothing_to_the_gradient(name, params, tiny):
    rollouts = some_rollouts()
    nothing = dataclasses.replace(rollouts[0].completion, rollout=99, tokens=(), logp=())
    empty = dataclasses.replace(rollouts[0], completion=nothing)
    with_it = gradient(tiny, params.methods[name], [*rollouts, empty], room=40)
    without = gradient(tiny, params.methods[name], rollouts, room=40)
    assert torch.isfinite(with_it).all()
    assert (with_it - without).norm() <= 1e-5 * without.norm()
