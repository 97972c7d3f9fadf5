"""What the tests of training engines share: rollouts, a step and a run, on whatever engine.

As a script it is one of several ranks: `python rank_cases.py CASES FOLDER` does each of CASES and
saves what came out in FOLDER.
"""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from dynamo_cli.errors import DynamoError
from dynamo_cli.pretraining import build_model, build_tokenizer
from dynamo_cli.records import Completion, Verdict
from dynamo_cli.train import deepspeed_engine
from dynamo_cli.train.engine import DeepSpeedSettings, Optimiser
from dynamo_cli.train.learner import Learner
from dynamo_cli.train.ranks import Ranks
from dynamo_cli.train.rollouts import Rollout, as_tokens, with_scores

ROOT = Path(__file__).resolve().parents[2]
METHODS = (
    "grpo",
    "clip_higher",
    "entropy_loss",
    "fork_tokens",
    "entropy_advantages",
    "clip_cov",
    "kl_cov",
    "w_reinforce",
    "dynamo",
    "dynamo-released",
)
# Its first step takes SCALE times the gradient off the weights, so any engine tells its gradient.
SCALE = 1e4
TELLING = Optimiser(
    learning_rate=1e8 * SCALE,
    warmup_updates=0,
    weight_decay=0.0,
    beta1=0.0,
    beta2=0.0,
    epsilon=1e8,
    gradient_clip=1e9,
)
USUAL = Optimiser(
    learning_rate=1e-3,
    warmup_updates=3,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.99,
    epsilon=1e-8,
    gradient_clip=0.05,
)
# Every setting that a CPU can run, by name.
PLAIN = {"offload_optimiser": False, "offload_parameters": False, "gradient_checkpointing": False}
SETTINGS = {f"zero-{stage}": PLAIN | {"zero": stage} for stage in range(4)}
SETTINGS |= {
    f"zero-{stage}-offload": PLAIN | {"zero": stage, "offload_optimiser": True} for stage in (1, 2)
}
SETTINGS["zero-3-offload"] = PLAIN | {
    "zero": 3,
    "offload_optimiser": True,
    "offload_parameters": True,
}
SETTINGS |= {
    f"zero-{stage}-checkpointing": PLAIN | {"zero": stage, "gradient_checkpointing": True}
    for stage in (2, 3)
}


def fresh_model(dtype: torch.dtype = torch.float32):
    """The same small model each time, with entropies that differ."""
    model = build_model(32, layers=2, seed=7)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model.to(dtype)


def some_rollouts(seed: int = 0) -> list[Rollout]:
    """Five problems with unequal groups and unequal lengths."""
    rng = np.random.default_rng(seed)
    rollouts = []
    for problem, size in enumerate([4, 2, 5, 3, 1]):
        prompt = tuple(rng.integers(40, 120, size=3 + problem).tolist())
        for number in range(size):
            tokens = tuple(rng.integers(40, 120, size=1 + (number * 5 + problem) % 9).tolist())
            completion = Completion(
                problem_id=f"p{problem}",
                rollout=number,
                seed=0,
                prompt=prompt,
                tokens=tokens,
                logp=(-1.0,) * len(tokens),
                finish="stop",
                text="",
            )
            rollouts.append(Rollout(completion, Verdict.OK, problem, float(rng.normal())))
    return rollouts


def learner_on(engine, method, *, room: int, updates: int = 1) -> Learner:
    return Learner(
        method, engine, seed=1, updates_per_step=updates, tokens_per_microbatch=room, pad_token=0
    )


def weights(engine) -> dict[str, torch.Tensor]:
    return {name: weight.detach().float().cpu().clone() for name, weight in engine.weights()}


def gradient_of_step(engine, method, rollouts, *, room: int) -> dict:
    """The gradient of one step by what it takes off the weights, and what the step reports.

    The policy has moved away from the one that sampled, by an amount that the rollout decides.
    """
    learner = learner_on(engine, method, room=room)
    before = weights(engine)
    (ours,) = learner.ours(rollouts)
    scores = learner.score(ours)
    tokens = as_tokens(ours, scores)
    shift = torch.zeros_like(scores.logp)
    for row, key in enumerate(tokens.key.tolist()):
        width = shift.shape[1]
        shift[row] = torch.from_numpy(np.random.default_rng(key).normal(scale=0.2, size=50))[:width]
    tokens = dataclasses.replace(tokens, logp_old=scores.logp + shift)
    metrics = learner.update(ours, with_scores(tokens, scores), salt=5)
    moved = {name: (before[name] - after) / SCALE for name, after in weights(engine).items()}
    return {"gradient": moved, "metrics": metrics}


def run_of_steps(engine, method, steps, *, room: int) -> dict:
    """The weights after some steps of two updates each, and the metrics of each."""
    learner = learner_on(engine, method, room=room, updates=2)
    metrics = [learner.learn(step, some_rollouts(step)) for step in steps]
    return {"weights": weights(engine), "metrics": metrics}


def on_ranks(cases: list[str], folder: Path, *, ranks: int = 2, limit: float = 200) -> list:
    """Start `ranks` processes on these cases; returns each one's (exit code, stderr, time)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.monotonic()
    processes = []
    for rank in range(ranks):
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        fixed = {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        env = os.environ | {name: str(value) for name, value in here.items()} | fixed
        errors = (folder / f"stderr-{rank}").open("w")
        command = [sys.executable, __file__, ",".join(cases), str(folder)]
        processes.append(subprocess.Popen(command, env=env, stderr=errors, stdout=errors))
    ended = []
    for rank, process in enumerate(processes):
        try:
            code = process.wait(timeout=max(1, limit - (time.monotonic() - started)))
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        ended.append((code, (folder / f"stderr-{rank}").read_text(), time.time()))
    return ended


# What one rank does --------------------------------------------------------------------------


def open_engine(ranks: Ranks, name: str, optimiser: Optimiser, dtype=torch.float32):
    return deepspeed_engine.DeepSpeedEngine(
        fresh_model(dtype),
        build_tokenizer(),
        optimiser,
        temperature=0.7,
        settings=DeepSpeedSettings(kind="deepspeed", **SETTINGS[name]),
        collective=ranks,
    )


def case_methods(ranks: Ranks, methods, folder: Path) -> dict:
    return {
        name: gradient_of_step(
            open_engine(ranks, "zero-2", TELLING), methods[name], some_rollouts(), room=40
        )
        for name in METHODS
    }


def case_settings(ranks: Ranks, methods, folder: Path) -> dict:
    return {
        name: gradient_of_step(
            open_engine(ranks, name, TELLING), methods["dynamo"], some_rollouts(), room=40
        )
        for name in SETTINGS
    }


def case_bfloat16(ranks: Ranks, methods, folder: Path) -> dict:
    return {
        name: gradient_of_step(
            open_engine(ranks, name, TELLING, torch.bfloat16),
            methods["grpo"],
            some_rollouts(),
            room=40,
        )
        for name in ("zero-0", "zero-1", "zero-2", "zero-3", "zero-3-offload")
    }


def case_idle(ranks: Ranks, methods, folder: Path) -> dict:
    """One rollout, so one rank has none; then no signal at all, so neither has a share."""
    lone = some_rollouts()[2:3]
    found = {}
    for name in ("zero-0", "zero-2", "zero-3"):
        engine = open_engine(ranks, name, TELLING)
        found[name] = gradient_of_step(engine, methods["w_reinforce"], lone, room=40)
        engine = open_engine(ranks, name, USUAL)
        silent = [dataclasses.replace(r, advantage=0.0) for r in some_rollouts()]
        before = weights(engine)
        metrics = learner_on(engine, methods["grpo"], room=40).learn(0, silent)
        found[name] |= {"norm": metrics["grad_norm"], "before": before, "after": weights(engine)}
    return found


def case_steps(ranks: Ranks, methods, folder: Path) -> dict:
    """Ten steps of two updates; a state is saved half-way, from which another engine goes on."""
    found = {}
    for name in ("zero-0", "zero-2", "zero-3"):
        state = folder / f"state-{name}"
        state.mkdir(exist_ok=True)
        engine = open_engine(ranks, name, USUAL)
        run_of_steps(engine, methods["dynamo"], range(5), room=40)
        engine.save_state(state)
        whole = run_of_steps(engine, methods["dynamo"], range(5, 10), room=40)
        engine.save(folder / f"policy-{name}")
        other = open_engine(ranks, name, USUAL)
        other.restore(state)
        resumed = run_of_steps(other, methods["dynamo"], range(5, 10), room=40)
        found[name] = {"whole": whole, "resumed": resumed}
    if ranks.rank == 0:
        (state / deepspeed_engine.LAYOUT).write_text('{"ranks": 4, "zero": 3}')
    ranks.wait()
    try:
        open_engine(ranks, name, USUAL).restore(state)
    except DynamoError as error:
        found["refused"] = str(error)
    return found


def case_failure(ranks: Ranks, methods, folder: Path) -> None:
    """Rank 1 fails where rank 0 waits for it."""
    engine = open_engine(ranks, "zero-2", USUAL)
    backward = engine.backward

    def failing(share):
        if ranks.rank == 1:
            (folder / "failed-at").write_text(str(time.time()))
            raise DynamoError("the disk of this node is full; make room")
        backward(share)

    engine.backward = failing
    learner_on(engine, methods["grpo"], room=40).learn(0, some_rollouts())


def main(cases: str, folder: Path) -> None:
    from dynamo_cli.config import load_params

    torch.set_num_threads(1)
    deepspeed_engine.WHOLE_BELOW = 0  # split even what is small
    methods = load_params(ROOT / "params.yaml").methods
    with Ranks("cpu") as ranks:
        for case in cases.split(","):
            found = globals()[f"case_{case}"](ranks, methods, folder)
            torch.save(found, folder / f"{case}-{ranks.rank}.pt")


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except DynamoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
