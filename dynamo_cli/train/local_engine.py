"""A policy held and trained by one process with torch."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from dynamo_cli.errors import DynamoError
from dynamo_cli.methods.collective import LOCAL
from dynamo_cli.methods.tokens import TokenScores
from dynamo_cli.models_io import save_model
from dynamo_cli.rollout.fused import FusedDecoder
from dynamo_cli.train.batching import SequenceBatch
from dynamo_cli.train.engine import Optimiser
from dynamo_cli.train.packing import Packing
from dynamo_cli.train.scoring import score_on_device


class LocalEngine:
    """AdamW on a transformers causal language model, in one process, on the model's device.

    Batches come, and scores go, on the CPU, where the learner holds a step; gradients find their
    way back. `temperature` is that of sampling: the policy that is optimised is the one that was
    sampled.
    """

    collective = LOCAL

    def __init__(self, model, tokenizer, optimiser: Optimiser, *, temperature: float) -> None:
        self._model = model
        self._device = model.device
        self._tokenizer = tokenizer
        self._schedule = optimiser
        self._temperature = temperature
        self._updates = 0
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._adam = torch.optim.AdamW(
            self._parameters,
            lr=optimiser.learning_rate,
            betas=(optimiser.beta1, optimiser.beta2),
            eps=optimiser.epsilon,
            weight_decay=optimiser.weight_decay,
        )
        for parameter in self._parameters:
            # Real zeros, not None: a step without any share still decays momentum and weights.
            parameter.grad = torch.zeros_like(parameter)
        model.eval()  # no dropout: the policy that is scored is the policy that sampled
        self._check_head()
        self._fused = FusedDecoder(model) if FusedDecoder.fits(model) else None

    def score(self, batch: SequenceBatch, *, gradient: bool) -> TokenScores:
        row, position = batch.response_index()
        with torch.set_grad_enabled(gradient):
            head = self._model.get_output_embeddings()
            flat = score_on_device(
                self._hidden(batch, row, position - 1),
                head.weight,
                batch.tokens[row, position].to(self._device),
                temperature=self._temperature,
                bias=head.bias,
            )
        mask = batch.mask

        def in_place(values: Tensor) -> Tensor:
            values = values.to(mask.device)
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        return TokenScores(*map(in_place, flat))

    def _hidden(self, batch: SequenceBatch, row: Tensor, position: Tensor) -> Tensor:
        """[M, D] at the given places: the vocabulary-wide tensor is formed in chunks, later."""
        if self._fused is not None:
            return Packing.of(batch).hidden(self._fused, row, position)
        tokens = batch.tokens.to(self._device)
        states = self._model.base_model(tokens, use_cache=False).last_hidden_state
        return states[row.to(self._device), position.to(self._device)]

    def backward(self, share: Tensor) -> None:
        share.backward()

    def step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._schedule.gradient_clip)
        if not torch.isfinite(norm):
            raise DynamoError(
                f"update {self._updates + 1}: the gradient is {norm.item()}; "
                "lower training.optimiser.learning_rate, or start from the last checkpoint"
            )
        for group in self._adam.param_groups:
            group["lr"] = self._schedule.rate(self._updates)
        self._adam.step()
        self._adam.zero_grad(set_to_none=False)
        self._updates += 1
        return norm.item()

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        return self._model.named_parameters()

    def save(self, folder: Path) -> None:
        save_model(self._model, self._tokenizer, folder)

    def save_state(self, folder: Path) -> None:
        torch.save(
            {
                "model": self._model.state_dict(),
                "optimiser": self._adam.state_dict(),
                "updates": self._updates,
            },
            folder / "engine.pt",
        )

    def restore(self, folder: Path) -> None:
        # Loading copies each tensor to where its parameter lies.
        state = torch.load(folder / "engine.pt", weights_only=True, map_location="cpu")
        self._model.load_state_dict(state["model"])
        self._adam.load_state_dict(state["optimiser"])
        self._updates = state["updates"]

    def _check_head(self) -> None:
        """Refuse a model whose logits are not simply head(hidden): soft caps, logit scales."""
        tokens = torch.arange(8, device=self._device).remainder(self._model.config.vocab_size)[None]
        with torch.no_grad():
            hidden = self._model.base_model(tokens, use_cache=False).last_hidden_state
            ours = self._model.get_output_embeddings()(hidden)
            theirs = self._model(tokens, use_cache=False).logits
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
            raise DynamoError(
                f"{type(self._model).__name__} changes its logits after the output head, which "
                "the chunked scores do not follow; use a model without logit caps or scales"
            )
