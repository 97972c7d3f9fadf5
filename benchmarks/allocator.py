"""Time of the exact allocation on one core, beside a heap that hands out one rollout at a time.

python benchmarks/allocator.py [problems]
"""

import heapq
import sys
import time

import numpy as np

from dynamo_cli.methods.integer_optimum import integer_optimum


def heap_greedy(s: np.ndarray, *, budget: int, low: int, high: int) -> np.ndarray:
    """The definition, one rollout at a time: the next goes to the largest gain s^2 / (n (n+1))."""
    counts = [low] * len(s)
    heap = [(-float(x * x) / (low * (low + 1)), i) for i, x in enumerate(s) if low < high]
    heapq.heapify(heap)
    for _ in range(budget - low * len(s)):
        _, i = heapq.heappop(heap)
        counts[i] += 1
        if counts[i] < high:
            heapq.heappush(heap, (-float(s[i] ** 2) / (counts[i] * (counts[i] + 1)), i))
    return np.array(counts)


def best_of(repeats: int, call) -> float:
    """Shortest wall time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main(size: int) -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 0.5, size)
    correct = rng.binomial(16, p)
    spreads = {
        "every problem its own s": np.sqrt(p * (1 - p)),
        "s from 16 rollouts each": np.sqrt(correct * (16 - correct) / (16 * 15)),
    }
    for name, s in spreads.items():
        task = {"budget": 16 * size, "low": 8, "high": 24}
        seconds = best_of(3, lambda s=s, task=task: integer_optimum(s, **task))
        print(f"{name}: {size:,} problems, exact optimum in {seconds:.3f} s", flush=True)
        few = s[: min(size, 20_000)]
        task["budget"] = 16 * len(few)
        slow = best_of(1, lambda s=few, task=task: heap_greedy(s, **task))
        fast = best_of(3, lambda s=few, task=task: integer_optimum(s, **task))
        same = np.array_equal(heap_greedy(few, **task), integer_optimum(few, **task))
        print(f"  first {len(few):,}: heap {slow:.3f} s, ours {fast:.4f} s, same counts: {same}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
