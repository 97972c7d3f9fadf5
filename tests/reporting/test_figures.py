from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from fakes import fake_ledger, fake_metrics

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting import figures
from dynamo_cli.reporting.figures.allocation import ALLOCATION, square_root_rule, success_rate
from dynamo_cli.reporting.figures.dynamics import DYNAMICS
from dynamo_cli.reporting.figures.kind import Sources, Varied, save
from dynamo_cli.reporting.figures.overview import factors
from dynamo_cli.reporting.results import read_runs
from pipelines import plot as stage


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_a_figure_is_drawn_and_the_same_data_give_the_same_bytes(name, sources, tmp_path):
    for out in ("one", "two"):
        files = stage.run(name, sources, out=tmp_path / out)
    assert [file.name for file in files] == [f"{name}.{e}" for e in ("png", "svg", "pdf", "csv")]
    for file in files:
        assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes()
    pixels = matplotlib.image.imread(files[0])[..., :3]
    assert pixels[0, 0].tolist() == [1, 1, 1]  # a light ground
    assert 0.02 < (pixels.min(axis=2) < 0.9).mean() < 0.8
    colours = pixels.max(axis=2) - pixels.min(axis=2)
    assert (colours > 0.3).mean() > 0.001  # curves, not only axes
    assert files[2].read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_the_csv_holds_what_was_drawn(name, sources, tmp_path):
    files = stage.run(name, sources, out=tmp_path)
    expected = figures.find(name).gather(sources)
    written = expected.to_csv(index=False, lineterminator="\n")
    assert files[3].read_text() == written and len(written.splitlines()) == len(expected) + 1


def test_a_line_goes_through_the_mean_of_its_seeds_over_five_steps():
    one, two = (fake_metrics(steps=20, seed=seed, gain=0.1) for seed in (1, 2))
    data = pd.concat(
        [run.assign(model="m", method="dynamo", seed=i) for i, run in enumerate((one, two))]
    )
    axes = figures.FIGURES["dynamics"].draw(data).axes[0]
    mean = ((one.reward + two.reward) / 2).to_numpy()
    smooth = [mean[max(0, step - 2) : step + 3].mean() for step in range(20)]
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), smooth)
    (band,) = axes.collections  # the raw range, not that of smoothed curves
    assert band.get_datalim(axes.transData).y1 == pytest.approx(
        max(one.reward.max(), two.reward.max())
    )


def test_methods_are_named_in_the_legend_and_told_apart(runs):
    data = read_runs(
        runs, models=["small"], methods=["grpo", "dynamo"], seeds=[1], file="metrics.csv"
    )
    data = pd.concat([data, data[data.method == "grpo"].assign(method="kl_cov")])
    figure = figures.FIGURES["dynamics"].draw(data)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["GRPO", "DynaMO", "KL-Cov"]
    assert len({line.get_color() for line in legend.get_lines()}) == 3


def test_no_text_is_smaller_than_seven_points(sources):
    for kind in figures.FIGURES.values():
        for axes in kind.draw(kind.gather(sources)).axes:
            texts = [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
            texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
            assert min(text.get_fontsize() for text in texts) >= 7


def test_the_square_root_rule_spends_the_budget_within_its_bounds():
    known = np.random.default_rng(0).beta(0.5, 0.5, 400)
    rule = square_root_rule(known, known, mean=8, bounds=(4, 16))
    assert rule.mean() == pytest.approx(8) and rule.min() >= 4 and rule.max() <= 16
    inside = (rule > 4.001) & (rule < 15.999)
    ratio = rule[inside] / np.sqrt(known[inside] * (1 - known[inside]))
    assert np.ptp(ratio) < 1e-6


def test_given_bounds_replace_the_observed_ones():
    data = fake_ledger(steps=20, seed=1).assign(model="m", method="dynamo", seed=1)
    axes = figures.FIGURES["allocation"].draw(data, bounds=(2, 40)).axes[0]
    assert axes.get_ylim() == (1, 41)
    assert axes.lines[0].get_ydata().min() == 2 and axes.lines[0].get_ydata().max() < 40


def test_a_problem_not_seen_yet_has_no_success_rate():
    rows = pd.DataFrame({"correct_before": [0.0, 1.5], "seen_before": [0.0, 2.0]})
    assert success_rate(rows).tolist() == pytest.approx([np.nan, 0.75], nan_ok=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda ledger: ledger.assign(level=None),
        lambda ledger: ledger[ledger.step == 0],
        lambda ledger: ledger.assign(rollouts=8),
        lambda ledger: ledger[ledger.step < 3],
        lambda ledger: ledger[ledger.step == 0].assign(level=None),
    ],
    ids=["no levels", "first step", "uniform", "first epoch", "nothing known"],
)
def test_an_allocation_is_drawn_from_poor_records_too(change, tmp_path):
    data = change(fake_ledger(steps=20, seed=1)).assign(model="m", method="dynamo", seed=1)
    figure = ALLOCATION.draw(ALLOCATION.gather.select(data))
    save(figure, tmp_path / "a.png", kind="png")
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_a_name_with_a_typo_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(DynamoError, match="no figure 'dynamic'.*dynamics .*allocation .*tokens"):
        stage.run("dynamic", Sources(models=["m"], seeds=[1], runs=tmp_path), out=tmp_path)


def test_records_without_a_column_are_refused(runs: Path):
    data = read_runs(runs, models=["small"], methods=["grpo"], seeds=[1], file="metrics.csv")
    with pytest.raises(DynamoError, match="metrics.csv has no column entropy"):
        DYNAMICS.gather.select(data.drop(columns="entropy"))


def test_a_value_that_is_no_number_is_named_with_its_run_and_step(runs):
    file = runs / "small-dynamo-2" / "metrics.csv"
    metrics = pd.read_csv(file)
    metrics.loc[7, "entropy"] = np.nan
    metrics.to_csv(file, index=False)
    with pytest.raises(DynamoError, match="small-dynamo-2: entropy of step 7 is not a number"):
        DYNAMICS.gather(Sources(models=["small"], seeds=[1, 2], runs=runs))


def test_pass_at_k_is_drawn_for_every_k_and_only_grows(sources):
    data = figures.FIGURES["passk"].gather(sources)
    assert sorted(data.k.unique()) == list(range(1, 9))
    assert set(data.method) == {"base", "grpo", "dynamo"}
    for _, rows in data.groupby(["model", "method"]):
        assert rows.sort_values("k").value.is_monotonic_increasing
    assert ((data.low <= data.value) & (data.value <= data.high)).all()


def test_points_are_the_means_of_the_scores(sources):
    data = figures.FIGURES["budget"].gather(sources)
    scores = pd.read_csv(sources.evals / "small-dynamo-uniform-budget-128-1" / "scores.csv")
    expected = scores.groupby("suite").correct.mean().mean() / 8
    row = data[(data.method == "dynamo-uniform") & (data.rollouts == 128)]
    assert row.value.tolist() == [pytest.approx(expected, abs=1e-6)]


def test_cells_that_are_not_there_are_named_and_the_rest_is_drawn(sources, tmp_path):
    (sources.evals / "small-dynamo-budget-128-1" / "manifest.json").unlink()
    told = []
    stage.run("budget", sources, out=tmp_path, say=told.append)
    assert told == ["budget: not there yet, so left out: small-dynamo-budget-128-1"]
    drawn = pd.read_csv(tmp_path / "budget.csv")
    assert len(drawn) == 5 and "dynamo" in set(drawn.method)


def test_a_study_without_variants_says_how_to_fill_it(sources):
    with pytest.raises(DynamoError, match="studies.budget.variants is empty.*studies.yaml"):
        figures.FIGURES["budget"].gather(replace(sources, budget=Varied()))


def test_each_parameter_has_the_value_in_use_among_its_points(sources):
    data = figures.FIGURES["sensitivity"].gather(sources)
    own = data[data.suite == "hard"].groupby("parameter")
    assert {name: rows.setting.tolist() for name, rows in own} == {
        "alpha": ["0", "0.2", "0.4"],
        "gamma": ["10", "50"],
        "low, high": ["8 to 24", "4 to 32"],
    }
    assert (data.groupby(["parameter", "suite"]).in_use.sum() == 1).all()


def test_the_difference_between_sizes_is_that_of_the_scores(sources):
    data = figures.FIGURES["scales"].gather(sources)
    score = data[data.part == "score"].set_index(["model", "method"]).value
    for row in data[data.part == "difference"].itertuples():
        gap = score[row.model, "dynamo"] - score[row.model, "grpo"]
        assert row.value == pytest.approx(gap, abs=2e-6)
    assert list(dict.fromkeys(data.model)) == ["small", "medium", "large"]


def test_tokens_add_up_over_the_steps_of_a_run(sources):
    data = figures.FIGURES["tokens"].gather(sources)
    metrics = pd.read_csv(sources.runs / "medium-grpo-2" / "metrics.csv")
    rows = data[(data.part == "training") & (data.model == "medium") & (data.seed == 2)]
    curve = rows[rows.method == "grpo"].tokens
    np.testing.assert_allclose(curve, metrics.generated_tokens.cumsum() / 1e6, atol=1e-6)
    ends = data[(data.part == "final") & (data.model == "medium") & (data.method == "grpo")]
    both = [pd.read_csv(sources.runs / f"medium-grpo-{s}" / "metrics.csv") for s in (1, 2)]
    mean = sum(own.generated_tokens.sum() for own in both) / 2e6
    assert ends.tokens.tolist() == [pytest.approx(mean, abs=1e-6)]


def test_recorded_tokens_stand_by_the_sign_of_their_advantage(tmp_path):
    rows = [
        {"advantage": 1.0, "entropy": [0.5, 1.0], "entropy_change": [9.0, 9.0],
         "modulation": [1.2, 1.1]},
        {"advantage": -1.0, "entropy": [9.0, 9.0], "entropy_change": [-0.25, 0.5],
         "modulation": [1.0, 0.8]},
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(tmp_path / "r.parquet")
    found = factors(tmp_path / "r.parquet")
    assert found.x.tolist() == [0.5, 1.0, 0.25, 0.5]
    assert found.value.tolist() == [1.2, 1.1, 1.0, 0.8]
    assert found.part.tolist() == ["compensated tokens"] * 2 + ["stabilised tokens"] * 2
