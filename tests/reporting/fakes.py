"""Fake grids: evaluations and training runs that look like real ones."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

SETTINGS = {"template": "a1", "sampling": {"temperature": 1.0}, "samples": 8, "engine": "hf 5"}


def write_eval(
    folder: Path, *, suites: dict[str, list[int]], samples: int = 8, settings: dict = SETTINGS
) -> None:
    """One policy's evaluation: suite -> right answers of each problem."""
    rows = [
        {
            "suite": suite,
            "problem_id": f"{suite}-{number:03}",
            "samples": samples,
            "graded": samples,
            "correct": correct,
            "ok": correct,
            "wrong": samples - correct,
            "unparsable": 0,
            "timeout": 0,
            "error": 0,
            "truncated": 0,
            "mean_tokens": 20.5,
        }
        for suite, counts in suites.items()
        for number, correct in enumerate(counts)
    ]
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "scores.csv", index=False)
    manifest = {"settings": settings, "settings_hash": json.dumps(settings)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def fake_metrics(*, steps: int, seed: int, gain: float) -> pd.DataFrame:
    """A training curve: reward rises, entropy falls, and all of it is noisy."""
    noise = np.random.default_rng(seed)
    step = np.arange(steps)
    progress = 1 - np.exp(-step / (0.35 * steps))
    return pd.DataFrame(
        {
            "step": step,
            "epoch": step // 20,
            "reward": 0.25 + (0.35 + gain) * progress + 0.035 * noise.standard_normal(steps),
            "entropy": 0.25 + gain + (0.9 - gain) * np.exp(-step / (0.2 * steps))
            + 0.02 * noise.standard_normal(steps),
            "grad_norm": (0.35 - gain) * np.exp(0.3 * noise.standard_normal(steps)),
            "response_tokens": 600 + 250 * progress + 18 * noise.standard_normal(steps),
        }
    )  # fmt: skip


def fake_ledger(*, steps: int, seed: int, problems: int = 240, per_step: int = 48) -> pd.DataFrame:
    """A ledger of variance-driven allocation over problems of six levels that get easier."""
    source = np.random.default_rng(seed)
    level = source.integers(1, 7, problems)
    seen, right, rows = np.zeros(problems), np.zeros(problems), []
    per_epoch = problems // per_step
    for step in range(steps):
        if step % per_epoch == 0:
            order = source.permutation(problems)
        chosen = order[(step % per_epoch) * per_step :][:per_step]
        posterior = (right[chosen] + 0.5) / (seen[chosen] + 1)
        weight = np.sqrt(posterior * (1 - posterior))
        counts = np.clip(np.round(8 * weight / weight.mean()), 4, 16).astype(int)
        skill = 2.2 + 3.5 * step / steps
        chance = 1 / (1 + np.exp(1.6 * (level[chosen] - skill)))
        correct = source.binomial(counts, chance)
        for i, n in zip(chosen, counts, strict=True):
            rows.append((step, step // per_epoch, f"p{i:03}", level[i], n, seen[i], right[i]))
        seen[chosen] = 0.5 * seen[chosen] + counts
        right[chosen] = 0.5 * right[chosen] + correct
    names = ["step", "epoch", "problem_id", "level", "rollouts", "seen_before", "correct_before"]
    return pd.DataFrame(rows, columns=names)
