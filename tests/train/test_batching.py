import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_cli.records import Completion
from dynamo_cli.train.batching import mask_from_lengths, microbatches, pad, split_evenly


def completion(prompt, tokens):
    return Completion(
        problem_id="p",
        rollout=0,
        seed=0,
        prompt=tuple(prompt),
        tokens=tuple(tokens),
        logp=(0.0,) * len(tokens),
        finish="stop",
        text="",
    )


def test_masks_come_from_lengths_even_where_padding_equals_a_real_token():
    batch = pad([completion([5, 0], [7, 0]), completion([5], [0])], pad_token=0)
    assert batch.tokens.tolist() == [[5, 0, 7, 0], [5, 0, 0, 0]]
    assert batch.mask.tolist() == [[True, True], [True, False]]
    row, position = batch.response_index()
    assert batch.tokens[row, position].tolist() == [7, 0, 0]


def test_an_empty_response_has_no_token_in_the_mask():
    batch = pad([completion([5, 6], []), completion([5], [9])], pad_token=0)
    assert batch.mask.tolist() == [[False], [True]]


def test_a_mask_of_empty_responses_alone_has_one_empty_column():
    assert mask_from_lengths(torch.tensor([0, 0])).tolist() == [[False], [False]]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_microbatches_hold_every_row_once_within_the_token_budget(lengths, tokens):
    parts = list(microbatches(lengths, tokens=tokens))
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    for part in parts:
        padded = len(part) * max(lengths[row] for row in part)
        assert padded <= tokens or len(part) == 1


def padding_of(lengths, parts):
    """Positions of each part that hold no token."""
    return [sum(max(lengths[r] for r in part) - lengths[r] for r in part) for part in parts]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_padding_is_bounded_by_the_spread_of_lengths_whatever_the_number_of_rows(lengths, tokens):
    parts = list(microbatches(lengths, tokens=tokens))
    # Longest first, so one part ends at most where the next begins: the differences of first and
    # last row telescope, and no part has more rows than budget / shortest.
    for part, later in zip(parts, parts[1:], strict=False):
        assert min(lengths[r] for r in part) >= max(lengths[r] for r in later)
    most = max(len(part) for part in parts) - 1
    assert sum(padding_of(lengths, parts)) <= most * (max(lengths) - min(lengths))


def test_ragged_responses_are_padded_by_a_ninth_where_one_batch_would_quadruple_them():
    lengths = [int(20 * 1.02**n) for n in range(200)]  # 20 to 1,029, most of them short
    parts = list(microbatches(lengths, tokens=4096))
    assert 200 * max(lengths) > 4 * sum(lengths)
    assert sum(padding_of(lengths, parts)) < sum(lengths) / 9


@pytest.mark.parametrize("longest", [1, 7, 64])
def test_a_padded_micro_batch_is_as_wide_as_its_own_longest_row(longest):
    rows = [completion([5, 6], [7] * length) for length in (1, longest, max(1, longest - 3))]
    batch = pad(rows, pad_token=0)
    assert batch.tokens.shape == (3, 2 + longest)
    assert batch.mask.shape == (3, longest)


@given(st.lists(st.integers(), max_size=30), st.integers(1, 10))
def test_split_evenly_keeps_order_and_differs_by_one_at_most(items, parts):
    runs = split_evenly(items, parts) if items else []
    assert [item for run in runs for item in run] == items
    assert not runs or max(map(len, runs)) - min(map(len, runs)) <= 1
