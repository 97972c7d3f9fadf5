"""A small study on disk: everything that `dynamo eval` and `dynamo train` leave, made by hand."""

import contextlib
from pathlib import Path

import numpy as np
import pandas as pd
from fakes import fake_ledger, fake_metrics
from ruamel.yaml import YAML
from typer.testing import CliRunner

from dynamo_cli.cli import app
from dynamo_cli.config import load_params
from dynamo_cli.provenance import hash_json, hash_path, write_manifest
from dynamo_cli.records import Problem, write_jsonl
from pipelines import grade

MODEL, SUITES, SEEDS, METHODS = "ladder-small", ("ladder-2", "ladder-4"), (1, 2), ("grpo", "dynamo")
# What a page or a terminal must show and not obey.
NASTY = '<img src=x onerror="console.error(1)"></script><script>console.error(2)</script>\x1b[31m&'
SETTINGS = {"engine": "hf", "template": "a1b2", "samples": 4}


def dynamo(home: Path, *words: str):
    """Run a command in a study; its result."""
    with contextlib.chdir(home):
        return CliRunner().invoke(app, [str(word) for word in words])


def make_study(root: Path, home: Path) -> Path:
    """Two methods with two seeds, a base model, two suites; the table and both figures."""
    params = YAML(typ="safe").load(root / "params.yaml")
    params["grid"] |= {"models": [MODEL], "suites": list(SUITES)}
    params["grid"] |= {"methods": list(METHODS), "seeds": list(SEEDS)}
    params["evaluation"] |= {"samples": 4, "ks": [1, 4], "resamples": 200}
    params["models"][MODEL]["path"] = "base"
    YAML(typ="safe").dump(params, home / "params.yaml")
    (home / "base").mkdir()
    (home / "base" / "weights").write_text("base")
    problems = [Problem("p-0", "1a+1>", "2", "ladder")]
    write_jsonl(home / "data" / "pools" / "ladder-train.jsonl", problems)
    for suite in SUITES:
        own = [Problem(f"{suite}-{i}", f"{i}a+1> {NASTY}", str(i + 1), "ladder") for i in range(3)]
        write_jsonl(home / "data" / "suites" / f"{suite}.jsonl", own)
    with contextlib.chdir(home):
        loaded = load_params(Path("params.yaml"))
        add_eval(loaded, "base", Path("base"), right=1)
        for method in METHODS:
            for seed in SEEDS:
                add_run(loaded, method, seed)
    for words in (("table", "main"), ("plot", "dynamics"), ("plot", "allocation")):
        result = dynamo(home, *words)
        assert result.exit_code == 0, result.output
    return home


def add_run(params, method: str, seed: int) -> None:
    """A trained policy and its evaluation, in the working folder."""
    name = f"{MODEL}-{method}-{seed}"
    run = Path("outputs/runs") / name
    (run / "policy").mkdir(parents=True)
    (run / "policy" / "weights").write_text(name)
    gain = 0.1 if method == "dynamo" else 0.0
    fake_metrics(steps=12, seed=seed, gain=gain).to_csv(run / "metrics.csv", index=False)
    fake_ledger(steps=12, seed=seed, problems=48, per_step=12).to_parquet(run / "ledger.parquet")
    kept = record() if method == "dynamo" else record().iloc[:0]
    kept.to_parquet(run / "rollouts.parquet", index=False)
    write_manifest(
        run / "manifest.json",
        parameters={
            "model": params.models[MODEL].model_dump(),
            "method": params.methods[method].model_dump(),
            "training": params.training.model_dump(),
            "sampler": params.engines[params.training.sampler].model_dump(),
            "seed": seed,
            "compute": params.compute.model_dump(),
        },
        inputs={"problems": Path("data/pools/ladder-train.jsonl"), "model": Path("base")},
        device="cpu",
        seconds=90.0,
        template="a1b2",
        identity="run",
        outputs={"policy/weights": hash_path(run / "policy" / "weights")},
    )
    add_eval(params, f"{method}-{seed}", run / "policy", right=2 + (method == "dynamo"))


def add_eval(params, name: str, policy: Path, *, right: int) -> None:
    """Four responses to each problem, of which `right` are."""
    out = Path("outputs/evals") / f"{MODEL}-{name}"
    files = {suite: Path(f"data/suites/{suite}.jsonl") for suite in SUITES}
    for suite in SUITES:
        rows = [
            {
                "problem_id": f"{suite}-{i}",
                "rollout": rollout,
                "seed": rollout,
                "finish": "stop",
                "num_tokens": 4,
                "text": f"#{i + 1}" if rollout < right else f"{NASTY}#9{i}",
            }
            for i in range(3)
            for rollout in range(4)
        ]
        write_jsonl(out / "completions" / f"{suite}.jsonl", rows)
    write_manifest(
        out / "manifest.json",
        parameters=params.evaluation.model_dump(),
        inputs={"policy": policy, **files},
        device="cpu",
        seconds=30.0,
        settings=SETTINGS,
        settings_hash=hash_json(SETTINGS),
        policy=str(policy),
        template="plain",
        identity=name,
        suites={suite: hash_path(file)[:16] for suite, file in files.items()},
    )
    grade.run(out, suites=files)


def record() -> pd.DataFrame:
    """Two problems at three steps, three rollouts each: the first is right, the others wrong."""
    rows = []
    for step in (1, 5, 9):
        for problem in ("p-0", "p-1"):
            for rollout in range(3):
                pieces = ["a1", "+1=", "2\n", "#2", NASTY] if rollout else ["#", "2", "", "<|end|>"]
                size = len(pieces)
                rows.append(
                    {
                        "step": step,
                        "epoch": step // 4 + 1,
                        "problem_id": problem,
                        "rollout": rollout,
                        "verdict": "wrong" if rollout else "ok",
                        "advantage": -0.5 if rollout else 1.0,
                        "finish": "length" if rollout == 2 else "stop",
                        "question": f"1a+1> {NASTY}",
                        "answer": "2",
                        "pieces": pieces,
                        "entropy": np.linspace(0, 1, size, dtype=np.float32),
                        "entropy_change": np.linspace(-0.2, 0.2, size, dtype=np.float32),
                        "modulation": np.linspace(0.8, 1.2, size, dtype=np.float32),
                    }
                )
    return pd.DataFrame(rows)
