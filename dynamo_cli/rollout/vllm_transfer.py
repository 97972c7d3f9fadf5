"""New weights to the workers of a `vllm serve`, from GPU to GPU.

By the weight-transfer calls of vLLM 0.32, whose server must run in its development mode and with
`--weight-transfer-config '{"backend": "nccl"}'`. Written against these calls and tested with
stand-ins: no GPU was at hand.
"""

import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

CHUNK = 256 << 20  # bytes of weights that are held beside the model's own while they travel


class Served(Protocol):
    """What is asked of a server; `vllm_server.Server`."""

    @property
    def place(self) -> tuple[str, int]: ...

    def develop(self, path: str, body: Any) -> Any: ...


def join_as_sender(meeting: dict[str, Any]) -> Callable[[Tensor], None]:
    """Join the group of a server's workers as its rank 0; returns what sends them one tensor."""
    from vllm.distributed.weight_transfer.nccl_common import trainer_init

    group = trainer_init(meeting)
    return lambda tensor: group.broadcast(tensor, src=0, stream=torch.cuda.current_stream())


class NCCLTransfer:
    """A group of this process and a server's workers, which outlives a transfer."""

    def __init__(
        self,
        server: Served,
        join: Callable[[dict[str, Any]], Callable[[Tensor], None]] = join_as_sender,
    ) -> None:
        self._server = server
        workers = server.develop("/get_world_size", None)["world_size"]
        meeting = {"master_address": own_address(*server.place), "master_port": free_port()}
        meeting["world_size"] = workers + 1
        told = meeting | {"rank_offset": 1, "packed": False}
        # Both sides wait for each other inside their calls.
        with ThreadPoolExecutor(1) as beside:
            theirs = beside.submit(
                server.develop, "/init_weight_transfer_engine", {"init_info": told}
            )
            self._broadcast = join(meeting)
            theirs.result()

    def send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the workers' weights. Raises DynamoError where the server refuses them."""
        self._server.develop("/start_weight_update", {})
        for chunk in in_chunks(weights, CHUNK):
            info = {
                "names": [name for name, _ in chunk],
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in chunk],
                "shapes": [list(tensor.shape) for _, tensor in chunk],
            }
            beside = ThreadPoolExecutor(1)
            theirs = beside.submit(self._server.develop, "/update_weights", {"update_info": info})
            for _, tensor in chunk:
                self._broadcast(tensor)
            theirs.result()
            beside.shutdown()
        self._server.develop("/finish_weight_update", {})


def in_chunks(
    weights: Iterable[tuple[str, Tensor]], size: int
) -> Iterator[list[tuple[str, Tensor]]]:
    """The same named tensors in lists of at most `size` bytes, or of one; copied, for one that is
    gathered from several ranks is whole only until the next is asked for."""
    chunk, held = [], 0
    for name, tensor in weights:
        if chunk and held + tensor.nbytes > size:
            yield chunk
            chunk, held = [], 0
        chunk.append((name, tensor.detach().clone(memory_format=torch.contiguous_format)))
        held += tensor.nbytes
    if chunk:
        yield chunk


def own_address(host: str, port: int) -> str:
    """The address of this machine on the way to another. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return probe.getsockname()[0]


def free_port() -> int:
    """A port that nobody listens at on this machine now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
