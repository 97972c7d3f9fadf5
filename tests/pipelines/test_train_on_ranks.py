"""Training with two DeepSpeed ranks that `dynamo train` starts itself: the real command.

`python tests/pipelines/killed_ranks.py FOLDER --random 30` kills at moments of the clock.
"""

import fcntl
import signal
from importlib.util import find_spec

import pandas as pd
import pytest
from killed_ranks import Bench

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def whole(bench):
    """What the run that nothing interrupted said, and its outputs."""
    code, stdout, stderr = bench.run("whole")
    assert code == 0, stderr
    return stdout, stderr, bench.outputs("whole")


def test_the_first_rank_alone_speaks_and_files_lie_where_one_process_puts_them(bench, whole):
    stdout, stderr, _ = whole
    assert stdout == f"{bench.folder / 'whole'}: policy, metrics and ledger of 8 steps\n"
    assert stderr.splitlines()[-1].startswith("train ladder-small-dynamo-1 8/8, reward")
    assert all(line.startswith("train ") for line in stderr.splitlines())
    assert not any(bench.work("whole").iterdir()), "a complete run leaves no checkpoint"


def test_two_ranks_sample_grade_and_allocate_what_one_process_does(bench, whole):
    alone = Bench(bench.folder, bench.settings, ranks=1)
    code, _, stderr = alone.run("alone")
    assert code == 0, stderr
    ours, theirs = (pd.read_csv(bench.folder / name / "metrics.csv") for name in ("whole", "alone"))
    learnt = ["loss", "grad_norm", "entropy", "sampler_gap"]
    pd.testing.assert_frame_equal(ours.drop(columns=learnt), theirs.drop(columns=learnt))
    pd.testing.assert_frame_equal(ours[learnt], theirs[learnt], rtol=1e-4, atol=1e-5)
    ledgers = [pd.read_parquet(bench.folder / n / "ledger.parquet") for n in ("whole", "alone")]
    pd.testing.assert_frame_equal(*ledgers)


def test_a_run_that_is_complete_says_so_and_starts_no_rank(bench, whole):
    process = bench.start("whole")
    code, stdout, stderr = bench.end(process)
    assert (code, stderr) == (0, "")
    assert stdout.endswith("this very run is complete already; nothing to do\n")


def test_killed_and_stopped_and_killed_again_it_ends_in_the_same_bytes(bench, whole):
    process = bench.start("cut")
    bench.await_steps("cut", 2, process)
    assert bench.kill(process, "rank 1")
    code, stdout, stderr = bench.end(process)
    assert (code, stdout) == (2, "")
    errors = [line for line in stderr.splitlines() if not line.startswith("train ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: rank 1 was killed by SIGKILL")

    process = bench.start("cut")
    bench.await_steps("cut", 4, process)
    process.send_signal(signal.SIGTERM)
    code, stdout, stderr = bench.end(process)
    assert code == 0
    assert stdout.endswith("interrupted and saved; the same command goes on from there\n")
    assert stderr.count("SIGTERM: stopping as soon as") == 1
    assert not (bench.folder / "cut").exists(), "no output: it must not be taken for complete"

    # An error of the first rank, while the second waits for it.
    (folder,) = bench.work("cut").iterdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, stdout, stderr = bench.run("cut")
    assert (code, stdout) == (2, "")
    assert stderr == f"error: rank 0: {folder}: another process is at this very run; " + (
        "wait for it or stop it\n"
    )

    process = bench.start("cut")
    bench.await_steps("cut", 6, process)
    assert bench.kill(process, "command")
    assert bench.end(process)[0] == -signal.SIGKILL

    code, _, stderr = bench.run("cut")
    assert code == 0, stderr
    assert "going on after step" in stderr
    assert bench.outputs("cut") == whole[2]
    assert not any(bench.work("cut").iterdir())
