"""The second slot: one advantage per rollout, from what its problem's rollouts earned.

S = rollouts. Rollouts belong together by the id of their problem, never by their position.
Only rollouts that were graded may come in: an ungraded one must not move a mean.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from dynamo_cli.schema import Section


class GroupNormalised(Section):
    """A = (R - mean) / (std + eps) within each problem's rollouts; GRPO's advantage.

    scale `none` leaves the division out (Dr.GRPO). ddof 1 divides the squares by n - 1, 0 by n.
    Rollouts that all earned the same get exactly 0, whatever rounding does to their mean.
    A problem's only rollout has nothing to be compared with: singleton `zero` gives it 0; `raw`
    takes mean 0 and std 1, as verl does.
    Source: arXiv:2402.03300 section 4.1; without the std: arXiv:2503.20783.
    """

    kind: Literal["group_normalised"]
    scale: Literal["std", "none"]
    ddof: Literal[0, 1]
    eps: float = Field(ge=0)
    singleton: Literal["zero", "raw"]

    def __call__(self, reward: np.ndarray, correct: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """[S] rewards, [S] correctness (unused), [S] ids -> [S] float64 advantages."""
        reward = np.asarray(reward, dtype=np.float64)
        ids, index, size = np.unique(problem, return_inverse=True, return_counts=True)
        centred = reward - (np.bincount(index, reward, len(ids)) / size)[index]
        scale = np.ones(len(ids))
        if self.scale == "std":
            squares = np.bincount(index, centred**2, len(ids))
            scale = np.sqrt(squares / np.maximum(size - self.ddof, 1)) + self.eps
        highest, lowest = np.full(len(ids), -np.inf), np.full(len(ids), np.inf)
        np.maximum.at(highest, index, reward)
        np.minimum.at(lowest, index, reward)
        constant = highest == lowest
        scale[constant] = 1  # with eps 0 the std is 0, and the result must be 0, not NaN
        advantage = np.where(constant[index], 0, centred / scale[index])
        if self.singleton == "raw":
            unit = 1 + self.eps if self.scale == "std" else 1
            advantage = np.where(size[index] == 1, reward / unit, advantage)
        return advantage


class WeightedSigns(Section):
    """A = positive_weight where the answer is correct, -negative_weight where it is not.

    No baseline and no group. Reads correctness alone, so that shaped rewards cannot leak in.
    Source: W-REINFORCE, arXiv:2506.01347 (positive_weight 0.1, negative_weight 1).
    """

    kind: Literal["weighted_signs"]
    positive_weight: float = Field(ge=0)
    negative_weight: float = Field(ge=0)

    def __call__(self, reward: np.ndarray, correct: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """[S] rewards (unused), [S] correctness 0/1, [S] ids (unused) -> [S] float64."""
        correct = np.asarray(correct)
        if not np.isin(correct, (0, 1)).all():
            raise ValueError(f"correctness must be 0 or 1, found {np.unique(correct).tolist()}")
        return np.where(correct == 1, self.positive_weight, -self.negative_weight)


Advantage = Annotated[GroupNormalised | WeightedSigns, Field(discriminator="kind")]
