import numpy as np
import pytest

from dynamo_cli.train.history import History


def test_counts_follow_the_problem_id_and_not_the_order():
    history = History()
    history.update(["b", "a", "b", "a", "b"], [True, False, True, True, False])
    correct, graded = history.counts(["a", "b", "never"], refresh="step")
    assert correct.tolist() == [1, 2, 0]
    assert graded.tolist() == [2, 3, 0]


def test_epoch_refresh_reads_what_was_known_when_the_epoch_began():
    history = History()
    history.update(["a"], [True])
    history.begin_epoch()
    history.update(["a"], [True])
    assert history.counts(["a"], refresh="epoch")[0].tolist() == [1]
    assert history.counts(["a"], refresh="step")[0].tolist() == [2]


def test_forgetting_halves_old_evidence_at_each_visit():
    history = History(forgetting=0.5)
    history.update(["a"] * 4, [True] * 4)
    history.update(["a"] * 2, [False] * 2)
    correct, graded = history.counts(["a"], refresh="step")
    assert (correct[0], graded[0]) == (2.0, 4.0)


def test_a_restored_history_counts_on_as_the_first_would_have():
    first = History(forgetting=0.9)
    first.update(["a", "b"], [True, False])
    first.begin_epoch()
    first.update(["a"], [False])
    second = History(forgetting=0.9)
    second.restore(first.state())
    for history in (first, second):
        history.update(["a"], [True])
    for refresh in ("step", "epoch"):
        ours = np.array(second.counts(["a", "b"], refresh=refresh))
        assert (ours == np.array(first.counts(["a", "b"], refresh=refresh))).all()


@pytest.mark.parametrize("forgetting", [0, -1, 1.5])
def test_forgetting_outside_its_range_is_refused(forgetting):
    with pytest.raises(ValueError, match="forgetting"):
        History(forgetting=forgetting)


def test_a_response_is_expected_to_be_as_long_as_its_problems_last_ones():
    history = History()
    assert history.expected_tokens(["a"]) == [None]
    history.note_lengths(["a", "b", "a"], [10, 40, 30])
    assert history.expected_tokens(["b", "a", "new"]) == [40, 20, 30]  # of a new one: (40 + 20) / 2
    history.note_lengths(["a"], [6])
    again = History()
    again.restore(history.state())
    assert again.expected_tokens(["a", "new"]) == [6, 23]
