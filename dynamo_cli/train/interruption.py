"""Signals that ask a run to stop: sampling is dropped, updates are finished, then it is saved."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

import torch

from dynamo_cli.methods.collective import LOCAL, Collective

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ONE_SIGNAL = 1.0  # seconds: a process and its group are often signalled one after the other
NOTICE = (
    "{}: stopping as soon as the state of the run is whole and saved; "
    "once more, a second later, to stop at once\n"
)


class Interrupted(BaseException):
    """The run was asked to stop. No `Exception`: nothing on its way may take it for a failure."""


class Interruption:
    """Turns SIGTERM and SIGINT into `Interrupted`, raised in `droppable` blocks alone.

    A context; handlers are those of before afterwards. Only the main thread receives signals, so
    elsewhere it does nothing. A second signal ends the process as if there were no handler: what
    was saved before stays whole. A signal that was ignored stays so, as in a shell's background.
    Several ranks break off together, at the edges of a `droppable` block alone: in its middle, one
    might leave while the others wait for it.
    """

    def __init__(self, collective: Collective = LOCAL) -> None:
        self._ranks = collective
        self.requested = False
        self._since = 0.0
        self._droppable = False
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not set by Python
        self._before.clear()

    @contextmanager
    def droppable(self) -> Iterator[None]:
        """Work that a signal breaks off. It must change nothing that outlives it."""
        self._droppable = self._ranks.size == 1
        try:
            self._stop_where_asked()
            yield
            self._stop_where_asked()
        finally:
            self._droppable = False

    def _stop_where_asked(self) -> None:
        if int(self._ranks.max(torch.tensor(int(self.requested)))):
            raise Interrupted

    def _receive(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = True, now
            if self._ranks.rank == 0:
                # Not `print`: the signal may have come in the middle of one.
                with contextlib.suppress(OSError):
                    os.write(2, NOTICE.format(signal.Signals(number).name).encode())
        elif now - self._since > ONE_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._droppable:
            self._droppable = False
            raise Interrupted
