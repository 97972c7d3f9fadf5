"""Problems and where they come from: the hub, a local JSONL file, or the ladder.

A hub data set is read from its local file where a data folder is given. Every row, wherever it
comes from, passes the same adapter: the names of columns differ between publishers, the meaning
does not. Nothing is dropped here: a row that cannot be used is an error.
"""

import importlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dynamo_cli.datasets.rows import answer_of, is_text, level_of, question_of
from dynamo_cli.errors import DynamoError
from dynamo_cli.ladder import LadderSource, read_ladder
from dynamo_cli.records import Problem, read_jsonl
from dynamo_cli.schema import Section


class HubSource(Section):
    """A data set of the Hugging Face hub, pinned, with the name of its local stand-in."""

    kind: Literal["hub"]
    repo: str
    revision: str  # a commit; "main" follows whatever the publisher changes
    config: str | None
    split: str
    rows: int | None = Field(gt=0)  # expected count; null where it is not known
    file: str  # of the stand-in, relative to the data folder


class JsonlSource(Section):
    """A local file, one JSON object a line, relative to the working or the data folder."""

    kind: Literal["jsonl"]
    path: str
    rows: int | None = Field(gt=0)


Dataset = Annotated[HubSource | JsonlSource | LadderSource, Field(discriminator="kind")]

ID_KEYS = ("id", "ID", "unique_id", "problem_idx")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# (expected, seen): what was probably loaded instead.
LOOK_ALIKES = {
    (30, 960): "AIME 2024 with every problem repeated 32 times",
    (30, 90): "a validation set that spans AIME 2022 to 2024",
    (30, 15): "one half of AIME 2025 (the other is a second config)",
    (30, 60): "AIME 2024 and AIME 2025 together, or one of them twice",
    (40, 83): "AMC 2022 and 2023 together",
    (40, 50): "AMC 2023 with the problems that need a figure or choices",
    (500, 5000): "the whole MATH test split",
    (500, 12000): "the training split that goes with MATH-500",
    (674, 675): "an older revision of OlympiadBench, with an answer in words",
    (1319, 7473): "the training split of GSM8K",
    (7473, 1319): "the test split of GSM8K",
}


def read_dataset(name: str, source: Dataset, *, data_dir: Path | None) -> list[Problem]:
    """Every problem of a source, in the source's order, cleaned, with stable unique ids.

    name: the data set's key in params.yaml; ids of rows without their own begin with it.
    Raises DynamoError where the file or hub cannot be read, a row has no question or no answer,
    or the count is not the declared one.
    """
    if isinstance(source, LadderSource):
        return read_ladder(name, source)
    place, rows = _read_rows(name, source, data_dir)
    if source.rows is not None and len(rows) != source.rows:
        raise DynamoError(f"{place}: {_count_mismatch(source.rows, len(rows))}")
    return _adapt(name, rows, place)


def _read_rows(
    name: str, source: HubSource | JsonlSource, data_dir: Path | None
) -> tuple[str, list[dict[str, Any]]]:
    """Where the rows were found, in words, and the rows."""
    if isinstance(source, HubSource) and data_dir is None:
        return f"data set {name} ({source.repo})", _download(name, source)
    if isinstance(source, HubSource):
        path = data_dir / source.file
        if not path.is_file():
            raise DynamoError(
                f"data set {name}: {path} does not exist; put the file there, or read "
                f"{source.repo} from the hub by leaving out --data-dir and DYNAMO_DATA"
            )
    else:
        path = Path(source.path)
        if not path.is_file() and data_dir is not None:
            path = data_dir / source.path
        if not path.is_file():
            raise DynamoError(
                f"data set {name}: {source.path} does not exist; correct datasets.{name}.path, "
                "or name the folder that holds it with --data-dir or DYNAMO_DATA"
            )
    return str(path), read_jsonl(path)


def _download(name: str, source: HubSource) -> list[dict[str, Any]]:
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        raise DynamoError(
            f'data set {name}: reading the hub needs `pip install "dynamo-rl[hub]"`; or keep '
            f"{source.file} in a local folder and name it with --data-dir or DYNAMO_DATA"
        ) from None
    try:
        table = library.load_dataset(
            source.repo, name=source.config, split=source.split, revision=source.revision
        )
        return [dict(row) for row in table]
    except (OSError, ValueError, library.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DynamoError(
            f"data set {name}: {source.repo} could not be read from the hub ({reason}); keep "
            f"{source.file} in a local folder and name it with --data-dir or DYNAMO_DATA"
        ) from None


def _count_mismatch(expected: int, seen: int) -> str:
    text = f"{seen} rows, but {expected} are declared"
    if (expected, seen) in LOOK_ALIKES:
        return f"{text}; this looks like {LOOK_ALIKES[expected, seen]}"
    if seen > expected and seen % expected == 0:
        return f"{text}; every problem may be repeated {seen // expected} times"
    return f"{text}; check repo, config, split and revision, or correct `rows`"


def _adapt(name: str, rows: Sequence[dict[str, Any]], place: str) -> list[Problem]:
    problems = []
    for number, (row, identity) in enumerate(zip(rows, _ids(name, rows), strict=True), start=1):
        try:
            problems.append(
                Problem(
                    id=identity,
                    question=question_of(row),
                    answer=answer_of(row),
                    level=level_of(row.get("level")),
                    source=next((row[k] for k in ("source", "url") if is_text(row.get(k))), name),
                )
            )
        except ValueError as error:
            raise DynamoError(f"{place}, row {number}: {error}") from None
    return problems


def _ids(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows' own ids where every row has one and no two agree, else `<name>-<number>`."""
    for key in ID_KEYS:
        own = [row.get(key) for row in rows]
        usable = all(type(value) is int or is_text(value) for value in own)
        if usable and len({str(value) for value in own}) == len(own):
            # A bare number says too little in a table that spans several data sets.
            return (f"{name}-{v}" if str(v).isdigit() else str(v) for v in own)
    width = max(2, len(str(len(rows))))
    return (f"{name}-{number:0{width}d}" for number in range(1, len(rows) + 1))


def remarks(problems: Iterable[Problem]) -> list[str]:
    """What a reader should know about a data set, one sentence each; empty where all is well."""
    statements: dict[str, Problem] = {}
    found = []
    for problem in problems:
        key = re.sub(r"\s+", "", problem.question)
        first = statements.setdefault(key, problem)
        if first is not problem:
            same = "the same answer" if first.answer == problem.answer else "ANOTHER answer"
            found.append(f"{problem.id} repeats the statement of {first.id}, with {same}")
        if control := CONTROL.search(problem.question + problem.answer):
            found.append(f"{problem.id} holds the control character {json.dumps(control[0])}")
    return found
