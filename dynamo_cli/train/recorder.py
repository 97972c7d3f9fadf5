"""Keeps what became of each token of a few problems' rollouts, for people to look at.

Nothing is sampled or scored for it, and no number of a run depends on it.
T response positions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from dynamo_cli.errors import DynamoError
from dynamo_cli.methods import Method
from dynamo_cli.methods.modulation import entropy_change
from dynamo_cli.methods.tokens import TokenBatch
from dynamo_cli.records import Problem, draft, sync
from dynamo_cli.schema import Section
from dynamo_cli.train.rollouts import Rollout

FILE = "rollouts.parquet"  # of a run's folder
PARTS = "rollouts"  # of a work folder: what has been recorded so far, a file a step
COLUMNS = (
    "step",
    "epoch",
    "problem_id",
    "rollout",
    "verdict",
    "advantage",
    "finish",
    "question",
    "answer",
    "pieces",
    "entropy",
    "entropy_change",
    "modulation",
)
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders write for part of a character


class Recording(Section):
    """Whose rollouts are kept, and how often."""

    # So many (or all there are), spread evenly over the pool (its order is that of difficulty), or
    # these ids.
    problems: Annotated[int, Field(ge=1)] | list[str] = Field(union_mode="left_to_right")
    every: int = Field(ge=1)  # epochs: a problem comes up at most once in each

    def chosen(self, pool: Sequence[Problem]) -> dict[str, Problem]:
        """The problems to record, by id. Raises DynamoError for ids that are not in the pool."""
        known = {problem.id: problem for problem in pool}
        if isinstance(self.problems, list):
            strangers = [name for name in self.problems if name not in known]
            if strangers:
                raise DynamoError(
                    f"training.record.problems names {strangers[0]!r}, which is not among the "
                    f"{len(pool)} training problems (the first is {pool[0].id!r})"
                )
            return {name: known[name] for name in self.problems}
        number = min(self.problems, len(pool))
        places = np.linspace(0, len(pool) - 1, number).round().astype(int)
        return {pool[place].id: pool[place] for place in places}


@dataclass(frozen=True)
class Recorder:
    """Writes the chosen rollouts of each recorded step to a file of the run's work folder.

    So a run that goes on after a checkpoint has what was recorded before it, and a step that runs
    twice is recorded once.
    """

    chosen: dict[str, Problem]
    every: int
    epoch: Callable[[int], int]  # of a step, both from 0
    method: Method
    decode: Callable[[Sequence[int]], str]  # text of token ids, special ones included
    folder: Path  # the run's own, among checkpoints
    rank: int = 0  # where there are several, each records its own share

    def __call__(
        self, step: int, rollouts: Sequence[Rollout], given: TokenBatch, planned: TokenBatch
    ) -> None:
        """Record what an update is about to learn from.

        rollouts: of one update; given: their tokens as the method's plan saw them; planned: as it
        left them. Each problem is in one update of a step alone.
        """
        if self.epoch(step) % self.every:
            return
        rows = [i for i, r in enumerate(rollouts) if r.completion.problem_id in self.chosen]
        if not rows:
            return
        before, after = given.rows(rows), planned.rows(rows)
        with torch.no_grad():
            change = entropy_change(before, active=self.method.objective.active)
        table = {
            "entropy": before.entropy,
            "entropy_change": change,
            "modulation": factor(before, after),
        }
        facts = {"step": step + 1, "epoch": self.epoch(step) + 1}
        found = [
            facts | self.row(rollouts[row], {name: x[i] for name, x in table.items()})
            for i, row in enumerate(rows)
        ]
        # Named after the first problem: a step's updates have different ones.
        first = min(rollouts[row].problem for row in rows)
        path = self.folder / PARTS / f"{step:06d}-{self.rank}-{first:06d}.parquet"
        with draft(path) as scratch:
            pd.DataFrame(found, columns=list(COLUMNS)).to_parquet(scratch, index=False)
        sync(path)

    def row(self, rollout: Rollout, values: dict[str, Tensor]) -> dict[str, Any]:
        """One rollout; values: [T] each, of which the response's own are kept."""
        completion = rollout.completion
        problem, length = self.chosen[completion.problem_id], len(completion.tokens)
        return {
            "problem_id": problem.id,
            "rollout": completion.rollout,
            "verdict": rollout.verdict.value,
            "advantage": rollout.advantage,
            "finish": completion.finish,
            "question": problem.question,
            "answer": problem.answer,
            "pieces": pieces(completion.tokens, self.decode),
        } | {name: x[:length].float().cpu().numpy() for name, x in values.items()}


def write_record(out: Path, folder: Path) -> None:
    """Write what recorders left in a run's work folder to one file, by step, problem and rollout.

    Where nothing was recorded it has no rows: then, too, it replaces the record of an earlier run.
    """
    parts = [pd.read_parquet(path) for path in sorted((folder / PARTS).glob("*.parquet"))]
    rows = pd.concat(parts) if parts else pd.DataFrame(columns=list(COLUMNS))
    rows = rows.sort_values(["step", "problem_id", "rollout"], kind="stable")
    with draft(out) as scratch:
        rows.to_parquet(scratch, index=False)


def factor(given: TokenBatch, planned: TokenBatch) -> Tensor:
    """[B, T]: what the modulation multiplied each token's advantage by; NaN where that is 0.

    A token that the plan takes out of the mask has no advantage left: its factor is 0.
    """
    left = torch.where(planned.mask, planned.advantage, 0)
    return torch.where(given.advantage != 0, left / given.advantage, torch.nan)


def pieces(tokens: Iterable[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """What each token adds to the text, which they join to.

    A token that ends within a character adds nothing yet: the one that completes it adds it.
    """
    tokens, found = list(tokens), []
    # Decoded from the token before on: some decoders drop a space at the start of a text.
    anchor, settled = 0, 0
    for end in range(1, len(tokens) + 1):
        before, after = decode(tokens[anchor:settled]), decode(tokens[anchor:end])
        if after.endswith(UNFINISHED) and end < len(tokens):
            found.append("")
            continue
        found.append(after[len(before) :])
        anchor, settled = settled, end
    return found
