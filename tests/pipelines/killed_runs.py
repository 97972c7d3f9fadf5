"""Small training runs that are killed and started again, for the tests and by hand.

    python tests/pipelines/killed_runs.py FOLDER backward:5 saving:2 ...   # the places of `PLACES`
    python tests/pipelines/killed_runs.py FOLDER --random 30 --seed 1      # moments of the clock

Prints a JSON line for each: where the run died (SIGKILL, which nothing can catch), which step it
went on from, and which outputs then differ from those of a run that was never killed: none. Runs
are forked from one process that has imported everything, so that a run is what takes the time.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dynamo_cli.config import Model, Params, load_params  # noqa: E402
from dynamo_cli.ladder import LadderSource, read_ladder  # noqa: E402
from dynamo_cli.provenance import code_hash  # noqa: E402
from dynamo_cli.records import write_jsonl  # noqa: E402
from dynamo_cli.rollout.hf_engine import HFEngine  # noqa: E402
from dynamo_cli.train import checkpoint, loop, outputs  # noqa: E402
from dynamo_cli.train.local_engine import LocalEngine  # noqa: E402
from pipelines import train as stage  # noqa: E402

OUTPUTS = ("policy/model.safetensors", "metrics.csv", "ledger.parquet", "summary.json")
# Eight problems, three a step: an epoch is two steps and leaves two problems out.
SETTINGS = (
    "training.steps=5",
    "training.problems_per_step=3",
    "training.rollouts_per_step=24",
    "training.updates_per_step=2",
    "training.tokens_per_microbatch=256",
    "training.sampling.max_tokens=20",
    "training.checkpoint_every=1",
    "methods.dynamo.allocation.low=4",
    "methods.dynamo.allocation.high=12",
    "methods.dynamo.allocation.refresh=epoch",
    "methods.dynamo.allocation.forgetting=0.9",
)
# What is called when a run is at a place. Every one of them is called by name, where it is used.
PLACES = {
    "step": (stage, "train_step"),
    "sampling": (HFEngine, "generate"),
    "grading": (loop, "grade"),
    "backward": (LocalEngine, "backward"),
    "update": (LocalEngine, "step"),
    "saving": (LocalEngine, "save_state"),
    "sealing": (checkpoint, "seal"),
    "renaming": (checkpoint, "sync"),
    "renamed": (checkpoint, "sync_entry"),
    "pruning": (checkpoint.shutil, "rmtree"),
    "outputs": (LocalEngine, "save"),
    "summary": (outputs, "write_json"),
    "manifest": (stage, "write_manifest"),
    "clearing": (checkpoint.Checkpoints, "clear"),
}


def die_at(place: str, call: int) -> None:
    """From now on, kill this process after the `call`-th call of a place, half done if a removal.

    A number below zero kills before that call.
    """
    owner, name = PLACES[place]
    real, calls = getattr(owner, name), 0

    def counted(*args, **options):
        nonlocal calls
        calls += 1
        if calls == -call:
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == call and place == "pruning":
            next(Path(args[0]).glob("*.parquet")).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **options)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


class Bench:
    """A base model, a pool and a folder for runs."""

    def __init__(self, folder: Path, settings: tuple[str, ...] = SETTINGS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        code_hash()  # remembered: an edit while runs are killed would make other runs of them
        self.params: Params = load_params(ROOT / "params.yaml", settings)
        source = LadderSource(kind="ladder", levels=[1, 2], problems=8, split="train", seed=5)
        pool = folder / f"{self.params.training.dataset}.jsonl"
        write_jsonl(pool, read_ladder("pool", source))

    def run(self, name: str, say: Callable[[str], None] = lambda line: None) -> stage.Outcome:
        """Train in this process, into a folder of that name."""
        return stage.run(
            model=Model(path=str(ROOT / "dynamo_cli/models/ladder-small"), template="plain"),
            method=self.params.methods["dynamo"],
            training=self.params.training,
            sampler=self.params.engines[self.params.training.sampler],
            seed=1,
            compute=self.params.compute,
            data=self.folder,
            out=self.folder / name,
            work=self.folder / f"{name}-work",
            report=lambda *a, **k: None,
            say=say,
        )

    def fork(self, name: str, before: Callable[[], None] = lambda: None) -> int:
        """Train in a child process; returns its id. What the run says is kept in a file."""
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            before()
            with (self.folder / f"{name}.said").open("a") as said:
                outcome = self.run(name, lambda line: print(line, file=said, flush=True))
                print(outcome, file=said)
            code = 0
        finally:
            os._exit(code)

    def outputs(self, name: str) -> dict[str, bytes]:
        return {file: (self.folder / name / file).read_bytes() for file in OUTPUTS}

    def said(self, name: str) -> list[str]:
        return (self.folder / f"{name}.said").read_text().splitlines()

    def resume(self, name: str, whole: dict[str, bytes], **facts) -> dict:
        """Start a killed run again, to its end: a report for one JSON line; then tidy up."""
        (self.folder / f"{name}.said").unlink()
        assert os.waitstatus_to_exitcode(os.waitpid(self.fork(name), 0)[1]) == 0, name
        found = self.outputs(name)
        report = facts | {
            "differs": [file for file in OUTPUTS if found[file] != whole[file]],
            "left": [p.name for p in (self.folder / f"{name}-work").iterdir()]
            + [p.name for p in (self.folder / name).glob(".*")],
            "said": self.said(name),
        }
        for folder in (name, f"{name}-work"):
            shutil.rmtree(self.folder / folder)
        return report

    def killed_at(self, place: str, call: int, whole: dict[str, bytes]) -> dict:
        """Kill a run at a place, start it again, compare."""
        name = f"{place}{call}"
        status = os.waitpid(self.fork(name, lambda: die_at(place, call)), 0)[1]
        died = os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        return self.resume(name, whole, at=f"{place}:{call}", died=died)

    def killed_after(self, seconds: float, whole: dict[str, bytes]) -> dict:
        """Kill a run at a moment, start it again, compare."""
        name = f"random{seconds:.6f}"
        child = self.fork(name)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return self.resume(name, whole, at=round(seconds, 4), died=died)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("places", nargs="*", help=f"<place>:<call>, of {', '.join(PLACES)}")
    options.add_argument("--random", type=int, default=0, help="moments, from start to end")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    bench = Bench(asked.folder)
    started = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(bench.fork("whole"), 0)[1]) == 0
    length = time.monotonic() - started
    whole = bench.outputs("whole")
    for place in asked.places:
        name, _, call = place.partition(":")
        print(json.dumps(bench.killed_at(name, int(call), whole)), flush=True)
    draw = random.Random(asked.seed)
    killed = 0
    while killed < asked.random:  # one that came too late is shown, and does not count
        report = bench.killed_after(draw.uniform(0, length), whole)
        killed += report["died"]
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
