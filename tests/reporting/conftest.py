from pathlib import Path

import pandas as pd
import pytest
from fakes import (
    BUDGETS,
    IN_USE,
    SETTINGS_VARIED,
    SUITES,
    fake_evals,
    fake_ledger,
    fake_metrics,
    fake_probes,
)

from dynamo_cli.reporting.figures.kind import Sources, Varied


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Training runs of two models, two methods and two seeds."""
    root = tmp_path / "runs"
    for model, lift in (("small", 0.0), ("medium", 0.1)):
        for method, gain in (("grpo", 0.0), ("dynamo", 0.12)):
            for seed in (1, 2):
                folder = root / f"{model}-{method}-{seed}"
                folder.mkdir(parents=True)
                fake_metrics(steps=120, seed=seed + len(method), gain=gain + lift).to_csv(
                    folder / "metrics.csv", index=False
                )
                fake_ledger(steps=60, seed=seed).to_parquet(folder / "ledger.parquet")
                (folder / "manifest.json").write_text("{}")
    return root


@pytest.fixture
def sources(runs, tmp_path) -> Sources:
    """All that figures draw from: the runs, their evaluations, and those of the studies."""
    formulas = {"part": "compensation", "x": [0.0, 1.0], "value": [1.2, 1.0]}
    return Sources(
        models=["small", "medium"],
        seeds=[1, 2],
        runs=runs,
        evals=fake_evals(tmp_path / "evals"),
        probes=fake_probes(tmp_path / "probes"),
        grid_methods=["grpo", "dynamo"],
        suites=SUITES,
        samples=8,
        resamples=300,
        larger=Varied(["large"], ["grpo", "dynamo"], [1, 2]),
        budget=Varied(["small"], ["dynamo", "dynamo-uniform"], [1], BUDGETS),
        sensitivity=Varied(["small"], ["dynamo"], [1], SETTINGS_VARIED),
        in_use=IN_USE,
        formulas=pd.DataFrame(formulas),
    )
