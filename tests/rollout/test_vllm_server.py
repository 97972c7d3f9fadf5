"""A running server as an engine: a small one that plays `vllm serve`, and a real one."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest
import torch
from random_models import END, FREE, MODELS, TOKENIZER, build_requests
from safetensors.torch import load_file

from dynamo_cli.errors import DynamoError
from dynamo_cli.models_io import load_model
from dynamo_cli.rollout import vllm_server
from dynamo_cli.rollout.engine import VLLM, Request
from dynamo_cli.rollout.opening import open_engine

SETTINGS = VLLM(kind="vllm", server="http://x", context=None, gpu_memory=0.2, cpu_cache_gib=0.1)


class Player(BaseHTTPRequestHandler):
    """Answers each prompt with its last token, as often as the seed says, and the end token."""

    def do_GET(self):  # noqa: N802 (http.server's name)
        if self.path == "/v1/models":
            card = {"id": self.server.serves, "root": self.server.serves, "max_model_len": 64}
            self.reply({"data": [card]})
        else:
            self.reply({}, status=self.server.health)

    def do_POST(self):  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        if self.path == "/v1/completions":
            self.server.gate.wait()
            self.reply(self.completion(body), status=self.server.status)
        elif not self.server.development:
            self.reply({"detail": "Not Found"}, status=404)
        elif self.path == "/collective_rpc":
            folder = body["kwargs"]["weights_path"]
            self.server.weights = load_file(f"{folder}/model.safetensors")
            self.reply({"results": [None]})
        else:
            self.reply({"success": self.server.drops_cache})

    def completion(self, body):
        if self.server.status != 200:
            return {"error": {"message": "the engine\nis dead"}}
        tokens = [body["prompt"][-1]] * (body.get("seed", 0) % 7) + [END]
        tokens = tokens[: body["max_tokens"]]
        value = self.server.logp_of_certain if "allowed_token_ids" in body else -0.5
        logprobs = {"token_logprobs": [value] * len(tokens)}
        return {"choices": [{"token_ids": tokens, "logprobs": logprobs}]}

    def reply(self, value, status=200):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words):
        pass


class Playing(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


@pytest.fixture
def folder(tmp_path):
    MODELS["tied"].save_pretrained(tmp_path / "tied")
    TOKENIZER.save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


@pytest.fixture
def server(folder):
    player = Playing(("127.0.0.1", 0), Player)
    player.serves, player.status, player.health, player.asked = str(folder), 200, 200, []
    player.development, player.drops_cache, player.logp_of_certain = True, True, 0.0
    player.gate = threading.Event()
    player.gate.set()
    threading.Thread(target=player.serve_forever, daemon=True).start()
    yield player
    player.gate.set()
    player.shutdown()
    player.server_close()


def connect(server, folder, **changes):
    url = f"http://127.0.0.1:{server.server_port}"
    settings = SETTINGS.model_copy(update={"server": url} | changes)
    return open_engine(settings, folder, dtype="float32", device="cpu")[0]


def test_completions_follow_the_requests_though_answers_come_in_any_order(server, folder):
    requests = build_requests()
    calls = []
    completions = connect(server, folder).generate(
        requests, FREE, lambda done, tokens: calls.append((list(done), tokens))
    )
    for request, completion in zip(requests, completions, strict=True):
        repeated = request.seed % 7
        assert completion.tokens == (request.prompt[-1],) * repeated + (END,)
        assert completion.finish == "stop"
        assert (completion.problem_id, completion.rollout) == (request.problem_id, request.rollout)
        assert completion.logp == (-0.5,) * (repeated + 1)
    handed = [completion for done, _ in calls for completion in done]
    assert sorted(handed, key=repr) == sorted(completions, key=repr)
    assert sum(tokens for _, tokens in calls) == sum(len(c.tokens) for c in completions)
    asked = next(body for path, body in server.asked if path == "/v1/completions")
    assert asked["return_token_ids"] is True
    assert (asked["logprobs"], asked["ignore_eos"], asked["stop_token_ids"]) == (0, True, [END])


def test_a_prompt_without_room_is_refused_before_anything_is_asked(server, folder):
    engine = connect(server, folder, context=32)
    with pytest.raises(DynamoError, match=r"problem long: .* 32 tokens .* holds 32"):
        engine.generate([*build_requests(1, 1), Request("long", 0, (7,) * 32, 1)], FREE)
    assert server.asked == []


def test_the_server_must_serve_this_model_with_this_context(server, folder, tmp_path):
    with pytest.raises(DynamoError, match="holds 64 positions, and context asks for 65"):
        connect(server, folder, context=65)
    server.serves = str(tmp_path)  # another folder of this machine
    with pytest.raises(DynamoError, match=rf"serves {tmp_path}, not {folder}; .*vllm serve"):
        connect(server, folder)
    server.serves = "/models/of/another/machine/tied"
    assert connect(server, folder).context == 64


def test_a_server_that_is_not_there_or_no_url_is_an_error(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = SETTINGS.model_copy(update={"server": f"http://127.0.0.1:{free.getsockname()[1]}"})
        with pytest.raises(DynamoError, match="no answer from .* is `vllm serve` running"):
            open_engine(nobody, folder, dtype="float32", device="cpu")
    with pytest.raises(DynamoError, match="is no URL"):
        vllm_server.Server("localhost:8000")


def test_what_the_server_says_went_wrong_is_told_in_one_line(server, folder):
    server.status = 500
    with pytest.raises(DynamoError, match="500, the engine is dead"):
        connect(server, folder).generate(build_requests(), FREE)


def test_a_server_that_falls_silent_is_asked_for_its_health_and_given_up(
    server, folder, monkeypatch
):
    monkeypatch.setattr(vllm_server, "PATIENCE", 0.05)
    engine = connect(server, folder)
    server.gate.clear()
    server.health = 503
    with pytest.raises(DynamoError, match="/health: 503"):
        engine.generate(build_requests(), FREE)


def test_weights_arrive_with_their_head_and_the_cache_is_dropped(server, folder):
    connect(server, folder).load_weights(MODELS["tied"].named_parameters())
    embeddings = MODELS["tied"].model.embed_tokens.weight
    assert torch.equal(server.weights["lm_head.weight"], embeddings)
    assert torch.equal(server.weights["model.embed_tokens.weight"], embeddings)
    assert [path for path, _ in server.asked] == ["/collective_rpc", "/reset_prefix_cache"]


def test_a_server_that_takes_no_weights_or_keeps_its_cache_is_an_error(server, folder):
    engine = connect(server, folder)
    server.drops_cache = False
    with pytest.raises(DynamoError, match="prefix cache"):
        engine.load_weights(MODELS["tied"].named_parameters())
    server.development = False
    with pytest.raises(DynamoError, match="VLLM_SERVER_DEV_MODE=1"):
        engine.load_weights(MODELS["tied"].named_parameters())


def test_unprocessed_log_probabilities_are_refused_where_they_differ(server, folder):
    engine = connect(server, folder)
    server.logp_of_certain = -3.0
    assert len(engine.generate(build_requests(1, 1), FREE)) == 1  # the same either way
    warm = FREE.model_copy(update={"temperature": 0.6})
    with pytest.raises(DynamoError, match="--logprobs-mode processed_logprobs"):
        engine.generate(build_requests(1, 1), warm)


@contextmanager
def real_server(folder, log):
    """`vllm serve` on a free port, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", "100000000"]
    command += ["--logprobs-mode", "processed_logprobs"]
    environment = os.environ | {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",  # one small function: ten seconds
    }
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        server = vllm_server.Server(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 300  # a busy machine
        while True:
            try:
                server.check_health()
                break
            except DynamoError:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
        yield server.url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("vllm") is None or torch.cuda.is_available(), reason="needs vLLM's CPU build"
)
def test_a_real_server_samples_the_policy_and_takes_its_new_weights(root, tmp_path):
    folder = root / "dynamo_cli" / "models" / "ladder-small"
    model, tokenizer = load_model(folder)
    prompt = tuple(tokenizer.encode("3+4-5+2=", add_special_tokens=False))
    requests = [Request("p", r, prompt, seed=r) for r in range(6)]
    with real_server(folder, tmp_path / "server.log") as url:
        settings = SETTINGS.model_copy(update={"server": url})
        engine, _ = open_engine(settings, folder, dtype="float32", device="cpu")
        for factor, temperature in ((1.0, 1.0), (1.05, 0.7)):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(factor)
            engine.load_weights(model.named_parameters())
            sampling = FREE.model_copy(update={"temperature": temperature})
            for completion in engine.generate(requests, sampling):
                with torch.no_grad():
                    logits = model(torch.tensor([completion.prompt + completion.tokens])).logits[0]
                logp = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
                logp = logp[range(len(completion.tokens)), list(completion.tokens)]
                torch.testing.assert_close(torch.tensor(completion.logp), logp, rtol=0, atol=1e-4)


def test_of_ranks_that_share_a_server_one_hands_the_weights_over(server, folder):
    url = f"http://127.0.0.1:{server.server_port}"
    settings = SETTINGS.model_copy(update={"server": url})
    taken = []

    def weights():
        for name, tensor in MODELS["tied"].named_parameters():
            taken.append(name)
            yield name, tensor

    other, _ = open_engine(settings, folder, dtype="float32", device="cpu", rank=1)
    other.load_weights(weights())
    assert taken, "it takes part in gathering them"
    assert server.asked == []
    first, _ = open_engine(settings, folder, dtype="float32", device="cpu", rank=0)
    first.load_weights(weights())
    assert [path for path, _ in server.asked] == ["/collective_rpc", "/reset_prefix_cache"]


def test_ranks_are_spread_over_servers_and_each_has_one_that_owns_its_weights():
    settings = SETTINGS.model_copy(update={"server": ["http://a", "http://b"]})
    asked = [(settings.server_of(rank), settings.owner_of_weights(rank)) for rank in range(3)]
    assert asked == [("http://a", True), ("http://b", True), ("http://a", False)]


def test_weights_over_nccl_need_a_gpu(server, folder):
    with pytest.raises(DynamoError, match="transfer: nccl needs a GPU; set it to folder"):
        connect(server, folder, transfer="nccl")
