"""Stage `study`: the cells beside the grid's stages, trained and scored side by side.

There may be hundreds. As stages of their own each would cost DVC seconds, for its lock file is read
and written anew for every stage; and every process would load torch and transformers again.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from dynamo_cli.config import Params, load_params, pick
from dynamo_cli.errors import DynamoError
from dynamo_cli.models_io import load_model
from dynamo_cli.provenance import hash_path
from dynamo_cli.records import write_json
from dynamo_cli.studies import Cell
from dynamo_cli.train.outputs import MANIFEST
from pipelines import eval as evaluating
from pipelines import train as training

Report = Callable[..., None]  # (cells done, in all, newest=)
INTERRUPTED = 75  # exit code of a cell that was asked to stop: EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True)
class Places:
    """Where the cells find what they need, and leave what they make."""

    params: Path
    overrides: tuple[str, ...]
    pools: Path
    suites: Path
    runs: Path
    evals: Path
    logs: Path  # what each cell says
    hostfile: Path | None = None  # machines for the ranks of a cell, where it has ranks


def run(
    cells: Sequence[Cell], places: Places, *, jobs: int, out: Path, report: Report
) -> list[Cell]:
    """Train and score each cell, `jobs` of them at once; returns those that an interruption left.

    A cell that is complete, by the same parameters, data and code, is left as it is. Where all are
    complete, `out` tells what came of each. Raises DynamoError naming the cells that failed; the
    others are finished first.
    """
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise DynamoError(f"two cells of the study share a name: {sorted(names)}")
    method = start_method(load_params(places.params, places.overrides).compute.torch_device)
    if cells and method == "fork":
        warm_up(places)
    failed, left = work_off(cells, places, method=method, jobs=jobs, report=report)
    if failed:
        raise DynamoError(
            f"{len(failed)} of {len(cells)} cells failed: "
            + "; ".join(f"{cell.name} ({last_words(cell, places)})" for cell in failed)
            + f"; what they said is in {places.logs}"
        )
    if not left:
        write_json(out, {cell.name: outcome(cell, places) for cell in cells})
    return left


def start_method(device: str) -> str:
    """How a cell's process begins: forked, with what is loaded already. But one that is forked
    from a process that has asked for GPUs, even for their number, cannot use them."""
    return "fork" if hasattr(os, "fork") and device == "cpu" else "spawn"


def warm_up(places: Places) -> None:
    """Load once what every cell needs, so that those that are forked find it in memory."""
    loaded = load_params(places.params, places.overrides)
    loaded.compute.apply()
    folder = Path(loaded.models[loaded.grid.models[0]].path)
    with contextlib.suppress(DynamoError):  # the cells that need this model will say it
        load_model(folder, dtype=loaded.compute.dtype, device="cpu")


def work_off(
    cells: Sequence[Cell], places: Places, *, method: str, jobs: int, report: Report
) -> tuple[list[Cell], list[Cell]]:
    """Cells that failed, and cells that an interruption left."""
    context = multiprocessing.get_context(method)
    waiting, failed, left, done = list(reversed(cells)), [], [], 0
    running: dict[int, tuple[Cell, BaseProcess]] = {}
    with passed_on(running) as asked_to_stop:
        while running or (waiting and not asked_to_stop()):
            while waiting and len(running) < jobs and not asked_to_stop():
                cell = waiting.pop()
                process = context.Process(target=work, args=(cell, places), name=cell.name)
                process.start()
                running[process.sentinel] = (cell, process)
            for sentinel in wait(list(running)):
                cell, process = running.pop(sentinel)
                process.join()
                if process.exitcode == 0:
                    done += 1
                    report(done, len(cells), newest=cell.name)
                elif process.exitcode == INTERRUPTED or asked_to_stop():
                    left.append(cell)
                else:
                    failed.append(cell)
    return failed, [*left, *reversed(waiting)]


@contextlib.contextmanager
def passed_on(running: dict[int, tuple[Cell, BaseProcess]]) -> Iterator[Callable[[], bool]]:
    """Signals that ask to stop reach the cells, which save themselves; no other is begun."""
    asked = []

    def receive(number: int, _: object) -> None:
        asked.append(number)
        for _, process in list(running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(cell: Cell, places: Places) -> None:
    """One cell, in a process of its own, which ends here; what it says goes to its log."""
    places.logs.mkdir(parents=True, exist_ok=True)
    with log_of(cell, places).open("w", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the cell's own handlers follow
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # comes as SIGTERM, from the parent
        try:
            loaded = load_params(places.params, places.overrides, variant=cell.variant)
            outcome = train_and_score(cell, loaded, places, say=lambda line: print(line, file=log))
        except DynamoError as error:
            print(f"error: {error}", file=log)
            sys.exit(2)
        sys.exit(0 if outcome is not training.Outcome.INTERRUPTED else INTERRUPTED)


def train(
    cell: Cell, params: Params, places: Places, *, say: Callable[[str], None]
) -> training.Outcome:
    """What `dynamo train` does for this cell, with ranks of its own where it has any."""
    given = {
        "model": pick(params.models, cell.model, "models"),
        "method": pick(params.methods, cell.method, "methods"),
        "training": params.training,
        "sampler": params.engines[params.training.sampler],
        "seed": cell.seed,
        "compute": params.compute,
        "data": places.pools,
        "out": places.runs / cell.name,
        "work": Path(params.paths.work),
        "say": say,
    }
    if not training.starts_ranks(params.training):
        return training.run(report=unseen, **given)
    words = ["train", places.runs / cell.name, "--data", places.pools, "--params", places.params]
    words += ["--model", cell.model, "--method", cell.method, "--seed", cell.seed]
    words += ["--variant", cell.variant] if cell.variant else []
    words += [word for override in places.overrides for word in ("--set", override)]
    return training.launch(arguments=list(map(str, words)), hostfile=places.hostfile, **given)


def train_and_score(
    cell: Cell, params: Params, places: Places, *, say: Callable[[str], None]
) -> training.Outcome:
    """What `dynamo train` and `dynamo eval` do for this cell."""
    outcome = train(cell, params, places, say=say)
    if outcome is training.Outcome.INTERRUPTED:
        return outcome
    plan = evaluating.make_plan(
        params,
        out=places.evals / cell.name,
        variant=None,
        bench=None,
        policy=places.runs / cell.name / "policy",
        model=cell.model,
        template=None,
        data=places.suites,
        data_dir=None,
        say=say,
    )
    evaluating.run(plan, report=unseen, say=say)
    return outcome


def unseen(*_: object, **__: object) -> None:
    """Nobody watches the steps of one of many cells."""


def outcome(cell: Cell, places: Places) -> dict[str, str]:
    """The identity of a cell's run, and the hash of its scores."""
    manifest = json.loads((places.runs / cell.name / MANIFEST).read_text(encoding="utf-8"))
    scores = hash_path(places.evals / cell.name / "scores.csv")
    return {"run": manifest["identity"], "scores": scores[:16]}


def log_of(cell: Cell, places: Places) -> Path:
    return places.logs / f"{cell.name}.log"


def last_words(cell: Cell, places: Places) -> str:
    """The last line of a cell's log, which tells why it failed."""
    lines = log_of(cell, places).read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"
