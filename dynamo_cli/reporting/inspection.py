"""Responses to look at: those of an evaluation, and those that a training run has recorded."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import parquet
from rich.text import Text

from dynamo_cli.errors import DynamoError
from dynamo_cli.records import Problem, Verdict, read_jsonl

RECORD = "rollouts.parquet"  # of a run; without rows where training.record is null
REMEDY = (
    "token values to colour by are kept by runs with training.record, as in "
    "dynamo train --set 'training.record={problems: 4, every: 1}'"
)
MARKS = {"ok": "\N{CHECK MARK}", "wrong": "\N{BALLOT X}"}  # the other verdicts: a question mark


@dataclass(frozen=True, slots=True)
class Quantity:
    """What tokens can be coloured by."""

    name: str  # of the column
    title: str
    unit: str
    middle: float  # has no colour; what lies below it gets another one than what lies above
    two_sided: bool

    def level(self, value: float, reach: float) -> float:
        """How strong the colour is, in [-1, 1]; `reach` and all beyond are at its full strength."""
        if math.isnan(value) or reach <= 0:
            return 0.0
        return max(-1.0, min(1.0, (value - self.middle) / reach))


QUANTITIES = {
    "entropy": Quantity("entropy", "entropy", "nats", 0.0, two_sided=False),
    "change": Quantity(
        "entropy_change", "entropy change", "nats per unit of learning rate", 0.0, two_sided=True
    ),
    "factor": Quantity("modulation", "modulation factor", "times the advantage", 1.0, True),
}


@dataclass(frozen=True, slots=True)
class Response:
    """One response to a problem, with all that is known of it."""

    problem: str
    question: str
    answer: str  # the reference; empty where the problems were not at hand
    rollout: int
    verdict: str
    finish: str
    num_tokens: int
    text: str
    suite: str | None = None  # of an evaluation
    step: int | None = None  # of training, from 1
    advantage: float | None = None
    pieces: tuple[str, ...] = ()  # what each token adds to the text, where it was recorded
    values: Mapping[str, np.ndarray] | None = None  # of each token: a key of QUANTITIES -> [T]


def has_record(folder: Path) -> bool:
    """Whether a run recorded rollouts; also True where its file cannot be read."""
    try:
        return parquet.read_metadata(folder / RECORD).num_rows > 0
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


def read_record(folder: Path) -> list[Response]:
    """What a run has recorded. Raises DynamoError where that is nothing, or unreadable."""
    path = folder / RECORD
    if not path.is_file():
        raise DynamoError(f"{folder} holds no {RECORD}; train this run again")
    try:
        found = [_recorded(row) for row in pd.read_parquet(path).to_dict("records")]
    except (KeyError, OSError, ValueError) as error:
        raise DynamoError(f"{path} cannot be read ({error}); train this run again") from None
    if not found:
        raise DynamoError(f"{path} has no rollouts; {REMEDY}")
    return found


def _recorded(row: dict) -> Response:
    pieces = tuple(row["pieces"])
    same = ("question", "answer", "rollout", "verdict", "finish", "step", "advantage")
    return Response(
        problem=row["problem_id"],
        num_tokens=len(pieces),
        text="".join(pieces),
        pieces=pieces,
        values={key: np.asarray(row[q.name], float) for key, q in QUANTITIES.items()},
        **{name: row[name] for name in same},
    )


def read_evaluation(folder: Path, problems: Mapping[str, Sequence[Problem]]) -> list[Response]:
    """The responses of an evaluation, with the questions of those suites that are given.

    Raises DynamoError where responses or their verdicts are missing.
    """
    files = sorted((folder / "completions").glob("*.jsonl"))
    if not files or not (folder / "verdicts.jsonl").is_file():
        raise DynamoError(
            f"{folder} holds no completions/ with verdicts.jsonl; "
            f"run `dynamo eval` into it, or `dynamo grade {folder}`"
        )
    verdicts = {
        (row["suite"], row["problem_id"], row["rollout"]): row["verdict"]
        for row in read_jsonl(folder / "verdicts.jsonl")
    }
    found = []
    for file in files:
        known = {problem.id: problem for problem in problems.get(file.stem, ())}
        for row in read_jsonl(file):
            key = (file.stem, row["problem_id"], row["rollout"])
            if key not in verdicts:
                raise DynamoError(
                    f"{folder}: no verdict on rollout {key[2]} of {key[1]} ({key[0]}); "
                    f"run `dynamo grade {folder}`"
                )
            problem = known.get(row["problem_id"])
            found.append(
                Response(
                    problem=row["problem_id"],
                    question=problem.question if problem else "",
                    answer=problem.answer if problem else "",
                    verdict=verdicts[key],
                    suite=file.stem,
                    **{name: row[name] for name in ("rollout", "finish", "num_tokens", "text")},
                )
            )
    return found


def choose(
    responses: Sequence[Response],
    *,
    problem: str | None = None,
    verdict: str | None = None,
    step: int | None = None,
) -> list[Response]:
    """The responses that fit. Raises DynamoError, naming what there is, where none does."""
    if verdict is not None and verdict not in set(Verdict):
        raise DynamoError(f"there is no verdict {verdict!r}; there are {', '.join(Verdict)}")
    wanted = {"problem": problem, "verdict": verdict, "step": step}
    left = list(responses)
    for name, value in wanted.items():
        if value is None:
            continue
        known = dict.fromkeys(getattr(response, name) for response in left)
        left = [response for response in left if getattr(response, name) == value]
        if not left:
            told = ", ".join(str(each) for each in list(known)[:8] if each is not None)
            more = " ..." if len(known) > 8 else ""
            there = f"there are {told}{more}" if told else f"none of them has a {name}"
            raise DynamoError(f"no response with {name} {value}; {there}")
    return left


def reaches(responses: Iterable[Response]) -> dict[str, float]:
    """Where each quantity's colour is at its full: 99 % of the tokens lie within."""
    found = {}
    for key, quantity in QUANTITIES.items():
        parts = [r.values[key] for r in responses if r.values is not None]
        distances = np.abs(np.concatenate(parts) - quantity.middle) if parts else np.zeros(0)
        distances = distances[~np.isnan(distances)]
        found[key] = float(np.quantile(distances, 0.99)) if len(distances) else 0.0
    return found


def printable(text: str) -> str:
    """A text that cannot steer a terminal: control characters as their pictures."""
    return "".join(
        letter if letter in "\n\t" or not _steers(letter) else _picture(letter) for letter in text
    )


def _steers(letter: str) -> bool:
    code = ord(letter)
    return code < 32 or 127 <= code < 160 or letter in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e"


def _picture(letter: str) -> str:
    return chr(0x2400 + ord(letter)) if ord(letter) < 32 else "\N{SYMBOL FOR DELETE}"


WARM, COLD = (230, 120, 20), (40, 130, 200)  # backgrounds at full strength: above, below


def coloured(response: Response, key: str, reach: float) -> Text:
    """The response for a terminal, each token on a ground as strong as its value."""
    if response.values is None:
        return Text(printable(response.text))
    text = Text()
    for piece, value in zip(response.pieces, response.values[key], strict=True):
        level = QUANTITIES[key].level(value, reach)
        text.append(printable(piece), style=ground(level))
    return text


def ground(level: float) -> str:
    """A rich style: black on a colour between white and warm (or cold); none near 0."""
    if abs(level) < 0.04:
        return ""
    full = WARM if level > 0 else COLD
    strength = 0.15 + 0.85 * abs(level)
    red, green, blue = (round(255 + (tone - 255) * strength) for tone in full)
    return f"black on rgb({red},{green},{blue})"


def extremes(response: Response, key: str, *, count: int = 5) -> str:
    """The tokens farthest from the middle, in words: what colours show, also without any."""
    if response.values is None:
        return ""
    values, middle = response.values[key], QUANTITIES[key].middle
    order = np.argsort(-np.nan_to_num(np.abs(values - middle)), kind="stable")[:count]
    return "  ".join(
        f"{printable(repr(response.pieces[i]))} {values[i]:.3g}"
        for i in order
        if not math.isnan(values[i])
    )


def headline(response: Response) -> str:
    """Where a response comes from and what became of it, in a line."""
    facts = [
        response.suite,
        response.problem,
        None if response.step is None else f"step {response.step}",
        f"rollout {response.rollout}",
        f"{MARKS.get(response.verdict, '?')} {response.verdict}",
        None if response.advantage is None else f"advantage {response.advantage:+.2f}",
        f"{response.num_tokens:,} tokens",
        "cut off" if response.finish == "length" else None,
    ]
    return " \N{MIDDLE DOT} ".join(fact for fact in facts if fact)


def legend(key: str, reach: float) -> Text:
    """The scale of a quantity's colours."""
    quantity = QUANTITIES[key]
    text = Text(f"{quantity.title} ({quantity.unit}): ")
    levels = [-1, -0.5, 0, 0.5, 1] if quantity.two_sided else [0, 0.25, 0.5, 0.75, 1]
    for level in levels:
        text.append(f" {quantity.middle + level * reach:.3g} ", style=ground(level))
    return text
