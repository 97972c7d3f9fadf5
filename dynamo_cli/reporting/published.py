"""The numbers that the paper publishes, to stand beside reproduced ones."""

from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from dynamo_cli.schema import own_name

FILE = Path(__file__).with_name("paper.yaml")
Key = tuple[str, str, str, int]  # model and method, suite (`average` too), k


@cache
def read_published() -> tuple[str, dict[Key, float]]:
    """Where the numbers stand, and each of them as a chance in [0, 1]."""
    tree = YAML(typ="safe").load(FILE)
    numbers = {
        (model, method, suite, k): float(number) / 100
        for model, methods in tree["models"].items()
        for method, cells in methods.items()
        for suite, cell in zip(tree["suites"], cells, strict=True)
        for k, number in zip(tree["ks"], cell.split("/"), strict=True)
    }
    return tree["source"], numbers


def published(model: str, method: str, suite: str, k: int) -> float | None:
    """The paper's Pass@k as a chance; None where it has none. Names as in params.yaml."""
    return read_published()[1].get((own_name(model), method, suite, k))
