"""Weights to a server over NCCL: the calls, in their order. No GPU, no NCCL: both are stand-ins."""

import threading

import pytest
import torch

from dynamo_cli.errors import DynamoError
from dynamo_cli.rollout import vllm_transfer
from dynamo_cli.rollout.vllm_transfer import NCCLTransfer, in_chunks


class Served:
    """A server of two workers, which receive while they are asked to, and not before."""

    place = ("127.0.0.1", 8000)

    def __init__(self):
        self.calls, self.sent, self.refuses = [], [], False
        self.joined, self.asked = threading.Event(), threading.Event()

    def develop(self, path, body):
        self.calls.append((path, body))
        if path == "/get_world_size":
            return {"world_size": 2}
        if path == "/init_weight_transfer_engine":
            assert self.joined.wait(10), "both sides meet inside their calls"
        if path == "/update_weights":
            self.asked.set()
            if self.refuses:
                raise DynamoError("http://server/update_weights: 500, no such parameter")
        return None

    def join(self, meeting):
        self.meeting = meeting
        self.joined.set()

        def broadcast(tensor):
            assert self.asked.wait(10), "nobody receives yet"
            self.sent.append(tensor)

        return broadcast


WEIGHTS = [
    ("a", torch.arange(6.0).view(2, 3).T),
    ("b", torch.ones(4, dtype=torch.bfloat16)),
    ("c", torch.zeros(2)),
]


def test_the_workers_are_told_what_comes_and_then_sent_it(monkeypatch):
    monkeypatch.setattr(vllm_transfer, "CHUNK", 32)  # a: 24 bytes, b and c: 8 each
    served = Served()
    transfer = NCCLTransfer(served, served.join)
    (_, init) = served.calls[1]
    assert init["init_info"] == served.meeting | {"rank_offset": 1, "packed": False}
    assert served.meeting["world_size"] == 3
    assert served.meeting["master_address"] == "127.0.0.1"
    served.calls.clear()
    transfer.send(WEIGHTS)
    assert served.calls == [
        ("/start_weight_update", {}),
        (
            "/update_weights",
            {
                "update_info": {
                    "names": ["a", "b"],
                    "dtype_names": ["float32", "bfloat16"],
                    "shapes": [[3, 2], [4]],
                }
            },
        ),
        (
            "/update_weights",
            {"update_info": {"names": ["c"], "dtype_names": ["float32"], "shapes": [[2]]}},
        ),
        ("/finish_weight_update", {}),
    ]
    assert [torch.equal(ours, w) for ours, (_, w) in zip(served.sent, WEIGHTS, strict=True)]
    assert all(tensor.is_contiguous() for tensor in served.sent), "NCCL reads memory as it lies"


def test_what_the_server_refuses_is_an_error_here():
    served = Served()
    transfer = NCCLTransfer(served, served.join)
    served.refuses = True
    with pytest.raises(DynamoError, match="no such parameter"):
        transfer.send(WEIGHTS)


def test_a_parameter_that_is_whole_only_for_a_moment_is_copied():
    gathered = torch.zeros(2)

    def weights():
        for value in (1.0, 2.0, 3.0):
            gathered.fill_(value)
            yield str(value), gathered

    chunks = list(in_chunks(weights(), 16))
    assert [[t.tolist() for _, t in chunk] for chunk in chunks] == [
        [[1.0, 1.0], [2.0, 2.0]],
        [[3.0, 3.0]],
    ]
