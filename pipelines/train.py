"""Stage `train`: one cell of the grid, from a base model to a policy with its metrics."""

import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path

from dynamo_cli.config import Compute, Model
from dynamo_cli.errors import DynamoError
from dynamo_cli.grading import Grader
from dynamo_cli.methods import Method
from dynamo_cli.models_io import load_model
from dynamo_cli.provenance import code_hash, hash_json, hash_path, versions, write_manifest
from dynamo_cli.records import read_problems, sync
from dynamo_cli.rollout.engine import EngineSettings
from dynamo_cli.rollout.opening import open_sampler
from dynamo_cli.rollout.prompts import frame, template_hash
from dynamo_cli.train.canary import Canary
from dynamo_cli.train.checkpoint import Checkpoints, Rows
from dynamo_cli.train.history import History
from dynamo_cli.train.interruption import Interrupted, Interruption
from dynamo_cli.train.learner import Learner
from dynamo_cli.train.loop import Run, Training, check_budget, hand_over, train_step
from dynamo_cli.train.opening import open_policy
from dynamo_cli.train.order import ProblemOrder
from dynamo_cli.train.outputs import MANIFEST, is_complete, write_outputs
from dynamo_cli.train.recorder import FILE as RECORD
from dynamo_cli.train.recorder import Recorder

Report = Callable[..., None]  # (steps done, steps in all, reward=, entropy=)
NOT_DECISIVE = {"checkpoint_every", "checkpoints_kept"}  # of training: they move no number


class Outcome(StrEnum):
    """How a run ended."""

    COMPLETE = "complete"
    KNOWN = "known"  # it was complete before: nothing was done
    INTERRUPTED = "interrupted"  # its state is saved: the same call goes on; there are no outputs


def run(
    *,
    model: Model,
    method: Method,
    training: Training,
    sampler: EngineSettings,
    seed: int,
    compute: Compute,
    data: Path,
    out: Path,
    work: Path,
    report: Report,
    say: Callable[[str], None],
) -> Outcome:
    """Train one policy into `out`: policy/, metrics.csv, summary.json, ledger.parquet, manifest.

    Checkpoints go to a folder of `work` named after everything that decides the run, so a run that
    was interrupted goes on where it was, and a changed one starts afresh. Where `out` holds this
    very run already, nothing is done.
    """
    started = time.monotonic()
    problems = data / f"{training.dataset}.jsonl"
    if not problems.is_file():
        raise DynamoError(f"{problems}: no such file; run `dynamo prepare` first")
    check_budget(method, training)
    parameters = {
        "model": model.model_dump(),
        "method": method.model_dump(),
        "training": training.model_dump(),
        "sampler": sampler.model_dump(),
        "seed": seed,
        "compute": compute.model_dump(),
    }
    inputs = {"problems": problems, "model": Path(model.path)}
    identity = identify(parameters, inputs, compute.torch_device)
    checkpoints = Checkpoints(work / identity, kept=training.checkpoints_kept, say=say)
    if is_complete(out, identity, say):
        checkpoints.clear()  # they are left where a run was killed at its very end
        return Outcome.KNOWN
    compute.apply()
    try:
        with Interruption() as interruption, checkpoints, Grader() as grader:
            with interruption.droppable():
                module, tokenizer = load_model(
                    Path(model.path), dtype=compute.dtype, device=compute.torch_device
                )
                engine = open_sampler(
                    sampler,
                    Path(model.path),
                    share=(module, tokenizer),
                    report_scores=training.old_scores == "sampler",
                    dtype=compute.dtype,
                    device=compute.torch_device,
                )
                parts = assemble(
                    module, tokenizer, model, method, training, seed, problems, grader, engine
                )
                if sampler.kind == "vllm":  # it has weights of its own
                    parts = with_canary(parts, compute.dtype)
                recorder = recorder_of(parts, tokenizer, checkpoints.folder)
                parts.learner.watch = recorder
            metrics, ledger = fit(parts, checkpoints, interruption, report)
            outputs = write_outputs(out, parts.policy, metrics, ledger)
            (out / RECORD).unlink(missing_ok=True)
            if recorder is not None:
                recorder.finish(out / RECORD)
                outputs[RECORD] = hash_path(out / RECORD)
            write_manifest(
                out / MANIFEST,
                parameters=parameters,
                inputs=inputs,
                device=str(next(module.parameters()).device),
                seconds=time.monotonic() - started,
                template=template_hash(model.template, tokenizer),
                identity=identity,
                outputs=outputs,
            )
            sync(out)
            checkpoints.clear()
    except Interrupted:
        return Outcome.INTERRUPTED
    return Outcome.COMPLETE


def identify(parameters: dict, inputs: dict[str, Path], device: str) -> str:
    """The hash of all that decides a run's bytes: two runs of one identity may share a state."""
    training = {k: v for k, v in parameters["training"].items() if k not in NOT_DECISIVE}
    hashes = {name: hash_path(path) for name, path in inputs.items()}
    return hash_json([parameters | {"training": training}, hashes, code_hash(), versions(), device])


def assemble(module, tokenizer, model, method, training, seed, problems, grader, sampler) -> Run:
    """Put the parts of a run together."""
    pool = read_problems(problems)
    policy = open_policy(
        training.engine,
        module,
        tokenizer,
        training.optimiser,
        temperature=training.sampling.temperature,
    )
    return Run(
        method=method,
        training=training,
        seed=seed,
        order=ProblemOrder(pool, per_step=training.problems_per_step, seed=seed),
        prompts={p.id: frame(p.question, model.template, tokenizer) for p in pool},
        history=History(forgetting=method.allocation.forgetting),
        sampler=sampler,
        grader=grader,
        policy=policy,
        learner=Learner(
            method,
            policy,
            seed=seed,
            updates_per_step=training.updates_per_step,
            tokens_per_microbatch=training.tokens_per_microbatch,
            pad_token=tokenizer.pad_token_id,
            old_scores=training.old_scores,
        ),
    )


def with_canary(parts: Run, dtype: str) -> Run:
    """The same run, its sampler's weights checked against the trainer's after each transfer."""
    canary = Canary.of(
        next(iter(parts.prompts.values())),
        temperature=parts.training.sampling.temperature,
        context=parts.sampler.context,
        dtype=dtype,
    )
    return replace(parts, canary=canary)


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
