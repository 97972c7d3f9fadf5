from pathlib import Path

import pytest
from fakes import fake_ledger, fake_metrics


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
