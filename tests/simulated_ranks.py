"""Ranks of a distributed step, played by threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


class Rank:
    """One of several threads that play the ranks of a distributed step."""

    def __init__(self, number: int, barrier: threading.Barrier, table: dict):
        self.number, self.barrier, self.table = number, barrier, table

    def _exchange(self, x):
        self.barrier.wait()
        self.table[self.number] = x
        self.barrier.wait()
        return [self.table[rank] for rank in range(self.barrier.parties)]

    def sum(self, x):
        return torch.stack(self._exchange(x)).sum(dim=0)

    def max(self, x):
        return torch.stack(self._exchange(x)).amax(dim=0)

    def gather(self, x):
        return torch.cat(self._exchange(x))


def on_ranks(count: int, work) -> list:
    """`work(number, collective)` on each of `count` simulated ranks; their results in order."""
    barrier, table = threading.Barrier(count, timeout=20), {}

    def run(number):
        try:
            return work(number, Rank(number, barrier, table))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
