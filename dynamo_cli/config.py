"""params.yaml as types. Loading it constructs the science; no library function takes `Params`."""

import ctypes
import difflib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dynamo_cli.datasets import Dataset
from dynamo_cli.errors import DynamoError
from dynamo_cli.methods import Method
from dynamo_cli.planning.hardware import Hardware
from dynamo_cli.pretraining import Pretraining
from dynamo_cli.probes.settings import Probes
from dynamo_cli.rollout.engine import EngineSettings, Sampling
from dynamo_cli.rollout.prompts import Template
from dynamo_cli.schema import Section
from dynamo_cli.studies import Cell, Grid, Studies
from dynamo_cli.train.loop import Training

Block = TypeVar("Block")


class Paths(Section):
    """Where stages read and write. dvc.yaml and the commands' defaults share these."""

    models: str  # base models of the pipeline, <models>/<name>
    pools: str  # prepared training problems, <pools>/<dataset>.jsonl
    suites: str  # prepared evaluation problems, <suites>/<dataset>.jsonl
    runs: str  # trained policies, <runs>/<cell>/
    evals: str  # scores, <evals>/<cell>/
    study: str  # what became of the cells beside the grid's
    probes: str  # what probes measured, <probes>/<probe>/
    report: str  # tables and figures
    work: str  # checkpoints of runs under way
    adhoc: str  # what commands outside the pipeline write by default

    @property
    def adhoc_data(self) -> Path:
        """Problems that the pipeline does not use: among its own they would make others stale."""
        return Path(self.adhoc) / "data"


class Origins(Section):
    """Who makes the base models under paths.models; dvc.yaml has a stage for each."""

    pretrained: list[str]  # by `dynamo pretrain`
    imported: dict[str, str]  # by `dynamo models import-gguf`: the source of each


class Model(Section):
    """Where a base model lies and how its questions are framed."""

    path: str  # a Hugging Face folder
    template: Template
    # For `dynamo pretrain`, which makes the ladder's models alone:
    width: int | None = Field(default=None, ge=1)
    layers: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)


class Evaluation(Section):
    """How a policy is scored."""

    engine: str  # a name under engines:
    samples: int = Field(ge=1)  # responses per problem
    ks: list[int] = Field(min_length=1)  # of Pass@k; the first is the headline
    sampling: Sampling
    seed: int
    resamples: int = Field(ge=100)  # bootstrap draws behind each interval

    @model_validator(mode="after")
    def _enough_samples(self) -> "Evaluation":
        if max(self.ks) > self.samples:
            raise ValueError(
                f"Pass@{max(self.ks)} needs as many samples, but samples is {self.samples}"
            )
        return self


class Compute(Section):
    """What a stage may use. The number of threads decides how sums are split, hence last bits."""

    device: Literal["auto", "cpu", "cuda"]  # auto: a GPU where there is one
    dtype: Literal["float32", "bfloat16"]  # of weights and arithmetic
    threads: int | None = Field(ge=1)  # null: torch's own choice

    @property
    def torch_device(self) -> str:
        """cpu or cuda. Raises DynamoError where cuda is asked for and there is none."""
        import torch

        present = torch.cuda.is_available()
        if self.device == "cuda" and not present:
            raise DynamoError("compute.device is cuda, but torch sees no GPU; set it to auto")
        return "cuda" if present and self.device != "cpu" else "cpu"

    def apply(self) -> None:
        """Set it for this process."""
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, where it is glibc.

    By default blocks of some megabytes go back to the system, and each new tensor faults its pages
    in again: about 5 % of a training step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 32 << 20)  # the most that it takes


class Params(Section):
    """All of params.yaml."""

    paths: Paths
    compute: Compute
    engines: dict[str, EngineSettings]  # how responses are sampled
    grid: Grid
    models: dict[str, Model]
    origins: Origins
    hardware: Hardware  # what `dynamo plan` plans for
    pretraining: Pretraining
    datasets: dict[str, Dataset]
    training: Training
    evaluation: Evaluation
    probes: Probes
    methods: dict[str, Method]
    studies: Studies
    variants: dict[str, dict[str, Any]]  # dotted keys and their values, by name

    @model_validator(mode="after")
    def _names_have_blocks(self) -> "Params":
        wanted = [
            ("grid.models", self.grid.models, "models", self.models),
            ("grid.methods", self.grid.methods, "methods", self.methods),
            ("grid.suites", self.grid.suites, "datasets", self.datasets),
            ("training.dataset", [self.training.dataset], "datasets", self.datasets),
            ("training.sampler", [self.training.sampler], "engines", self.engines),
            ("evaluation.engine", [self.evaluation.engine], "engines", self.engines),
        ]
        for part in ("studies", "probes"):
            for place, names, section in getattr(self, part).named():
                wanted.append((f"{part}.{place}", names, section, getattr(self, section)))
        for name, source in self.datasets.items():
            if (rules := getattr(source, "clean", None)) is not None:
                place = f"datasets.{name}.clean.against"
                others = [other for other in self.datasets if other != name]
                wanted.append((place, rules.against, "datasets", others))
        for place, names, section, blocks in wanted:
            for name in names:
                if name not in blocks:
                    raise ValueError(f"{place} names {name!r}, {unknown(name, blocks, section)}")
            if len(set(names)) < len(names):
                raise ValueError(f"{place} names something twice: {names}")
        return self

    def cells(self) -> list[Cell]:
        """Every cell: those that are stages of their own, then those of the study."""
        return [*self.grid.cells(), *self.studies.cells(self.grid)]

    @property
    def seeds(self) -> list[int]:
        """Of the grid's cells: those that are stages of their own, and those of the study."""
        return [*self.grid.seeds, *self.studies.more_seeds]

    def allocation_bounds(self, method: str) -> tuple[int, int] | None:
        """(low, high) of a method's allocation, where it has bounds."""
        allocation = self.methods[method].allocation if method in self.methods else None
        low, high = getattr(allocation, "low", None), getattr(allocation, "high", None)
        return None if low is None else (low, high)


def pick(blocks: dict[str, Block], name: str, section: str) -> Block:
    """The block of that name. Raises DynamoError naming those that there are."""
    if name not in blocks:
        raise DynamoError(f"{section}: no {name!r}, {unknown(name, blocks, section)}")
    return blocks[name]


def unknown(name: str, known: Iterable[str], place: str) -> str:
    """The rest of a sentence about a name that is not there: what is, and which is nearest."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"but {place} holds only {', '.join(known)}{hint}"


def load_params(path: Path, overrides: Sequence[str] = (), *, variant: str | None = None) -> Params:
    """Read and check params.yaml; `overrides` are dotted `key=value` pairs, values in YAML.

    variant: a name under variants:, whose values are set first.

    Raises DynamoError, in one line, for a missing file, YAML that cannot be read, unknown or
    missing keys, values out of bounds, and names without a block.
    """
    tree = read_yaml(path)
    if variant is not None:
        for dotted, value in pick(tree.get("variants") or {}, variant, "variants").items():
            set_key(tree, dotted, value, f"variants.{variant}")
    for override in overrides:
        apply_override(tree, override)
    return validate(path, tree)


def validate(path: Path, tree: dict[str, Any]) -> Params:
    """The checked parameters of a file's tree."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = [describe(problem) for problem in error.errors(include_url=False)]
        raise DynamoError(f"{path}: " + "; ".join(dict.fromkeys(lines))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping as DVC reads it (so `1e-4` is a number, and duplicate keys an error)."""
    if not path.is_file():
        raise DynamoError(f"{path}: no such file; run in a checkout's root, or give --params FILE")
    try:
        tree = YAML(typ="safe").load(path)
    except YAMLError as error:
        raise DynamoError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise DynamoError(f"{path}: expected sections like grid: and methods:")
    return apart(tree)


def apart(node: Any) -> Any:
    """The same tree without shared blocks: what an alias names is one object to a YAML reader, and
    an override of one block would change all that share it."""
    if isinstance(node, dict):
        return {key: apart(value) for key, value in node.items()}
    return [apart(value) for value in node] if isinstance(node, list) else node


def resolve_yaml(path: Path, overlays: Sequence[Path], overrides: Sequence[str]) -> str:
    """params.yaml with overlays merged over it, key by key, and overrides set; checked, as YAML.

    A mapping is merged into the one below unless its `kind` is another; all else replaces.
    """
    tree = read_yaml(path)
    for overlay in overlays:
        merge(tree, read_yaml(overlay))
    for override in overrides:
        apply_override(tree, override)
    validate(path, tree)
    stream = io.StringIO()
    writer = YAML(typ="safe")
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.dump(tree, stream)
    return stream.getvalue()


def merge(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Lay `above` over `below`, in place."""
    for key, value in above.items():
        old = below.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        if both and value.get("kind", old.get("kind")) == old.get("kind"):
            merge(old, value)
        else:
            below[key] = value


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key to a YAML value. The key must be in the file already."""
    dotted, equals, text = override.partition("=")
    if not equals:
        raise DynamoError(f"--set {override}: expected key=value")
    set_key(tree, dotted, YAML(typ="safe").load(text), "--set")


def set_key(tree: dict[str, Any], dotted: str, value: Any, source: str) -> None:
    """Set one dotted key, which must be there already; `source` begins the error."""
    *parents, leaf = dotted.split(".")
    node: Any = tree
    for key in (*parents, leaf):
        if not isinstance(node, dict) or key not in node:
            known = node if isinstance(node, dict) else ()
            raise DynamoError(
                f"{source} {dotted}: no key {key!r}, {unknown(key, known, 'the block')}"
            )
        if key is not leaf:
            node = node[key]
    node[leaf] = value


def describe(problem: dict[str, Any]) -> str:
    """One pydantic complaint as `place: what is wrong`, naming the nearest key for a stray one."""
    place, message = problem["loc"], problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), fields_at(Params, place[:-1]), n=1)
        message = "unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
    elif problem["type"] == "missing":
        message = "this key is missing"
    elif not isinstance(problem["input"], dict | list):
        message += f", got {problem['input']!r}"
    return ": ".join(filter(None, (".".join(map(str, place)), message)))


def fields_at(kind: Any, place: Sequence[str | int]) -> list[str]:
    """Keys that the schema knows at a place of params.yaml (a pydantic error location)."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (dict, list):
        return fields_at(get_args(kind)[-1], place[1:]) if place else []
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not place:
            return list(kind.model_fields)
        field = kind.model_fields.get(str(place[0]))
        return fields_at(field.annotation, place[1:]) if field else []
    for member in get_args(kind):  # a union: the location carries the tag of the chosen member
        tag = getattr(member, "model_fields", {}).get("kind")
        if place and tag is not None and place[0] in get_args(tag.annotation):
            return fields_at(member, place[1:])
    return []
