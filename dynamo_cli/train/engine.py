"""The border to whatever holds the policy's parameters and changes them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, model_validator
from torch import Tensor

from dynamo_cli.methods.collective import Collective
from dynamo_cli.methods.tokens import TokenScores
from dynamo_cli.schema import Section
from dynamo_cli.train.batching import SequenceBatch


class Optimiser(Section):
    """AdamW with a linear warm-up to a constant rate, and clipping of the gradient norm."""

    learning_rate: float = Field(gt=0)
    warmup_updates: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    epsilon: float = Field(gt=0)
    gradient_clip: float = Field(gt=0)

    def rate(self, update: int) -> float:
        """Learning rate of update 0, 1, ...: linear from 1/(warm-up + 1) of the full rate."""
        return self.learning_rate * min(1.0, (update + 1) / (self.warmup_updates + 1))


class LocalSettings(Section):
    """One process with torch."""

    kind: Literal["local"]


class DeepSpeedSettings(Section):
    """Several processes (ranks) with DeepSpeed, here or on several machines: see `launching`."""

    kind: Literal["deepspeed"]
    # How many; null: one for each GPU. It decides how sums are split, hence last bits.
    ranks: int | None = Field(default=None, ge=1)
    zero: Literal[0, 1, 2, 3]  # split over ranks: nothing, optimiser, + gradients, + parameters
    offload_optimiser: bool  # to the main memory; from ZeRO 1 on
    offload_parameters: bool  # to the main memory; with ZeRO 3
    gradient_checkpointing: bool  # keep a layer's input alone, and compute the layer twice

    @model_validator(mode="after")
    def _offload_what_is_split(self) -> Self:
        if self.offload_optimiser and self.zero == 0:
            raise ValueError("offload_optimiser needs zero: 1, 2 or 3")
        if self.offload_parameters and self.zero != 3:
            raise ValueError("offload_parameters needs zero: 3")
        return self


EngineSettings = Annotated[LocalSettings | DeepSpeedSettings, Field(discriminator="kind")]


class TrainEngine(Protocol):
    """Scores sequences under the policy and moves its parameters.

    The contract: after any number of `backward` calls, `step` applies the gradient of the SUM of
    the shares, over all calls and ranks. Whatever averaging an engine does by itself, it undoes.
    Where there are several ranks, each calls all methods in the same order and equally often; a
    rank that has nothing left to do backs the share 0 of an `idle_batch`.
    """

    collective: Collective  # how the ranks of this engine agree on a step's statistics

    def score(self, batch: SequenceBatch, *, gradient: bool) -> TokenScores:
        """Log-probability, entropy and E[pi Lambda] of each response token, each [B, T]."""
        ...

    def backward(self, share: Tensor) -> None:
        """Add the gradient of this micro-batch's share of the step loss."""
        ...

    def step(self) -> float:
        """Apply the gathered gradient; returns its norm before clipping."""
        ...

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """The current parameters, by the names of the transformers module."""
        ...

    def save(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder that needs nothing else to be loaded."""
        ...

    def save_state(self, folder: Path) -> None:
        """Write all that `restore` needs to go on as if never interrupted."""
        ...

    def restore(self, folder: Path) -> None: ...
