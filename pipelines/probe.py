"""Stage `probe`: what the gradients and entropies of a trained policy do, beside the theory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dynamo_cli.config import Params
from dynamo_cli.errors import DynamoError
from dynamo_cli.grading import Grader
from dynamo_cli.methods import Method
from dynamo_cli.models_io import load_model
from dynamo_cli.probes import agreement, variance
from dynamo_cli.probes.bank import build_bank
from dynamo_cli.probes.entropy import Policy, observe, without_modulation
from dynamo_cli.probes.invariance import LAYOUTS, Deviation, Layout, deviations
from dynamo_cli.probes.sampling import Source, some_problems
from dynamo_cli.probes.sketch import Sketch
from dynamo_cli.provenance import write_manifest
from dynamo_cli.records import Problem, draft, read_problems, write_json
from dynamo_cli.rollout.opening import open_sampler
from dynamo_cli.rollout.prompts import frame
from dynamo_cli.seeding import generator
from dynamo_cli.train.local_engine import LocalEngine

Report = Callable[[int, int], None]  # (done, in all)
PROBES = {
    "variance": "variance of gradients by problem, and of steps by allocation",
    "entropy": "first-order change of entropies against the measured one",
}
MOST_TOKENS = 4000  # that count in the agreement of changes of entropy
DIGITS = 9  # significant, of numbers in CSV files; further ones may differ between processors


@dataclass(frozen=True)
class Lab:
    """A policy opened for probing."""

    params: Params
    policy: Path
    problems: Path
    pool: list[Problem]
    module: Any
    tokenizer: Any
    source: Source

    def engine(self) -> LocalEngine:
        """The policy in training's own engine."""
        training = self.params.training
        temperature = training.sampling.temperature
        return LocalEngine(self.module, self.tokenizer, training.optimiser, temperature=temperature)

    def some(self, count: int, place: str) -> list[Problem]:
        """So many problems of the pool."""
        return some_problems(self.pool, count, seed=self.params.probes.seed, place=place)


def find(name: str) -> None:
    """Raises DynamoError listing the known probes where there is none of that name."""
    if name not in PROBES:
        known = "; ".join(f"{key} ({summary})" for key, summary in PROBES.items())
        raise DynamoError(f"there is no probe {name!r}; known probes: {known}")


def run(
    name: str,
    *,
    params: Params,
    policy: Path,
    template: str | None,
    problems: Path,
    out: Path,
    report: Report,
) -> dict[str, pd.DataFrame]:
    """Probe a policy on training problems; writes CSV files, summary.json and manifest.json.

    Returns the tables by the name of their file.
    """
    find(name)
    started = time.monotonic()
    with opened(params, policy, template, problems) as lab:
        probe = probe_variance if name == "variance" else probe_entropy
        tables = probe(lab, report)
        device = str(next(lab.module.parameters()).device)
    summary = summary_of(name, tables)
    with draft(out) as scratch:
        scratch.mkdir()
        for stem, table in tables.items():
            text = table.to_csv(index=False, lineterminator="\n", float_format=f"%.{DIGITS}g")
            (scratch / f"{stem}.csv").write_text(text, encoding="utf-8", newline="\n")
        write_json(scratch / "summary.json", summary | {"policy": run_name(policy)})
        write_manifest(
            scratch / "manifest.json",
            parameters={
                "probes": params.probes.model_dump(),
                "training": params.training.model_dump(),
                "methods": {m: params.methods[m].model_dump() for m in involved(params, name)},
            },
            inputs={"policy": policy, "problems": problems},
            device=device,
            seconds=time.monotonic() - started,
            probe=name,
        )
    return tables


def summary_of(name: str, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The numbers to look at first."""
    if name == "variance":
        found = (tables[stem] for stem in ("problems", "proxies", "allocations"))
        return variance.summary(*found)
    return agreement.summary(tables["tokens"], tables["agreement"])


def run_name(policy: Path) -> str:
    """The cell that a policy is of, or its own folder's name."""
    return policy.resolve().parent.name if policy.name == "policy" else policy.resolve().name


def involved(params: Params, name: str) -> list[str]:
    """The methods whose parts a probe uses."""
    allocations = params.probes.variance.allocations if name == "variance" else []
    return list(dict.fromkeys([params.probes.method, *allocations]))


@contextmanager
def opened(params: Params, policy: Path, template: str | None, problems: Path) -> Iterator[Lab]:
    """The policy, its sampler and its grader. Raises DynamoError for a run that is not complete."""
    if policy.name == "policy" and not (policy.parent / "manifest.json").is_file():
        raise DynamoError(
            f"{policy.parent} holds no manifest.json, so its training is not complete; "
            "run the same `dynamo train` again"
        )
    if not (policy / "config.json").is_file() and (policy / "policy").is_dir():
        raise DynamoError(f"{policy} is a run; give its policy: --policy {policy / 'policy'}")
    if not problems.is_file():
        raise DynamoError(f"{problems}: no such file; run `dynamo prepare` first")
    params.compute.apply()
    device = params.compute.torch_device
    module, tokenizer = load_model(policy, dtype=params.compute.dtype, device=device)
    pool = read_problems(problems)
    framing = template or ("chat" if tokenizer.chat_template else "plain")
    engine = open_sampler(
        params.engines[params.training.sampler],
        policy,
        share=(module, tokenizer),
        report_scores=False,
        dtype=params.compute.dtype,
        device=device,
    )
    with Grader() as grader:
        source = Source(
            engine=engine,
            sampling=params.training.sampling,
            grader=grader,
            prompts={p.id: frame(p.question, framing, tokenizer) for p in pool},
            seed=params.probes.seed,
        )
        yield Lab(params, policy, problems, pool, module, tokenizer, source)
    engine.close()


def probe_variance(lab: Lab, report: Report) -> dict[str, pd.DataFrame]:
    """Problems with their sigma^2, the fit of each proxy, and steps under each allocation."""
    params, settings = lab.params, lab.params.probes.variance
    training = params.training
    setting = variance.Setting(
        per_step=training.problems_per_step,
        budget=training.rollouts_per_step,
        known=settings.known,
        histories=settings.histories,
        draws=settings.draws,
        resamples=params.probes.resamples,
        seed=params.probes.seed,
    )
    chosen = lab.some(settings.problems, "probes.variance.problems")
    require_whole_steps(settings.problems, training.problems_per_step)
    work = 2 * len(chosen)  # of which half is done problem by problem
    rated = lab.source.judged(chosen, settings.rated, "rated")
    banked = lab.source.judged(chosen, settings.rollouts, "bank")
    sketch = Sketch(settings.dimension, seed=params.probes.seed)
    subjects = []
    for done, problem in enumerate(chosen, start=1):
        completions, correct = zip(*banked[problem.id], strict=True)
        bank = build_bank(
            lab.module,
            completions,
            correct,
            sketch,
            temperature=training.sampling.temperature,
            pad_token=lab.tokenizer.pad_token_id,
            room=training.tokens_per_microbatch,
        )
        right = np.array([judged for _, judged in rated[problem.id]], dtype=np.float64)
        subjects.append(variance.Subject(problem.id, problem.level, right, bank))
        report(done, work)
    problems = variance.problem_table(subjects, setting)
    allocations = {m: params.methods[m].allocation for m in settings.allocations}
    steps = variance.step_table(
        subjects,
        problems,
        allocations,
        setting,
        report=lambda done, total: report(work // 2 + done * len(chosen) // total, work),
    )
    return {
        "problems": problems,
        "proxies": variance.proxy_table(problems, setting),
        "steps": steps,
        "allocations": variance.allocation_table(steps, setting),
        "law": variance.law_table(subjects, setting),
    }


def require_whole_steps(problems: int, per_step: int) -> None:
    """Raises DynamoError where the probed problems do not fill whole steps."""
    if problems % per_step:
        raise DynamoError(
            f"probes.variance.problems is {problems}, no multiple of training.problems_per_step "
            f"{per_step}; set it to {max(1, problems // per_step) * per_step}"
        )


def probe_entropy(lab: Lab, report: Report) -> dict[str, pd.DataFrame]:
    """Tokens with predicted and measured changes, and how far these agree.

    In double precision, so that differences of entropies are no rounding.
    """
    params, settings = lab.params, lab.params.probes.entropy
    training = params.training
    size = training.problems_per_step
    chosen = lab.some(settings.steps * size, "probes.entropy.steps")
    method = without_modulation(params.methods[params.probes.method])
    each = training.rollouts_per_step // size
    sampled = [
        lab.source.step(chosen[start : start + size], each, method)
        for start in range(0, len(chosen), size)
    ]
    engine = replace(lab, module=lab.module.double()).engine()
    policy = Policy(
        lab.module,
        lambda batch, gradient: engine.score(batch, gradient=gradient),
        pad_token=lab.tokenizer.pad_token_id,
        room=training.tokens_per_microbatch,
    )
    parts = []
    for step, rollouts in enumerate(sampled):
        share = settings.alone * (step + 1) // len(sampled) - settings.alone * step // len(sampled)
        part = observe(
            policy,
            rollouts,
            method,
            rate=settings.learning_rate,
            optimiser=training.optimiser,
            alone=share,
            source=generator(params.probes.seed, "alone", step),
        )
        part.insert(0, "step", step)
        parts.append(part)
        report(step + 1, len(sampled))
    tokens = pd.concat(parts, ignore_index=True)
    agreed = agreement.agreement_table(
        tokens, most=MOST_TOKENS, resamples=params.probes.resamples, seed=params.probes.seed
    )
    return {"tokens": tokens, "agreement": agreed}


def check_invariance(
    params: Params,
    methods: dict[str, Method],
    *,
    policy: Path,
    template: str | None,
    problems: Path,
    layouts: tuple[Layout, ...] = LAYOUTS,
) -> Iterator[tuple[str, list[Deviation]]]:
    """Each method's name and how far one step's gradients differ between layouts.

    The step is sampled from the policy with equal counts; each method learns from it afresh,
    in double precision, so that rounding neither feigns a difference nor hides one.
    """
    training = params.training
    with opened(params, policy, template, problems) as lab:
        chosen = lab.some(training.problems_per_step, "training.problems_per_step")
        each = training.rollouts_per_step // training.problems_per_step
        steps = {name: lab.source.step(chosen, each, m) for name, m in methods.items()}
        lab.module.double()
        first = {k: v.clone() for k, v in lab.module.state_dict().items()}
        for name, method in methods.items():
            lab.module.load_state_dict(first)
            yield (
                name,
                deviations(
                    lab.engine(),
                    lab.module,
                    steps[name],
                    method,
                    updates=training.updates_per_step,
                    room=training.tokens_per_microbatch,
                    pad_token=lab.tokenizer.pad_token_id,
                    seed=params.probes.seed,
                    layouts=layouts,
                ),
            )
