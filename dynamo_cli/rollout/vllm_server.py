"""Samples through a running `vllm serve`, over HTTP. Needs no vLLM here."""

import http.client
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safetensors.torch import save_file
from torch import Tensor

from dynamo_cli.errors import DynamoError
from dynamo_cli.records import Completion
from dynamo_cli.rollout.engine import VLLM, Arrived, Request, Sampling
from dynamo_cli.rollout.vllm_terms import Terms, end_tokens, with_head
from dynamo_cli.rollout.vllm_transfer import NCCLTransfer

SIDE_BY_SIDE = 64  # requests under way
PATIENCE = 30.0  # seconds without an answer, after which the server is asked for its health
DEVELOPMENT = "start it with VLLM_SERVER_DEV_MODE=1 in its environment"


class VLLMServer:
    """A rollout engine that asks a server, which schedules the requests.

    The server answers for one model, whose tokenizer and end tokens are read from the folder here.
    """

    def __init__(
        self, settings: VLLM, folder: Path, tokenizer: Any, *, device: str = "cpu", rank: int = 0
    ) -> None:
        """Raises DynamoError where no server answers, or one that serves another model."""
        url = settings.server_of(rank)
        if settings.transfer == "nccl" and device != "cuda":
            raise DynamoError("the engine's transfer: nccl needs a GPU; set it to folder")
        self._server = Server(url)
        self._owner = settings.owner_of_weights(rank)
        self._nccl, self._transfer = settings.transfer == "nccl", None
        card = served_model(self._server, folder)
        self._model = card["id"]
        self.context: int = settings.context or card["max_model_len"]
        if self.context > card["max_model_len"]:
            raise DynamoError(
                f"the server at {url} holds {card['max_model_len']} positions, and "
                f"context asks for {self.context}; lower it, or start the server with "
                f"--max-model-len {self.context}"
            )
        self._terms = Terms(tokenizer, ends=end_tokens(folder, tokenizer), context=self.context)
        self._processed = False

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> list[Completion]:
        """One completion per request, in the order of the requests.

        Raises DynamoError for a prompt that leaves no room in the context, before anything is
        sampled, and where the server does not answer any more.
        """
        rooms = self._terms.rooms(requests, sampling)
        if not (sampling.temperature in (0, 1) and sampling.top_p == 1 and sampling.top_k == -1):
            self._check_processed(requests)
        completions: list[Completion | None] = [None] * len(requests)
        pool = ThreadPoolExecutor(SIDE_BY_SIDE)
        try:
            pending: dict[Future, int] = {
                pool.submit(self._answer, request, sampling, room): index
                for index, (request, room) in enumerate(zip(requests, rooms, strict=True))
            }
            while pending:
                ready, _ = wait(pending, timeout=PATIENCE, return_when=FIRST_COMPLETED)
                if not ready:
                    self._server.check_health()
                done = []
                for future in ready:
                    index = pending.pop(future)
                    completions[index] = future.result()
                    done.append(completions[index])
                if arrived is not None and done:
                    arrived(done, sum(len(each.tokens) for each in done))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self._server.hang_up()  # where this was broken off: the server then stops sampling
        return completions

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Sample from these parameters from now on (names as in the transformers module).

        They go over NCCL, or are written to a temporary folder that the server reads, so it must
        run on this machine (or share the folder that TMPDIR names); in its development mode. What
        was cached of the old ones is dropped. Raises DynamoError where it does not. Of several
        ranks that share a server, one does it, and the others only take part in the iteration.
        """
        if not self._owner:
            for _ in weights:
                pass
            return
        if self._nccl:
            if self._transfer is None:
                self._transfer = NCCLTransfer(self._server)
            self._transfer.send(with_head(weights))
        else:
            self._through_a_folder(weights)
        if not self._server.develop("/reset_prefix_cache", {})["success"]:
            raise DynamoError(
                f"{self._server.url} did not drop the prefix cache of the old weights; is somebody "
                "else sampling from it?"
            )

    def _through_a_folder(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        with tempfile.TemporaryDirectory(prefix="dynamo-weights-") as folder:
            # Cloned: tensors that share storage cannot stand in one file.
            tensors = {name: tensor.cpu().clone() for name, tensor in with_head(weights)}
            save_file(tensors, Path(folder) / "model.safetensors")
            self._server.develop(
                "/collective_rpc",
                {"method": "reload_weights", "kwargs": {"weights_path": folder}},
            )

    def close(self) -> None:
        """Nothing to let go of: the server is not ours."""

    def _answer(self, request: Request, sampling: Sampling, room: int) -> Completion:
        tokens, logp = self._ask(
            request.prompt, **self._terms.parameters(request, sampling, room=room)
        )
        return self._terms.completion(request, sampling, tokens=tokens, logp=logp)

    def _ask(self, prompt: Sequence[int], **keys: Any) -> tuple[list[int], list[float | None]]:
        body = {"model": self._model, "prompt": list(prompt), "return_token_ids": True, **keys}
        (choice,) = self._server.ask("/v1/completions", body)["choices"]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    def _check_processed(self, requests: Sequence[Request]) -> None:
        """Raises DynamoError where the server reports other log-probabilities than it samples with.

        A token that alone is allowed has probability 1; of the model itself, not two can have it.
        """
        if self._processed or not requests:
            return
        for token in (0, 1):
            _, (logp,) = self._ask(
                requests[0].prompt, allowed_token_ids=[token], max_tokens=1, logprobs=0
            )
            if logp == 0:
                continue
            raise DynamoError(
                f"{self._server.url} reports log-probabilities before temperature, top_k and "
                "top_p; start it with --logprobs-mode processed_logprobs"
            )
        self._processed = True


class Server:
    """JSON over HTTP, from several threads. Failures become DynamoErrors."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DynamoError(f"server {url!r} is no URL; give one like http://localhost:8000")
        self.url = url
        self._parts = parts
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def ask(self, path: str, body: Any = None, *, timeout: float | None = None) -> Any:
        """The answer to a POST of `body`, or to a GET. Raises DynamoError with what went wrong."""
        status, text = self._exchange(path, body, timeout)
        if status != 200:
            raise DynamoError(f"{self.url}{path}: {status}, {reason_of(text)}")
        return json.loads(text) if text else None

    def develop(self, path: str, body: Any) -> Any:
        """As `ask`, of what a server offers in its development mode alone."""
        status, text = self._exchange(path, body, None)
        if status == 404:
            raise DynamoError(f"{self.url} takes no new weights; {DEVELOPMENT}")
        if status != 200:
            raise DynamoError(f"{self.url}{path}: {status}, {reason_of(text)}")
        return json.loads(text) if text else None

    @property
    def place(self) -> tuple[str, int]:
        """Its host and port."""
        ports = {"http": 80, "https": 443}
        return self._parts.hostname, self._parts.port or ports[self._parts.scheme]

    def check_health(self) -> None:
        self.ask("/health", timeout=PATIENCE)

    def hang_up(self) -> None:
        """Break off what is still under way."""
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _exchange(self, path: str, body: Any, timeout: float | None) -> tuple[int, str]:
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._parts.hostname, self._parts.port, timeout=timeout)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):  # the name under which the server reads it
            headers["Authorization"] = f"Bearer {key}"
        with self._lock:
            self._open.add(connection)
        try:
            text = None if body is None else json.dumps(body)
            verb = "GET" if body is None else "POST"
            connection.request(verb, self._parts.path.rstrip("/") + path, text, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8")
        except (OSError, http.client.HTTPException) as error:
            raise DynamoError(
                f"no answer from {self.url} ({error or type(error).__name__}); is `vllm serve` "
                "running there?"
            ) from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def reason_of(text: str) -> str:
    """What a server says went wrong, in one line."""
    try:
        said = json.loads(text)
        text = said["error"]["message"] if "error" in said else str(said.get("detail", text))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return " ".join(text.split())[:300]


def served_model(server: Server, folder: Path) -> dict[str, Any]:
    """The server's card of the model in a folder. Raises DynamoError where it serves another."""
    cards = server.ask("/v1/models", timeout=PATIENCE)["data"]
    for card in cards:
        for name in filter(None, (card.get("root"), card["id"])):
            there = Path(name)
            same = there.resolve() == folder.resolve() if there.exists() else False
            if same or (not there.exists() and there.name == folder.resolve().name):
                return card
    names = ", ".join(card.get("root") or card["id"] for card in cards)
    raise DynamoError(
        f"the server at {server.url} serves {names}, not {folder}; start it with "
        f"`vllm serve {folder}`"
    )
