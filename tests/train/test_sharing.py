"""Sampling and grading shared out over ranks: every rank holds what one rank alone would.

The ranks are threads here, which meet where processes would; processes do it in
`tests/pipelines/test_train_on_ranks.py`.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dynamo_cli.grading import Attempt, Grader
from dynamo_cli.models_io import load_model
from dynamo_cli.rollout.engine import Request, Sampling
from dynamo_cli.rollout.hf_engine import HFEngine
from dynamo_cli.seeding import derive
from dynamo_cli.train.history import History
from dynamo_cli.train.sharing import SharedGrader, SharedSampler

FREE = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=24)


def build_requests(problems=5, rollouts=6):
    return [
        Request(f"p{i}", r, tuple(range(48, 50 + 3 * i)), seed=derive(3, f"p{i}", r))
        for i in range(problems)
        for r in range(rollouts)
    ]


@pytest.fixture(scope="module")
def parts(root):
    """(model, tokenizer) of the ladder, which ends its responses itself."""
    return load_model(root / "dynamo_cli" / "models" / "ladder-small")


class Meeting:
    """Ranks that are threads of this process."""

    def __init__(self, size):
        self.barrier, self.given = threading.Barrier(size), [None] * size

    def ranks(self):
        return [Seat(self, rank) for rank in range(len(self.given))]


class Seat:
    def __init__(self, meeting, rank):
        self.meeting, self.rank, self.size = meeting, rank, len(meeting.given)

    def gather_objects(self, value):
        self.meeting.given[self.rank] = value
        self.meeting.barrier.wait(60)
        found = list(self.meeting.given)
        self.meeting.barrier.wait(60)
        return found


def on_each(ranks, work):
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(work, ranks))


class Counting:
    """An engine that tells which requests it was asked."""

    def __init__(self, engine):
        self.engine, self.asked = engine, []

    def generate(self, requests, sampling, arrived=None):
        self.asked.extend(requests)
        return self.engine.generate(requests, sampling, arrived)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_together_hold_the_completions_of_one_to_the_bit(parts, size):
    requests = build_requests()
    alone = HFEngine(*parts, report_scores=True).generate(requests, FREE)
    assert len({len(completion.tokens) for completion in alone}) > 3
    history = History()
    history.note_lengths([c.problem_id for c in alone], [len(c.tokens) for c in alone])
    engines = [Counting(HFEngine(*parts, report_scores=True)) for _ in range(size)]

    def sample(seat):
        own = engines[seat.rank]
        shared = SharedSampler(own, seat, expected=history.expected_tokens)
        return shared.generate(requests, FREE)

    found = on_each(Meeting(size).ranks(), sample)
    assert all(completions == alone for completions in found)
    asked = [request for engine in engines for request in engine.asked]
    assert sorted(asked, key=repr) == sorted(requests, key=repr), "each is sampled once"


def test_the_shares_are_even_in_expected_tokens_and_not_in_requests():
    history = History()
    history.note_lengths(["p0", "p1"], [90, 10])
    requests = build_requests(problems=2, rollouts=10)  # 10 of 90 tokens, 10 of 10
    shared = SharedSampler(None, Meeting(2).ranks()[0], expected=history.expected_tokens)
    parts = shared.parts(requests)
    loads = [sum(90 if requests[i].problem_id == "p0" else 10 for i in part) for part in parts]
    assert loads == [500, 500]
    unknown = SharedSampler(None, Meeting(2).ranks()[0], expected=History().expected_tokens)
    assert [len(part) for part in unknown.parts(requests)] == [10, 10]


def test_a_rank_without_a_request_is_asked_for_none(parts):
    (request,) = build_requests(1, 1)
    engines = [Counting(HFEngine(*parts)) for _ in range(2)]

    def sample(seat):
        shared = SharedSampler(engines[seat.rank], seat, expected=History().expected_tokens)
        return shared.generate([request], FREE)

    first, second = on_each(Meeting(2).ranks(), sample)
    assert first == second
    assert [len(engine.asked) for engine in engines] == [1, 0]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_verdicts_come_back_in_the_order_of_the_attempts(count):
    attempts = [Attempt("4", f"The answer is {i}.", True) for i in range(count)]
    with Grader() as grader:
        alone = grader.grade(attempts)
        found = on_each(Meeting(2).ranks(), lambda seat: SharedGrader(grader, seat).grade(attempts))
    assert found == [alone, alone]
