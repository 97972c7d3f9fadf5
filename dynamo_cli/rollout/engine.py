"""The border to whatever samples text: requests go in, completions come out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field
from torch import Tensor

from dynamo_cli.errors import DynamoError
from dynamo_cli.records import Completion
from dynamo_cli.schema import Section


class Sampling(Section):
    """How responses are drawn. Only temperature 1, top_p 1, top_k -1 samples the policy itself."""

    temperature: float = Field(ge=0)  # 0 is greedy
    top_p: float = Field(gt=0, le=1)  # 1 keeps the whole distribution
    top_k: int = Field(ge=-1)  # -1 keeps the whole distribution
    max_tokens: int = Field(ge=1)  # of a response, the end token included

    @property
    def whole(self) -> bool:
        """Whether tokens come from the model's whole distribution, at its temperature."""
        return self.temperature > 0 and self.top_p == 1 and self.top_k == -1


class Transformers(Section):
    """Sampling in this process with transformers."""

    kind: Literal["hf"]
    max_batch_tokens: int = Field(ge=1)  # bounds the cache: rows times their longest length


class VLLM(Section):
    """Sampling with vLLM: in this process, or through a running `vllm serve`."""

    kind: Literal["vllm"]
    # Its URL; null: an engine in this process. Several URLs: training on ranks, shared out to them.
    server: str | list[str] | None
    context: int | None = Field(ge=1)  # positions at most; null: all that the model has
    gpu_memory: float = Field(gt=0, le=1)  # share of a GPU's memory that vLLM takes
    cpu_cache_gib: float = Field(gt=0)  # key-value cache where there is no GPU
    # Whether an engine in this process leaves the GPU to the trainer while that learns.
    sleep: bool = False
    transfer: Literal["folder", "nccl"] = "folder"  # how a server comes by new weights

    def server_of(self, rank: int) -> str:
        """The server that a rank asks. Raises ValueError where there is none."""
        if not self.server:
            raise ValueError("no server is named")
        return self.server if isinstance(self.server, str) else self.server[rank % len(self.server)]

    def owner_of_weights(self, rank: int) -> bool:
        """Whether it is this rank that hands new weights to its server: each has one such rank."""
        return rank < (1 if isinstance(self.server, str) else len(self.server))


EngineSettings = Annotated[Transformers | VLLM, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class Request:
    """One response to sample. The seed is its own: batch, order and rank must not matter."""

    problem_id: str
    rollout: int
    prompt: tuple[int, ...]  # token ids
    seed: int


# (completions that have just finished, tokens sampled since the last call). Every completion is
# handed over once, as soon as it ends; a call without any tells of tokens alone.
Arrived = Callable[[Sequence[Completion], int], None]


class RolloutEngine(Protocol):
    """Samples completions from the current policy."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> list[Completion]:
        """One completion per request, in the order of the requests.

        `arrived` hears of each as it finishes, in any order, before this returns. Raises
        DynamoError naming the problem whose prompt leaves no room in the context.
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Sample from these parameters from now on (names as in the transformers module)."""
        ...

    def close(self) -> None: ...


def room_left(request: Request, sampling: Sampling, context: int | None) -> int:
    """Most tokens that this response may have. Raises DynamoError where there is room for none."""
    used = len(request.prompt)
    if used == 0:
        raise DynamoError(f"problem {request.problem_id}: the prompt is empty")
    if context is None:
        return sampling.max_tokens
    if used < context:
        return min(sampling.max_tokens, context - used)
    raise DynamoError(
        f"problem {request.problem_id}: the prompt has {used} tokens and the model's context "
        f"holds {context}, so no room is left for a response; drop or shorten this problem"
    )
