"""Seconds of one training step, ours beside TRL's GRPOTrainer: same model, problems and lengths.

16 prompts x 16 rollouts, one update a step, plain GRPO, float32 on the CPU. TRL runs as it comes
(`their_default_steps`, with gradient checkpointing) and without it. They take turns, so that a
busy machine troubles all alike; processor time is printed beside the clock's, because it suffers
less from neighbours (compare it at `--threads 1`: waiting threads spin). Each turn is a process of
its own that starts from the base model; its first step, which warms up, is not counted. TRL is no
dependency:

    pip install 'trl==1.16.*'
    python benchmarks/step_time.py

`--without-trl` compares sampling alone, with transformers' `generate`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dynamo_cli import ladder  # noqa: E402
from dynamo_cli.config import Compute, load_params  # noqa: E402
from dynamo_cli.grading import Grader  # noqa: E402
from dynamo_cli.methods.collective import LOCAL  # noqa: E402
from dynamo_cli.models_io import load_model  # noqa: E402
from dynamo_cli.records import Problem, write_jsonl  # noqa: E402
from dynamo_cli.rollout.engine import Request, Sampling  # noqa: E402
from dynamo_cli.rollout.hf_engine import HFEngine  # noqa: E402
from dynamo_cli.seeding import derive  # noqa: E402
from dynamo_cli.train.loop import train_step  # noqa: E402
from pipelines.train import Cell, assemble  # noqa: E402

PROMPTS, ROLLOUTS, MAX_TOKENS = 16, 16, 54
LEARNING_RATE = 1e-6  # so small that the lengths of responses stay those of the base model
MODEL = ROOT / "dynamo_cli" / "models" / "ladder-medium"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--without-trl", action="store_true")
    parser.add_argument("--turn", choices=TURNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        torch.set_num_threads(options.threads)
        if options.turn in OURS:
            Compute(threads=options.threads).apply()  # as the stages do
        print(json.dumps(TURNS[options.turn](ladder_problems(), options.steps + 1)[1:]))
        return
    if not options.without_trl and find_spec("trl") is None:
        sys.exit("TRL is not installed: pip install 'trl==1.16.*', or give --without-trl")
    names = ["our_steps", "their_steps", "their_default_steps"]
    if options.without_trl:
        names = ["our_samples", "their_samples"]
    compare(names, options)


Cost = tuple[float, float]  # seconds by the clock, and seconds of processor time


def ladder_problems() -> list[Problem]:
    source = ladder.LadderSource(
        kind="ladder", levels=list(range(1, 9)), problems=96, split="train", seed=0
    )
    return ladder.read_ladder("ladder-train", source)


def compare(names: list[str], options: argparse.Namespace) -> None:
    """Let the contestants take turns; print the median of all their steps and the ratio."""
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for repetition in range(options.repetitions):
        for name in names:
            costs[name] += take_turn(name, options)
            clock = median(clock for clock, _ in costs[name])
            print(f"repetition {repetition + 1}: {name} {clock:.3f} s", file=sys.stderr)
    for column, what in enumerate(("clock", "processor")):
        medians = []
        for name, values in costs.items():
            seconds = sorted(value[column] for value in values)
            medians.append(median(seconds))
            print(
                f"{what:10}{name:24}median {medians[-1]:.3f} s, from {seconds[0]:.3f} "
                f"to {seconds[-1]:.3f} s ({len(seconds)} steps)"
            )
        for name, seconds in zip(names[1:], medians[1:], strict=True):
            print(f"{what:10}{name:24}{seconds / medians[0]:.2f} times ours")


def take_turn(name: str, options: argparse.Namespace) -> list[Cost]:
    """A contestant's counted steps, in a process of its own."""
    command = [sys.executable, __file__, "--turn", name]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def our_steps(problems: list[Problem], steps: int) -> list[Cost]:
    """Allocate, sample, grade, credit, update: `train_step`, as the pipeline runs it."""
    params = load_params(ROOT / "params.yaml")
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=MAX_TOKENS)
    optimiser = params.training.optimiser.model_copy(update={"learning_rate": LEARNING_RATE})
    training = params.training.model_copy(
        update={
            "problems_per_step": PROMPTS,
            "rollouts_per_step": PROMPTS * ROLLOUTS,
            "updates_per_step": 1,
            "sampling": sampling,
            "optimiser": optimiser,
        }
    )
    with tempfile.TemporaryDirectory() as folder, Grader() as grader:
        write_jsonl(Path(folder) / f"{training.dataset}.jsonl", problems)
        cell = Cell(
            model=params.models[MODEL.name].model_copy(update={"path": str(MODEL)}),
            method=params.methods["grpo"],
            training=training,
            sampler=params.engines["hf"],
            seed=1,
            compute=params.compute,
            data=Path(folder),
            out=Path(folder),
            work=Path(folder),
        )
        run, _ = assemble(cell, LOCAL, grader)
        return [timed(lambda step=step: train_step(step, run)) for step in range(steps)]


def their_default_steps(problems: list[Problem], steps: int) -> list[Cost]:
    """GRPOTrainer as it comes, with gradient checkpointing."""
    return their_steps(problems, steps, checkpointing=True)


def their_steps(problems: list[Problem], steps: int, *, checkpointing: bool = False) -> list[Cost]:
    """GRPOTrainer with the same batch, lengths, reward and loss; no logging, no saving."""
    warnings.simplefilter("ignore")
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.begun, self.costs = (0.0, 0.0), []

        def on_step_begin(self, *args, **kwargs) -> None:
            self.begun = now()

        def on_step_end(self, *args, **kwargs) -> None:
            self.costs.append(since(self.begun))

    def reward(completions, completion_ids, answer, **columns) -> list[float]:
        finished = [ids[-1] == tokenizer.eos_token_id for ids in completion_ids]
        graded = map(ladder.verify_answer, completions, answer, finished)
        return [float(verdict.correct) for verdict in graded]

    module, tokenizer = load_model(MODEL)
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=PROMPTS * ROLLOUTS,
            num_generations=ROLLOUTS,
            max_completion_length=MAX_TOKENS,
            temperature=1.0,
            beta=0.0,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            use_cpu=True,
            bf16=False,
            # On by default; it saves memory, which nobody lacks here, for time.
            gradient_checkpointing=checkpointing,
            dataloader_pin_memory=False,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        rows = [{"prompt": problem.question, "answer": problem.answer} for problem in problems]
        trainer = GRPOTrainer(
            model=module,
            args=settings,
            processing_class=tokenizer,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            callbacks=[stopwatch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return stopwatch.costs


def our_samples(problems: list[Problem], steps: int) -> list[Cost]:
    """Sampling alone: HFEngine."""
    module, tokenizer = load_model(MODEL)
    engine = HFEngine(module, tokenizer)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=MAX_TOKENS)

    def sample(step: int) -> None:
        requests = [
            Request(p.id, r, tuple(tokenizer.encode(p.question)), derive(step, p.id, r))
            for p in chosen(problems, step)
            for r in range(ROLLOUTS)
        ]
        engine.generate(requests, sampling)

    return [timed(lambda step=step: sample(step)) for step in range(steps)]


def their_samples(problems: list[Problem], steps: int) -> list[Cost]:
    """Sampling alone: transformers' generate on a left-padded batch."""
    module, tokenizer = load_model(MODEL)

    def sample(step: int) -> None:
        texts = [p.question for p in chosen(problems, step) for _ in range(ROLLOUTS)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            output = module.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                top_k=0,
                max_new_tokens=MAX_TOKENS,
            )
        tokenizer.batch_decode(output, skip_special_tokens=True)

    return [timed(lambda step=step: sample(step)) for step in range(steps)]


def chosen(problems: list[Problem], step: int) -> list[Problem]:
    """The problems of a step, each level as often as any other."""
    return [problems[(step * PROMPTS + i) % len(problems)] for i in range(PROMPTS)]


def timed(work: Callable[[], object]) -> Cost:
    begun = now()
    work()
    return since(begun)


def now() -> Cost:
    return time.perf_counter(), time.process_time()


def since(begun: Cost) -> Cost:
    clock, processor = now()
    return clock - begun[0], processor - begun[1]


OURS = ("our_steps", "our_samples")
ALL = (our_steps, their_steps, their_default_steps, our_samples, their_samples)
TURNS = {turn.__name__: turn for turn in ALL}

if __name__ == "__main__":
    main()
