import numpy as np
import pandas as pd
import pytest
from fakes import write_eval

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting import markup, tables
from dynamo_cli.reporting.published import published, read_published
from dynamo_cli.reporting.results import collect
from dynamo_cli.reporting.settings import settings
from pipelines import table as stage

MODEL = "Qwen2.5-Math-7B"
SUITES = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiad")


def test_the_paper_has_two_models_nine_methods_and_seven_columns_of_two_numbers():
    source, numbers = read_published()
    assert "2602.19208" in source and len(numbers) == 2 * 9 * 7 * 2
    assert all(0 < x < 1 for x in numbers.values())


def test_averages_of_the_paper_follow_from_its_columns_within_a_point():
    # The paper's own Pass@32 averages are up to 0.9 points off in places; a slip of a digit is not.
    for (model, method, suite, k), value in read_published()[1].items():
        if suite == "average":
            mean = np.mean([published(model, method, each, k) for each in SUITES])
            assert value == pytest.approx(mean, abs=0.0095), (model, method, k)


def test_a_model_is_found_by_the_name_that_params_yaml_can_have_for_it():
    # Table 1 of the paper: DynaMO on Qwen2.5-Math-1.5B, AIME24: 17.2 / 37.2.
    assert published("qwen2_5-math-1_5b", "dynamo", "aime24", 32) == pytest.approx(0.372)
    assert published("Qwen2.5-Math-1.5B", "dynamo", "aime24", 1) == pytest.approx(0.172)
    assert published("qwen2_5-14b", "dynamo", "aime24", 1) is None, "it has none for 14B"


def test_a_published_number_stands_below_ours_with_the_difference(tmp_path):
    for method, counts in {"grpo": [2, 2], "dynamo": [4, 4]}.items():
        write_eval(tmp_path / f"{MODEL}-{method}-1", suites={"aime24": counts})
    grid = {"models": [MODEL], "methods": ["grpo", "dynamo"], "seeds": [1], "suites": ["aime24"]}
    results = collect(tmp_path, **grid, base=False)
    table = tables.main(results, ks=[1], reference="grpo", seed=0, resamples=200)
    row = table.rows[(table.rows.method == "dynamo") & (table.rows.suite == "aime24")].iloc[0]
    assert (row.published, row.diff_to_published) == pytest.approx((0.344, 0.156))
    text = markup.markdown(table)
    assert "*34.4 (+15.6)*" in text and "*published*" in text and "arXiv 2602.19208" in text
    assert r"\textit{34.4 (+15.6)}" in markup.latex(table)


def test_only_trained_methods_count_among_the_comparisons(tmp_path):
    source = np.random.default_rng(0)
    for name, chance in {"base": 0.2, "grpo-1": 0.4, "a-1": 0.9, "b-1": 0.42}.items():
        counts = source.binomial(8, chance, 40).tolist()
        write_eval(tmp_path / f"m-{name}", suites={"easy": counts})
    results = collect(
        tmp_path, models=["m"], methods=["grpo", "a", "b"], seeds=[1], suites=["easy"]
    )
    table = tables.main(results, ks=[1], reference="grpo", seed=0, resamples=2000)
    own = table.rows[table.rows.suite == "easy"].set_index("method")
    assert own.p_holm[["base", "grpo"]].isna().all()
    assert own.p_holm.a == pytest.approx(min(1, 2 * own.p.a), abs=2e-6) and own.p_holm.a < 0.05
    lines = {line.split(" |")[0]: line for line in markup.markdown(table).splitlines()}
    marked = {name for name, line in lines.items() if "* [" in line}
    assert len(marked) == 1 and "a" in marked.pop()
    assert "published" not in markup.markdown(table)


def test_a_partial_table_names_what_is_missing_and_leaves_its_method_out(tmp_path):
    for name in ("dynamo-1", "dynamo-2", "grpo-1"):
        write_eval(tmp_path / f"m-{name}", suites={"easy": [1, 2, 3]})
    grid = {"models": ["m"], "seeds": [1, 2], "suites": ["easy"], "ks": [1], "evals": tmp_path}
    stage.run("ablation", **grid, methods=["grpo", "dynamo"], out=tmp_path / "out", resamples=200)
    text = (tmp_path / "out" / "ablation.md").read_text()
    assert "Not there yet, so left out: m-grpo-2." in text and "| GRPO" not in text
    with pytest.raises(DynamoError, match="no finished cell of 2"):
        stage.run("ablation", **grid, methods=["kl_cov"], out=tmp_path / "out")


def test_allocators_tell_what_they_spent(tmp_path):
    name = "m-allocation-uniform-1"
    write_eval(tmp_path / "evals" / name, suites={"easy": [1, 2, 3]})
    run = tmp_path / "runs" / name
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    pd.DataFrame({"generated_tokens": [1500, 2500]}).to_csv(run / "metrics.csv", index=False)
    pd.DataFrame({"rollouts": [2, 6, 4, 4]}).to_parquet(run / "ledger.parquet")
    stage.run(
        "allocators", models=["m"], methods=["allocation-uniform"], seeds=[1], suites=["easy"],
        ks=[1], evals=tmp_path / "evals", runs=tmp_path / "runs", out=tmp_path, resamples=200,
    )  # fmt: skip
    row = next(
        x for x in (tmp_path / "allocators.md").read_text().splitlines() if x.startswith("| GRPO,")
    )
    assert [cell.strip() for cell in row.split("|")[-4:-1]] == ["16", "4", "2 to 6"]


def test_settings_stand_by_method_or_once_for_all():
    methods = {
        "grpo": {"objective": {"kind": "clipped", "clip": 0.2, "dual": None}, "timing": "update"},
        "dynamo": {"objective": {"kind": "other", "more": {"x": True}}, "timing": "update"},
    }
    listing = settings(methods, {"training": {"steps": 25}})
    by_method, same = listing.blocks
    assert by_method.head == ["Key", "GRPO", "DynaMO"]
    assert by_method.body == [
        ["objective.kind", "clipped", "other"],
        ["objective.clip", "0.2", "-"],
        ["objective.dual", "none", "-"],
        ["objective.more.x", "-", "true"],
    ]
    assert same.body == [["timing", "update"], ["training.steps", "25"]]
    assert len(listing.rows) == 4 + 3 + 1
    for text in (markup.markdown(listing), markup.latex(listing)):
        assert "objective.clip" in text and "training.steps" in text
    assert markup.latex(listing).count(r"\begin{tabular}") == 2
