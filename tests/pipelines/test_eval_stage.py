"""An evaluation goes on after any interruption, and samples nothing twice."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynamo_cli.cli import app
from dynamo_cli.config import load_params
from dynamo_cli.errors import DynamoError
from dynamo_cli.ladder import LadderSource, read_ladder
from dynamo_cli.models_io import load_tokenizer
from dynamo_cli.records import read_jsonl, read_problems, write_jsonl
from dynamo_cli.reporting.results import collect
from dynamo_cli.rollout.engine import Transformers
from dynamo_cli.rollout.scripted import ScriptedEngine
from pipelines import eval as stage
from pipelines import grade, sample

PROBLEMS = 3  # in each of two suites
RESULTS = ("scores.csv", "verdicts.jsonl", "summary.json", "completions")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an evaluation but its manifest, which holds times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if path.name != "manifest.json"
    }


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


class Scripted(ScriptedEngine):
    """Answers by the request's seed, last request first, and counts what it was asked."""

    def __init__(self, tokenizer, log, *, dies_after=None):
        super().__init__(lambda request: f"1+1#{request.seed % 9}", tokenizer)
        self.log, self.dies_after = log, dies_after

    def generate(self, requests, sampling, arrived=None):
        completions = {}
        for request in reversed(requests):
            if len(completions) == self.dies_after:
                raise KeyboardInterrupt
            self.log.append((request.problem_id, request.rollout))
            (completions[request],) = super().generate([request], sampling, arrived)
        return [completions[request] for request in requests]


class Case:
    """Two suites, a policy folder, and a scripted engine in place of the real one."""

    def __init__(self, root: Path, home: Path, monkeypatch) -> None:
        self.home, self.monkeypatch = home, monkeypatch
        self.asked: list[tuple[str, int]] = []
        self.said: list[str] = []
        self.reports: list[tuple] = []
        shutil.copytree(root / "dynamo_cli" / "models" / "ladder-small", home / "policy")
        for suite, level in (("easy", 1), ("hard", 3)):
            source = LadderSource(
                kind="ladder", levels=[level], problems=PROBLEMS, split="suite", seed=5
            )
            write_jsonl(home / f"{suite}.jsonl", read_ladder(suite, source))
        params = load_params(root / "params.yaml")
        self.plan = stage.Plan(
            policy=home / "policy",
            template="plain",
            suites={name: home / f"{name}.jsonl" for name in ("easy", "hard")},
            out=home / "out",
            evaluation=params.evaluation.model_copy(update={"samples": 4, "ks": [1]}),
            engine=Transformers(kind="hf", max_batch_tokens=65536),
            compute=params.compute,
            work=home / "work",
        )
        self.tokenizer = load_tokenizer(home / "policy")
        self.engine(dies_after=None)

    def engine(self, *, dies_after: int | None) -> None:
        self.monkeypatch.setattr(
            sample,
            "open_engine",
            lambda *a, **k: (Scripted(self.tokenizer, self.asked, dies_after=dies_after), None),
        )

    def run(self, *, dies_after: int | None = None, samples: int | None = None, **changes) -> Path:
        """Evaluate with the plan changed so; what is asked of the engine is in `asked`."""
        plan = dataclasses.replace(self.plan, **changes)
        if samples is not None:
            evaluation = plan.evaluation.model_copy(update={"samples": samples})
            plan = dataclasses.replace(plan, evaluation=evaluation)
        self.asked.clear()
        self.said.clear()
        self.engine(dies_after=dies_after)
        stage.run(plan, report=lambda *a, **k: self.reports.append((a, k)), say=self.said.append)
        return plan.out

    def run_until(self, count: int, **changes) -> None:
        """Evaluate until `count` responses are there, and be interrupted."""
        with pytest.raises(KeyboardInterrupt):
            self.run(dies_after=count, **changes)


@pytest.fixture
def case(root, tmp_path, monkeypatch) -> Case:
    return Case(root, tmp_path, monkeypatch)


def test_files_stand_in_the_order_of_the_problems_whatever_came_first(case):
    out = case.run()
    for suite in ("easy", "hard"):
        ids = [problem.id for problem in read_problems(case.home / f"{suite}.jsonl")]
        rows = read_jsonl(out / "completions" / f"{suite}.jsonl")
        assert [(r["problem_id"], r["rollout"]) for r in rows] == [
            (id_, rollout) for id_ in ids for rollout in range(4)
        ]
        assert set(rows[0]) == {"problem_id", "rollout", "seed", "finish", "num_tokens", "text"}
    assert {path.name for path in out.iterdir()} == {"manifest.json", *RESULTS}
    assert not any(case.plan.work.iterdir()), "a complete evaluation leaves no journal"


@pytest.mark.parametrize("count", [0, 1, 11, 23])
def test_an_interrupted_evaluation_ends_in_the_same_bytes_and_samples_nothing_twice(case, count):
    whole = contents(case.run(out=case.home / "whole"))
    case.run_until(count)
    first = list(case.asked)
    assert not case.plan.out.exists(), "nothing half-written"
    assert contents(case.run()) == whole
    assert len(first) == count
    assert len(case.asked) == manifest_of(case.plan.out)["sampled"] == 24 - count
    assert len({*first, *case.asked}) == 24
    assert ("are there" in case.said[0]) == (count > 0)


def test_more_samples_add_to_those_of_a_finished_evaluation(case):
    case.run(samples=2)
    out = case.run(samples=5)
    assert sorted({rollout for _, rollout in case.asked}) == [2, 3, 4]
    assert len(case.asked) == 6 * 3
    assert contents(out) == contents(case.run(samples=5, out=case.home / "fresh"))


def test_more_samples_add_to_those_of_an_interrupted_evaluation(case):
    case.run_until(7, samples=2)
    done = set(case.asked)
    out = case.run(samples=5)
    assert len(case.asked) == 30 - 7
    assert not done & set(case.asked)
    assert contents(out) == contents(case.run(samples=5, out=case.home / "fresh"))


def test_a_finished_evaluation_is_neither_sampled_nor_graded_again_and_says_so(case, monkeypatch):
    out = case.run()
    manifest = manifest_of(out)
    monkeypatch.setattr(grade, "run", None)  # calling it would fail
    case.run()
    assert case.asked == []
    assert "holds these 24 responses" in case.said[0]
    assert manifest_of(out) == manifest


def test_another_grader_grades_again_and_samples_nothing(case, monkeypatch):
    out = case.run()
    before = contents(out)
    (out / "scores.csv").write_text("of the old grader")
    monkeypatch.setattr(grade, "GRADER_VERSION", "next")
    case.run()
    assert case.asked == []
    assert contents(out) == before
    assert manifest_of(out)["settings"]["grader"] == "next"


def test_a_changed_question_alone_is_sampled_again_after_an_interruption(case):
    case.run_until(23)  # all but easy's first
    rows = read_jsonl(case.home / "hard.jsonl")
    rows[1]["question"] = rows[0]["question"]
    write_jsonl(case.home / "hard.jsonl", rows)
    case.run()
    changed = {(f"hard/{rows[1]['id']}", rollout) for rollout in range(4)}
    first = (f"easy/{read_jsonl(case.home / 'easy.jsonl')[0]['id']}", 0)
    assert set(case.asked) == changed | {first}


def test_of_a_finished_evaluation_the_suites_that_did_not_change_are_taken_over(case):
    case.run()
    rows = read_jsonl(case.home / "hard.jsonl")
    write_jsonl(case.home / "hard.jsonl", rows[:2])
    case.run()
    assert {problem_id.split("/")[0] for problem_id, _ in case.asked} == {"hard"}
    assert len(case.asked) == 2 * 4


@pytest.mark.parametrize("what", ["sampling", "seed", "template", "policy", "dtype"])
def test_responses_under_other_terms_are_not_taken(case, what):
    evaluation, changes = case.plan.evaluation, {}
    if what == "sampling":
        sampling = evaluation.sampling.model_copy(update={"temperature": 0.6})
        changes["evaluation"] = evaluation.model_copy(update={"sampling": sampling})
    elif what == "seed":
        changes["evaluation"] = evaluation.model_copy(update={"seed": 1})
    elif what == "template":
        changes["template"] = "boxed"
    elif what == "dtype":
        changes["compute"] = case.plan.compute.model_copy(update={"dtype": "bfloat16"})
    case.run()
    case.run_until(5, out=case.home / "other", samples=5)
    if what == "policy":
        config = case.home / "policy" / "generation_config.json"
        config.write_text(config.read_text() + "\n")
    case.run(**changes)
    assert len(case.asked) == 24


def test_the_device_is_told_but_not_part_of_the_settings(case):
    manifest = manifest_of(case.run())
    assert manifest["device"] == "cpu"
    assert set(manifest["settings"]) == {
        "engine", "engine_version", "context", "dtype", "sampling", "seed", "template", "samples",
        "grader", "math-verify",
    }  # fmt: skip


def test_nothing_of_another_policy_stays_in_the_folder(case):
    case.run()
    out = case.run(suites={"easy": case.plan.suites["easy"]}, template="boxed")
    assert [file.name for file in (out / "completions").iterdir()] == ["easy.jsonl"]
    assert set(json.loads((out / "summary.json").read_text())["suites"]) == {"easy"}


def test_two_evaluations_of_one_policy_do_not_take_each_others_journal(case):
    easy, hard = ({name: case.plan.suites[name]} for name in ("easy", "hard"))
    case.run_until(9, suites=hard, out=case.home / "hard")
    case.run(suites=easy, out=case.home / "easy")
    assert len(case.asked) == 12
    case.run(suites=hard, out=case.home / "hard")
    assert len(case.asked) == 12 - 9


def test_the_report_counts_all_responses_and_expects_the_mean_length_of_the_rest(case):
    case.run_until(20)
    case.reports.clear()
    case.run()
    # Each response is 1+1#d and the end token: 6 tokens. Four are left of 24.
    (first, told), *_ = case.reports
    assert first == (21, 24)
    assert told == {"tokens": 6, "expected": 4 * 6}
    assert case.reports[-1] == ((24, 24), {"tokens": 24, "expected": 24})


def test_without_a_response_nothing_is_expected(case):
    heard = []
    with sample.Journal(case.home / "work", [sample.Request("s/p", 0, (1,), 2)]) as journal:
        arrived = sample.listener(journal, lambda *a, **k: heard.append((a, k)))
        arrived([], 5)
    assert heard == [((0, 1), {"tokens": 5, "expected": None})]


def test_a_chat_template_that_is_not_there_is_one_line_before_any_engine_opens(case, monkeypatch):
    monkeypatch.setattr(sample, "open_engine", None)
    with pytest.raises(
        DynamoError, match="template chat: .*no chat template.*--template"
    ) as caught:
        stage.run(dataclasses.replace(case.plan, template="chat"), report=None, say=None)
    assert "\n" not in str(caught.value)
    assert not case.plan.out.exists()


def test_cells_with_unlike_evaluations_are_refused_in_one_table(case):
    evals = case.home / "evals"
    sampling = case.plan.evaluation.sampling.model_copy(update={"max_tokens": 50})
    other = case.plan.evaluation.model_copy(update={"sampling": sampling})
    grid = {"models": ["m"], "methods": ["a", "b"], "seeds": [1], "suites": ["easy", "hard"]}
    case.run(out=evals / "m-a-1")
    case.run(out=evals / "m-b-1")
    assert len(collect(evals, **grid, base=False).scores) == 2 * 2 * PROBLEMS
    case.run(out=evals / "m-b-1", evaluation=other, template="boxed")
    hashes = {manifest_of(evals / cell)["settings_hash"] for cell in ("m-a-1", "m-b-1")}
    assert len(hashes) == 2
    with pytest.raises(DynamoError, match=r"different settings \(sampling, template\)"):
        collect(evals, **grid, base=False)


SLOWLY = """
import sys, time
from dynamo_cli.rollout.journal import Journal
write = Journal._write
def slowly(self, row):
    write(self, row)
    time.sleep(0.05)
Journal._write = slowly
from dynamo_cli.cli import main
main()
"""


@pytest.fixture
def begun(root, tmp_path, monkeypatch):
    """An evaluation into `cut` that has some responses and takes its time; and its options."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(root / "dynamo_cli" / "models" / "ladder-small", tmp_path / "policy")
    words = ["--policy", "policy", "--bench", "ladder-2,ladder-4", "--samples", "2"]
    words += ["--params", str(root / "params.yaml"), "--set", f"paths.work={tmp_path}/work"]
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, "eval", "cut", *words])
    deadline = time.monotonic() + 120
    while whole_lines(tmp_path) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    yield process, words
    process.kill()
    process.wait()


def test_equal_policies_can_be_evaluated_at_the_same_time(begun):
    process, words = begun
    beside = CliRunner().invoke(app, ["eval", "beside", *words])
    assert beside.exit_code == 0, beside.output
    again = CliRunner().invoke(app, ["eval", "cut", *words])
    assert process.poll() is None, "the first one ended too early for this test"
    assert again.exit_code == 2
    assert "is being written by another process" in again.stderr


def test_an_evaluation_killed_with_sigkill_goes_on_with_what_is_missing(begun, tmp_path):
    process, words = begun
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut").exists()
    done = whole_lines(tmp_path)
    assert 5 <= done < 128
    torn = next(tmp_path.glob("work/eval-*/*.jsonl"))
    torn.write_bytes(torn.read_bytes() + b'{"problem_id": "ladder-2/la')

    for out in ("cut", "whole"):
        finished = CliRunner().invoke(app, ["eval", out, *words])
        assert finished.exit_code == 0, finished.output
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert manifest_of(tmp_path / "cut")["sampled"] == 128 - done
    assert manifest_of(tmp_path / "whole")["sampled"] == 128


def whole_lines(home: Path) -> int:
    """How many responses the journals below a folder hold for sure."""
    return sum(file.read_bytes().count(b"\n") for file in home.glob("work/eval-*/*.jsonl"))
