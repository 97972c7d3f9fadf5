"""What probes measured, in figures and in the table of allocators."""

from dataclasses import replace

import pandas as pd
import pytest
from fakes import fake_probes

from dynamo_cli.errors import DynamoError
from dynamo_cli.reporting import figures, probing
from dynamo_cli.reporting.spending import VARIANCE, with_variance

CELLS = [("small", "allocation-optimum"), ("small", "grpo"), ("large", "allocation-optimum")]


def spent() -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(CELLS)
    return pd.DataFrame({"Rollouts": ["1", "2", "3"]}, index=index)


def test_the_measured_variance_stands_in_the_rows_of_the_probed_model(tmp_path):
    table = with_variance(spent(), fake_probes(tmp_path))
    assert table[VARIANCE].tolist() == ["−10.0 [−12.0, −8.0]", "-", "-"]


def test_without_a_probe_the_table_has_no_such_column(tmp_path):
    assert list(with_variance(spent(), tmp_path / "none")) == ["Rollouts"]
    assert list(with_variance(spent(), None)) == ["Rollouts"]


def test_the_figure_shows_what_the_probe_says(sources):
    data = figures.find("variance").gather(sources)
    steps = data[data.part == "step"]
    assert set(steps.name) == {"allocation-optimum", "allocation-vip", "measured"}
    figure = figures.find("variance").draw(data)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["integer optimum", "VIP", "by measured σ"]
    # The best multiple of the root of P, by hand, at p = 1/2.
    problems = pd.read_csv(sources.probes / "variance" / "problems.csv")
    sigma, root = problems.centred**0.5, problems["sqrt(P)"]
    half = data[(data.name == "sqrt(P)") & (data.advantage == "centred") & (data.x == 0.5)]
    expected = 0.5 * (sigma * root).sum() / (root**2).sum()
    assert half[half.part == "proxy"].value.item() == pytest.approx(expected, rel=1e-5)


def test_the_ranks_stand_beside_the_tokens(sources):
    kind = figures.find("entropy-change")
    figure = kind.draw(kind.gather(sources))
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["rank 0.50 [0.40, 0.60]\nof sizes 0.50 [0.40, 0.60]"] * 2


@pytest.mark.parametrize("name", ["variance", "entropy-change"])
def test_a_figure_without_its_probe_says_how_to_make_it(sources, name, tmp_path):
    with pytest.raises(DynamoError, match="run `dynamo probe"):
        figures.find(name).gather(replace(sources, probes=tmp_path / "nowhere"))


def test_numbers_are_written_with_a_true_minus_and_no_negative_zero():
    assert [probing.decimal(x) for x in (-0.123, -0.001, float("nan"))] == ["−0.12", "0.00", "-"]
