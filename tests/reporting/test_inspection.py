"""Responses in the terminal: filters, colours, and nothing that steers it."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from studies import MODEL, dynamo, make_study

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting.inspection import (
    QUANTITIES,
    Response,
    choose,
    coloured,
    extremes,
    ground,
    printable,
    reaches,
    read_evaluation,
    read_record,
)
from dynamo_cli.reporting.inspection_page import inspection_page

RUN, EVAL = f"{MODEL}-dynamo-1", f"outputs/evals/{MODEL}-dynamo-1"


@pytest.fixture(scope="module")
def study(root, tmp_path_factory):
    return make_study(root, tmp_path_factory.mktemp("study"))


def response(**fields) -> Response:
    given = {"problem": "p", "question": "", "answer": "", "rollout": 0, "verdict": "ok"}
    given |= {"finish": "stop", "num_tokens": 3, "text": "abc", "pieces": ("a", "b", "c")}
    return Response(**(given | fields))


def shown(study, *words):
    result = dynamo(study, "inspect", *words)
    assert result.exit_code == 0, result.output
    return result


def test_a_run_shows_its_recorded_responses_with_what_became_of_them(study):
    result = shown(study, RUN, "--problem", "p-1", "--step", "5", "--verdict", "ok")
    assert "p-1 · step 5 · rollout 0 · ✓ ok · advantage +1.00 · 4 tokens" in result.stdout
    assert "#2<|end|>" in result.stdout
    assert "reference: 2" in result.stdout
    assert "1 of 1 that fit, of 18 in all" in result.stderr


def test_an_evaluation_shows_questions_and_plain_text_and_says_how_to_record(study):
    result = shown(study, EVAL, "--verdict", "wrong", "--limit", "2")
    assert "ladder-2 · ladder-2-0 · rollout 3 · ✗ wrong · 4 tokens" in result.stdout
    assert result.stdout.count("reference: ") == 2
    assert "2 of 6 that fit, of 24 in all" in result.stderr
    assert "training.record={problems: 4, every: 1}" in result.stderr


def test_five_are_shown_unless_asked_otherwise(study):
    assert shown(study, EVAL).stdout.count(" tokens") == 5
    assert shown(study, EVAL, "--limit", "7").stdout.count(" tokens") == 7


def test_a_name_finds_the_recorded_run_and_otherwise_the_evaluation(study):
    assert "step 1" in shown(study, RUN).stdout
    assert "ladder-2" in shown(study, f"{MODEL}-grpo-1").stdout


def test_no_control_character_reaches_the_terminal(study):
    for name in (RUN, EVAL):
        out = shown(study, name, "--verdict", "wrong", "--limit", "20").stdout
        assert "<img src=x" in out
        assert "\x1b" not in out
    assert printable("a\x1b[31m\x07\x7f\x9b\u202eb\n\t") == "a␛[31m␇␡␡␡b\n\t"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("nobody",), "there is no folder 'nobody'"),
        ((f"outputs/runs/{MODEL}-grpo-1",), "rollouts.parquet has no rollouts; .*training.record"),
        ((RUN, "--problem", "p-9"), "no response with problem p-9; there are p-0, p-1"),
        ((RUN, "--step", "2"), "no response with step 2; there are 1, 5, 9"),
        ((EVAL, "--step", "2"), "none of them has a step"),
        ((RUN, "--verdict", "right"), "no verdict 'right'; there are ok, wrong, unparsable"),
        ((RUN, "--verdict", "error"), "no response with verdict error; there are ok, wrong"),
        ((RUN, "--colour", "reward"), "no such colour; there are entropy, change, factor, none"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(study, words, complaint):
    result = dynamo(study, "inspect", *words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert re.search(complaint, result.stderr), result.stderr


def test_missing_verdicts_are_named_with_the_command_that_makes_them(study, tmp_path):
    (tmp_path / "completions").mkdir()
    source = study / EVAL / "completions" / "ladder-2.jsonl"
    (tmp_path / "completions" / "ladder-2.jsonl").write_text(source.read_text())
    with pytest.raises(DynamoError, match="dynamo grade"):
        read_evaluation(tmp_path, {})
    (tmp_path / "verdicts.jsonl").write_text("")
    with pytest.raises(DynamoError, match="no verdict on rollout 0 of ladder-2-0"):
        read_evaluation(tmp_path, {})


def test_a_missing_or_damaged_record_is_refused(tmp_path):
    with pytest.raises(DynamoError, match="holds no rollouts.parquet; train this run again"):
        read_record(tmp_path)
    (tmp_path / "rollouts.parquet").write_bytes(b"PAR1")
    with pytest.raises(DynamoError, match="cannot be read"):
        read_record(tmp_path)


def test_filters_hold_together():
    rows = [
        response(problem=problem, step=step, verdict=verdict)
        for problem in "ab"
        for step in (1, 2)
        for verdict in ("ok", "wrong")
    ]
    assert choose(rows) == rows
    assert choose(rows, problem="b", step=2, verdict="wrong") == [rows[-1]]


def test_colours_are_strong_where_values_are_far_from_the_middle():
    factor = QUANTITIES["factor"]
    assert [factor.level(x, 0.2) for x in (1.0, 1.1, 1.2, 1.5, 0.9)] == pytest.approx(
        [0, 0.5, 1, 1, -0.5]
    )
    assert factor.level(float("nan"), 0.2) == 0
    assert QUANTITIES["entropy"].level(1.0, 0.0) == 0
    assert ground(0) == ""
    assert ground(1) == "black on rgb(230,120,20)"
    assert ground(-1) == "black on rgb(40,130,200)"


def test_the_scale_reaches_as_far_as_all_but_a_hundredth_of_the_tokens():
    values = {key: np.arange(101) / 100 for key in QUANTITIES}
    row = response(values=values, pieces=("x",) * 101)
    reach = reaches([row, response()])
    assert reach["entropy"] == pytest.approx(0.99)
    assert reach["factor"] == pytest.approx(0.99)  # of |x - 1|
    assert reaches([response()]) == {"entropy": 0.0, "change": 0.0, "factor": 0.0}


def test_tokens_are_coloured_on_a_terminal_and_not_where_colour_is_unwanted(monkeypatch):
    values = {key: np.array([0.0, 0.5, 1.0]) for key in QUANTITIES}
    text = coloured(response(values=values), "entropy", 1.0)

    def drawn() -> str:
        stream = io.StringIO()
        Console(file=stream, force_terminal=True, color_system="truecolor").print(text)
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "48;2;230;120;20mc" in drawn()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;" not in drawn()
    assert "abc" in drawn()


def test_the_farthest_tokens_are_told_in_words():
    values = {key: np.array([0.9, np.nan, 1.4]) for key in QUANTITIES}
    assert extremes(response(values=values), "factor") == "'c' 1.4  'a' 0.9"
    assert extremes(response(), "factor") == ""


def test_the_page_holds_every_response_as_data(study):
    rows = read_record(study / "outputs" / "runs" / RUN)
    text = inspection_page(rows, title="<t>", remedy="r")
    packed = text.partition('<script type="application/json" id="data">')[2]
    data = json.loads(packed.partition("</script>")[0])
    assert len(data["responses"]) == len(rows) == 18
    assert data["quantities"]["change"]["reach"] == pytest.approx(0.2)
    for row, kept in zip(rows, data["responses"], strict=True):
        assert "".join(kept["pieces"]) == row.text
        assert kept["values"]["factor"] == pytest.approx(row.values["factor"], rel=1e-3)
    assert "<title>&lt;t&gt;</title>" in text
    assert text.count("<script") == 2


def test_the_page_takes_the_filters_and_all_that_fit(study):
    result = shown(study, EVAL, "--verdict", "wrong", "--html", "wrong.html")
    assert "wrong.html: 6 of 24 responses" in result.stdout
    text = (study / "wrong.html").read_text()
    assert text.count('"verdict":"wrong"') == 6
    assert '"verdict":"ok"' not in text
    assert "training.record" in text
