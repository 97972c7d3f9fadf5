"""Ranks that were started by hand, from their start to the end of the last of them."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from dynamo_cli.errors import DynamoError
from dynamo_cli.train.interruption import ONE_SIGNAL, SIGNALS
from dynamo_cli.train.ranks import FAREWELL

POLL = 0.05  # seconds between two looks at the ranks
GRACE = FAREWELL + 5  # seconds from one rank's end by an error to that of all others
USER_ERROR = 2  # the exit code of a rank that has said why it ends
GOES_ON = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Start:
    """One process to start: a rank, or Slurm's srun, which starts all."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)  # beside ours
    tethered: bool = True  # it takes signals through its standard input


def supervise(starts: Sequence[Start]) -> None:
    """Start the processes, hand signals on to them, and return when all have ended well.

    When one ends otherwise, so do all, within seconds. Raises SystemExit where a rank has said why
    (with its exit code), DynamoError where none could. A second signal ends all at once, this
    process too.
    """
    children: list[Child] = []
    with listening() as asked:
        try:
            children.extend(Child(start) for start in starts)
            first = wait_for(children, asked)
        finally:
            for child in children:
                child.end()
    if len(asked) > 1:
        os.kill(os.getpid(), asked[-1])
    if first is not None:
        raise failure(first, asked=bool(asked))


class Child:
    """A process that was started, and how it ended."""

    def __init__(self, start: Start) -> None:
        self.start = start
        try:
            self.process = subprocess.Popen(
                start.command,
                env=os.environ | start.environment,
                stdin=subprocess.PIPE if start.tethered else subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on
            )
        except OSError as error:
            raise DynamoError(f"{start.command[0]}: {error.strerror}; is it installed?") from None

    @property
    def code(self) -> int | None:
        """None while it runs; as of Popen, with what ssh and srun tell of a signal put back."""
        code = self.process.poll()
        return 128 - code if code is not None and 128 < code < 255 else code

    def tell(self, number: int) -> None:
        """Hand a signal on."""
        if not self.start.tethered:
            self.process.send_signal(number)
            return
        with suppress(BrokenPipeError):  # it has just ended
            self.process.stdin.write(signal.Signals(number).name.encode() + b"\n")
            self.process.stdin.flush()

    def end(self) -> None:
        """Let the tether go, on which a rank ends, and kill what is left."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def listening() -> Iterator[list[int]]:
    """The signals that asked this process to stop, as they come; doubles of one do not count."""
    asked: list[int] = []
    since = 0.0

    def receive(number: int, _: object) -> None:
        nonlocal since
        if not asked or time.monotonic() - since > ONE_SIGNAL:
            since = since or time.monotonic()
            asked.append(number)

    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(children: Sequence[Child], asked: list[int]) -> Child | None:
    """Return when all have ended, or all but those that would not; the first that ended badly."""
    told, first, limit = False, None, float("inf")
    running = list(children)
    while running and time.monotonic() < limit and len(asked) < 2:
        if asked and not told:
            told = True
            for child in running:
                child.tell(asked[0])
        for child in [c for c in running if c.code is not None]:
            running.remove(child)
            if child.code and first is None:
                first = child
                # Where it was killed it said nothing, and what the others say is an echo of it.
                limit = time.monotonic() + (GRACE if child.code > 0 else 0)
        time.sleep(POLL)
    return first


def failure(child: Child, *, asked: bool) -> BaseException:
    """What to raise for the rank that ended badly first."""
    name, code = child.start.name, child.code
    if code == USER_ERROR:
        return SystemExit(USER_ERROR)
    if code == 255 and child.start.command[0] == "ssh":
        return DynamoError(f"{name}: ssh could not connect, or lost the connection; {GOES_ON}")
    if code > 0:
        return DynamoError(f"{name} ended with exit code {code}, and with it all others; {GOES_ON}")
    how = f"was killed by {signal.Signals(-code).name}"
    if -code == signal.SIGKILL and not asked:
        how += " (where there is too little memory, the system does that)"
    return DynamoError(f"{name} {how}, and with it all others; {GOES_ON}")
