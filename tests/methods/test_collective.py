"""Selections and extremes over all ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulated_ranks import on_ranks

from dynamo_cli.methods.collective import LOCAL, distinct, masked_mean, maximum_by, select_top


@given(st.data())
def test_select_top_takes_the_k_best_by_value_then_key(data):
    values = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=20))
    valid = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    keys = data.draw(st.permutations(range(len(values))))
    k = data.draw(st.integers(0, 25))
    ranked = sorted((-values[i], keys[i], i) for i in range(len(values)) if valid[i])
    found = select_top(
        torch.tensor([values], dtype=torch.float32),
        torch.tensor([valid]),
        k=k,
        key=torch.tensor([keys]),
        collective=LOCAL,
    )
    assert set(found[0].nonzero()[:, 0].tolist()) == {i for _, _, i in ranked[:k]}


@pytest.mark.parametrize("k", [1, 4, 9, 30])
def test_ranks_select_together_what_one_would(k):
    random = torch.Generator().manual_seed(k)
    value = torch.randint(4, (6, 5), generator=random).double()
    valid = torch.rand(6, 5, generator=random) < 0.7
    key = torch.randperm(30, generator=random).view(6, 5)
    expected = select_top(value, valid, k=k, key=key, collective=LOCAL)
    cuts = [slice(0, 1), slice(1, 1), slice(1, 6)]

    def work(number, collective):
        part = cuts[number]
        return select_top(value[part], valid[part], k=k, key=key[part], collective=collective)

    assert torch.equal(torch.cat(on_ranks(3, work)), expected)
    assert int(expected.sum()) == min(k, int(valid.sum()))


def test_extremes_means_and_ids_cover_all_ranks_and_a_rank_may_be_empty():
    value = torch.tensor([[3.0, -1.0], [5.0, 9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    ids = torch.tensor([7, 2])

    def work(number, collective):
        part = slice(0, 2) if number else slice(0, 0)
        index = torch.zeros(2, 2, dtype=torch.int64)[part] + torch.tensor([0, 2])
        return (
            maximum_by(index, value[part], mask[part], size=3, collective=collective).tolist(),
            float(masked_mean(value[part], mask[part], collective)),
            distinct(ids[part], collective).tolist(),
        )

    for found in on_ranks(2, work):
        assert found == ([5.0, -float("inf"), -1.0], 7 / 3, [2, 7])


def test_mean_of_nothing_is_zero():
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert masked_mean(torch.full((2, 2), float("nan")), nothing, LOCAL) == 0
