"""A grading process: one JSON task a line in, one verdict a line out, until the input ends.

Started as `python -m dynamo_cli.grading.worker`; its parent kills it when a task takes too long.
"""

import contextlib
import json
import logging
import os
import resource
import sys

MEMORY = 4 << 30  # bytes of address space: a factorial may ask for all there is
BACKSTOP = 60  # seconds of CPU for one task: ends a worker whose parent was killed


def main() -> None:
    # Libraries may print; only replies may go to the parent.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.disable()
    with contextlib.suppress(OSError, ValueError):  # not every system limits address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        from dynamo_cli.grading.algebra import judge
    except ImportError as error:
        _reply(replies, {"failed": str(error)})
        return
    judge(r"\frac{x}{2}", r"\sqrt{2} x + 1")  # builds the parser's tables
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        key, reference, answer = json.loads(line)
        _limit_cpu()
        try:
            verdict = judge(reference, answer).value
        except Exception:  # the parent counts errors and stops the run where there are many
            verdict = "error"
        _reply(replies, {"key": key, "verdict": verdict})


def _reply(stream, value: dict) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _limit_cpu() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + BACKSTOP
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


if __name__ == "__main__":
    main()
