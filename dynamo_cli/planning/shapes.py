"""The shape of a decoder (Qwen2, Llama): how many numbers it has, and where.

Read from a config.json as plain JSON, or from `shapes.yaml`; nothing heavy is imported.
D hidden width, F inner width, Q query and H key-value heads of W, V vocabulary.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from dynamo_cli.errors import DynamoError
from dynamo_cli.schema import own_name

TABLE = Path(__file__).with_name("shapes.yaml")
KINDS = {"qwen2": True, "llama": False}  # whether queries, keys and values have biases


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder with RMS norms, gated MLPs and grouped queries."""

    hidden: int  # D
    layers: int
    heads: int  # Q
    kv_heads: int  # H
    head_dim: int  # W
    intermediate: int  # F
    vocabulary: int  # V
    tied: bool  # embedding and output head are one matrix
    attention_bias: bool  # of queries, keys and values
    context: int  # positions

    @property
    def qkv(self) -> int:
        """(Q + 2 H) W: the width of queries, keys and values together."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def mixed(self) -> int:
        """Q W: the width of what attention gives."""
        return self.heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Numbers in a layer's matrices: D (Q + 2 H) W + Q W D + 3 D F."""
        return self.hidden * (self.qkv + self.mixed + 3 * self.intermediate)

    @property
    def layer_parameters(self) -> int:
        """The same with biases and the two norms."""
        return self.layer_matrices + self.qkv * self.attention_bias + 2 * self.hidden

    @property
    def table(self) -> int:
        """V D: the embedding, and the output head once more where it is not tied."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All numbers, each once."""
        tables = self.table * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + self.hidden + tables

    @property
    def multiplied(self) -> int:
        """Numbers that a token is multiplied with: the layers' matrices and the output head."""
        return self.layers * self.layer_matrices + self.table

    def cache_bytes(self, width: int) -> int:
        """Bytes of keys and values of one token: 2 x layers x H x W x bytes of a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * width


def read_shape(folder: Path) -> Shape:
    """The shape of a model folder. Raises DynamoError for other kinds of models."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config["model_type"]
        if kind not in KINDS:
            raise DynamoError(
                f"{file}: model_type is {kind!r}; the plan knows {' and '.join(KINDS)}"
            )
        heads = config["num_attention_heads"]
        return Shape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            attention_bias=KINDS[kind] or config.get("attention_bias", False),
            context=config["max_position_embeddings"],
        )
    except (OSError, ValueError) as error:
        raise DynamoError(f"{file} cannot be read ({error}); give a model folder") from None
    except KeyError as error:
        raise DynamoError(f"{file} lacks {error}; give a complete model folder") from None


def known_shapes() -> dict[str, Shape]:
    """The published models that can be planned for without their folders."""
    table = YAML(typ="safe").load(TABLE)
    return {name: Shape(**values) for name, values in table.items()}


def find_shape(name: str, folders: dict[str, Path]) -> Shape:
    """The shape of a named model: of one of `folders`, of `shapes.yaml`, or of a path.

    Raises DynamoError naming what there is.
    """
    known = known_shapes()
    if name in folders and (folders[name] / "config.json").is_file():
        return read_shape(folders[name])
    if own_name(name) in known:
        return known[own_name(name)]
    if name in folders or (Path(name) / "config.json").is_file():
        return read_shape(folders.get(name, Path(name)))
    names = [*folders, *known]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DynamoError(
        f"--model {name}: no such model or folder; "
        f"there are {', '.join(dict.fromkeys(names))}{hint}"
    )
