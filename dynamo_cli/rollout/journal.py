"""Responses on disk as they finish, so that an evaluation that was killed goes on where it was.

The journal lies in a work folder that is no output of the pipeline (DVC deletes outputs before a
stage runs) and vanishes when the evaluation is complete.
"""

import fcntl
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from dynamo_cli.errors import DynamoError
from dynamo_cli.provenance import hash_json
from dynamo_cli.records import Completion, read_jsonl
from dynamo_cli.rollout.engine import Request

Row = dict[str, Any]  # one response: the keys of ROW, without token ids and log-probabilities
ROW = ("problem_id", "rollout", "seed", "finish", "num_tokens", "text")
PROMPT = "prompt"  # in the journal alone: the hash of the prompt's token ids


class Journal:
    """The finished responses to some requests: a flushed line each in `folder`/<suite>.jsonl.

    A request's problem is called <suite>/<problem>. A line answers a request where problem,
    rollout, seed and the hash of the prompt agree; other lines are left alone. What decides the
    response besides (policy, sampling, engine) must decide the folder. A line that was cut off is
    as if it had never been written.
    """

    def __init__(self, folder: Path, requests: Sequence[Request]) -> None:
        self.folder = folder
        self.requests = requests
        hashes = {prompt: hash_json(prompt) for prompt in {r.prompt for r in requests}}
        self._prompts = {(r.problem_id, r.rollout): hashes[r.prompt] for r in requests}
        self._seeds = {(r.problem_id, r.rollout): r.seed for r in requests}
        self._found: dict[tuple[str, int], Row] = {}
        self._streams: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        """Read what there is. Raises DynamoError where another process is writing to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for suite in dict.fromkeys(suite_of(r.problem_id) for r in self.requests):
            file = self._file(suite)
            self._streams[suite] = file.open("ab")
            try:  # the system lets go when the process ends, however it ends
                fcntl.flock(self._streams[suite], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.__exit__()
                raise DynamoError(
                    f"{file} is being written by another process that evaluates the same into "
                    "the same folder; wait for it, or end it"
                ) from None
            self._read(file)
        return self

    def __exit__(self, *exception: object) -> None:
        """Close, and leave nothing where nothing was written."""
        for suite, stream in self._streams.items():
            stream.close()
            if self._file(suite).is_file() and not self._file(suite).stat().st_size:
                self._file(suite).unlink()
        self._streams.clear()
        with suppress(OSError):  # it is not empty
            self.folder.rmdir()

    @property
    def missing(self) -> list[Request]:
        """The requests that have no response yet, in their order."""
        return [r for r in self.requests if (r.problem_id, r.rollout) not in self._found]

    @property
    def rows(self) -> list[Row]:
        """The responses that there are, in the order of the requests."""
        keys = ((r.problem_id, r.rollout) for r in self.requests)
        return [self._found[key] for key in keys if key in self._found]

    def add(self, completions: Iterable[Completion]) -> None:
        """Write down responses that have just finished."""
        for completion in completions:
            self._write(
                {
                    "problem_id": completion.problem_id,
                    "rollout": completion.rollout,
                    "seed": completion.seed,
                    "finish": completion.finish,
                    "num_tokens": len(completion.tokens),
                    "text": completion.text,
                }
            )

    def adopt(self, rows: Iterable[Row]) -> None:
        """Take over responses from elsewhere, where they answer a request that has none."""
        for row in rows:
            key = (row["problem_id"], row["rollout"])
            if key not in self._found and self._seeds.get(key) == row["seed"]:
                self._write({name: row[name] for name in ROW})

    def clear(self) -> None:
        """Remove the files of these requests' suites: their evaluation is complete."""
        for suite in self._streams:
            self._file(suite).unlink()

    def _file(self, suite: str) -> Path:
        return self.folder / f"{suite}.jsonl"

    def _read(self, file: Path) -> None:
        drop_torn_line(file)
        for row in read_jsonl(file, lambda fields: {name: fields[name] for name in (*ROW, PROMPT)}):
            key = (row["problem_id"], row["rollout"])
            prompt = row.pop(PROMPT)
            if (self._seeds.get(key), self._prompts.get(key)) == (row["seed"], prompt):
                self._found[key] = row

    def _write(self, row: Row) -> None:
        key = (row["problem_id"], row["rollout"])
        line = json.dumps(row | {PROMPT: self._prompts[key]}, ensure_ascii=False) + "\n"
        stream = self._streams[suite_of(row["problem_id"])]
        stream.write(line.encode())
        stream.flush()
        self._found[key] = row


def suite_of(problem_id: str) -> str:
    """The suite of a request's problem, <suite>/<problem>."""
    return problem_id.split("/", 1)[0]


def drop_torn_line(file: Path) -> None:
    """Cut a file off after its last whole line, so that the next one starts on its own."""
    with file.open("rb+") as stream:
        stream.truncate(stream.read().rfind(b"\n") + 1)
