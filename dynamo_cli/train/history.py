"""What is known of each problem: how many of its rollouts were right, over all epochs so far.

And how long they were the last time, which says how much work the next ones are.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Refresh = Literal["step", "epoch"]


class History:
    """Correct and graded rollouts by problem id. Order and position of problems never matter.

    `forgetting` rho multiplies a problem's counts before each new visit, k <- rho k + new correct,
    G <- rho G + new graded; 1 keeps everything. A problem's success rate drifts as the policy
    learns, and rho < 1 lets old evidence fade.
    """

    def __init__(self, *, forgetting: float = 1.0) -> None:
        if not 0 < forgetting <= 1:
            raise ValueError(f"forgetting must lie in (0, 1], got {forgetting}")
        self.forgetting = forgetting
        self._now: dict[str, tuple[float, float]] = {}
        self._epoch_start: dict[str, tuple[float, float]] = {}
        self._tokens: dict[str, float] = {}

    def counts(self, ids: Sequence[str], *, refresh: Refresh) -> tuple[np.ndarray, np.ndarray]:
        """(correct [N], graded [N]) of the named problems; zeros for those never seen.

        refresh "step" reads all evidence so far, "epoch" only what was known when the epoch began.
        """
        known = self._now if refresh == "step" else self._epoch_start
        rows = [known.get(name, (0.0, 0.0)) for name in ids]
        correct, graded = np.array(rows, dtype=np.float64).reshape(-1, 2).T
        return correct, graded

    def begin_epoch(self) -> None:
        """Take the picture that refresh "epoch" reads."""
        self._epoch_start = dict(self._now)

    def update(self, ids: Sequence[str], correct: Sequence[bool]) -> None:
        """Add the verdicts of one step: one entry per graded rollout, in any order."""
        visited: dict[str, list[bool]] = {}
        for name, verdict in zip(ids, correct, strict=True):
            visited.setdefault(name, []).append(verdict)
        for name, verdicts in visited.items():
            k, graded = self._now.get(name, (0.0, 0.0))
            self._now[name] = (
                self.forgetting * k + sum(verdicts),
                self.forgetting * graded + len(verdicts),
            )

    def note_lengths(self, ids: Sequence[str], tokens: Sequence[int]) -> None:
        """Take in how many tokens the responses of one step had: one entry each, in any order."""
        visited: dict[str, list[int]] = {}
        for name, length in zip(ids, tokens, strict=True):
            visited.setdefault(name, []).append(length)
        for name, lengths in visited.items():
            self._tokens[name] = sum(lengths) / len(lengths)

    def expected_tokens(self, ids: Sequence[str]) -> list[float | None]:
        """Tokens of a response to each of these: its problem's last mean, or that of all others.

        None where there is nothing to tell it from.
        """
        known = self._tokens.values()
        mean = sum(known) / len(known) if known else None
        return [self._tokens.get(name, mean) for name in ids]

    def state(self) -> dict:
        """Everything a resumed run needs, as JSON."""
        return {"now": self._now, "epoch_start": self._epoch_start, "tokens": self._tokens}

    def restore(self, state: dict) -> None:
        """Take over a `state()`."""
        self._now = {name: tuple(pair) for name, pair in state["now"].items()}
        self._epoch_start = {name: tuple(pair) for name, pair in state["epoch_start"].items()}
        self._tokens = dict(state["tokens"])
