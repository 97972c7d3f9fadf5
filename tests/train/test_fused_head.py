"""The fused head gives what `score_tokens` gives. Without a GPU its kernels are interpreted."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dynamo_cli.train.scoring import is_fused, score_on_device

CASES = Path(__file__).with_name("fused_head_cases.py")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def hold(device: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, CASES, device],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("holds") == 3


@needs_triton
def test_interpreted_kernels_give_the_scores_and_gradients_of_full_tables():
    hold("cpu", TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the kernels were not compiled")
def test_compiled_kernels_give_the_scores_and_gradients_of_full_tables():
    hold("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: its memory was not measured")
def test_at_a_real_vocabulary_the_peak_is_an_eighth_of_the_plain_way():
    peaks = {}
    for way in ("fused", "plain"):
        hidden = torch.randn(4096, 896, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(152_000, 896, device="cuda", dtype=torch.bfloat16).mul_(0.03)
        weight.requires_grad_()
        tokens = torch.randint(152_000, (4096,), device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        if way == "fused":
            assert is_fused(hidden, weight)
            logp, entropy, _ = score_on_device(hidden, weight, tokens, temperature=1.0, bias=None)
        else:
            log_pi = torch.log_softmax((hidden @ weight.T).float(), dim=1)
            entropy = -(log_pi.exp() * log_pi).sum(dim=1)
            logp = log_pi.gather(1, tokens[:, None])[:, 0]
        (logp.sum() + entropy.sum()).backward()
        peaks[way] = torch.cuda.max_memory_allocated() - before
    assert peaks["fused"] <= peaks["plain"] / 8


def test_on_a_cpu_the_chunked_pass_is_taken():
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(11, 4)
    assert not is_fused(hidden, weight)
    scores = score_on_device(hidden, weight, torch.arange(5), temperature=0.5, bias=torch.zeros(11))
    logits = (hidden @ weight.T / 0.5).log_softmax(-1)
    torch.testing.assert_close(scores.logp, logits.diagonal())
