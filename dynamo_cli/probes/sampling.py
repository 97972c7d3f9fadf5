"""Graded rollouts of a policy for its probes."""

from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_cli.errors import DynamoError
from dynamo_cli.grading import Grader
from dynamo_cli.methods import Method
from dynamo_cli.records import Completion, Problem, Verdict
from dynamo_cli.rollout.engine import Request, RolloutEngine, Sampling
from dynamo_cli.seeding import derive, generator
from dynamo_cli.train.loop import grade
from dynamo_cli.train.rollouts import Rollout, credit


@dataclass(frozen=True)
class Source:
    """Who answers, how, and who grades."""

    engine: RolloutEngine
    sampling: Sampling
    grader: Grader
    prompts: dict[str, tuple[int, ...]]  # framed question by problem id, token ids
    seed: int

    def judged(
        self, problems: Sequence[Problem], count: int, purpose: str
    ) -> dict[str, list[tuple[Completion, bool]]]:
        """`count` graded completions of each problem, with their correctness, by problem id.

        Raises DynamoError naming a problem of which the verifier could not judge as many.
        """
        completions, verdicts = self._answers(problems, count, purpose)
        found: dict[str, list[tuple[Completion, bool]]] = {p.id: [] for p in problems}
        for completion, verdict in zip(completions, verdicts, strict=True):
            if verdict.graded:
                found[completion.problem_id].append((completion, verdict.correct))
        for name, pairs in found.items():
            if len(pairs) < count:
                raise DynamoError(
                    f"problem {name}: only {len(pairs)} of {count} rollouts could be graded; mend "
                    "the verifier or leave the problem out"
                )
        return found

    def step(self, problems: Sequence[Problem], count: int, method: Method) -> list[Rollout]:
        """The graded rollouts of one step, `count` a problem, with the method's advantages."""
        completions, verdicts = self._answers(problems, count, "step")
        return credit(problems, completions, verdicts, method)

    def _answers(
        self, problems: Sequence[Problem], count: int, purpose: str
    ) -> tuple[list[Completion], list[Verdict]]:
        requests = [
            Request(
                problem_id=problem.id,
                rollout=rollout,
                prompt=self.prompts[problem.id],
                seed=derive(self.seed, "probe", purpose, problem.id, rollout),
            )
            for problem in problems
            for rollout in range(count)
        ]
        completions = self.engine.generate(requests, self.sampling)
        return completions, grade(list(problems), completions, self.grader)


def some_problems(pool: Sequence[Problem], count: int, *, seed: int, place: str) -> list[Problem]:
    """`count` problems of the pool, drawn by the seed, in a random order.

    Raises DynamoError where the pool holds fewer.
    """
    if count > len(pool):
        raise DynamoError(
            f"{place} asks for {count} problems, but the pool holds only {len(pool)}; "
            "lower it or prepare more"
        )
    order = generator(seed, "probed problems").permutation(len(pool))
    return [pool[i] for i in order[:count]]
