"""What training runs spent: rollouts and generated tokens; and how noisy their steps are."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting.probing import variance_column
from dynamo_cli.reporting.results import Results, read_runs

TITLES = ["Rollouts", "Tokens (thousands)", "Fewest to most a problem"]
VARIANCE = "Measured gradient variance against equal counts (%) [95 %]"
NOTE = (
    f"{VARIANCE}: of a step, over repeated draws from one trained policy (probe variance); the"
    " interval covers problems and sampling, not training seeds."
)


def spent(runs: Path, results: Results, seeds: Sequence[int]) -> pd.DataFrame:
    """Texts by (model, method): means over seeds of what one run spent, and its extreme counts.

    Raises DynamoError where a run behind the results is missing, or did not record its tokens.
    """
    rows = {}
    for model in results.models:
        for method in results.methods_of(model):
            own = {"models": [model], "methods": [method], "seeds": seeds}
            metrics = read_runs(runs, **own, file="metrics.csv")
            if "generated_tokens" not in metrics:
                raise DynamoError(
                    f"{runs}/{model}-{method}-{seeds[0]}/metrics.csv has no column "
                    "generated_tokens; run the training stage again"
                )
            ledger = read_runs(runs, **own, file="ledger.parquet")
            rows[model, method] = [
                f"{ledger.rollouts.sum() / len(seeds):,.0f}",
                f"{metrics.generated_tokens.sum() / len(seeds) / 1e3:,.0f}",
                f"{ledger.rollouts.min()} to {ledger.rollouts.max()}",
            ]
    index = pd.MultiIndex.from_tuples(rows)
    return pd.DataFrame(rows.values(), index=index, columns=TITLES)


def with_variance(table: pd.DataFrame, probes: Path | None) -> pd.DataFrame:
    """The same with a column of measured gradient variance, where a probe has measured any."""
    found = variance_column(probes, list(table.index)) if probes is not None else {}
    if not found:
        return table
    return table.assign(**{VARIANCE: [found.get(cell, "-") for cell in table.index]})
