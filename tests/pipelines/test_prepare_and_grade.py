import csv
import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from dynamo_cli.datasets import JsonlSource
from dynamo_cli.errors import DynamoError
from dynamo_cli.grading import GRADER_VERSION
from dynamo_cli.ladder import LadderSource
from dynamo_cli.records import Completion, Problem, Verdict, read_jsonl, read_problems, write_jsonl
from pipelines import grade, prepare
from pipelines.grade import Response

PROBLEMS = [Problem("p", "2+2?", "4"), Problem("q", "3+3?", "6"), Problem("r", "4+4?", "8")]


def response(problem_id: str, rollout: int, text: str, tokens: int, finish="stop") -> Response:
    return Response(problem_id, rollout, text, finish, tokens)


RESPONSES = [
    response("q", 0, "\\boxed{6}", 4),
    response("p", 1, "\\boxed{5}", 2),
    response("p", 0, "\\boxed{4}", 3),
    response("p", 2, "hm", 10, "length"),
]


@pytest.fixture
def sums(tmp_path) -> Path:
    """A folder with completions of the suite `sums`; its problems stand beside it."""
    write_jsonl(tmp_path / "sums.jsonl", PROBLEMS)
    write_jsonl(tmp_path / "out" / "completions" / "sums.jsonl", RESPONSES)
    return tmp_path / "out"


def grade_sums(out: Path) -> dict[str, int]:
    return grade.run(out, suites={"sums": out.parent / "sums.jsonl"})


def test_prepare_writes_problems_and_tells_what_a_reader_should_know(tmp_path):
    rows = [{"problem": "2+2?", "answer": 4}, {"problem": "2+2?", "answer": "04"}]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "data" / "sums.jsonl"
    told = prepare.run(
        JsonlSource(kind="jsonl", path=str(source), rows=2), name="sums", out=out, data_dir=None
    )
    assert read_problems(out) == [
        Problem("sums-01", "2+2?", "4", source="sums"),
        Problem("sums-02", "2+2?", "4", source="sums"),
    ]
    assert told.problems == 2
    assert told.remarks == ["sums-02 repeats the statement of sums-01, with the same answer"]


def test_prepare_writes_the_same_bytes_each_time_and_nothing_beside_them(tmp_path):
    source = LadderSource(kind="ladder", levels=[2, 3], problems=8, split="suite", seed=1)
    for folder in ("a", "b"):
        prepare.run(source, name="ladder", out=tmp_path / folder / "l.jsonl", data_dir=None)
    assert (tmp_path / "a/l.jsonl").read_bytes() == (tmp_path / "b/l.jsonl").read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["l.jsonl"]


def test_prepare_leaves_no_file_where_the_data_are_wrong(tmp_path):
    source = tmp_path / "rows.jsonl"
    for text, message in (("", "holds no problems"), ('{"problem": "p"}\n', "no answer")):
        source.write_text(text, encoding="utf-8")
        section = JsonlSource(kind="jsonl", path=str(source), rows=None)
        with pytest.raises(DynamoError, match=message):
            prepare.run(section, name="sums", out=tmp_path / "out.jsonl", data_dir=None)
        assert not (tmp_path / "out.jsonl").exists()


def test_grade_writes_one_verdict_per_response_and_one_row_per_problem(sums):
    counts = grade_sums(sums)
    assert counts == {"ok": 2, "wrong": 1, "unparsable": 1, "timeout": 0, "error": 0}
    assert read_jsonl(sums / "verdicts.jsonl") == [
        {"suite": "sums", "problem_id": "q", "rollout": 0, "verdict": "ok"},
        {"suite": "sums", "problem_id": "p", "rollout": 1, "verdict": "wrong"},
        {"suite": "sums", "problem_id": "p", "rollout": 0, "verdict": "ok"},
        {"suite": "sums", "problem_id": "p", "rollout": 2, "verdict": "unparsable"},
    ]
    assert (sums / "scores.csv").read_text(encoding="utf-8").splitlines() == [
        "suite,problem_id,samples,graded,correct,ok,wrong,unparsable,timeout,error,"
        "truncated,mean_tokens",
        "sums,p,3,3,1,1,1,1,0,0,1,5.0",
        "sums,q,1,1,1,1,0,0,0,0,0,4.0",
        "sums,r,0,0,0,0,0,0,0,0,0,",
    ]


def test_suites_of_one_folder_are_graded_against_their_own_problems(sums):
    # The same ids and texts, other answers: only the suite tells them apart.
    write_jsonl(sums.parent / "other.jsonl", [replace(p, answer="5") for p in PROBLEMS])
    write_jsonl(sums / "completions" / "other.jsonl", RESPONSES[:3])
    problems = {name: sums.parent / f"{name}.jsonl" for name in ("sums", "other")}
    assert grade.run(sums, suites=problems)["ok"] == 3
    with (sums / "scores.csv").open(encoding="utf-8", newline="") as stream:
        right = {(row["suite"], row["problem_id"]): row["ok"] for row in csv.DictReader(stream)}
    assert right == {
        ("sums", "p"): "1",
        ("sums", "q"): "1",
        ("sums", "r"): "0",
        ("other", "p"): "1",
        ("other", "q"): "0",
        ("other", "r"): "0",
    }


def test_the_grader_joins_the_settings_that_scores_must_share(sums):
    sampled = {"settings": {"samples": 2}, "settings_hash": "of the sampler", "device": "cpu"}
    (sums / "manifest.json").write_text(json.dumps(sampled))
    counts = grade_sums(sums)
    manifest = json.loads((sums / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["device"] == "cpu"
    assert manifest["verdicts"] == counts
    assert manifest["settings"] == {
        "samples": 2,
        "grader": GRADER_VERSION,
        "math-verify": metadata.version("math-verify"),
    }
    assert manifest["settings_hash"] not in ("of the sampler", "")
    grade_sums(sums)
    again = json.loads((sums / "manifest.json").read_text(encoding="utf-8"))
    assert again == manifest, "grading twice says the same"


def test_the_order_of_completions_changes_no_score(sums):
    grade_sums(sums)
    forwards = (sums / "scores.csv").read_bytes()
    write_jsonl(sums / "completions" / "sums.jsonl", RESPONSES[::-1])
    grade_sums(sums)
    assert (sums / "scores.csv").read_bytes() == forwards


def test_timeouts_and_errors_are_samples_that_were_not_graded():
    verdicts = [Verdict.OK, Verdict.TIMEOUT, Verdict.ERROR, Verdict.UNPARSABLE]
    (row,) = grade.score("sums", PROBLEMS[1:2], [RESPONSES[0]] * 4, verdicts)
    counts = {name: row[name] for name in ("samples", "graded", "correct", *Verdict)}
    assert counts == {
        "samples": 4,
        "graded": 2,
        "correct": 1,
        "ok": 1,
        "wrong": 0,
        "unparsable": 1,
        "timeout": 1,
        "error": 1,
    }


def test_a_response_to_an_unknown_problem_is_an_error_that_names_it(sums):
    stray = [*RESPONSES, response("stranger", 0, "4", 1)]
    write_jsonl(sums / "completions" / "sums.jsonl", stray)
    with pytest.raises(DynamoError, match="'stranger', which is not among the 3 problems"):
        grade_sums(sums)
    assert [path.name for path in sums.iterdir()] == ["completions"]


def test_a_rollout_that_stands_twice_is_an_error(sums):
    write_jsonl(sums / "completions" / "sums.jsonl", [*RESPONSES, RESPONSES[0]])
    with pytest.raises(DynamoError, match="line 5: rollout 0 of problem 'q' occurs twice"):
        grade_sums(sums)


def test_a_response_is_read_with_its_tokens_or_with_their_number(tmp_path):
    whole = Completion("q", 0, 7, (1, 2), (5, 6, 7, 8), (0.0,) * 4, "stop", "\\boxed{6}")
    write_jsonl(tmp_path / "whole.jsonl", [whole])
    write_jsonl(tmp_path / "short.jsonl", [RESPONSES[0]])
    assert grade.read_responses(tmp_path / "whole.jsonl") == RESPONSES[:1]
    assert grade.read_responses(tmp_path / "short.jsonl") == RESPONSES[:1]


def test_an_unknown_finish_is_refused_and_not_taken_for_a_whole_response(tmp_path):
    write_jsonl(tmp_path / "odd.jsonl", [replace(RESPONSES[0], finish="abort")])
    with pytest.raises(DynamoError, match="line 1: finish is 'abort'"):
        grade.read_responses(tmp_path / "odd.jsonl")
