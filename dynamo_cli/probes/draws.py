"""Steps drawn again and again from banks: the variance of their gradient, and what predicts it.

N problems of a step, R draws, n_i rollouts of problem i in each, M in its bank, K of a sketch.
The gradient is that of a step's first update, before any ratio has left 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dynamo_cli.methods.advantage import Advantage
from dynamo_cli.methods.aggregation import Aggregation
from dynamo_cli.probes.bank import Bank


@dataclass(frozen=True, slots=True)
class Draws:
    """Which rollouts R steps are made of. Two allocations share them: the first n_i are drawn."""

    index: np.ndarray  # [N, R, n_max] into a bank

    @classmethod
    def of(cls, banks: Sequence[Bank], most: int, number: int, source: np.random.Generator):
        """Draws with replacement, from each bank."""
        shape = (number, most)
        return cls(np.stack([source.integers(len(bank), size=shape) for bank in banks]))

    def taken(self, counts: np.ndarray) -> np.ndarray:
        """[R, sum n] rows of the banks, problem by problem."""
        pairs = zip(self.index, counts, strict=True)
        return np.concatenate([own[:, :count] for own, count in pairs], axis=1)


def step_weights(lengths: np.ndarray, counts: np.ndarray, aggregation: Aggregation) -> np.ndarray:
    """[R, sum n] weight of each rollout in its draw. lengths: [R, sum n] tokens."""
    problem = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    rows = torch.from_numpy(lengths)
    return np.stack([aggregation(row, problem).numpy() for row in rows])


def step_advantages(correct: np.ndarray, counts: np.ndarray, advantage: Advantage) -> np.ndarray:
    """[R, sum n] advantages within each problem of each draw. correct: [R, sum n] 0 or 1."""
    owner = np.repeat(np.arange(len(counts)), counts)
    group = np.arange(len(correct))[:, None] * len(counts) + owner
    flat = correct.ravel()
    return advantage(flat, flat, group.ravel()).reshape(correct.shape)


def contributions(
    banks: Sequence[Bank], taken: np.ndarray, counts: np.ndarray, coefficient: np.ndarray
) -> np.ndarray:
    """[N] what each problem adds to the variance of the step's gradient; their sum is that.

    The gradient of a draw is G = sum_i G_i, with G_i = sum_j coefficient_ij s_ij; a problem adds
    tr Cov(G_i, G) over draws. Where problems do not depend on each other that is tr Cov(G_i).
    Draws from a bank of M spread (M - 1) / M as far as rollouts do, which is mended.
    taken: [R, sum n] rows of banks; coefficient: [R, sum n] weight times advantage.
    """
    starts = np.concatenate([[0], np.cumsum(counts)])
    parts = []
    for i, bank in enumerate(banks):
        own = slice(starts[i], starts[i + 1])
        table = np.zeros((len(taken), len(bank)))
        np.add.at(table, (np.arange(len(taken))[:, None], taken[:, own]), coefficient[:, own])
        gradient = (table - table.mean(axis=0)).astype(np.float32) @ bank.gradient
        parts.append(gradient * np.sqrt(len(bank) / (len(bank) - 1)))
    whole = np.sum(parts, axis=0)
    return np.array([np.vdot(part, whole) for part in parts], np.float64) / (len(taken) - 1)


def values(banks: Sequence[Bank], name: str, taken: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[R, sum n] a quantity of the rollouts that were taken."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    columns = [slice(start, end) for start, end in zip(starts, starts[1:], strict=False)]
    parts = [getattr(bank, name)[taken[:, own]] for bank, own in zip(banks, columns, strict=True)]
    return np.concatenate(parts, axis=1)


def spread(
    bank: Bank, size: int, advantage: Advantage, *, number: int, source: np.random.Generator
) -> float:
    """sigma^2: the variance of a problem's gradient from `size` rollouts, times `size`.

    Of the gradient that averages over the tokens of the problem's rollouts, over `number` draws.
    It is the variance that one rollout stands for, if that of n falls as 1 / n.
    """
    counts = np.array([size])
    taken = Draws.of([bank], size, number, source).taken(counts)
    length = values([bank], "length", taken, counts)
    worth = step_advantages(values([bank], "correct", taken, counts), counts, advantage)
    coefficient = worth / length.sum(axis=1, keepdims=True).clip(min=1)
    return size * float(contributions([bank], taken, counts, coefficient)[0])


def predicted(
    sigma: np.ndarray, counts: np.ndarray, lengths: np.ndarray, *, pooled: bool
) -> np.ndarray:
    """[N] what theory says each problem adds to the step's variance, from sigma^2 of a rollout.

    Problem mean: sigma_i^2 / n_i / N^2. pooled, a token mean: a problem weighs as many tokens as
    it has, so n_i L_i^2 sigma_i^2 / (sum_j n_j L_j)^2, with L mean tokens of a rollout; with equal
    lengths and sum n = B that is n_i sigma_i^2 / B^2.
    sigma: [N] sigma^2; lengths: [N].
    """
    if pooled:
        return counts * np.square(lengths) * sigma / np.square((counts * lengths).sum())
    return sigma / counts / np.square(len(counts))
