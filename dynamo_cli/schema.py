"""The base of everything that stands in params.yaml."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A strict, frozen block of parameters: unknown keys and wrong types are errors.

    Sections have no defaults for values that change a result, so that every such value stands in
    params.yaml, where DVC can see it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def own_name(name: str) -> str:
    """A model's own name, `_` being `.`: in params.yaml a dot would lead into a block."""
    return name.lower().replace("_", ".")
