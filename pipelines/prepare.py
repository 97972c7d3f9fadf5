"""Stage `prepare`: one data set, read, checked and written as problems."""

from dataclasses import dataclass
from pathlib import Path

from dynamo_cli.datasets import Dataset, read_dataset, remarks
from dynamo_cli.errors import DynamoError
from dynamo_cli.records import write_jsonl


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written, for the command to tell."""

    problems: int
    remarks: list[str]  # one sentence each: repeated statements, stray control characters


def run(source: Dataset, *, name: str, out: Path, data_dir: Path | None) -> Prepared:
    """Write the problems of one data set to `out`, JSONL, whole or not at all.

    The file depends on the source alone (no date, no manifest), so that equal data hash alike.
    """
    problems = read_dataset(name, source, data_dir=data_dir)
    if not problems:
        raise DynamoError(f"data set {name} holds no problems; check datasets.{name}")
    write_jsonl(out, problems)
    return Prepared(len(problems), remarks(problems))
