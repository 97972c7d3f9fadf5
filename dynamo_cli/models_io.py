"""A folder in the Hugging Face format, read as a model and its tokenizer.

transformers is imported on the first call: this module itself is cheap to import.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dynamo_cli.errors import DynamoError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What a folder must hold: any one file of each line.
CONFIG = ("config.json",)
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
DTYPES = ("float32", "bfloat16", "float16")


def load_model(
    path: Path, *, dtype: str = "float32", device: str = "cpu"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The causal language model of a folder, in evaluation mode on `device`, and its tokenizer.

    Nothing is downloaded, and no code that a folder brings along is run. Raises DynamoError for a
    folder that lacks config, weights or tokenizer, or holds weights that do not fit its config.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    _check_folder(path)
    import torch
    import transformers
    from safetensors import SafetensorError

    # Its progress bars and advice are for notebooks; errors still raise.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DynamoError(
            f"{path}: cannot be loaded as a causal language model: {reason}"
        ) from error
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:3])
        raise DynamoError(
            f"{path}: {len(loading['missing_keys'])} parameters are not in the weights ({names}), "
            "so they would be random; write or download the folder again"
        )
    return model.eval().to(device), tokenizer


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    *,
    state: "dict[str, Tensor] | None" = None,
) -> None:
    """Write both as a folder in the Hugging Face format; `state`: other weights than the model's.

    The model must not be wrapped in another module. transformers would look for a wrapper of
    DeepSpeed's, and where that is installed import it: seconds, and lines on stderr, for nothing.
    """
    from transformers import modeling_utils

    unwrap = modeling_utils.unwrap_model
    modeling_utils.unwrap_model = lambda model, **_: model
    try:
        model.save_pretrained(folder, state_dict=state)
    finally:
        modeling_utils.unwrap_model = unwrap
    tokenizer.save_pretrained(folder)


def load_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder alone. Raises DynamoError as `load_model` does."""
    _check_folder(path)
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DynamoError(f"{path}: its tokenizer cannot be loaded: {error}") from error


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise DynamoError(f"{path}: no such folder; give a folder in the Hugging Face format")
    for what, files in (("config", CONFIG), ("weights", WEIGHTS), ("tokenizer", TOKENIZER)):
        if not any((path / file).is_file() for file in files):
            raise DynamoError(
                f"{path} holds no {what} ({files[0]}), so it is no complete model; "
                "run the stage that writes it again, or download it again"
            )
