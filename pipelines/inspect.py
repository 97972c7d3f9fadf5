"""Command `inspect`: the responses of an evaluation, or those that a run has recorded."""

from collections.abc import Callable
from pathlib import Path

from dynamo_cli.config import Params, unknown
from dynamo_cli.errors import DynamoError
from dynamo_cli.records import read_problems, write_text
from dynamo_cli.reporting.inspection import (
    REMEDY,
    Response,
    has_record,
    read_evaluation,
    read_record,
)
from dynamo_cli.reporting.inspection_page import inspection_page
from pipelines.eval import suites_of


def run(name: str, *, params: Params, say: Callable[[str], None]) -> tuple[Path, list[Response]]:
    """The folder of that name and all responses in it.

    Raises DynamoError for a name without a folder, and for a run that has recorded nothing.
    """
    folder = find(name, params)
    if (folder / "completions").is_dir():
        return folder, read_evaluation(folder, problems_of(folder, params, say))
    return folder, read_record(folder)


def find(name: str, params: Params) -> Path:
    """A folder as it is given; else of a recorded run, an evaluation, any run of that name."""
    if Path(name).is_dir():
        return Path(name)
    paths = params.paths
    runs = [Path(paths.runs), *sorted((Path(paths.adhoc) / "runs").glob("*"))]
    homes = [Path(paths.evals), Path(paths.adhoc) / "evals"]
    for folder in [home / name for home in runs]:
        if has_record(folder):
            return folder
    for folder in [home / name for home in (*homes, *runs)]:
        if (folder / "manifest.json").is_file():
            return folder
    known = {file.parent.name for home in (*runs, *homes) for file in home.glob("*/manifest.json")}
    if not known:
        raise DynamoError(f"{name}: no such folder; nothing is trained or evaluated yet")
    raise DynamoError(f"there is no folder {name!r}, {unknown(name, sorted(known), 'the study')}")


def problems_of(folder: Path, params: Params, say: Callable[[str], None]) -> dict:
    """The problems of each suite of an evaluation; says so where they are not at hand."""
    try:
        files = suites_of(folder, params, None)
    except DynamoError as error:
        say(f"without questions: {error}")
        return {}
    return {suite: read_problems(file) for suite, file in files.items()}


def write_page(path: Path, responses: list[Response], *, folder: Path) -> None:
    """One page with all these responses."""
    write_text(path, inspection_page(responses, title=f"Responses of {folder.name}", remedy=REMEDY))
