"""The record of rollouts: it holds what happened, and changes nothing."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from test_train_stage import OUTPUTS, Case, signal_at

from dynamo_cli.errors import DynamoError
from dynamo_cli.methods.tokens import TokenBatch
from dynamo_cli.records import read_problems
from dynamo_cli.rollout.hf_engine import HFEngine
from dynamo_cli.train.recorder import COLUMNS, FILE, Recording, factor, pieces

RECORD = "training.record={problems: 3, every: 1}"


@pytest.fixture
def case(root, tmp_path):
    return Case(root, tmp_path)


@pytest.fixture(scope="module")
def recorded(root, tmp_path_factory):
    """The folder of a run with a record, and the bytes of its other outputs."""
    home = tmp_path_factory.mktemp("recorded")
    outputs = Case(root, home)("run", RECORD)
    return home / "run", outputs


def record_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / FILE)


def test_recording_changes_no_byte_of_a_run(case, recorded, tmp_path):
    folder, outputs = recorded
    assert case("plain", "training.record=null") == outputs
    assert tuple(record_of(tmp_path / "plain").columns) == COLUMNS
    assert not len(record_of(tmp_path / "plain"))
    assert set(outputs) == set(OUTPUTS)
    assert len(record_of(folder))


def test_the_record_agrees_with_the_ledger(recorded):
    folder, _ = recorded
    record = record_of(folder)
    ledger = pd.read_parquet(folder / "ledger.parquet")
    assert tuple(record.columns) == COLUMNS
    assert record.problem_id.nunique() == 3
    visits = ledger[ledger.problem_id.isin(record.problem_id.unique())]
    visits = visits.sort_values(["step", "problem_id"])
    seen = record.groupby(["step", "problem_id"])
    assert seen.size().tolist() == visits.graded.tolist()
    assert seen.verdict.apply(lambda v: (v == "ok").sum()).tolist() == visits.correct.tolist()
    for row in record.itertuples():
        size = len(row.pieces)
        assert len(row.entropy) == len(row.entropy_change) == len(row.modulation) == size
        assert (row.entropy >= 0).all()
        assert (row.entropy <= math.log(512)).all()
        # Compensation is within [1, 1.2], stabilisation within [0.6, 1].
        known = row.modulation[~np.isnan(row.modulation)]
        assert len(known) == (size if row.advantage else 0)
        assert ((known >= 0.6 - 1e-6) & (known <= 1.2 + 1e-6)).all()
        if row.advantage < 0:
            assert (known <= 1 + 1e-6).all()
    assert (record[record.advantage == 0].entropy_change.apply(np.abs).apply(max) == 0).all()


def test_pieces_of_a_run_join_to_its_responses(recorded):
    """A verdict follows from the text: that of the pieces is right where the run says so."""
    record = record_of(recorded[0])
    assert {"ok"} < set(record.verdict)
    for row in record[record.finish == "stop"].itertuples():
        text = "".join(row.pieces)
        assert text.endswith("<|end|>")
        right = text.removesuffix("<|end|>").rpartition("#")[2] == row.answer
        assert right == (row.verdict == "ok")


def test_an_interrupted_run_ends_in_the_same_record(case, recorded, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        signal_at(patched, HFEngine, "generate", 4, 15)
        assert case("cut", RECORD) == {}
    case("cut", RECORD)
    assert (tmp_path / "cut" / FILE).read_bytes() == (recorded[0] / FILE).read_bytes()
    assert not any((tmp_path / "work").iterdir())


def test_a_run_without_a_record_leaves_no_earlier_one(case, tmp_path):
    case("run", RECORD)
    case("run", "training.record=null")
    assert not len(record_of(tmp_path / "run"))


def test_every_second_epoch_alone_is_recorded(case, tmp_path):
    case("run", "training.record={problems: 8, every: 2}")
    # Eight problems, three a step: an epoch is two steps.
    assert sorted(record_of(tmp_path / "run").step.unique()) == [1, 2, 5, 6]


def test_problems_are_spread_over_the_pool_or_named(case, tmp_path):
    pool = read_problems(tmp_path / "ladder-train.jsonl")
    spread = Recording(problems=3, every=1).chosen(pool)
    assert list(spread) == [pool[0].id, pool[4].id, pool[7].id]  # 3.5 rounds to even
    named = Recording(problems=[pool[5].id], every=1).chosen(pool)
    assert list(named) == [pool[5].id]
    with pytest.raises(DynamoError, match="names 'nobody', which is not among the 8"):
        Recording(problems=["nobody"], every=1).chosen(pool)
    assert len(Recording(problems=9, every=1).chosen(pool)) == 8
    with pytest.raises(ValidationError):
        Recording(problems=0, every=1)


def test_a_factor_is_what_the_advantage_was_multiplied_by():
    def batch(advantage, mask):
        advantage = torch.tensor([advantage])
        zeros = torch.zeros_like(advantage)
        return TokenBatch(
            logp=zeros,
            logp_old=zeros,
            entropy=zeros,
            expected_pi_lambda=zeros,
            advantage=advantage,
            mask=torch.tensor([mask]),
            chosen=torch.zeros(1, 4, dtype=torch.bool),
            problem=torch.zeros(1, dtype=torch.int64),
            key=torch.zeros(1, dtype=torch.int64),
        )

    given = batch([2.0, -1.0, 0.0, 4.0], [True] * 4)
    planned = batch([2.5, -0.5, 0.0, 4.0], [True, True, True, False])
    found = factor(given, planned)[0]
    assert found[:2].tolist() == [1.25, 0.5]
    assert found[2].isnan()
    assert found[3] == 0


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        ([b"a", b"b", b"c"], ["a", "b", "c"]),
        # An e with an acute accent is two bytes, the smile four.
        (["\N{LATIN SMALL LETTER E WITH ACUTE}".encode()[:1], b"\xa9", b"!"], ["", "\xe9", "!"]),
        ([b"\xf0", b"\x9f\x98", b"\x80", b"."], ["", "", "\U0001f600", "."]),
        ([b"a", b"\xf0"], ["a", "\N{REPLACEMENT CHARACTER}"]),
        ([], []),
    ],
    ids=["letters", "two bytes", "four bytes", "cut off", "nothing"],
)
def test_pieces_join_to_the_text_and_wait_for_whole_characters(vocabulary, expected):
    def decode(tokens):
        return b"".join(vocabulary[t] for t in tokens).decode(errors="replace")

    found = pieces(range(len(vocabulary)), decode)
    assert found == expected
    assert "".join(found) == decode(range(len(vocabulary)))


def test_pieces_keep_the_space_that_a_decoder_drops_at_the_start():
    words = ["\N{LOWER ONE EIGHTH BLOCK}one", "\N{LOWER ONE EIGHTH BLOCK}two", "s"]

    def decode(tokens):
        joined = "".join(words[t] for t in tokens)
        return joined.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").removeprefix(" ")

    assert pieces([0, 1, 2], decode) == ["one", " two", "s"]
