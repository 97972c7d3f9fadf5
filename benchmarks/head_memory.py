"""Memory and time of the vocabulary pass: chunked with recomputation, beside the plain formulas.

Each way runs in a process of its own, forwards and backwards, and the peak of its resident memory
above what stood before (inputs, weights, their gradients) is read from the system. Seconds of the
clock suffer from whatever else runs; seconds of the processor hardly do.

    python benchmarks/head_memory.py --tokens 4096 --vocabulary 152000 --width 1536
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dynamo_cli.methods.tokens import score_tokens

WAYS = ("plain", "chunked")


def plain(hidden, weight, tokens):
    """Every quantity from whole [T, V] tables, as autograd keeps them."""
    log_pi = torch.log_softmax(hidden @ weight.T, dim=1)
    pi = log_pi.exp()
    entropy = -(pi * log_pi).sum(dim=1)
    with torch.no_grad():
        expected = (pi * pi * (log_pi + entropy[:, None])).sum(dim=1)
    return log_pi.gather(1, tokens[:, None])[:, 0], entropy, expected


def chunked(hidden, weight, tokens):
    return score_tokens(hidden, weight, tokens)


def resident() -> int:
    """Peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    """One pass forwards and backwards; its gradients are left in `options.keep`."""
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    shape = (options.tokens, options.width)
    hidden = torch.randn(shape, generator=generator).requires_grad_()
    weight = torch.randn(options.vocabulary, options.width, generator=generator)
    weight = weight.mul_(options.width**-0.5).requires_grad_()
    tokens = torch.randint(options.vocabulary, shape[:1], generator=generator)
    share = torch.randn(shape[:1], generator=generator)
    # The gradients are wanted in any case, so they stand before the measurement begins.
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    torch.zeros(1).sum()
    before, started, worked = resident(), time.perf_counter(), time.process_time()
    logp, entropy, _ = globals()[way](hidden, weight, tokens)
    ((share * logp).sum() + (0.001 * entropy.sum() if options.entropy else 0)).backward()
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    held = resident() - before
    rows = torch.arange(0, options.vocabulary, max(1, options.vocabulary // 4096))
    torch.save((hidden.grad, weight.grad[rows]), Path(options.keep) / way)
    return {"seconds": seconds, "cpu_seconds": work, "gib": held / 2**30}


def distance(folder: str) -> float:
    """|chunked - plain| / |plain|, the worse of both gradients; of the weight's, 4,096 rows."""
    mine, theirs = (torch.load(Path(folder) / way) for way in ("chunked", "plain"))
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(mine, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=152_000)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--entropy", action="store_true", help="the loss has an entropy term")
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--keep", help="folder of the gradients that are compared")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    seen = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.repeats):
            for way in WAYS:  # by turns, so that a busy moment of the machine meets both
                command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--keep", folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seen[way].append(json.loads(done.stdout))
                print(f"{turn + 1}/{options.repeats} {way}: {seen[way][-1]}", flush=True)
        print(f"gradients differ by {distance(folder):.1e} of their norm")
    for key, unit in (("gib", "GiB above the inputs"), ("seconds", "s"), ("cpu_seconds", "s")):
        ours, theirs = (
            statistics.median(row[key] for row in seen[w]) for w in ("chunked", "plain")
        )
        print(f"{key}: chunked {ours:.2f}, plain {theirs:.2f} {unit}: {ours / theirs:.3f} x")


if __name__ == "__main__":
    main()
