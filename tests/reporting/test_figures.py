from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from fakes import fake_ledger, fake_metrics

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting import figures
from dynamo_cli.reporting.results import read_runs
from pipelines import plot as stage


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_a_figure_is_drawn_and_the_same_data_give_the_same_bytes(name, runs, tmp_path):
    grid = {"models": ["small", "medium"], "seeds": [1, 2], "runs": runs}
    for out in ("one", "two"):
        files = stage.run(name, **grid, out=tmp_path / out)
    assert [file.name for file in files] == [f"{name}.png", f"{name}.svg", f"{name}.csv"]
    for file in files:
        assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes()
    pixels = matplotlib.image.imread(files[0])[..., :3]
    assert pixels[0, 0].tolist() == [1, 1, 1]  # a light ground
    assert 0.02 < (pixels.min(axis=2) < 0.9).mean() < 0.8
    colours = pixels.max(axis=2) - pixels.min(axis=2)
    assert (colours > 0.3).mean() > 0.002  # curves, not only axes


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_the_csv_holds_what_was_drawn(name, runs, tmp_path):
    files = stage.run(name, models=["small"], seeds=[1, 2], runs=runs, out=tmp_path)
    kind = figures.find(name)
    records = read_runs(runs, models=["small"], methods=kind.methods, seeds=[1, 2], file=kind.file)
    expected = records[["model", "method", "seed", *kind.columns]]
    pd.testing.assert_frame_equal(pd.read_csv(files[2]), expected, check_dtype=False)


def test_a_line_goes_through_the_mean_of_its_seeds_over_five_steps():
    one, two = (fake_metrics(steps=20, seed=seed, gain=0.1) for seed in (1, 2))
    data = pd.concat(
        [run.assign(model="m", method="dynamo", seed=i) for i, run in enumerate((one, two))]
    )
    axes = figures.FIGURES["dynamics"].draw(data).axes[0]
    mean = ((one.reward + two.reward) / 2).to_numpy()
    smooth = [mean[max(0, step - 2) : step + 3].mean() for step in range(20)]
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), smooth)


def test_methods_are_named_in_the_legend_and_told_apart(runs):
    data = read_runs(
        runs, models=["small"], methods=["grpo", "dynamo"], seeds=[1], file="metrics.csv"
    )
    data = pd.concat([data, data[data.method == "grpo"].assign(method="kl_cov")])
    figure = figures.FIGURES["dynamics"].draw(data)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["GRPO", "DynaMO", "KL-Cov"]
    assert len({line.get_color() for line in legend.get_lines()}) == 3


def test_no_text_is_smaller_than_seven_points(runs):
    for name, kind in figures.FIGURES.items():
        data = read_runs(runs, models=["small"], methods=kind.methods, seeds=[1], file=kind.file)
        for axes in figures.find(name).draw(data).axes:
            texts = [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
            texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
            assert min(text.get_fontsize() for text in texts) >= 7


def test_the_square_root_rule_spends_the_budget_within_its_bounds():
    known = np.random.default_rng(0).beta(0.5, 0.5, 400)
    rule = figures.square_root_rule(known, known, mean=8, bounds=(4, 16))
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
    assert figures.success_rate(rows).tolist() == pytest.approx([np.nan, 0.75], nan_ok=True)


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
    figure = figures.FIGURES["allocation"].draw(figures.FIGURES["allocation"].select(data))
    figures.save(figure, tmp_path / "a.png", kind="png")
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_a_name_with_a_typo_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(DynamoError, match="no figure 'dynamic'.*dynamics .*allocation"):
        stage.run("dynamic", models=["m"], seeds=[1], runs=tmp_path, out=tmp_path)


def test_records_without_a_column_are_refused(runs: Path):
    data = read_runs(runs, models=["small"], methods=["grpo"], seeds=[1], file="metrics.csv")
    with pytest.raises(DynamoError, match="metrics.csv has no column entropy"):
        figures.find("dynamics").select(data.drop(columns="entropy"))
