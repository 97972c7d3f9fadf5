"""Figures of the study, by name. One file for each family; `kind.py` says what a figure is."""

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting.figures.allocation import ALLOCATION
from dynamo_cli.reporting.figures.dynamics import DYNAMICS
from dynamo_cli.reporting.figures.entropy_change import ENTROPY_CHANGE
from dynamo_cli.reporting.figures.kind import Kind
from dynamo_cli.reporting.figures.overview import OVERVIEW
from dynamo_cli.reporting.figures.passk import PASSK
from dynamo_cli.reporting.figures.studies import BUDGET, SCALES, SENSITIVITY
from dynamo_cli.reporting.figures.tokens import TOKENS
from dynamo_cli.reporting.figures.variance import VARIANCE

FIGURES = {
    "overview": OVERVIEW,
    "budget": BUDGET,
    "sensitivity": SENSITIVITY,
    "scales": SCALES,
    "dynamics": DYNAMICS,
    "allocation": ALLOCATION,
    "passk": PASSK,
    "tokens": TOKENS,
    "variance": VARIANCE,
    "entropy-change": ENTROPY_CHANGE,
}


def find(name: str) -> Kind:
    """The figure of that name. Raises DynamoError listing the known names."""
    if name not in FIGURES:
        known = "; ".join(f"{key} ({kind.summary})" for key, kind in FIGURES.items())
        raise DynamoError(f"there is no figure {name!r}; known figures: {known}")
    return FIGURES[name]
