"""The files of a complete run, and whether a folder holds them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from dynamo_cli.provenance import hash_path
from dynamo_cli.records import draft, remove_drafts, write_json
from dynamo_cli.train.engine import TrainEngine

MANIFEST = "manifest.json"
POLICY = "policy"

State = Literal["none", "complete", "changed", "another"]


def state_of(out: Path, identity: str) -> State:
    """What a run's folder holds, by its manifest.

    complete: the run of this identity, each file as it was written; changed: the same, but a file
    is missing or another; another: a run of another identity; none: no manifest, no complete run.
    """
    manifest = out / MANIFEST
    if not manifest.is_file():
        return "none"
    try:
        known = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return "another"
    if known.get("identity") != identity:
        return "another"
    whole = all(
        (out / name).is_file() and hash_path(out / name) == checksum
        for name, checksum in known["outputs"].items()
    )
    return "complete" if whole else "changed"


def is_complete(out: Path, identity: str, say: Callable[[str], None]) -> bool:
    """Whether a folder holds this run already; says so where it holds something else."""
    state = state_of(out, identity)
    if state in ("changed", "another"):
        what = "another run" if state == "another" else "this run, but its files were changed"
        say(f"{out} holds {what}; its outputs are replaced when this run is complete")
    return state == "complete"


def write_outputs(
    out: Path, policy: TrainEngine, metrics: list[dict[str, Any]], ledger: list[dict[str, Any]]
) -> dict[str, str]:
    """Write each output whole or not at all; returns the SHA-256 of each file, by its name.

    Of what is there, only the same outputs are replaced. The manifest goes first and is to be
    written last: it marks a complete run.
    """
    remove_drafts(out)
    (out / MANIFEST).unlink(missing_ok=True)
    with draft(out / POLICY) as scratch:
        policy.save(scratch)
    with draft(out / "metrics.csv") as scratch:
        pd.DataFrame(metrics).to_csv(scratch, index=False)
    with draft(out / "ledger.parquet") as scratch:
        pd.DataFrame(ledger).to_parquet(scratch, index=False)
    last = pd.DataFrame(metrics).tail(5).mean().to_dict()
    write_json(out / "summary.json", {name: last[name] for name in ("reward", "entropy")})
    policy_files = sorted(path for path in (out / POLICY).rglob("*") if path.is_file())
    files = [*policy_files, *(out / name for name in ("metrics.csv", "ledger.parquet"))]
    files.append(out / "summary.json")
    return {path.relative_to(out).as_posix(): hash_path(path) for path in files}
