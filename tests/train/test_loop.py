"""The step as a whole: ownership by id, seeds by name, failures of the verifier."""

import dataclasses

import numpy as np
import pytest

from dynamo_cli.errors import DynamoError
from dynamo_cli.grading import Grader
from dynamo_cli.ladder import LadderSource, read_ladder
from dynamo_cli.records import Completion, Verdict
from dynamo_cli.rollout.engine import Sampling
from dynamo_cli.train.engine import LocalSettings, Optimiser
from dynamo_cli.train.history import History
from dynamo_cli.train.learner import Learner
from dynamo_cli.train.local_engine import LocalEngine
from dynamo_cli.train.loop import Run, Training, check_budget, check_ungraded, requests, train_step
from dynamo_cli.train.order import ProblemOrder
from dynamo_cli.train.rollouts import credit

POOL = read_ladder(
    "pool", LadderSource(kind="ladder", levels=[1, 2], problems=6, split="train", seed=3)
)
TRAINING = Training(
    dataset="pool",
    steps=4,
    problems_per_step=3,
    rollouts_per_step=24,
    updates_per_step=2,
    sampler="hf",
    sampling=Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=12),
    engine=LocalSettings(kind="local"),
    optimiser=Optimiser(
        learning_rate=1e-3,
        warmup_updates=0,
        weight_decay=0.0,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        gradient_clip=1.0,
    ),
    old_scores="sampler",
    off_policy=None,
    tokens_per_microbatch=64,
    max_ungraded=0.1,
    checkpoint_every=1,
    checkpoints_kept=2,
)


class Oracle:
    """A sampler that answers right where a rule says so, and hands rows back out of order."""

    def __init__(self, tokenizer, rule):
        self.tokenizer, self.rule = tokenizer, rule

    def generate(self, requests, sampling, arrived=None):
        answers = {p.id: p.answer for p in POOL}
        completions = []
        for request in requests:
            right = self.rule(request)
            text = f"#{answers[request.problem_id]}" if right else "no"
            tokens = (*self.tokenizer.encode(text), self.tokenizer.eos_token_id)
            completions.append(
                Completion(
                    problem_id=request.problem_id,
                    rollout=request.rollout,
                    seed=request.seed,
                    prompt=request.prompt,
                    tokens=tokens,
                    logp=(-1.0,) * len(tokens),
                    finish="stop",
                    text=text,
                )
            )
        return completions[::-1]

    def load_weights(self, weights):
        pass


def make_run(tiny, method, *, rule, seed=1):
    model, tokenizer = tiny
    policy = LocalEngine(model, tokenizer, TRAINING.optimiser, temperature=1.0)
    return Run(
        method=method,
        training=TRAINING,
        seed=seed,
        order=ProblemOrder(POOL, per_step=3, seed=seed),
        prompts={p.id: tuple(tokenizer.encode(p.question)) for p in POOL},
        history=History(),
        sampler=Oracle(tokenizer, rule),
        grader=Grader(),
        policy=policy,
        learner=Learner(
            method, policy, seed=seed, updates_per_step=2, tokens_per_microbatch=64, pad_token=257
        ),
    )


def test_scores_of_a_sampler_that_cuts_the_distribution_are_refused():
    cut = TRAINING.sampling.model_copy(update={"top_p": 0.9})
    with pytest.raises(ValueError, match="old_scores"):
        Training(**{**dict(TRAINING), "sampling": cut})
    assert Training(**{**dict(TRAINING), "sampling": cut, "old_scores": "trainer"}).sampling == cut


def test_a_correction_of_the_sampler_by_itself_is_refused():
    correction = {"kind": "truncated", "cap": 2.0}
    with pytest.raises(ValueError, match="off_policy compares .* set old_scores to trainer"):
        Training(**{**dict(TRAINING), "off_policy": correction})
    given = {**dict(TRAINING), "off_policy": correction, "old_scores": "trainer"}
    assert Training(**given).off_policy.cap == 2


def test_every_problem_is_visited_once_an_epoch_in_a_new_order():
    order = ProblemOrder(POOL, per_step=3, seed=1)
    epochs = [[p.id for s in (e, e + 1) for p in order.at(s)] for e in (0, 2, 4)]
    assert all(sorted(visits) == sorted(p.id for p in POOL) for visits in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert [order.epoch(s) for s in range(5)] == [0, 0, 1, 1, 2]
    assert [order.begins_epoch(s) for s in range(3)] == [True, False, True]


def test_more_problems_a_step_than_there_are_is_refused():
    with pytest.raises(DynamoError, match="only 6 training problems"):
        ProblemOrder(POOL, per_step=7, seed=1)


def test_unequal_groups_are_graded_and_credited_by_owner(params, tiny):
    # Each problem is right in exactly its first `k` rollouts; rows come back in reverse.
    share = {p.id: number for number, p in enumerate(POOL)}
    run = make_run(tiny, params.methods["dynamo"], rule=lambda r: r.rollout < share[r.problem_id])
    unequal = run.method.allocation.model_copy(update={"low": 2, "high": 20})
    run = dataclasses.replace(run, method=run.method.model_copy(update={"allocation": unequal}))
    given = []
    for step in range(4):  # two epochs: the second allocates by what the first found
        _, rows = train_step(step, run)
        assert sum(row["rollouts"] for row in rows) == TRAINING.rollouts_per_step
        for row in rows:
            assert row["correct"] == min(share[row["problem_id"]], row["rollouts"])
            given.append(row["rollouts"])
    assert len(set(given[6:])) > 1, "the second epoch's groups are unequal"


def test_advantages_do_not_depend_on_the_order_of_completions(params):
    problems = POOL[:3]
    completions = [
        Completion(p.id, n, 0, (1,), (2,), (0.0,), "stop", "")
        for p in problems
        for n in range(2 + int(p.id[-1]))
    ]
    verdicts = [Verdict.OK if (c.rollout % 2) else Verdict.WRONG for c in completions]
    method = params.methods["grpo"]
    straight = credit(problems, completions, verdicts, method)
    order = np.random.default_rng(0).permutation(len(completions))
    mixed = credit(problems, [completions[i] for i in order], [verdicts[i] for i in order], method)

    def by_id(rollouts):
        return {(r.completion.problem_id, r.completion.rollout): r.advantage for r in rollouts}

    assert by_id(straight) == pytest.approx(by_id(mixed))


def test_what_could_not_be_graded_moves_no_baseline(params):
    problems = POOL[:1]
    completions = [Completion(POOL[0].id, n, 0, (1,), (2,), (0.0,), "stop", "") for n in range(3)]
    rollouts = credit(
        problems,
        completions,
        [Verdict.OK, Verdict.TIMEOUT, Verdict.WRONG],
        params.methods["grpo"],
    )
    assert [r.completion.rollout for r in rollouts] == [0, 2]
    assert rollouts[0].advantage == pytest.approx(2**-0.5, rel=1e-5)
    assert sum(r.advantage for r in rollouts) == pytest.approx(0, abs=1e-12)


def test_a_failing_verifier_stops_the_run_and_says_so():
    verdicts = [Verdict.OK] * 8 + [Verdict.TIMEOUT, Verdict.ERROR]
    check_ungraded(0, verdicts, allowed=0.2)
    with pytest.raises(DynamoError, match="step 3: 1 timeouts and 1 errors among 10"):
        check_ungraded(2, verdicts, allowed=0.1)


def test_each_request_has_its_own_seed_and_two_runs_differ(params, tiny):
    run = make_run(tiny, params.methods["grpo"], rule=lambda r: True)
    other = dataclasses.replace(run, seed=2)
    counts = np.array([3, 1, 2])
    ours = [requests(step, POOL[:3], counts, run) for step in (0, 1)]
    assert [(r.problem_id, r.rollout) for r in ours[0]] == [
        (POOL[i].id, n) for i, size in enumerate(counts) for n in range(size)
    ]
    theirs = requests(0, POOL[:3], counts, other)
    seeds = [r.seed for batch in (*ours, theirs) for r in batch]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("rule", [lambda r: True, lambda r: False], ids=["all right", "all wrong"])
def test_groups_that_agree_leave_the_policy_where_it_is(rule, params, tiny):
    run = make_run(tiny, params.methods["grpo"], rule=rule)
    before = {name: w.detach().clone() for name, w in run.policy.weights()}
    metrics, _ = train_step(0, run)
    assert metrics["mixed_groups"] == 0
    assert metrics["grad_norm"] == 0
    assert all((w == before[name]).all() for name, w in run.policy.weights())


@pytest.mark.parametrize(("budget", "fits"), [(15, False), (24, True), (73, False)])
def test_a_budget_outside_the_bounds_is_one_line_that_names_both_values(params, budget, fits):
    method = params.methods["dynamo"]  # 8 to 24 rollouts a problem: 24 to 72 for three
    training = TRAINING.model_copy(update={"rollouts_per_step": budget})
    if fits:
        check_budget(method, training)
        return
    with pytest.raises(DynamoError, match=f"rollouts_per_step {budget} .*problems_per_step 3"):
        check_budget(method, training)
