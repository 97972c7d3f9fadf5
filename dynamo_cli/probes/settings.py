"""What the probes measure, and of which policy: the section `probes` of params.yaml."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from dynamo_cli.schema import Section


class VarianceProbe(Section):
    """How the variance of gradients is measured, problem by problem."""

    problems: int = Field(ge=2)  # spread evenly over the pool; a multiple of a step's
    rollouts: int = Field(ge=4, multiple_of=2)  # of each problem, with a gradient: two halves
    rated: int = Field(ge=2)  # others, without: they tell the success rate
    known: int = Field(ge=1)  # of those, what an allocation has seen of each problem
    histories: int = Field(ge=1)  # of `known` rollouts each, none in common
    draws: int = Field(ge=2)  # steps that are drawn under each allocation
    allocations: list[str]  # of these methods, beside those that the probe makes itself
    dimension: int | None = Field(ge=1)  # of the sketch of a gradient; null: the gradient itself

    @model_validator(mode="after")
    def _enough_rated(self) -> "VarianceProbe":
        if self.histories * self.known > self.rated:
            raise ValueError(
                f"{self.histories} histories of {self.known} known rollouts need as many rated "
                f"ones, but rated is {self.rated}"
            )
        return self


class EntropyProbe(Section):
    """How the change of entropies in an update is measured."""

    steps: int = Field(ge=1)  # each of problems of its own
    learning_rate: float = Field(gt=0)  # of the plain update; small, for the theory is first order
    alone: int = Field(ge=0)  # tokens that are also updated all by themselves


class Probes(Section):
    """The cell whose policy the pipeline probes, and how."""

    run: list[Literal["variance", "entropy"]]
    figures: list[str]  # that the pipeline draws of them
    model: str
    method: str
    train_seed: int
    seed: int  # of the probes' own samples and draws
    resamples: int = Field(ge=100)  # bootstrap draws behind each interval
    variance: VarianceProbe
    entropy: EntropyProbe

    def named(self) -> Iterator[tuple[str, list[str], str]]:
        """Each name: its place, and the section that must hold it."""
        yield "model", [self.model], "models"
        yield "method", [self.method], "methods"
        yield "variance.allocations", self.variance.allocations, "methods"
