"""Sampling and grading of a step, shared out over the ranks that train together.

What a rank samples or grades belongs to its request by id, and afterwards each rank holds all of
it: the same, also where vLLM or a grader's clock would have told two ranks two things.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from dynamo_cli.grading import Attempt, Grader
from dynamo_cli.grading.grader import default_workers
from dynamo_cli.methods.collective import Collective
from dynamo_cli.records import Completion, Verdict
from dynamo_cli.rollout.engine import Arrived, Request, RolloutEngine, Sampling
from dynamo_cli.train.ranks import Ranks, shares

Value = TypeVar("Value")
Expected = Callable[[Sequence[str]], Sequence[float | None]]  # tokens of a response, by problem id


class SharedSampler:
    """A rollout engine of which each rank has one, and samples its share of every call.

    The shares are even in the tokens that are expected (`History.expected_tokens`; where nothing
    is known, all count the same), so that neither unequal groups nor long problems leave ranks
    idle. Each rank must call `generate` with the same requests.
    """

    def __init__(self, own: RolloutEngine, ranks: Ranks, *, expected: Expected) -> None:
        self.own = own  # this rank's
        self._ranks, self._expected = ranks, expected

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> list[Completion]:
        """One completion per request, in the order of the requests, on every rank."""
        part = self.parts(requests)[self._ranks.rank]
        mine = self.own.generate([requests[i] for i in part], sampling, arrived) if part else []
        owned = {
            (completion.problem_id, completion.rollout): completion
            for share in self._ranks.gather_objects(mine)
            for completion in share
        }
        return [owned[request.problem_id, request.rollout] for request in requests]

    def parts(self, requests: Sequence[Request]) -> list[list[int]]:
        """Indices of requests for each rank."""
        expected = self._expected([request.problem_id for request in requests])
        sizes = [1 if tokens is None else max(1, round(tokens)) for tokens in expected]
        return shares(sizes, self._ranks.size)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.own.load_weights(weights)
        self._ranks.wait()  # a server's weights may have been another rank's to hand over

    def close(self) -> None:
        self.own.close()


class SharedGrader:
    """A grader of which each rank has one, and grades its share of every call."""

    def __init__(self, own: Grader, ranks: Ranks) -> None:
        self._own, self._ranks = own, ranks

    def grade(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """One verdict per attempt, in their order, on every rank."""
        rank, size = self._ranks.rank, self._ranks.size
        shared = self._ranks.gather_objects(self._own.grade(attempts[rank::size]))
        return [shared[i % size][i // size] for i in range(len(attempts))]


def agree(ranks: Collective, make: Callable[[], Value]) -> Value:
    """What the first rank makes of it, on every rank."""
    return ranks.agree(make) if isinstance(ranks, Ranks) else make()


@contextmanager
def open_grader(ranks: Collective) -> Iterator[Grader | SharedGrader]:
    """What grades the run's responses; ranks of one machine share its processors."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size)) if ranks.size > 1 else 1
    with Grader(workers=max(1, default_workers() // here)) as grader:
        yield SharedGrader(grader, ranks) if isinstance(ranks, Ranks) else grader
