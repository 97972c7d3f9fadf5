"""Stage `train`: one cell of the grid, from a base model to a policy with its metrics."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dynamo_cli.config import Compute, Model
from dynamo_cli.errors import DynamoError
from dynamo_cli.grading import Grader
from dynamo_cli.methods import Method
from dynamo_cli.methods.collective import LOCAL, Collective
from dynamo_cli.models_io import load_model
from dynamo_cli.provenance import code_hash, hash_json, hash_path, versions, write_manifest
from dynamo_cli.records import read_problems, sync
from dynamo_cli.rollout.engine import EngineSettings, RolloutEngine
from dynamo_cli.rollout.opening import open_sampler
from dynamo_cli.rollout.prompts import frame, template_hash
from dynamo_cli.train.canary import Canary
from dynamo_cli.train.checkpoint import Checkpoints, Rows
from dynamo_cli.train.history import History
from dynamo_cli.train.interruption import Interrupted, Interruption
from dynamo_cli.train.launching import (
    adopt_slurm,
    check_installed,
    count_ranks,
    is_rank,
    plan,
    read_hostfile,
)
from dynamo_cli.train.learner import Learner
from dynamo_cli.train.loop import Run, Training, check_budget, hand_over, train_step
from dynamo_cli.train.opening import open_policy
from dynamo_cli.train.order import ProblemOrder
from dynamo_cli.train.outputs import MANIFEST, POLICY, is_complete, state_of, write_outputs
from dynamo_cli.train.ranks import Ranks
from dynamo_cli.train.recorder import FILE as RECORD
from dynamo_cli.train.recorder import Recorder, write_record
from dynamo_cli.train.sharing import SharedGrader, SharedSampler, agree, open_grader
from dynamo_cli.train.supervision import supervise

Report = Callable[..., None]  # (steps done, steps in all, reward=, entropy=)
NOT_DECISIVE = {"checkpoint_every", "checkpoints_kept"}  # of training: they move no number


class Outcome(StrEnum):
    """How a run ended."""

    COMPLETE = "complete"
    KNOWN = "known"  # it was complete before: nothing was done
    INTERRUPTED = "interrupted"  # its state is saved: the same call goes on; there are no outputs


@dataclass(frozen=True)
class Cell:
    """What is trained, from what, and where to."""

    model: Model
    method: Method
    training: Training
    sampler: EngineSettings
    seed: int
    compute: Compute
    data: Path  # prepared problems
    out: Path
    work: Path  # checkpoints, each run's in a folder of its own

    def __post_init__(self) -> None:
        """Raises DynamoError for what would fail later."""
        if not self.problems.is_file():
            raise DynamoError(f"{self.problems}: no such file; run `dynamo prepare` first")
        check_budget(self.method, self.training)

    @property
    def problems(self) -> Path:
        return self.data / f"{self.training.dataset}.jsonl"

    def parameters(self, ranks: int) -> dict:
        """All values of the run, the number of ranks as it is where the engine has several."""
        training = self.training.model_dump()
        if self.training.engine.kind == "deepspeed":
            training["engine"]["ranks"] = ranks
        return {
            "model": self.model.model_dump(),
            "method": self.method.model_dump(),
            "training": training,
            "sampler": self.sampler.model_dump(),
            "seed": self.seed,
            "compute": self.compute.model_dump(),
        }

    def inputs(self) -> dict[str, Path]:
        return {"problems": self.problems, "model": Path(self.model.path)}

    def identity(self, ranks: int) -> str:
        return identify(self.parameters(ranks), self.inputs(), self.compute.torch_device)

    def checkpoints(
        self, identity: str, say: Callable[[str], None], ranks: Collective = LOCAL
    ) -> Checkpoints:
        kept = self.training.checkpoints_kept
        return Checkpoints(self.work / identity, kept=kept, say=say, collective=ranks)


def starts_ranks(training: Training) -> bool:
    """Whether training so needs ranks, and this process is none."""
    adopt_slurm(os.environ)
    return training.engine.kind == "deepspeed" and not is_rank()


def launch(
    *, arguments: Sequence[str], hostfile: Path | None, say: Callable[[str], None], **cell: Any
) -> Outcome:
    """Start `dynamo ARGUMENTS` as the ranks of a cell, and return when they have ended well.

    The first of them has said what came of it, unless the outcome is KNOWN: none was started then.
    Raises SystemExit where one of them has said what failed.
    """
    check_installed()
    cell = Cell(**cell)
    device = cell.compute.torch_device
    slots = {} if hostfile is None else read_hostfile(hostfile)
    ranks = count_ranks(
        cell.training.engine.ranks,
        gpus=torch.cuda.device_count() if device == "cuda" else None,
        slots=slots,
        environment=os.environ,
    )
    identity = cell.identity(ranks)
    if is_complete(cell.out, identity, say):
        cell.checkpoints(identity, say).clear()
        return Outcome.KNOWN
    supervise(plan(arguments, ranks, slots=slots, device=device))
    whole = state_of(cell.out, identity) == "complete"
    return Outcome.COMPLETE if whole else Outcome.INTERRUPTED


def run(*, report: Report, say: Callable[[str], None], **cell: Any) -> Outcome | None:
    """Train one policy into `out`: policy/, metrics, summary, ledger, recorded rollouts, manifest.

    `cell`: the fields of a Cell. Checkpoints go to a folder of `work` named after everything that
    decides the run, so a run that was interrupted goes on where it was, and a changed one starts
    afresh. Where `out` holds this very run already, nothing is done. One of several ranks returns
    the outcome if it is the first, and None otherwise.
    """
    cell = Cell(**cell)
    engine, device = cell.training.engine, cell.compute.torch_device
    if engine.kind != "deepspeed":
        return train(cell, LOCAL, report, say)
    if not is_rank():
        raise DynamoError(
            "training.engine.kind is deepspeed, but this process was not started as one of "
            "several ranks; `dynamo train` starts them, or set it to local"
        )
    with Ranks(device) as ranks:
        if engine.ranks not in (None, ranks.size):
            raise DynamoError(
                f"training.engine.ranks is {engine.ranks}, but {ranks.size} were started"
            )
        if ranks.rank == 0:
            return train(cell, ranks, report, say)
        train(cell, ranks, lambda *_, **__: None, lambda _: None)
        return None


def train(cell: Cell, ranks: Collective, report: Report, say: Callable[[str], None]) -> Outcome:
    """What every rank of a run does. One of a kind, and files, are the first rank's affair."""
    started = time.monotonic()
    identity = agree(ranks, lambda: cell.identity(ranks.size))
    checkpoints = cell.checkpoints(identity, say, ranks)
    if agree(ranks, lambda: is_complete(cell.out, identity, say)):
        checkpoints.clear()  # they are left where a run was killed at its very end
        return Outcome.KNOWN
    cell.compute.apply()
    try:
        with Interruption(ranks) as interruption, checkpoints, open_grader(ranks) as grader:
            with interruption.droppable():
                parts, tokenizer = assemble(cell, ranks, grader)
                parts.learner.watch = recorder_of(parts, tokenizer, checkpoints.folder)
            metrics, ledger = fit(parts, checkpoints, interruption, report)
            if ranks.rank > 0:
                parts.policy.save(cell.out / POLICY)  # all ranks give their part
                return Outcome.COMPLETE
            outputs = write_outputs(cell.out, parts.policy, metrics, ledger)
            write_record(cell.out / RECORD, checkpoints.folder)
            outputs[RECORD] = hash_path(cell.out / RECORD)
            write_manifest(
                cell.out / MANIFEST,
                parameters=cell.parameters(ranks.size),
                inputs=cell.inputs(),
                device=cell.compute.torch_device,
                seconds=time.monotonic() - started,
                template=template_hash(cell.model.template, tokenizer),
                identity=identity,
                outputs=outputs,
            )
            sync(cell.out)
            checkpoints.clear()
    except Interrupted:
        return Outcome.INTERRUPTED
    return Outcome.COMPLETE


def identify(parameters: dict, inputs: dict[str, Path], device: str) -> str:
    """The hash of all that decides a run's bytes: two runs of one identity may share a state."""
    training = {k: v for k, v in parameters["training"].items() if k not in NOT_DECISIVE}
    hashes = {name: hash_path(path) for name, path in inputs.items()}
    return hash_json([parameters | {"training": training}, hashes, code_hash(), versions(), device])


def assemble(cell: Cell, ranks: Collective, grader: Grader | SharedGrader) -> tuple[Run, Any]:
    """Load the model and put the parts of a run together; returns them and the tokenizer."""
    training, compute, folder = cell.training, cell.compute, Path(cell.model.path)
    load = partial(load_model, folder, dtype=compute.dtype, device=compute.torch_device)
    module, tokenizer = load()
    # A model that is split over ranks cannot sample: the sampler then has a whole one.
    split = getattr(training.engine, "zero", 0) == 3
    sampler = open_sampler(
        cell.sampler,
        folder,
        share=load() if split and cell.sampler.kind == "hf" else (module, tokenizer),
        report_scores=training.old_scores == "sampler",
        dtype=compute.dtype,
        device=compute.torch_device,
        rank=ranks.rank,
    )
    policy = open_policy(
        training.engine,
        module,
        tokenizer,
        training.optimiser,
        temperature=training.sampling.temperature,
        collective=ranks,
    )
    pool = read_problems(cell.problems)
    history = History(forgetting=cell.method.allocation.forgetting)
    prompts = {p.id: frame(p.question, cell.model.template, tokenizer) for p in pool}
    shared, expected = isinstance(ranks, Ranks), history.expected_tokens
    parts = Run(
        method=cell.method,
        training=training,
        seed=cell.seed,
        order=ProblemOrder(pool, per_step=training.problems_per_step, seed=cell.seed),
        prompts=prompts,
        history=history,
        sampler=SharedSampler(sampler, ranks, expected=expected) if shared else sampler,
        grader=grader,
        policy=policy,
        learner=Learner(
            cell.method,
            policy,
            seed=cell.seed,
            updates_per_step=training.updates_per_step,
            tokens_per_microbatch=training.tokens_per_microbatch,
            pad_token=tokenizer.pad_token_id,
            old_scores=training.old_scores,
            off_policy=training.off_policy,
        ),
        canary=canary_of(cell, sampler, next(iter(prompts.values()))),
        rest=getattr(sampler, "rest", lambda: None),
    )
    return parts, tokenizer


def canary_of(cell: Cell, sampler: RolloutEngine, prompt: tuple[int, ...]) -> Canary | None:
    """What tells whether new weights arrived at a sampler that has weights of its own."""
    if cell.sampler.kind != "vllm":
        return None
    return Canary.of(
        prompt,
        temperature=cell.training.sampling.temperature,
        context=sampler.context,
        dtype=cell.compute.dtype,
    )


def recorder_of(parts: Run, tokenizer, folder: Path) -> Recorder | None:
    """Who keeps rollouts for people to look at; None where the parameters want nobody to."""
    recording = parts.training.record
    if recording is None:
        return None
    return Recorder(
        chosen=recording.chosen(parts.order.problems),
        every=recording.every,
        epoch=parts.order.epoch,
        method=parts.method,
        decode=partial(tokenizer.decode, clean_up_tokenization_spaces=False),
        folder=folder,
        rank=parts.policy.collective.rank,
    )


def fit(
    parts: Run, checkpoints: Checkpoints, interruption: Interruption, report: Report
) -> tuple[Rows, Rows]:
    """Run all steps that are left; returns the metrics and ledger rows of the whole run.

    Raises Interrupted, with the state saved, where a signal asked to stop before the last step.
    """
    done, metrics, ledger = checkpoints.restore(parts.policy, parts.history)
    hand_over(parts)
    parts = replace(parts, droppable=interruption.droppable)
    total = parts.training.steps

    def save(steps_done: int) -> None:
        checkpoints.save(steps_done, parts.policy, parts.history, metrics=metrics, ledger=ledger)

    for step in range(done, total):
        try:
            row, problems = train_step(step, parts)
        except Interrupted:
            if step > 0:
                save(step)
            raise
        metrics.append(row)
        ledger.extend(problems)
        report(step + 1, total, reward=row["reward"], entropy=row["entropy"])
        if (step + 1) % parts.training.checkpoint_every == 0 and step + 1 < total:
            save(step + 1)
    return metrics, ledger
