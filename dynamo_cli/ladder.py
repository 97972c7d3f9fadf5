"""The ladder: chain arithmetic modulo 10 of graded length.

A problem of k operations is a start digit, then a marker letter, a sign and a digit for each
operation. The response restates every operation beside its result and ends in the answer:

    3a+8b-2c+5>     ->     a3+8=1b1-2=9c9+5=4#4
"""

import hashlib
import itertools
import string
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from dynamo_cli.errors import DynamoError
from dynamo_cli.records import Problem, Verdict
from dynamo_cli.schema import Section
from dynamo_cli.seeding import generator

MARKERS = string.ascii_lowercase
Level = Annotated[int, Field(ge=1, le=len(MARKERS))]  # operations of a problem
Split = Literal["suite", "train", "pretrain"]
# A question belongs to one split for ever: its hash modulo 10 says to which.
TENTHS: dict[str, range] = {"suite": range(2), "train": range(2, 5), "pretrain": range(5, 10)}


class LadderSource(Section):
    """Generated problems. Problem i has `levels[i % len(levels)]` operations.

    A level that stands twice in `levels` gets twice the problems. More `problems` keep the
    earlier ones and their ids.
    """

    kind: Literal["ladder"]
    levels: list[Level] = Field(min_length=1)
    problems: int = Field(ge=1)
    split: Literal["suite", "train"]
    seed: int


def split_of(question: str) -> Split:
    """The split that owns a question, whoever draws it and with whatever seed."""
    tenth = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 10
    return next(split for split, tenths in TENTHS.items() if tenth in tenths)


def read_ladder(name: str, source: LadderSource) -> list[Problem]:
    """The problems of a source, ids `<name>-000`, `<name>-001`, ...; no question occurs twice.

    Raises DynamoError where a level has too few different questions.
    """
    streams = {
        level: distinct_questions(generator(source.seed, "ladder", level), level, source.split)
        for level in source.levels
    }
    problems = []
    for index, level in zip(range(source.problems), itertools.cycle(source.levels), strict=False):
        question = next(streams[level], None)
        if question is None:
            raise DynamoError(
                f"{name}: the {source.split} split has fewer questions of level {level} than "
                f"{source.problems} problems ask for; ask for fewer, or leave out level {level}"
            )
        answer = work(question)[-1]
        problems.append(
            Problem(f"{name}-{index:03d}", question, answer, "ladder", level, source="ladder")
        )
    return problems


def distinct_questions(rng: np.random.Generator, level: int, split: Split) -> Iterator[str]:
    """Different questions of one split, until 10,000 draws in a row bring none that is new."""
    seen: set[str] = set()
    draws = 0
    while draws < 10_000:
        question = draw_question(rng, level)
        draws += 1
        if question not in seen and split_of(question) == split:
            seen.add(question)
            draws = 0
            yield question


def draw_question(rng: np.random.Generator, level: int) -> str:
    """A question of `level` operations; start, signs and digits are uniform."""
    start, *codes = rng.integers(20, size=level + 1).tolist()
    steps = (f"{MARKERS[i]}{'+-'[code // 10]}{code % 10}" for i, code in enumerate(codes))
    return f"{start % 10}{''.join(steps)}>"


def work(question: str, write: Callable[[str, int], int] | None = None) -> str:
    """The response that works a question out; it ends in `#` and the answer.

    `write(operation, result)` says which digit a careless hand puts down, e.g. for ("-7", 4);
    the chain goes on from that digit. None always writes the result.
    """
    value = int(question[0])
    parts = []
    for at in range(1, len(question) - 1, 3):
        marker, operation = question[at], question[at + 1 : at + 3]
        result = (value + int(operation)) % 10
        written = result if write is None else write(operation, result)
        parts.append(f"{marker}{value}{operation}={written}")
        value = written
    return f"{''.join(parts)}#{value}"


def verify_answer(text: str, answer: str, finished: bool) -> Verdict:
    """The verdict on a response: what follows its last `#` must be the answer and nothing else.

    A response that was cut off (`finished` is False), or has nothing after a `#`, is UNPARSABLE.
    """
    found = text.rpartition("#")[2] if "#" in text else ""
    if not finished or not found:
        return Verdict.UNPARSABLE
    return Verdict.OK if found == answer else Verdict.WRONG
