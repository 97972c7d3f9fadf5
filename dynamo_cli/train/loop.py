"""The training loop: one visible step. It knows no method and no engine by name.

N problems of a step.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from dynamo_cli.errors import DynamoError
from dynamo_cli.grading import Attempt, Grader
from dynamo_cli.methods import Method
from dynamo_cli.methods.off_policy import OffPolicy
from dynamo_cli.records import Completion, Problem, Verdict
from dynamo_cli.rollout.engine import Request, RolloutEngine, Sampling
from dynamo_cli.schema import Section
from dynamo_cli.seeding import derive
from dynamo_cli.train.canary import Canary
from dynamo_cli.train.engine import EngineSettings, Optimiser, TrainEngine
from dynamo_cli.train.history import History
from dynamo_cli.train.learner import Learner, OldScores
from dynamo_cli.train.metrics import ledger_rows, summarise
from dynamo_cli.train.order import ProblemOrder
from dynamo_cli.train.recorder import Recording
from dynamo_cli.train.rollouts import credit
from dynamo_cli.train.sharing import SharedGrader


class Training(Section):
    """How a policy is trained, whatever the method."""

    dataset: str  # a name under datasets:
    steps: int = Field(ge=1)  # each samples once and updates `updates_per_step` times
    problems_per_step: int = Field(ge=1)
    rollouts_per_step: int = Field(ge=1)  # the budget that an allocation spends exactly
    updates_per_step: int = Field(ge=1)  # optimiser steps; each sees its share of the problems
    sampler: str  # a name under engines:
    sampling: Sampling
    engine: EngineSettings  # what holds and moves the policy
    optimiser: Optimiser
    old_scores: OldScores  # who scores the tokens under the policy that sampled them
    off_policy: OffPolicy | None  # corrects for what sampler and trainer disagree in
    tokens_per_microbatch: int = Field(ge=1)  # positions, padding included
    max_ungraded: float = Field(ge=0, le=1)  # share of timeouts and errors that stops the run
    checkpoint_every: int = Field(ge=1)  # steps
    checkpoints_kept: int = Field(ge=1)  # the last ones; a damaged one falls back to its elder
    record: Recording | None = None  # rollouts kept token by token; moves no number

    @model_validator(mode="after")
    def _sampler_knows_the_policy(self) -> "Training":
        if self.old_scores == "sampler" and not self.sampling.whole:
            raise ValueError(
                "old_scores: sampler needs sampling from the policy itself (temperature above 0, "
                "top_p 1, top_k -1); set old_scores to trainer, or sampling so"
            )
        return self

    @model_validator(mode="after")
    def _correction_has_two_opinions(self) -> "Training":
        if self.off_policy is not None and self.old_scores == "sampler":
            raise ValueError(
                "off_policy compares the trainer's old log-probabilities with the sampler's, and "
                "old_scores: sampler takes the sampler's for both; set old_scores to trainer, or "
                "off_policy to null"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "Training":
        if self.updates_per_step > self.problems_per_step:
            raise ValueError(
                f"updates_per_step {self.updates_per_step} exceeds problems_per_step "
                f"{self.problems_per_step}: an update needs at least one problem"
            )
        return self


@dataclass(frozen=True)
class Run:
    """The parts of one training run."""

    method: Method
    training: Training
    seed: int
    order: ProblemOrder
    prompts: dict[str, tuple[int, ...]]  # framed question by problem id, token ids
    history: History
    sampler: RolloutEngine
    grader: Grader | SharedGrader
    policy: TrainEngine
    learner: Learner
    canary: Canary | None = None  # where the sampler has its own copy of the weights
    droppable: Callable[[], AbstractContextManager] = nullcontext  # work that may be broken off
    # Between sampling and the next weights: the sampler leaves its memory to the trainer.
    rest: Callable[[], None] = lambda: None


def train_step(step: int, run: Run) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Allocate, sample, grade, credit, update. Returns the step's metrics and ledger rows."""
    problems = run.order.at(step)
    if run.order.begins_epoch(step):
        run.history.begin_epoch()
    known = run.history.counts([p.id for p in problems], refresh=run.method.allocation.refresh)
    counts = allocate(run.method, run.training, known)

    with run.droppable():  # nothing that a checkpoint holds changes in here
        wanted = requests(step, problems, counts, run)
        completions = run.sampler.generate(wanted, run.training.sampling)
        verdicts = grade(problems, completions, run.grader)
    run.history.note_lengths(
        [c.problem_id for c in completions], [len(c.tokens) for c in completions]
    )
    rollouts = credit(problems, completions, verdicts, run.method)
    check_ungraded(step, verdicts, allowed=run.training.max_ungraded)
    run.history.update(
        [r.completion.problem_id for r in rollouts], [r.verdict.correct for r in rollouts]
    )

    run.rest()
    losses = run.learner.learn(step, rollouts)
    hand_over(run)
    place = {"step": step + 1, "epoch": run.order.epoch(step) + 1}
    metrics = place | summarise(completions, verdicts, counts) | losses
    return metrics, [place | row for row in ledger_rows(problems, counts, rollouts, known)]


def allocate(
    method: Method, training: Training, known: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """[N] rollouts of each problem, given (correct [N], graded [N]) so far.

    Raises DynamoError where the budget does not fit the method's bounds.
    """
    try:
        return method.allocation(*known, budget=training.rollouts_per_step)
    except ValueError as error:
        raise DynamoError(
            f"training.rollouts_per_step {training.rollouts_per_step} cannot be shared out among "
            f"training.problems_per_step {training.problems_per_step} by the method's allocation: "
            f"{error}; change one of the two, or the allocation's bounds"
        ) from None


def check_budget(method: Method, training: Training) -> None:
    """Find out before anything is loaded. Raises DynamoError as `allocate` does."""
    nothing = np.zeros(training.problems_per_step)
    allocate(method, training, (nothing, nothing))


def hand_over(run: Run) -> None:
    """The policy's weights to the sampler, and the proof that they arrived."""
    run.sampler.load_weights(run.policy.weights())
    if run.canary is not None:  # of this rank's own engine, where each has one
        run.canary.check(getattr(run.sampler, "own", run.sampler), run.policy)


def requests(step: int, problems: list[Problem], counts: np.ndarray, run: Run) -> list[Request]:
    """`counts[i]` requests for problem i, each with its owner's id and its own seed."""
    return [
        Request(
            problem_id=problem.id,
            rollout=rollout,
            prompt=run.prompts[problem.id],
            seed=derive(run.seed, "rollout", step, problem.id, rollout),
        )
        for problem, count in zip(problems, counts, strict=True)
        for rollout in range(count)
    ]


def grade(
    problems: list[Problem], completions: list[Completion], grader: Grader | SharedGrader
) -> list[Verdict]:
    """Each completion against the answer of its own problem, found by id."""
    owner = {problem.id: problem for problem in problems}
    return grader.grade([Attempt.of(owner[c.problem_id], c) for c in completions])


def check_ungraded(step: int, verdicts: list[Verdict], *, allowed: float) -> None:
    """Stop a run whose verifier fails: its rewards would mean nothing."""
    failed = [v for v in verdicts if not v.graded]
    if len(failed) > allowed * len(verdicts):
        timeouts = sum(v is Verdict.TIMEOUT for v in failed)
        raise DynamoError(
            f"step {step + 1}: {timeouts} timeouts and {len(failed) - timeouts} errors among "
            f"{len(verdicts)} grades, more than training.max_ungraded {allowed:g}; mend the "
            "verifier or the data, then start again: the run goes on from its last checkpoint"
        )
