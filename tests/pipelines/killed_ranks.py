"""Runs of two DeepSpeed ranks through `dynamo train`, for the tests and by hand.

    python tests/pipelines/killed_ranks.py FOLDER --random 30 --seed 1

kills (SIGKILL, which nothing can catch) one rank, the other, or the command that started both, at a
moment between their first work and their end; starts the same command again; and prints a JSON
line: who died when, and which outputs then differ from those of a run never killed: none.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dynamo_cli.ladder import LadderSource, read_ladder  # noqa: E402
from dynamo_cli.records import write_jsonl  # noqa: E402

OUTPUTS = ("policy/model.safetensors", "metrics.csv", "ledger.parquet", "summary.json")
VICTIMS = ("rank 0", "rank 1", "command")
LIMIT = 240  # seconds of one command, on a busy machine
# Eight problems, three a step: an epoch is two steps and leaves two problems out.
SETTINGS = {
    "training.steps": 8,
    "training.problems_per_step": 3,
    "training.rollouts_per_step": 24,
    "training.updates_per_step": 2,
    "training.tokens_per_microbatch": 256,
    "training.sampling.max_tokens": 20,
    "training.checkpoint_every": 1,
    "methods.dynamo.allocation.low": 4,
    "methods.dynamo.allocation.high": 12,
    "methods.dynamo.allocation.refresh": "epoch",
    "methods.dynamo.allocation.forgetting": 0.9,
}


class Bench:
    """A folder with a pool of problems, in which the command runs."""

    def __init__(self, folder: Path, settings: dict = SETTINGS, ranks: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings, self.ranks = folder, settings, ranks
        source = LadderSource(kind="ladder", levels=[1, 2], problems=8, split="train", seed=5)
        write_jsonl(folder / "ladder-train.jsonl", read_ladder("pool", source))

    def start(self, name: str) -> subprocess.Popen:
        """`dynamo train` into a folder of that name; ranks where there is more than one."""
        command = [sys.executable, "-m", "dynamo_cli", "train", str(self.folder / name)]
        command += ["--data", str(self.folder)]
        if self.ranks > 1:
            command += ["--engine", "deepspeed", "--ranks", str(self.ranks)]
        given = self.settings | {"paths.work": self.work(name)}
        command += [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)

    def end(self, process: subprocess.Popen) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once the last process that writes to them has ended."""
        said, complained = process.communicate(timeout=LIMIT)
        return process.returncode, said, complained

    def run(self, name: str) -> tuple[int, str, str]:
        return self.end(self.start(name))

    def work(self, name: str) -> Path:
        return self.folder / f"{name}-work"

    def outputs(self, name: str) -> dict[str, bytes]:
        return {file: (self.folder / name / file).read_bytes() for file in OUTPUTS}

    def await_steps(self, name: str, done: int, process: subprocess.Popen) -> None:
        """Return when a checkpoint after so many steps is there, or the command has ended."""
        until = time.monotonic() + LIMIT
        while process.poll() is None and time.monotonic() < until:
            if any(int(s.name[5:]) >= done for s in self.work(name).glob("*/step-*")):
                return
            time.sleep(0.01)

    def ids(self, process: subprocess.Popen) -> list[int]:
        """The process ids of the ranks that a command has started, in their order."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return [int(found) for found in children.read_text().split()] if children.exists() else []

    def await_work(self, name: str, process: subprocess.Popen) -> None:
        """Return when the ranks have met and begun, or the command has ended."""
        while process.poll() is None and not any(self.work(name).glob("*/lock")):
            time.sleep(0.01)

    def kill(self, process: subprocess.Popen, victim: str) -> bool:
        """Whether there was somebody left to kill."""
        found = {f"rank {rank}": one for rank, one in enumerate(self.ids(process))}
        if process.poll() is not None or len(found) < self.ranks:
            return False
        os.kill((found | {"command": process.pid})[victim], signal.SIGKILL)
        return True

    def killed_after(self, seconds: float, victim: str, whole: dict[str, bytes]) -> dict:
        """Kill so long after the ranks have begun, start again, compare; then tidy up."""
        name = f"random{seconds:.6f}"
        process = self.start(name)
        self.await_work(name, process)
        time.sleep(seconds)
        killed = self.kill(process, victim)
        code, *_ = self.end(process)
        again, _, stderr = self.run(name)
        found = self.outputs(name)
        went_on = [line for line in stderr.splitlines() if line.startswith("going on")]
        report = {
            "at": round(seconds, 3),
            "victim": victim,
            "killed": killed,
            "codes": [code, again],
            "differs": [file for file in OUTPUTS if found[file] != whole[file]],
            "left": [p.name for p in self.work(name).iterdir()]
            + [p.name for p in (self.folder / name).glob(".*")],
            "said": [line.split(",")[0] for line in went_on],
        }
        for folder in (self.folder / name, self.work(name)):
            shutil.rmtree(folder)
        return report


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--random", type=int, default=30, help="how many moments")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--steps", type=int, default=24, help="of the run: it outlasts the start")
    asked = options.parse_args()
    bench = Bench(asked.folder, SETTINGS | {"training.steps": asked.steps})
    process = bench.start("whole")
    bench.await_work("whole", process)
    started = time.monotonic()
    code, _, stderr = bench.end(process)
    assert code == 0, stderr
    length, whole = time.monotonic() - started, bench.outputs("whole")
    draw = random.Random(asked.seed)
    counted = 0
    while counted < asked.random:  # one that came too late is shown, and does not count
        victim = VICTIMS[counted % len(VICTIMS)]
        report = bench.killed_after(draw.uniform(0, length), victim, whole)
        counted += report["killed"]
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
