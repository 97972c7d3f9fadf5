import json

import pytest

from dynamo_cli.errors import DynamoError
from dynamo_cli.records import (
    Problem,
    Verdict,
    draft,
    read_jsonl,
    read_problems,
    write_json,
    write_jsonl,
)
from dynamo_cli.seeding import derive, generator


def test_problems_survive_a_round_trip(tmp_path):
    problems = [Problem("a", "1+1?", "2"), Problem("b", "π\u2028?", "3", level=4)]
    write_jsonl(tmp_path / "p.jsonl", problems)
    assert read_problems(tmp_path / "p.jsonl") == problems


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"id": "a", "question": "q"', "line 2"),
        ('["a"]', "line 2: expected a JSON object, found list"),
        ('{"id": "a", "question": "q"}', "line 2.*answer"),
        ('{"id": "x", "question": "q", "answer": "1"}', "line 2: the id 'x' occurs twice"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path, line, complaint):
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": "x", "question": "q", "answer": "1"}\n' + line)
    with pytest.raises(DynamoError, match=complaint) as caught:
        read_problems(file)
    assert str(file) in str(caught.value)


def test_a_file_without_problems_is_no_suite(tmp_path):
    (tmp_path / "p.jsonl").touch()
    with pytest.raises(DynamoError, match="no problems"):
        read_problems(tmp_path / "p.jsonl")


def test_a_failed_write_leaves_the_old_file_and_no_scrap(tmp_path):
    file = tmp_path / "value.json"
    write_json(file, 1)
    with pytest.raises(ValueError, match="nan"):
        write_json(file, float("nan"))
    rows = ({"n": 1 / n} for n in (1, 0))
    with pytest.raises(ZeroDivisionError):
        write_jsonl(file, rows)
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]
    assert json.loads(file.read_text()) == 1


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with draft(target) as scratch:
            scratch.mkdir()
            (scratch / name).touch()
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_jsonl_reads_plain_dicts_by_default(tmp_path):
    write_jsonl(tmp_path / "r.jsonl", [{"a": 1}])
    assert read_jsonl(tmp_path / "r.jsonl") == [{"a": 1}]


def test_failures_of_the_verifier_are_not_grades():
    assert {v for v in Verdict if v.graded} == {Verdict.OK, Verdict.WRONG, Verdict.UNPARSABLE}
    assert {v for v in Verdict if v.correct} == {Verdict.OK}


def test_seeds_depend_on_every_name_and_nothing_else():
    assert derive(1, "rollout", 3, "p", 0) == derive(1, "rollout", 3, "p", 0)
    names = [(1, "a", 1), (1, "a", 2), (2, "a", 1), (1, "a1"), (1, "a", "1", "")]
    assert len({derive(*name) for name in names}) == len(names)
    assert all(0 <= derive(n, "x") < 2**63 for n in range(100))
    assert generator(1, "a").integers(1 << 30) == generator(1, "a").integers(1 << 30)
