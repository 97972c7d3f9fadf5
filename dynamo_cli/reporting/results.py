"""Results of a grid, as tidy data frames.

Every cell that the grid expects is looked up by name. Folders that happen to lie there are never
listed, so leftovers of old grids cannot slip into a table; a missing or half-written cell is an
error that names the command that makes it.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dynamo_cli.errors import DynamoError
from dynamo_cli.evaluation.compare import AVERAGE
from dynamo_cli.evaluation.components import sampling_variance
from dynamo_cli.evaluation.passk import problem_scores
from dynamo_cli.reporting.names import BASE

VERDICTS = ("ok", "wrong", "unparsable", "timeout", "error")
COUNTS = ("samples", "graded", "correct", *VERDICTS, "truncated")
SCORE_COLUMNS = ("suite", "problem_id", *COUNTS, "mean_tokens")


@dataclass(frozen=True, slots=True)
class Results:
    """The evaluations of a grid of models, methods, seeds and suites."""

    scores: pd.DataFrame  # one row per (model, method, seed, suite, problem_id): SCORE_COLUMNS
    models: tuple[str, ...]
    methods: tuple[str, ...]  # in the order of the table; the untrained model first
    suites: tuple[str, ...]
    settings: dict[str, dict]  # model -> evaluation settings, the same for all of its cells
    missing: tuple[str, ...] = ()  # cells that were asked for and are not there

    def methods_of(self, model: str) -> tuple[str, ...]:
        """The methods of which every seed is there, in the order of the table."""
        found = set(self.scores.method[self.scores.model == model])
        return tuple(name for name in self.methods if name in found)

    def values(self, model: str, method: str, *, k: int) -> dict[str, np.ndarray]:
        """Pass@k of each problem: suite -> [seeds, problems], columns sorted by problem id.

        Raises DynamoError where a problem has fewer than k graded samples.
        """
        rows = self.scores[(self.scores.model == model) & (self.scores.method == method)]
        seeds = list(dict.fromkeys(rows.seed))
        return {
            suite: np.stack(
                [
                    suite_scores(rows[(rows.suite == suite) & (rows.seed == seed)], k=k)
                    for seed in seeds
                ]
            )
            for suite in self.suites
        }

    def noise(self, model: str, method: str) -> dict[str, np.ndarray]:
        """The variance of each value of Pass@1 that comes from sampling, shaped like `values`."""
        rows = self.scores[(self.scores.model == model) & (self.scores.method == method)]
        rows = rows.sort_values("problem_id", kind="stable")
        found = {}
        for suite in self.suites:
            parts = [own for _, own in rows[rows.suite == suite].groupby("seed", sort=False)]
            found[suite] = np.stack(
                [sampling_variance(o.correct.to_numpy(), o.graded.to_numpy()) for o in parts]
            )
        return found

    def fewest_graded(self, model: str, method: str) -> dict[str, int]:
        """The fewest graded samples of any problem: each suite, and `AVERAGE` over all."""
        rows = self.scores[(self.scores.model == model) & (self.scores.method == method)]
        fewest = {suite: int(rows.graded[rows.suite == suite].min()) for suite in self.suites}
        return fewest | {AVERAGE: min(fewest.values())}


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy of a grid, and the names that its folder and its stages go by."""

    model: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """`<model>-<method>-<seed>`, or `<model>-base`."""
        if self.method == BASE:
            return f"{self.model}-{BASE}"
        return f"{self.model}-{self.method}-{self.seed}"

    def command(self, stage: str) -> str:
        """The command that makes this cell's evaluation or run, as the end of an error."""
        address = f"eval_base@{self.model}" if self.method == BASE else f"{stage}@{self.name}"
        return f'run `dvc repro "{address}"`'


def suite_scores(rows: pd.DataFrame, *, k: int) -> np.ndarray:
    """Pass@k of each problem of one cell and suite, [P], sorted by problem id."""
    rows = rows.sort_values("problem_id")
    try:
        return problem_scores(
            rows.correct.to_numpy(), rows.graded.to_numpy(), k=k, problem_ids=list(rows.problem_id)
        )
    except ValueError as error:
        raise DynamoError(
            f"{rows.suite.iloc[0]}: {error}; raise evaluation.samples above {k}, or the grader's"
            " time limit, and run `dvc repro` again"
        ) from None


def read_scores(folder: Path) -> tuple[pd.DataFrame, dict]:
    """One policy's scores.csv and the evaluation settings from its manifest.

    Raises DynamoError where a file is missing, cut off or inconsistent.
    """
    return _read_scores(folder, remedy="run `dynamo eval` on this policy again")


def read_summary(folder: Path) -> dict:
    """Rates and lengths of one policy's responses: summary.json, as `pipelines/grade.py` writes it.

    Raises DynamoError where it is missing or cut off.
    """
    try:
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DynamoError(
            f"{folder}/summary.json cannot be read ({error}); run `dynamo grade {folder}`"
        ) from None


def collect(
    evals: Path,
    *,
    models: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    suites: Sequence[str],
    base: bool = True,
    partial: bool = False,
) -> Results:
    """Read every cell of the grid from `evals`/<cell>/, the untrained models too if `base`.

    partial: a cell that was never finished is named in `missing`; the other seeds of its method are
    left out with it, as they do not compare. Nothing left is an error, and so is a damaged cell.
    Raises DynamoError for a missing, half-written or inconsistent cell, for cells of one model
    that were not evaluated on the same problems, and for cells of one model with different
    evaluation settings: their scores do not compare. Settings may differ between models (a prompt
    template belongs to a model); nothing is compared across models.
    """
    _check_lists(models=models, methods=methods, seeds=seeds, suites=suites)
    order = ((BASE,) if base else ()) + tuple(name for name in methods if name != BASE)
    frames, settings, missing = [], {}, []
    for model in models:
        cells = [
            Cell(model, method, seed)
            for method in order
            for seed in ([0] if method == BASE else seeds)
        ]
        if partial:
            cells, absent = _finished(evals, cells)
            missing += absent
            if not cells:
                continue
        own, settings[model] = _read_cells(evals, cells, suites)
        frames += own
    if not frames:
        raise DynamoError(
            f"{evals} holds no finished cell of {len(missing)} (first: {missing[0]}); "
            "train and evaluate them, or choose others in params.yaml"
        )
    scores = pd.concat(frames, ignore_index=True)
    return Results(
        scores=scores[["model", "method", "seed", *SCORE_COLUMNS]],
        models=tuple(settings),
        methods=order,
        suites=tuple(suites),
        settings=settings,
        missing=tuple(missing),
    )


def _check_lists(**grid: Sequence) -> None:
    for name, given in grid.items():
        if not given or len(set(given)) != len(given):
            raise DynamoError(f"grid.{name} must be a list without repeats, got {list(given)}")


def _read_cells(
    evals: Path, cells: Sequence[Cell], suites: Sequence[str]
) -> tuple[list[pd.DataFrame], dict]:
    """The scores of each cell of one model, and the settings that they share."""
    found = {cell: _read_cell(evals, cell, suites) for cell in cells}
    settings = _one_setting({cell: own for cell, (_, own) in found.items()})
    _check_same_problems({cell: scores for cell, (scores, _) in found.items()}, suites)
    frames = [
        scores.assign(model=cell.model, method=cell.method, seed=cell.seed)
        for cell, (scores, _) in found.items()
    ]
    return frames, settings


def _finished(evals: Path, cells: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """The cells of methods of which every seed is finished, and the names of those that are not."""
    absent = [cell for cell in cells if not (evals / cell.name / "manifest.json").is_file()]
    incomplete = {cell.method for cell in absent}
    whole = [cell for cell in cells if cell.method not in incomplete]
    return whole, [cell.name for cell in absent]


def read_runs(
    runs: Path,
    *,
    models: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    file: str,
) -> pd.DataFrame:
    """metrics.csv or ledger.parquet of each training run of the grid, one below the other.

    Adds the columns model, method and seed. Raises DynamoError where a run is missing.
    """
    frames = []
    for cell in [Cell(*key) for key in itertools.product(models, methods, seeds)]:
        path = runs / cell.name / file
        if not path.is_file() or not (runs / cell.name / "manifest.json").is_file():
            raise DynamoError(f"{path}: the run is missing or unfinished; {cell.command('train')}")
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        if frame.empty:
            raise DynamoError(f"{path} holds no rows; {cell.command('train')}")
        frames.append(frame.assign(model=cell.model, method=cell.method, seed=cell.seed))
    return pd.concat(frames, ignore_index=True)


def _read_cell(evals: Path, cell: Cell, suites: Sequence[str]) -> tuple[pd.DataFrame, dict]:
    scores, settings = _read_scores(evals / cell.name, remedy=cell.command("eval"))
    missing = [suite for suite in suites if suite not in set(scores.suite)]
    if missing:
        raise DynamoError(
            f"{cell.name} lacks the suites {', '.join(missing)}; {cell.command('eval')}"
        )
    # Other suites that this cell happens to hold do not concern the table.
    settings["problems"] = {suite: settings["problems"].get(suite) for suite in suites}
    return scores[scores.suite.isin(suites)], settings


def _read_scores(folder: Path, *, remedy: str) -> tuple[pd.DataFrame, dict]:
    for file in ("scores.csv", "manifest.json"):
        if not (folder / file).is_file():
            raise DynamoError(f"{folder}: {file} is missing; {remedy}")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        settings = {
            **manifest["settings"],
            "settings_hash": manifest["settings_hash"],
            "problems": manifest.get("suites", {}),  # hash of each suite's problems
        }
        scores = pd.read_csv(
            folder / "scores.csv",
            dtype={"suite": str, "problem_id": str},
            keep_default_na=False,
            na_values={name: [""] for name in (*COUNTS, "mean_tokens")},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DynamoError(
            f"{folder}: unreadable ({type(error).__name__}: {error}); {remedy}"
        ) from None
    problem = _defect(scores)
    if problem:
        raise DynamoError(f"{folder}/scores.csv: {problem}; {remedy}")
    return scores.astype({name: np.int64 for name in COUNTS}), settings


def _defect(scores: pd.DataFrame) -> str:
    """What is wrong with a table of scores, or an empty string."""
    missing = [name for name in SCORE_COLUMNS if name not in scores]
    if missing:
        return f"no column {', '.join(missing)}"
    if scores.empty:
        return "no rows"
    # A problem without a graded response may have no mean length; counts are always there.
    counts = scores[list(COUNTS)].apply(pd.to_numeric, errors="coerce")
    bad = counts.isna().any(axis=1) | (counts < 0).any(axis=1) | (counts % 1 != 0).any(axis=1)
    bad |= counts[list(VERDICTS)].sum(axis=1) != counts.samples
    bad |= (counts.correct != counts.ok) | (counts.graded != counts[list(VERDICTS[:3])].sum(axis=1))
    if bad.any():
        row = scores[bad].iloc[0]
        return f"the counts of {row.suite}, problem {row.problem_id} are missing or do not add up"
    repeated = scores.duplicated(["suite", "problem_id"])
    if repeated.any():
        row = scores[repeated].iloc[0]
        return f"{row.suite}, problem {row.problem_id} occurs twice"
    return ""


def _one_setting(cells: dict[Cell, dict]) -> dict:
    """The settings that all cells share; DynamoError naming the keys that differ."""
    first, reference = next(iter(cells.items()))
    for cell, settings in cells.items():
        keys = sorted({*reference, *settings})
        unlike = [key for key in keys if reference.get(key) != settings.get(key)]
        if unlike:
            named = [key for key in unlike if key != "settings_hash"] or unlike
            raise DynamoError(
                f"{first.name} and {cell.name} were evaluated under different settings"
                f" ({', '.join(named)}), so one table cannot hold both;"
                f" {first.command('eval')} and {cell.command('eval').removeprefix('run ')}"
            )
    return reference


def _check_same_problems(scores: dict[Cell, pd.DataFrame], suites: Sequence[str]) -> None:
    for suite in suites:
        own = {cell: set(rows.problem_id[rows.suite == suite]) for cell, rows in scores.items()}
        expected = set().union(*own.values())
        for cell, ids in own.items():
            absent = sorted(expected - ids)
            if absent:
                raise DynamoError(
                    f"{cell.name} lacks {len(absent)} of {len(expected)} problems of {suite}"
                    f" (first: {absent[0]}); {cell.command('eval')}"
                )
