"""What a figure is: where its data come from, which become its CSV, and how they are drawn.

Figures are built without pyplot, so nothing here has global state.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from dynamo_cli.errors import DynamoError
from dynamo_cli.evaluation.compare import RESAMPLES
from dynamo_cli.reporting.results import read_runs

STYLE = Path(__file__).parent.parent / "dynamo.mplstyle"
KEYS = ("model", "method", "seed")
FULL_WIDTH = 6.75  # inches: two columns of a paper
# Okabe and Ito's palette, told apart by colour-blind readers; grey for the reference.
COLOURS = {"base": "#000000", "grpo": "#7f7f7f", "dynamo": "#0072B2"}
OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Where colours print alike, these tell methods apart.
MARKERS = {"base": "^", "grpo": "s", "dynamo": "o"}
ACCENT = "#D55E00"
ROUND = [1, 2, 2.5, 5, 10]  # distances between ticks
SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#bcd9ea", "#0072B2"])


@dataclass(frozen=True, slots=True)
class Varied:
    """Cells of a study: methods of params.yaml, some values of which are set otherwise."""

    models: Sequence[str] = ()
    methods: Sequence[str] = ()
    seeds: Sequence[int] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # dotted key -> value


@dataclass(frozen=True, slots=True)
class Sources:
    """What figures may draw from: the grid, the studies beside it, and where their files lie."""

    models: Sequence[str]
    seeds: Sequence[int]
    runs: Path
    evals: Path | None = None
    probes: Path | None = None  # what probes measured, a folder each
    methods: Sequence[str] | None = None  # shown; None: those that the figure is about
    grid_methods: Sequence[str] = ()
    suites: Sequence[str] = ()
    samples: int = 1  # graded responses per problem
    seed: int = 0  # of the bootstrap
    resamples: int = RESAMPLES
    bounds: tuple[int, int] | None = None  # fewest and most rollouts per problem
    larger: Varied = Varied()  # models beyond the grid
    budget: Varied = Varied()
    sensitivity: Varied = Varied()
    in_use: Mapping[str, Any] = field(default_factory=dict)  # values that variants set otherwise
    formulas: pd.DataFrame | None = None  # part, x, value: the method's own functions


@dataclass(frozen=True, slots=True)
class Kind:
    """A figure that can be drawn by name."""

    summary: str
    gather: Callable[[Sources], pd.DataFrame]  # attrs["missing"]: names of what is not there
    paint: Callable[..., Figure]
    options: Callable[[Sources], dict[str, Any]] = lambda sources: {}  # for `paint`

    def draw(self, data: pd.DataFrame, **options: object) -> Figure:
        """The figure in the project's style, whatever the caller's settings are."""
        with matplotlib.style.context(["default", STYLE]):
            return self.paint(data, **options)


@dataclass(frozen=True, slots=True)
class Records:
    """Columns of a file that each run writes."""

    file: str
    methods: tuple[str, ...]  # whose runs are shown unless others are asked for
    columns: tuple[str, ...]  # besides model, method and seed
    whole: tuple[str, ...] = ()  # of these, those in which no value may be missing

    def __call__(self, sources: Sources) -> pd.DataFrame:
        """These columns of all runs, one below the other."""
        return self.select(
            read_runs(
                sources.runs,
                models=sources.models,
                methods=sources.methods or self.methods,
                seeds=sources.seeds,
                file=self.file,
            )
        )

    def select(self, records: pd.DataFrame) -> pd.DataFrame:
        """The columns that are drawn. Raises DynamoError where one is missing or has a gap."""
        missing = [name for name in (*KEYS, *self.columns) if name not in records]
        if missing:
            raise DynamoError(
                f"{self.file} has no column {', '.join(missing)}; run the training stage again"
            )
        for name in self.whole:
            if (gaps := records[name].isna()).any():
                row = records[gaps].iloc[0]
                raise DynamoError(
                    f"{self.file} of {row.model}-{row.method}-{row.seed}: {name} of step "
                    f"{row.step} is not a number; run the training stage again"
                )
        return records[[*KEYS, *self.columns]].reset_index(drop=True)


def save(figure: Figure, path: Path, *, kind: str) -> None:
    """Write a figure as "png", "svg" or "pdf"; the same figure gives the same bytes."""
    stamp = {"png": {"Software": None}, "svg": {"Date": None}}.get(
        kind, {"CreationDate": None, "Producer": None, "Creator": None}
    )
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(path, format=kind, metadata=stamp)


def colours_of(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method, the same one for a known method in every figure."""
    others = [name for name in dict.fromkeys(methods) if name not in COLOURS]
    return COLOURS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
