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
            "generated_tokens": (200 + 60 * progress).round() * (400 + seed),
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


SUITES = ("easy", "hard")
BUDGETS = {f"budget-{n}": {"training.rollouts_per_step": n} for n in (64, 128)}
SETTINGS_VARIED = {
    "alpha-0": {"methods.dynamo.modulation.compensation.alpha": 0.0},
    "alpha-40": {"methods.dynamo.modulation.compensation.alpha": 0.4},
    "gamma-10": {"methods.dynamo.modulation.stabilisation.gamma": 10.0},
    "bounds-4-32": {"methods.dynamo.allocation.low": 4, "methods.dynamo.allocation.high": 32},
}
IN_USE = {
    "training.rollouts_per_step": 256,
    "methods.dynamo.modulation.compensation.alpha": 0.2,
    "methods.dynamo.modulation.stabilisation.gamma": 50.0,
    "methods.dynamo.allocation.low": 8,
    "methods.dynamo.allocation.high": 24,
}


def fake_evals(root: Path, *, samples: int = 8, problems: int = 24) -> Path:
    """Evaluations of two models and their studies; DynaMO gains on the hard suite."""
    cells = [(model, "base", 0.0) for model in ("small", "medium")]
    for model in ("small", "medium", "large"):
        cells += [(model, f"{m}-{s}", gain) for m, gain in (("grpo", 0.2), ("dynamo", 0.25))
                  for s in (1, 2)]  # fmt: skip
    for number, variant in enumerate(BUDGETS):
        cells.append(("small", f"dynamo-{variant}-1", 0.15 + 0.06 * number))
        cells.append(("small", f"dynamo-uniform-{variant}-1", 0.1 + 0.05 * number))
    cells.append(("small", "dynamo-uniform-1", 0.2))
    cells += [("small", f"dynamo-{variant}-1", 0.22) for variant in SETTINGS_VARIED]
    for number, (model, name, gain) in enumerate(cells):
        source = np.random.default_rng(number)
        lift = {"small": 0.0, "medium": 0.1, "large": 0.2}[model]
        chances = {"easy": 0.4 + lift + gain, "hard": 0.1 + lift + gain}
        counts = {s: source.binomial(samples, p, problems).tolist() for s, p in chances.items()}
        write_eval(root / f"{model}-{name}", suites=counts, samples=samples)
    return root


def fake_probes(root: Path) -> Path:
    """Probes of a policy: of 24 problems and three allocations, and of 200 tokens."""
    source = np.random.default_rng(0)
    rate = np.linspace(0.05, 0.95, 24)
    spread, mixed = rate * (1 - rate), 1 - rate**16 - (1 - rate) ** 16
    noise = source.uniform(0.5, 1.5, 24)
    problems = {"problem_id": [f"p{i}" for i in range(24)], "rate": rate, "size": 16}
    problems |= {"P": spread, "sqrt(P)": np.sqrt(spread), "sqrt(mixed)": np.sqrt(mixed)}
    problems |= {"centred": spread * noise, "normalised": mixed * noise}
    kinds = [(a, m) for a in ("centred", "normalised") for m in ("problem_mean", "token_mean")]
    fits = [
        {"advantage": a, "target": "std", "statistic": "r2", "proxy": p} | PLACE | {"best": False}
        for a in ("centred", "normalised")
        for p in ("P", "sqrt(P)", "mixed", "sqrt(mixed)")
    ]
    names = ("equal", "allocation-uniform", "allocation-optimum", "allocation-vip", "measured")
    allocations = [
        {"advantage": a, "aggregation": m, "allocation": name}
        | {
            "measured": -0.05 * i,
            "measured_low": -0.05 * i - 0.02,
            "measured_high": 0.02 - 0.05 * i,
        }
        | {"predicted": -0.06 * i, "predicted_low": -0.1, "predicted_high": 0.1}
        for a, m in kinds
        for i, name in enumerate(names)
    ]
    exact, shortcut = source.normal(size=(2, 200)) * 1e-6
    tokens = {"step": 0, "problem": 0, "exact": exact, "sequence_mean": shortcut}
    tokens |= {"plain": exact + shortcut, "adamw": exact}
    cases = [("alone", "token"), ("plain", "token"), ("plain", "rollout"), ("adamw", "token")]
    agreement = [
        {"update": u, "unit": unit, "prediction": p, "statistic": s} | PLACE
        for u, unit in cases
        for p in ("exact", "sequence_mean", "prefix", "entropy")
        for s in ("rank", "rank_size", "sign")
    ]
    tables = {"variance": {"problems": problems, "proxies": fits, "allocations": allocations}}
    tables |= {"entropy": {"tokens": tokens, "agreement": agreement}}
    for probe, files in tables.items():
        (root / probe).mkdir(parents=True)
        for name, rows in files.items():
            pd.DataFrame(rows).to_csv(root / probe / f"{name}.csv", index=False)
        manifest = {"parameters": {"probes": {"model": "small"}}}
        (root / probe / "manifest.json").write_text(json.dumps(manifest))
    return root


PLACE = {"value": 0.5, "low": 0.4, "high": 0.6}
