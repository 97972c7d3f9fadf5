"""The processes that train one policy together: what they agree on, share out and die of.

A rank is one process. All ranks run the same program on the same rollouts of a step; each scores
and learns from the rows that `shares` gives it. Who starts them: `launching`.
"""

import contextlib
import heapq
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from dynamo_cli.errors import DynamoError

POLL = 0.2  # seconds between two looks at whether another rank has failed
FAREWELL = 5.0  # seconds that a failed rank waits for the others to have seen it
START = timedelta(minutes=10)  # until all ranks have found each other
# A rank may wait for another for as long as a long response takes to sample. That one is gone is
# not found out by a clock, but by `_Fate` and by whoever started the ranks.
PATIENCE = timedelta(days=1)
TETHER = "DYNAMO_TETHER"  # set where standard input is a line from whoever started this rank

Value = TypeVar("Value")


def shares(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Rows for each rank, such that no rank has much more to do than another.

    The largest row left goes to the rank with the least so far (longest processing time first): at
    most 4/3 of the best possible maximum (R. Graham, 1969). Ties go by number; rows ascend.
    """
    rows: list[list[int]] = [[] for _ in range(ranks)]
    load = [(0, rank) for rank in range(ranks)]
    for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)):
        total, rank = heapq.heappop(load)
        rows[rank].append(row)
        heapq.heappush(load, (total + sizes[row], rank))
    return [sorted(part) for part in rows]


class Ranks:
    """The Collective of torch.distributed, for the time of a `with` block.

    It reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which every launcher sets.
    An exception that leaves the block on one rank ends all: the first to fail raises it as a
    DynamoError that names the rank; the others end without a word within a second or two, also
    out of a collective that would wait for ever.
    """

    def __init__(self, device: str) -> None:
        """device: cpu, or cuda, where a tensor travels by the backend of its own device."""
        self.rank = int(os.environ["RANK"])
        self.size = int(os.environ["WORLD_SIZE"])
        self._device = device

    def __enter__(self) -> Self:
        if os.environ.get(TETHER):
            threading.Thread(target=_hold_the_tether, name="tether", daemon=True).start()
        if self._device == "cuda":  # Slurm may show each rank no GPU but its own
            local = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
            os.environ["LOCAL_RANK"] = str(local)
            torch.cuda.set_device(local)
        try:
            store, rank, size = next(rendezvous("env://", timeout=START))
        except (dist.DistError, RuntimeError) as error:
            raise DynamoError(f"rank {self.rank} does not find the others: {error}") from error
        backend = "cpu:gloo,cuda:nccl" if self._device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        self._fate = _Fate(self.size)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or (kind is SystemExit and not error.code):
            self.wait()
            self._fate.rest()
            self.wait()  # the first rank keeps the store: nobody may look into it any more
            dist.destroy_process_group()
            return
        lost = _says_that_a_rank_is_gone(error)
        if lost:
            self._fate.await_word()  # of the rank that is gone, if it failed: its error counts
        if not self._fate.tell():
            self._fate.leave()  # another rank failed first; this may be an echo of it
        if lost:
            raise DynamoError(
                f"rank {self.rank}: another rank has gone without a word (killed, or its machine "
                "failed); the same command goes on from the last checkpoint"
            ) from error
        if kind is not SystemExit and issubclass(kind, Exception):
            said = " ".join(str(error).split()) or kind.__name__
            raise DynamoError(f"rank {self.rank}: {said}") from error

    def sum(self, x: Tensor) -> Tensor:
        return self._reduced(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        return self._reduced(x, dist.ReduceOp.MAX)

    def gather(self, x: Tensor) -> Tensor:
        lengths = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(x)], device=x.device))
        longest = int(torch.cat(lengths).max())
        padded = torch.cat([x, x.new_zeros(longest - len(x))])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])

    def gather_objects(self, value: Any) -> list[Any]:
        """What each rank gives, in rank order. It is pickled: numbers, text, records."""
        found = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def agree(self, make: Callable[[], Value]) -> Value:
        """What the first rank makes of it, on every rank."""
        made = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(made, src=0)
        return made[0]

    def wait(self) -> None:
        """Return when all ranks are here."""
        self.sum(torch.zeros(()))

    def _reduced(self, x: Tensor, how: dist.ReduceOp) -> Tensor:
        result = x.detach().clone().contiguous()
        dist.all_reduce(result, how)
        return result


class _Fate:
    """What the ranks tell each other outside of collectives: that one of them has failed.

    It goes through the key-value store of the first rank, over a connection of its own.
    """

    def __init__(self, size: int) -> None:
        self._others = size - 1
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=60)
        self._store = dist.PrefixStore("fate", dist.TCPStore(host, port, timeout=limit))
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, name="fate", daemon=True)
        self._watch.start()

    def tell(self) -> bool:
        """Say that this rank has failed. Whether it is the first; if so, wait to be heard."""
        self._over.set()
        limit = time.monotonic() + FAREWELL
        with contextlib.suppress(dist.DistError):  # the first rank, which keeps the store, is gone
            if self._store.add("failed", 1) > 1:
                return False
            while self._store.add("seen", 0) < self._others and time.monotonic() < limit:
                time.sleep(POLL / 4)
            return True
        return False

    def await_word(self) -> None:
        """Give a rank that failed the time to say so; if one does, this one leaves."""
        self._over.wait(FAREWELL)

    def rest(self) -> None:
        """Stop looking: all ranks have done their work."""
        self._over.set()
        self._watch.join()

    def leave(self) -> None:
        """End at once: the main thread may hang in a collective, where nothing else ends it."""
        with contextlib.suppress(dist.DistError):
            self._store.add("seen", 1)
            time.sleep(POLL)  # for the failed rank to read that, where the store ends with this one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)

    def _look(self) -> None:
        while not self._over.wait(POLL):
            try:
                failed = self._store.check(["failed"])
            except dist.DistError:
                failed = True
            if failed and not self._over.is_set():
                self.leave()


def _says_that_a_rank_is_gone(error: BaseException | None) -> bool:
    """Whether this is what gloo or NCCL raise in the ranks that one has left behind."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def _hold_the_tether() -> None:
    """Take signals from whoever started this rank, by name and line; end when the line breaks.

    So no rank outlives its launcher, on this machine or through ssh, and a signal finds a rank
    that is still importing as well.
    """
    while said := os.read(0, 64):
        for name in said.decode().split():
            number = signal.Signals[name]
            while signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                time.sleep(POLL)  # for the run to have set its own, which saves
            os.kill(os.getpid(), number)
    os._exit(2)
