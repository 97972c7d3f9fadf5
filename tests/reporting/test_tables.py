import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fakes import SETTINGS, write_eval
from rich.console import Console

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting import markup, tables
from dynamo_cli.reporting.results import collect, read_scores
from pipelines import table as stage

SAMPLES = 8


def draw(problems: int, chance: float, *, seed: int) -> list[int]:
    return np.random.default_rng(seed).binomial(SAMPLES, chance, problems).tolist()


@pytest.fixture
def evals(tmp_path: Path) -> Path:
    """Base and GRPO are near each other; DynaMO leads clearly on `easy`, by a hair on `hard`."""
    root = tmp_path / "evals"
    hard = draw(40, 0.3, seed=9)
    cells = {
        "base": (draw(60, 0.35, seed=1), draw(40, 0.1, seed=2)),
        "grpo-1": (draw(60, 0.4, seed=3), hard),
        "odd_one-1": (draw(60, 0.38, seed=4), draw(40, 0.12, seed=5)),
        "dynamo-1": (draw(60, 0.8, seed=6), [min(hard[0] + 1, SAMPLES), *hard[1:]]),
    }
    for name, (easy, harder) in cells.items():
        write_eval(root / f"my_model-{name}", suites={"easy": easy, "hard_50%": harder})
    return root


@pytest.fixture
def table(evals) -> tables.MainTable:
    return tables.main(gather(evals), ks=[1, 4], reference="grpo", seed=0, resamples=2000)


def gather(evals: Path):
    return collect(
        evals,
        models=["my_model"],
        methods=["grpo", "odd_one", "dynamo"],
        seeds=[1],
        suites=["easy", "hard_50%"],
    )


def cell(table: tables.MainTable, method: str, suite: str, metric: str = "pass@1") -> pd.Series:
    rows = table.rows
    found = rows[(rows.method == method) & (rows.suite == suite) & (rows.metric == metric)]
    assert len(found) == 1
    return found.iloc[0]


def test_values_are_means_over_problems_and_the_average_is_over_suites(table):
    easy = np.mean(draw(60, 0.4, seed=3)) / SAMPLES
    hard = np.mean(draw(40, 0.3, seed=9)) / SAMPLES
    assert cell(table, "grpo", "easy").value == pytest.approx(easy, abs=1e-6)
    assert cell(table, "grpo", "average").value == pytest.approx((easy + hard) / 2, abs=1e-6)
    gap = cell(table, "dynamo", "hard_50%")
    assert gap.diff_to_grpo == pytest.approx(1 / 8 / 40, abs=1e-6)


def test_the_tidy_rows_hold_every_cell_once_in_the_promised_columns(table):
    promised = "model method suite metric value low high diff_to_grpo diff_low diff_high p p_holm"
    assert " ".join(table.rows.columns) == (
        f"{promised} seeds problems samples best published diff_to_published"
        " se_problems se_sampling se_seeds diff_se_problems diff_se_sampling diff_se_seeds"
    )
    assert len(table.rows) == 4 * 3 * 2  # methods, suites with the average, metrics
    assert (table.rows.low <= table.rows.value).all()
    assert (table.rows.value <= table.rows.high).all()
    assert table.rows[table.rows.method == "grpo"].diff_low.isna().all()


def test_only_a_lead_beyond_doubt_is_marked_best(table):
    assert cell(table, "dynamo", "easy").best
    # One more right answer of 320: ahead, but the interval of the lead reaches 0.
    assert not cell(table, "dynamo", "hard_50%").best
    assert table.rows[table.rows.best].method.unique().tolist() == ["dynamo"]


def test_markdown_shows_percent_names_bold_and_notes(table):
    text = markup.markdown(table)
    value = 100 * np.mean(draw(60, 0.8, seed=6)) / SAMPLES
    row = next(line for line in text.splitlines() if line.startswith("| DynaMO"))
    assert f"**{value:.1f}** / " in row
    assert "odd_one" in text and "### my_model" in text
    assert "not training seeds" in text and "Graded samples per problem: 8" in text
    grid = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in grid}) == 1 and len({len(line) for line in grid}) == 1


def test_latex_escapes_names_and_balances_its_braces(table):
    text = markup.latex(table)
    assert r"odd\_one &" in text and r"hard\_50\%" in text and r"\textit{my\_model}" in text
    assert not re.search(r"(?<!\\)[%_#]", text)
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    columns = len(re.search(r"begin{tabular}{(l c*|lc*)}", text).group(1))
    rows = [line for line in text.splitlines() if " & " in line]
    assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    assert text.isascii()


def test_every_special_character_of_latex_is_escaped():
    assert markup.escape(r"a_b & 50% #1 $x$ {y} ~ ^ \ <|>") == (
        r"a\_b \& 50\% \#1 \$x\$ \{y\} \textasciitilde{} \textasciicircum{}"
        r" \textbackslash{} \textless{}\textbar{}\textgreater{}"
    )


def test_percent_has_no_negative_zero():
    assert [markup.percent(x) for x in (0.12345, 1, -0.0001)] == ["12.3", "100.0", "0.0"]
    assert markup.percent(0.05, sign=True) == "+5.0"
    assert markup.percent(-0.05, sign=True) == "\N{MINUS SIGN}5.0"


def test_a_reference_outside_the_grid_is_refused(evals):
    with pytest.raises(DynamoError, match="'ppo', which is not among base, grpo"):
        tables.main(gather(evals), ks=[1], reference="ppo", seed=0)


def test_a_note_names_the_settings_that_differ_between_models(evals):
    for name in ("base", "grpo-1", "odd_one-1", "dynamo-1"):
        write_eval(
            evals / f"big-{name}",
            suites={"easy": [1] * 60, "hard_50%": [2] * 40},
            settings=SETTINGS | {"template": "b2"},
        )
    results = collect(
        evals, models=["my_model", "big"], methods=["grpo", "odd_one", "dynamo"], seeds=[1],
        suites=["easy", "hard_50%"],
    )  # fmt: skip
    notes = tables.main(results, ks=[1], reference="grpo", seed=0, resamples=100).notes
    assert "Evaluation settings differ between models in: template." in notes


def test_the_stage_writes_the_same_three_files_every_time(evals, tmp_path):
    grid = {
        "models": ["my_model"], "methods": ["grpo", "odd_one", "dynamo"], "seeds": [1],
        "suites": ["easy", "hard_50%"], "ks": [1, 4], "evals": evals, "resamples": 500,
    }  # fmt: skip
    for out in ("one", "two"):
        stage.run(**grid, out=tmp_path / out)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["main.csv", "main.md", "main.tex"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with pytest.raises(DynamoError, match="no table 'mian'"):
        stage.run("mian", **grid, out=tmp_path / "three")


def facts(*, cut: float, answered: float, shift: int) -> dict:
    """One entry of a summary.json."""
    quantiles = {str(p): p * 30 + shift for p in (0, 10, 25, 50, 75, 90, 99, 100)}
    tokens = {"mean": 1234.5 + shift, "quantiles": quantiles}
    return {"truncation_rate": cut, "extraction_rate": answered, "tokens": tokens}


SUMMARY = {
    "suites": {
        "easy": facts(cut=0.0, answered=1.0, shift=1),
        "hard_50%": facts(cut=0.125, answered=0.6, shift=2),
    },
    "all": facts(cut=0.05, answered=0.84, shift=3),
}


def test_an_eval_table_adds_up_and_reads_well(evals):
    scores, _ = read_scores(evals / "my_model-dynamo-1")
    scores.loc[0, ["wrong", "timeout", "graded"]] += [-1, 1, -1]
    table = tables.eval_table(scores, summary=SUMMARY, ks=[1, 4], seed=0, resamples=500)
    rows = table.set_index("suite")
    assert rows.loc["easy", "samples"] == 60 * SAMPLES and rows.loc["average", "problems"] == 100
    verdicts = rows[["ok", "wrong", "unparsable", "timeout", "error"]].sum(axis=1)
    assert (verdicts == rows.samples).all()
    for metric in ("pass@1", "pass@4"):
        assert rows.loc["average", metric] == pytest.approx(
            (rows.loc["easy", metric] + rows.loc["hard_50%", metric]) / 2, abs=1e-6
        )
    assert rows.loc["hard_50%", "truncation_rate"] == 0.125
    assert rows.loc["average", "extraction_rate"] == 0.84  # of all responses, not of the suites
    screen = io.StringIO()
    Console(file=screen, width=160).print(markup.eval_rich(table))
    for text in (screen.getvalue(), markup.eval_markdown(table)):
        assert "Pass@4 [95 %]" in text and "timeout" in text and "Average" in text
        assert markup.percent(rows.loc["easy", "pass@1"]) in text
        assert "error" not in text  # a verdict that never occurred
        hard = next(line for line in text.splitlines() if "hard_50%" in line)
        for cell in ("60.0 %", "12.5 %", "1,236", "302 / 1,502 / 2,702 / 2,972"):
            assert cell in hard


def test_one_suite_needs_no_average(evals):
    scores, _ = read_scores(evals / "my_model-grpo-1")
    easy = scores[scores.suite == "easy"]
    rows = tables.eval_table(easy, summary=SUMMARY, ks=[1], seed=0, resamples=500)
    assert rows.suite.tolist() == ["easy"]
