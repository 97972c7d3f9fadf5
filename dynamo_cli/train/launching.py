"""Which processes make the ranks of a run: here, on the hosts of a file, or through Slurm.

`supervision` starts them. Why not DeepSpeed's own launcher: docs/cluster.md. A process that another
launcher has started (torchrun, deepspeed, srun) is a rank already, and starts none.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from dynamo_cli.errors import DynamoError
from dynamo_cli.rollout.vllm_transfer import free_port
from dynamo_cli.train.ranks import TETHER
from dynamo_cli.train.supervision import Start

ON_ANOTHER_NODE = ("CUDA_", "DS_", "DYNAMO_", "GLOO_", "HF_", "NCCL_", "OMP_", "TORCH_", "VLLM_")


def adopt_slurm(environment: dict[str, str]) -> None:
    """Make the process that srun started as one of several tasks a rank, in its environment."""
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
    # Apart for each job: two may share a node.
    environment.setdefault("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several that train together."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def first_host(nodes: str) -> str:
    """The first of Slurm's short list of hosts: `gpu[003-006,009],login` is gpu003."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise DynamoError(f"SLURM_STEP_NODELIST {nodes!r} names no host")
    return "".join(filter(None, match.groups()))


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks that each host takes: a line is `worker-1 slots=8`, as DeepSpeed and MPI write it."""
    if not path.is_file():
        raise DynamoError(f"{path}: no such hostfile; a line of it is `worker-1 slots=8`")
    slots: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=(\d+)", line)
        if match is None or match[1] in slots or int(match[2]) == 0:
            raise DynamoError(
                f"{path}, line {number}: {line!r}; expected a host that no other line names and "
                "its number of ranks, like `worker-1 slots=8`"
            )
        slots[match[1]] = int(match[2])
    if not slots:
        raise DynamoError(f"{path} names no host; a line of it is `worker-1 slots=8`")
    return slots


def count_ranks(
    wanted: int | None, *, gpus: int | None, slots: Mapping[str, int], environment: Mapping
) -> int:
    """How many ranks a run has: as asked, or one for each GPU or slot there is.

    gpus: of this machine; None where the run is to be on the CPU.
    """
    if slots:
        there, place = sum(slots.values()), "the hostfile"
    elif in_slurm(environment):
        nodes = int(environment.get("SLURM_JOB_NUM_NODES", 1))
        on_node = int(environment.get("SLURM_GPUS_ON_NODE", 0)) if gpus is not None else 0
        there = nodes * on_node or int(environment.get("SLURM_NTASKS", 0)) or None
        place = "the Slurm allocation"
    else:
        there, place = gpus, "this machine"
    if wanted is None and there is None:
        raise DynamoError(
            "training.engine.ranks is null, which means one rank for each GPU, and there is none "
            "here; give a number: --ranks 2"
        )
    if wanted is not None and there is not None and wanted > there:
        raise DynamoError(
            f"training.engine.ranks is {wanted}, and {place} has room for {there}; lower it, or "
            "set it to null for all of them"
        )
    return there if wanted is None else wanted


def in_slurm(environment: Mapping[str, str]) -> bool:
    """Whether this process is in a Slurm allocation, and not one of several tasks of it."""
    return "SLURM_JOB_ID" in environment


def check_installed() -> None:
    """Raises DynamoError where the engine of several ranks is not installed."""
    if find_spec("deepspeed") is None:
        raise DynamoError(
            'DeepSpeed is not installed; pip install "dynamo-rl[deepspeed]", or set '
            "training.engine.kind to local"
        )


def plan(
    arguments: Sequence[str],
    ranks: int,
    *,
    slots: Mapping[str, int],
    device: str,
    environment: Mapping[str, str] = os.environ,
) -> list[Start]:
    """The processes that make a run of `ranks` ranks of `dynamo ARGUMENTS`."""
    # -P: the code that runs here, and not what lies in the folder that it runs in.
    command = [sys.executable, "-P", "-m", "dynamo_cli", *arguments]
    code = str(Path(__file__).resolve().parents[2])
    shared = {
        "PYTHONPATH": os.pathsep.join(filter(None, (code, environment.get("PYTHONPATH")))),
        "WORLD_SIZE": str(ranks),
        "MASTER_PORT": str(free_port()),
        # It would print where in its own code it noticed that a rank is gone.
        "TORCH_CPP_LOG_LEVEL": environment.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }
    if device == "cpu":
        shared["DS_ACCELERATOR"] = "cpu"
    if slots:
        return list(over_ssh(command, ranks, slots=slots, shared=shared, environment=environment))
    if in_slurm(environment):
        return [by_srun(command, ranks, shared=shared, environment=environment)]
    return [
        Start(f"rank {rank}", command, shared | place(rank, rank, ranks, "127.0.0.1"))
        for rank in range(ranks)
    ]


def place(rank: int, local: int, there: int, master: str) -> dict[str, str]:
    """What tells one rank its place; `there`: ranks on its machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(there),
        "MASTER_ADDR": master,
        TETHER: "1",
    }


def over_ssh(
    command: Sequence[str],
    ranks: int,
    *,
    slots: Mapping[str, int],
    shared: Mapping[str, str],
    environment: Mapping[str, str],
) -> Iterator[Start]:
    """One ssh for each rank, hosts filled in the order of the file, in the same folder there.

    ssh hands standard input through, and with it the tether.
    """
    carried = {k: v for k, v in environment.items() if k.startswith(ON_ANOTHER_NODE)}
    first = next(iter(slots))
    rank = 0
    for host, room in slots.items():
        there = min(room, ranks - rank)
        for local in range(there):
            facts = carried | shared | place(rank, local, there, first)
            words = [f"{name}={value}" for name, value in facts.items()]
            remote = (
                f"cd {shlex.quote(str(Path.cwd()))} && exec env {shlex.join([*words, *command])}"
            )
            quiet = ["ssh", "-o", "BatchMode=yes", host, remote]
            yield Start(f"rank {rank} on {host}", quiet)
            rank += 1


def by_srun(
    command: Sequence[str], ranks: int, *, shared: Mapping[str, str], environment: Mapping[str, str]
) -> Start:
    """One srun over the nodes of the allocation; its tasks find themselves by `adopt_slurm`."""
    nodes = min(ranks, int(environment.get("SLURM_JOB_NUM_NODES", 1)))
    if ranks % nodes:
        raise DynamoError(
            f"{ranks} ranks cannot be spread evenly over the allocation's {nodes} nodes; set "
            f"training.engine.ranks to a multiple of {nodes}"
        )
    options = [
        f"--nodes={nodes}",
        f"--ntasks={ranks}",
        f"--ntasks-per-node={ranks // nodes}",
        "--kill-on-bad-exit=1",
        "--export=ALL",
    ]
    if cores := environment.get("SLURM_CPUS_PER_TASK"):  # srun does not take it over by itself
        options.append(f"--cpus-per-task={cores}")
    kept = {k: v for k, v in shared.items() if k != "WORLD_SIZE"}
    kept["LOCAL_WORLD_SIZE"] = str(ranks // nodes)
    return Start("srun", ["srun", *options, *command], kept, tethered=False)
