"""What tests of probes share: rollouts, and a policy whose states have logits of their own."""

from pathlib import Path

import torch

from dynamo_cli.config import load_params
from dynamo_cli.methods import Method
from dynamo_cli.methods.tokens import TokenScores, score_tokens
from dynamo_cli.records import Completion, Verdict
from dynamo_cli.train.rollouts import Rollout

PARAMS = load_params(Path(__file__).resolve().parents[2] / "params.yaml")
OPTIMISER = PARAMS.training.optimiser


def grpo(aggregation: str = "token_mean") -> Method:
    """GRPO of the project's own parameters, with this mean."""
    fields = PARAMS.methods["grpo"].model_dump() | {"aggregation": {"kind": aggregation}}
    return Method.model_validate(fields)


def completion(problem: str, rollout: int, prompt: tuple, tokens: tuple) -> Completion:
    return Completion(
        problem_id=problem,
        rollout=rollout,
        seed=0,
        prompt=prompt,
        tokens=tokens,
        logp=(0.0,) * len(tokens),
        finish="stop",
        text="",
    )


def rollout(problem: int, number: int, prompt: tuple, tokens: tuple, advantage: float) -> Rollout:
    made = completion(f"p{problem}", number, prompt, tokens)
    verdict = Verdict.OK if advantage > 0 else Verdict.WRONG
    return Rollout(made, verdict, problem, advantage)


class Table(torch.nn.Module):
    """Each state, that is prompt and response so far, has logits of its own."""

    def __init__(self, rollouts, *, vocabulary: int, seed: int) -> None:
        super().__init__()
        states = {
            (*r.completion.prompt, *r.completion.tokens[:t])
            for r in rollouts
            for t in range(len(r.completion.tokens))
        }
        self.index = {state: i for i, state in enumerate(sorted(states))}
        source = torch.Generator().manual_seed(seed)
        values = torch.randn(len(states), vocabulary, generator=source, dtype=torch.float64)
        self.logits = torch.nn.Parameter(2 * values)

    def score(self, batch, gradient: bool) -> TokenScores:
        row, position = batch.response_index()
        places = [
            self.index[tuple(batch.tokens[r, :p].tolist())]
            for r, p in zip(row.tolist(), position.tolist(), strict=True)
        ]
        states = torch.eye(len(self.index), dtype=torch.float64)[places]
        with torch.set_grad_enabled(gradient):
            flat = score_tokens(states, self.logits.T, batch.tokens[row, position])
        mask = batch.mask
        return TokenScores(
            *(values.new_zeros(mask.shape).masked_scatter(mask, values) for values in flat)
        )
