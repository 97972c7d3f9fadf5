"""The fifth slot: one weight per rollout, fixed for the whole optimiser step.

The loss of a step is the sum over its tokens of weight[rollout] * loss[token]. Because a weight
looks at the whole step, over all ranks, micro-batches only sum their shares.
S = rollouts of this rank; an id in `problem` means the same problem on every rank.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dynamo_cli.methods.collective import LOCAL, Collective, distinct
from dynamo_cli.schema import Section


class TokenMean(Section):
    """Every token of the step counts the same: weight = 1 / (tokens of the step).

    Source: DAPO, arXiv:2503.14476 Eq. 8. A problem weighs as much as it has tokens.
    """

    kind: Literal["token_mean"]

    def __call__(
        self, lengths: Tensor, problem: Tensor, *, collective: Collective = LOCAL
    ) -> Tensor:
        """[S] int64 tokens of each rollout, [S] ids -> [S] float64 weights."""
        total = collective.sum(lengths.sum().double()).clamp(min=1)
        return (1 / total).expand(len(lengths))


class SequenceMean(Section):
    """Every rollout counts the same: weight = 1 / (rollouts of the step * its tokens).

    Source: GRPO, arXiv:2402.03300 Eq. 3. A rollout without tokens adds 0 and is counted.
    """

    kind: Literal["sequence_mean"]

    def __call__(
        self, lengths: Tensor, problem: Tensor, *, collective: Collective = LOCAL
    ) -> Tensor:
        """[S] int64 tokens of each rollout, [S] ids -> [S] float64 weights."""
        return 1 / (_num_rollouts(lengths, collective) * lengths.double().clamp(min=1))


class SequenceSum(Section):
    """Mean over rollouts of the sum over their tokens: weight = 1 / (rollouts of the step)."""

    kind: Literal["sequence_sum"]

    def __call__(
        self, lengths: Tensor, problem: Tensor, *, collective: Collective = LOCAL
    ) -> Tensor:
        """[S] int64 tokens of each rollout, [S] ids -> [S] float64 weights."""
        return (1 / _num_rollouts(lengths, collective)).expand(len(lengths))


class ConstantDivisor(Section):
    """Sum over all tokens divided by a constant: weight = 1 / divisor.

    Source: Dr.GRPO, arXiv:2503.20783. A divisor that followed the padded length would make the
    loss depend on the batch.
    """

    kind: Literal["constant"]
    divisor: float = Field(gt=0)

    def __call__(
        self, lengths: Tensor, problem: Tensor, *, collective: Collective = LOCAL
    ) -> Tensor:
        """[S] int64 tokens of each rollout, [S] ids -> [S] float64 weights."""
        return torch.full_like(lengths, 1 / self.divisor, dtype=torch.float64)


class ProblemMean(Section):
    """Every problem of the step counts the same, however many rollouts it was given.

    weight = 1 / (problems of the step * tokens of the problem). The theory of variance-driven
    allocation holds for this mean: with a token mean, more rollouts also mean more weight.
    A problem without tokens adds 0 and is counted.
    """

    kind: Literal["problem_mean"]

    def __call__(
        self, lengths: Tensor, problem: Tensor, *, collective: Collective = LOCAL
    ) -> Tensor:
        """[S] int64 tokens of each rollout, [S] ids -> [S] float64 weights."""
        problems = distinct(problem, collective)
        index = torch.searchsorted(problems, problem)
        tokens = lengths.new_zeros(len(problems)).index_add_(0, index, lengths)
        tokens = collective.sum(tokens).double().clamp(min=1)
        return 1 / (len(problems) * tokens[index])


def _num_rollouts(lengths: Tensor, collective: Collective) -> Tensor:
    return collective.sum(torch.tensor(float(len(lengths)), device=lengths.device).double())


Aggregation = Annotated[
    TokenMean | SequenceMean | SequenceSum | ConstantDivisor | ProblemMean,
    Field(discriminator="kind"),
]


def weighted_sum(per_token: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Scalar: this micro-batch's share of the step's loss; the shares add up to the loss.

    per_token: [B, T]; mask: [B, T] bool; weight: [B] from an aggregation over the WHOLE step.
    """
    return (torch.where(mask, per_token, 0).sum(dim=1) * weight).sum()
