"""Which processes make the ranks of a run, and how they end: together.

The ranks here are shells and small scripts. `ssh` and `srun` are stand-ins on the PATH that do on
this machine what the real ones do on others; no cluster was at hand.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dynamo_cli import __version__
from dynamo_cli.errors import DynamoError
from dynamo_cli.train.launching import (
    adopt_slurm,
    count_ranks,
    first_host,
    is_rank,
    plan,
    read_hostfile,
)
from dynamo_cli.train.supervision import Start, supervise

HOSTS = {"worker-1": 2, "worker-2": 4}


def planned(ranks, *, slots=None, device="cpu", environment=None, arguments=("train", "out")):
    return plan(arguments, ranks, slots=slots or {}, device=device, environment=environment or {})


# Where -----------------------------------------------------------------------------------------


def test_on_one_machine_each_rank_is_a_process_that_knows_its_place():
    starts = planned(3)
    assert [s.name for s in starts] == ["rank 0", "rank 1", "rank 2"]
    assert {tuple(s.command) for s in starts} == {
        (sys.executable, "-P", "-m", "dynamo_cli", "train", "out")
    }
    for rank, start in enumerate(starts):
        place = start.environment
        assert (place["RANK"], place["LOCAL_RANK"], place["WORLD_SIZE"]) == (str(rank),) * 2 + (
            "3",
        )
        assert place["MASTER_ADDR"] == "127.0.0.1"
        assert place["DS_ACCELERATOR"] == "cpu"
    assert len({s.environment["MASTER_PORT"] for s in starts}) == 1
    assert "DS_ACCELERATOR" not in planned(1, device="cuda")[0].environment


def test_a_hostfile_is_read_as_deepspeed_writes_it(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# two nodes\nworker-1 slots=2\n\nworker-2   slots=4 # the larger one\n")
    assert read_hostfile(file) == HOSTS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("worker-1", "line 1: 'worker-1'"),
        ("a slots=2\na slots=3", "line 2: 'a slots=3'"),
        ("a slots=0", "line 1"),
        ("# nobody\n", "names no host"),
        (None, "no such hostfile"),
    ],
)
def test_a_bad_hostfile_is_one_line_that_shows_a_good_one(tmp_path, text, said):
    file = tmp_path / "hosts"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DynamoError, match=said) as raised:
        read_hostfile(file)
    assert "`worker-1 slots=8`" in str(raised.value)


def test_hosts_are_filled_in_their_order_and_the_first_is_the_master():
    starts = planned(5, slots=HOSTS, environment={"NCCL_DEBUG": "WARN", "HOME": "/root"})
    assert [s.name for s in starts] == [
        "rank 0 on worker-1",
        "rank 1 on worker-1",
        "rank 2 on worker-2",
        "rank 3 on worker-2",
        "rank 4 on worker-2",
    ]
    ssh, *options, host, remote = starts[3].command
    assert (ssh, options, host) == ("ssh", ["-o", "BatchMode=yes"], "worker-2")
    words = remote.split()
    for word in ("RANK=3", "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=3", "WORLD_SIZE=5"):
        assert word in words
    assert {"MASTER_ADDR=worker-1", "NCCL_DEBUG=WARN", "DYNAMO_TETHER=1"} <= set(words)
    assert "HOME" not in remote
    assert remote.startswith(f"cd {Path.cwd()} && exec env ")
    assert remote.endswith("-P -m dynamo_cli train out")


def test_in_a_slurm_allocation_one_srun_starts_all_tasks():
    allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "6"}
    (start,) = planned(8, environment=allocation)
    assert start.command == [
        "srun",
        "--nodes=2",
        "--ntasks=8",
        "--ntasks-per-node=4",
        "--kill-on-bad-exit=1",
        "--export=ALL",
        "--cpus-per-task=6",
        *planned(1)[0].command,
    ]
    assert not start.tethered
    assert not {"RANK", "WORLD_SIZE", "DYNAMO_TETHER"} & set(start.environment)
    with pytest.raises(DynamoError, match="7 ranks cannot be spread evenly over .* 2 nodes"):
        planned(7, environment=allocation)


def test_a_task_of_srun_is_a_rank_and_a_batch_script_is_none():
    task = {
        "SLURM_JOB_ID": "12345",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NODELIST": "gpu[003-004]",
    }
    adopt_slurm(task)
    assert is_rank(task)
    assert (task["RANK"], task["LOCAL_RANK"], task["WORLD_SIZE"]) == ("5", "1", "8")
    assert (task["MASTER_ADDR"], task["MASTER_PORT"]) == ("gpu003", "32345")
    batch = {"SLURM_JOB_ID": "12345", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    adopt_slurm(batch)
    assert not is_rank(batch)
    torchrun = {"RANK": "3", "WORLD_SIZE": "4"} | {"SLURM_STEP_NUM_TASKS": "2"}
    adopt_slurm(torchrun)
    assert torchrun["RANK"] == "3"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[003-006,009],login", "gpu003"),
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("rack[1,3]-ib,x", "rack1-ib"),
    ],
)
def test_the_first_host_of_slurms_short_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("wanted", "gpus", "slots", "environment", "ranks"),
    [
        (2, None, {}, {}, 2),  # on a CPU as many as are asked for
        (None, 4, {}, {}, 4),
        (2, 4, {}, {}, 2),
        (None, None, HOSTS, {}, 6),
        (5, 8, HOSTS, {}, 5),
        (
            None,
            8,
            {},
            {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"},
            8,
        ),
        (None, None, {}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "3"}, 3),
    ],
)
def test_there_are_as_many_ranks_as_asked_or_one_for_each_gpu(
    wanted, gpus, slots, environment, ranks
):
    assert count_ranks(wanted, gpus=gpus, slots=slots, environment=environment) == ranks


@pytest.mark.parametrize(
    ("wanted", "gpus", "slots", "said"),
    [
        (None, None, {}, "one rank for each GPU, and there is none here.*--ranks 2"),
        (3, 2, {}, "ranks is 3, and this machine has room for 2"),
        (7, None, HOSTS, "ranks is 7, and the hostfile has room for 6"),
    ],
)
def test_ranks_that_there_is_no_room_for_are_refused(wanted, gpus, slots, said):
    with pytest.raises(DynamoError, match=said):
        count_ranks(wanted, gpus=gpus, slots=slots, environment={})


# How they end ----------------------------------------------------------------------------------


def scripts(*bodies, environment=None):
    """Ranks that each run a Python script."""
    return [
        Start(f"rank {rank}", [sys.executable, "-c", textwrap.dedent(body)], environment or {})
        for rank, body in enumerate(bodies)
    ]


WAITS = "import time; time.sleep(60)"


def test_ranks_that_end_well_end_well():
    supervise(scripts("pass", "import time; time.sleep(0.3)"))


def test_a_rank_that_says_why_it_ends_leaves_it_at_that(monkeypatch):
    monkeypatch.setattr("dynamo_cli.train.supervision.GRACE", 0.2)
    started = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        supervise(scripts(WAITS, "import sys; sys.exit(2)"))
    assert ended.value.code == 2
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "rank 1 was killed by SIGKILL .*too little memory"),
        ("import os; os.kill(os.getpid(), 11)", "rank 1 was killed by SIGSEGV, and with it"),
        ("import os; os._exit(137)", "rank 1 was killed by SIGKILL"),  # as ssh and srun tell it
        ("import os; os._exit(7)", "rank 1 ended with exit code 7"),
    ],
)
def test_a_rank_that_dies_without_a_word_ends_all_and_is_named(monkeypatch, body, said):
    monkeypatch.setattr("dynamo_cli.train.supervision.GRACE", 0.2)
    with pytest.raises(DynamoError, match=said) as raised:
        supervise(scripts(WAITS, body, WAITS))
    assert "goes on from the last checkpoint" in str(raised.value)


def test_what_cannot_be_started_is_named():
    with pytest.raises(DynamoError, match="no-such-program: .* is it installed"):
        supervise([Start("srun", ["no-such-program"])])


def supervisor(body, *, ranks=2, **options):
    """A process that supervises ranks of one script."""
    code = f"""
        import sys
        from dynamo_cli.train.supervision import Start, supervise
        body = {textwrap.dedent(body)!r}
        supervise([Start(str(r), [sys.executable, "-c", body]) for r in range({ranks})])
        print("all ended", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


# A rank that tells when the line to its launcher says something, or breaks. It writes each line in
# one call: an unbuffered `print` writes the line's end by itself, and two ranks share the pipe.
LISTENS = r"""
    import os
    os.write(1, b"ready\n")
    said = os.read(0, 99)
    os.write(1, (said.strip() or b"broken") + b"\n")
"""
READY = r"""
    import os, time
    os.write(1, b"ready\n")
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_through_its_line(number):
    with supervisor(LISTENS) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        process.send_signal(number)
        assert process.stdout.read() == f"{signal.Signals(number).name}\n" * 2 + "all ended\n"
    assert process.returncode == 0


def test_a_second_signal_ends_all_at_once():
    with supervisor(READY) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        process.terminate()
        time.sleep(1.2)
        process.terminate()
        assert process.stdout.read() == ""
    assert process.returncode == -signal.SIGTERM


def test_no_rank_outlives_a_launcher_that_was_killed():
    with supervisor(LISTENS) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        process.kill()
        assert process.stdout.read() == "broken\n" * 2  # until the last of them has ended


TETHERED = """
import os, signal, sys, threading, time
from dynamo_cli.train.ranks import _hold_the_tether
threading.Thread(target=_hold_the_tether, daemon=True).start()
print("importing", flush=True)
time.sleep(float(sys.argv[1]))
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), os._exit(0)))
print("listening", flush=True)
time.sleep(60)
"""


def test_a_rank_hears_a_signal_that_came_while_it_was_importing():
    command = [sys.executable, "-c", TETHERED, "0.5"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as rank:
        assert rank.stdout.readline() == "importing\n"
        rank.stdin.write("SIGTERM\n")
        rank.stdin.flush()
        assert rank.stdout.read() == "listening\nsaved\n"
    assert rank.returncode == 0


def test_a_rank_whose_line_breaks_ends():
    command = [sys.executable, "-c", TETHERED, "0"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as rank:
        assert rank.stdout.readline() == "importing\n"
        rank.stdin.close()
        rank.wait(timeout=30)
    assert rank.returncode == 2


# Through stand-ins ------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Write a shell script that a command finds under a name."""

    def write(name, text):
        file = tmp_path / name
        file.write_text("#!/bin/sh\n" + text)
        file.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return write


def test_what_is_handed_to_ssh_runs_there(programs, capfd):
    programs("ssh", 'shift 2; echo "on $1"; exec sh -c "$2"\n')
    supervise(planned(2, slots={"a": 1, "b": 1}, arguments=["--version"]))
    said = capfd.readouterr().out.splitlines()
    assert sorted(said) == [f"dynamo {__version__}"] * 2 + ["on a", "on b"]


def test_a_host_that_ssh_does_not_reach_is_named(programs):
    programs("ssh", "exit 255\n")
    with pytest.raises(DynamoError, match="rank 0 on far: ssh could not connect"):
        supervise(planned(1, slots={"far": 1}))


def test_what_is_handed_to_srun_runs_there_and_a_signal_is_its_to_hand_on(programs, capfd):
    programs("srun", 'while [ "${1#--}" != "$1" ]; do echo "$1"; shift; done; exec "$@"\n')
    allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
    supervise(planned(2, environment=allocation, arguments=["--version"]))
    assert capfd.readouterr().out.splitlines() == [
        "--nodes=1",
        "--ntasks=2",
        "--ntasks-per-node=2",
        "--kill-on-bad-exit=1",
        "--export=ALL",
        f"dynamo {__version__}",
    ]
