"""Checkpoints of a run that is under way, so that an interrupted one goes on where it was.

They live in a work folder that is not an output of the pipeline (DVC deletes outputs before a
stage runs) and vanish when the run is complete.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from dynamo_cli.records import draft, write_json
from dynamo_cli.train.engine import TrainEngine
from dynamo_cli.train.history import History


class Checkpoints:
    """Whole-or-nothing snapshots in one folder; the newest one counts, older ones are removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self,
        steps_done: int,
        engine: TrainEngine,
        history: History,
        *,
        metrics: list[dict[str, Any]],
        ledger: list[dict[str, Any]],
    ) -> None:
        """Keep the state after `steps_done` steps. No generator is kept: seeds derive by name."""
        target = self.folder / f"step-{steps_done:06d}"
        with draft(target) as scratch:
            scratch.mkdir()
            engine.save_state(scratch)
            write_json(scratch / "state.json", {"steps_done": steps_done, **history.state()})
            write_json(scratch / "metrics.json", metrics)
            pd.DataFrame(ledger).to_parquet(scratch / "ledger.parquet")
        for old in self._complete()[:-1]:
            shutil.rmtree(old)

    def restore(
        self, engine: TrainEngine, history: History
    ) -> tuple[int, list[dict[str, Any]], list[dict[str, Any]]]:
        """Load the newest snapshot: (steps done, metrics so far, ledger so far); zeros if none."""
        complete = self._complete()
        if not complete:
            return 0, [], []
        newest = complete[-1]
        state = json.loads((newest / "state.json").read_text())
        engine.restore(newest)
        history.restore(state)
        ledger = pd.read_parquet(newest / "ledger.parquet").to_dict("records")
        return state["steps_done"], json.loads((newest / "metrics.json").read_text()), ledger

    def clear(self) -> None:
        """Remove the work folder: the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _complete(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))
