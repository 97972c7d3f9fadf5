"""Small real things for tests: the project's own parameters, and a tiny random model."""

import os
import signal
from pathlib import Path

# One thread: tests run side by side with other work, and tiny tensors gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A shell's background ignores Ctrl-C, and what ignores it hands that on; tests send it on purpose.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def params():
    """params.yaml as the project ships it."""
    from dynamo_cli.config import load_params

    return load_params(ROOT / "params.yaml")


@pytest.fixture
def tiny():
    """A fresh random model of one layer with its byte-level tokenizer: (model, tokenizer)."""
    from dynamo_cli.pretraining import build_model, build_tokenizer

    return build_model(32, layers=1, seed=7), build_tokenizer()
