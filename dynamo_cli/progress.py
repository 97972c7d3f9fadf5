"""Progress on stderr: a live bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

PLAIN_SECONDS = 10  # between two plain lines


class Advance(Protocol):
    """Tells how far the work is, and what there is to say about it."""

    def __call__(self, done: int, total: int, **facts: Any) -> None: ...


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """Show the progress of one piece of work while the block runs."""
    if sys.stderr.isatty():
        with _live(title) as advance:
            yield advance
    else:
        yield _plain(title)


@contextmanager
def _live(title: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=None, facts="")

        def advance(done: int, total: int, **facts: Any) -> None:
            bars.update(task, completed=done, total=total, facts=_words(facts))

        yield advance


def _plain(title: str) -> Advance:
    said = time.monotonic()

    def advance(done: int, total: int, **facts: Any) -> None:
        nonlocal said
        if done < total and time.monotonic() - said < PLAIN_SECONDS:
            return
        said = time.monotonic()
        print(f"{title} {done}/{total} {_words(facts)}".rstrip(), file=sys.stderr, flush=True)

    return advance


def _words(facts: dict[str, Any]) -> str:
    return " ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in facts.items()
    )
