"""Worker processes that can be killed: the one way to end a computation that never looks up.

Plain subprocesses rather than multiprocessing: they share nothing with the parent, neither its
main module, nor its threads, nor its GPU.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping

from dynamo_cli.errors import DynamoError
from dynamo_cli.records import Verdict

START_SECONDS = 120.0  # until a worker has imported its libraries, on a busy machine
COMMAND = (sys.executable, "-m", "dynamo_cli.grading.worker")


class Worker:
    """One process and the one task that it is at."""

    def __init__(self) -> None:
        environment = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONHASHSEED": "0",  # sympy's order of terms must not differ between workers
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # an interrupt at the terminal is the parent's to handle
        )
        self.ready = False
        self.key: int | None = None
        self.deadline = time.monotonic() + START_SECONDS
        self.unread = b""

    @property
    def idle(self) -> bool:
        return self.ready and self.key is None

    def send(self, key: int, task: tuple[str, str], seconds: float) -> None:
        self.key, self.deadline = key, time.monotonic() + seconds
        self.process.stdin.write(json.dumps([key, *task]).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> dict | None:
        """A reply, {} where only a part of one has arrived, None where the process is gone."""
        chunk = os.read(self.process.stdout.fileno(), 1 << 16)
        if not chunk:
            return None
        line, newline, rest = (self.unread + chunk).partition(b"\n")
        self.unread = rest if newline else line
        return json.loads(line) if newline else {}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


class Pool:
    """Runs tasks, each with a deadline, on at most `workers` processes started when needed."""

    def __init__(self, workers: int, seconds: float) -> None:
        self.limit, self.seconds = workers, seconds
        self.workers: list[Worker] = []

    def run(self, tasks: Mapping[int, tuple[str, str]]) -> dict[int, Verdict]:
        """A verdict for every key: TIMEOUT past the deadline, ERROR where the worker died.

        Raises DynamoError where workers cannot start at all.
        """
        waiting, done = deque(tasks.items()), {}
        try:
            while len(done) < len(tasks):
                self._hand_out(waiting, len(tasks) - len(done))
                for worker in self._readable():
                    self._settle(worker, done)
                for worker in [w for w in self.workers if not w.idle]:
                    if time.monotonic() > worker.deadline:
                        self._end(worker, done, Verdict.TIMEOUT)
        except BaseException:
            self.close()  # whatever is in flight must not answer the next call
            raise
        return done

    def _hand_out(self, waiting: deque[tuple[int, tuple[str, str]]], open_tasks: int) -> None:
        for worker in [w for w in self.workers if w.idle and w.process.poll() is not None]:
            self.workers.remove(worker)  # it died between two tasks: no task is to blame
            worker.kill()
        while len(self.workers) < min(self.limit, open_tasks):
            self.workers.append(Worker())
        for worker in self.workers:
            if worker.idle and waiting:
                key, task = waiting.popleft()
                # Where it has died just now, reading from it will tell.
                with contextlib.suppress(BrokenPipeError):
                    worker.send(key, task, self.seconds)

    def _readable(self) -> list[Worker]:
        """Workers with something to say, waiting until the next deadline at most."""
        with selectors.DefaultSelector() as selector:
            for worker in self.workers:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            deadlines = [worker.deadline for worker in self.workers if not worker.idle]
            patience = max(0.0, min(deadlines, default=0.0) - time.monotonic())
            return [key.data for key, _ in selector.select(patience + 0.001)]

    def _settle(self, worker: Worker, done: dict[int, Verdict]) -> None:
        reply = worker.receive()
        if reply is None:
            self._end(worker, done, Verdict.ERROR)
        elif "failed" in reply:
            raise DynamoError(f"grading: the verifier does not start ({reply['failed']})")
        elif "ready" in reply:
            worker.ready = True
        elif reply and reply["key"] == worker.key:
            done[worker.key] = Verdict(reply["verdict"])
            worker.key = None

    def _end(self, worker: Worker, done: dict[int, Verdict], verdict: Verdict) -> None:
        self.workers.remove(worker)
        worker.kill()
        if not worker.ready:
            raise DynamoError(
                "grading: the verifier does not start; `python -m dynamo_cli.grading.worker` "
                "tells why"
            )
        if worker.key is not None:
            done[worker.key] = verdict

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.workers.clear()
