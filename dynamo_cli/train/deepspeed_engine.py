"""A policy held and trained by several processes with DeepSpeed: the one file that imports it.

`DeepSpeedEngine` reads as the contract of `TrainEngine`; what is peculiar to DeepSpeed lies below.
M tokens, D hidden width, V vocabulary.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_cli.errors import DynamoError
from dynamo_cli.methods.tokens import TokenScores
from dynamo_cli.models_io import save_model
from dynamo_cli.train.batching import SequenceBatch, idle_batch
from dynamo_cli.train.engine import DeepSpeedSettings, Optimiser
from dynamo_cli.train.ranks import Ranks
from dynamo_cli.train.scoring import score_on_device

WHOLE_BELOW = 100_000  # ZeRO 3 keeps parameters of fewer numbers whole on every rank
LAYOUT = "layout.json"  # how the ranks split what save_state writes


class DeepSpeedEngine:
    """AdamW on a transformers causal language model, over the ranks of `collective`.

    Weights and arithmetic have the model's type. In bfloat16, the optimiser works on a float32
    copy, and gradients of micro-batches add up in float32 (in bfloat16 at ZeRO 0).
    `temperature` is that of sampling: the policy that is optimised is the one that was sampled.
    """

    def __init__(
        self,
        model,
        tokenizer,
        optimiser: Optimiser,
        *,
        temperature: float,
        settings: DeepSpeedSettings,
        collective: Ranks,
    ) -> None:
        self.collective = collective
        self._model, self._tokenizer = model, tokenizer
        self._schedule, self._settings = optimiser, settings
        self._updates, self._shares = 0, 0
        model.eval()  # no dropout: the policy that is scored is the policy that sampled
        self._twice = _layers_to_compute_twice(model) if settings.gradient_checkpointing else []
        self._deepspeed = _import_deepspeed(model.device)
        self._engine = _initialise(
            self._deepspeed, _Scores(model, temperature), optimiser, settings
        )
        self._clipping = None
        if settings.zero == 0 and model.dtype == torch.float32:
            self._clipping = _Clipping(self._engine, optimiser.gradient_clip)

    def score(self, batch: SequenceBatch, *, gradient: bool) -> TokenScores:
        row, position = batch.response_index()
        given = (batch.tokens, row, position - 1, batch.tokens[row, position])
        for layer in self._twice:
            # transformers asks the layer itself whether it trains. Its parts stay in evaluation
            # mode, so there is still no dropout; and a sampler that shares the model resets it.
            layer.training = gradient
        with torch.set_grad_enabled(gradient):
            flat = self._engine(*(x.to(self._engine.device) for x in given))
        mask = batch.mask

        def in_place(values: Tensor) -> Tensor:
            values = values.to(mask.device)
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        return TokenScores(*map(in_place, flat))

    def backward(self, share: Tensor) -> None:
        # DeepSpeed divides twice. By the accumulation steps, which are 1 in `_configuration`, for
        # it is `step` that ends them. And by the number of ranks, for it takes the mean of their
        # gradients: that is undone here, so the sum of the shares is what `step` applies.
        self._engine.backward(share * self.collective.size)
        self._shares += 1

    def step(self) -> float:
        if self._shares == 0:  # DeepSpeed cannot step without; weights and momentum decay
            self.backward(self.score(idle_batch(), gradient=True).logp.sum() * 0)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self._schedule.rate(self._updates)
        self._engine.step()
        norm = float(self._clipping.norm if self._clipping else self._engine.get_global_grad_norm())
        if not 0 <= norm < torch.inf:  # DeepSpeed says -1 for infinite and NaN
            raise DynamoError(
                f"update {self._updates + 1}: the gradient is not finite; "
                "lower training.optimiser.learning_rate, or start from the last checkpoint"
            )
        self._updates, self._shares = self._updates + 1, 0
        return norm

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """One parameter after another; with ZeRO 3 it is whole only until the next is asked for."""
        for name, parameter in self._model.named_parameters():
            with self._deepspeed.zero.GatheredParameters(
                [parameter], enabled=self._settings.zero == 3
            ):
                yield name, parameter.detach()

    def save(self, folder: Path) -> None:
        """The first rank writes; there the weights pass through the main memory."""
        first = self.collective.rank == 0
        state = {name: weight.cpu().clone() for name, weight in self.weights() if first}
        if first:
            buffers = set(dict(self._model.named_buffers()))
            state |= {n: b for n, b in self._model.state_dict().items() if n in buffers}
            save_model(self._model, self._tokenizer, folder, state=state)
        self.collective.wait()

    def save_state(self, folder: Path) -> None:
        """Each rank writes its own part into the same folder, DeepSpeed's files."""
        self._engine.save_checkpoint(str(folder), tag="engine", save_latest=False)
        if self.collective.rank == 0:
            (folder / LAYOUT).write_text(json.dumps(self._layout()))
        self.collective.wait()

    def restore(self, folder: Path) -> None:
        """Raises DynamoError where the state was written by other ranks or another ZeRO stage."""
        written, ours = json.loads((folder / LAYOUT).read_text()), self._layout()
        if written != ours:
            raise DynamoError(
                f"{folder}: written by {written['ranks']} ranks at ZeRO {written['zero']}, this "
                f"run has {ours['ranks']} ranks at ZeRO {ours['zero']}; start it as it was"
            )
        self._engine.load_checkpoint(str(folder), tag="engine")
        self._updates = self._engine.global_steps

    def _layout(self) -> dict[str, int]:
        return {"ranks": self.collective.size, "zero": self._settings.zero}


class _Scores(nn.Module):
    """The policy as DeepSpeed must see it: a module whose forward pass ends in the scores."""

    def __init__(self, model, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.head = _Head(model.get_output_embeddings(), temperature)

    def forward(self, tokens, row, position, targets) -> Tensor:
        hidden = self.model.base_model(tokens, use_cache=False).last_hidden_state
        return self.head(hidden[row, position], targets)


class _Head(nn.Module):
    """The output head's parameters under a module that scores.

    ZeRO 3 gathers the parameters of a module for its forward pass and again for its backward
    pass, and the scoring reads the head's in both. The scores are one tensor: the gathering
    of the backward pass happens once for each output that a loss reads, so a rank whose loss read
    one and a rank whose loss read two would wait for each other for ever.
    """

    def __init__(self, linear: nn.Linear, temperature: float) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._temperature = temperature

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[3, M]: log-probability, entropy and E[pi Lambda] of the targets [M]."""
        scores = score_on_device(
            hidden, self.weight, targets, temperature=self._temperature, bias=self.bias
        )
        return torch.stack(scores)


def _import_deepspeed(device: torch.device):
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at the first import
    import deepspeed

    # It calls what torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # On a CPU DeepSpeed would compile collectives of its own, for a minute. They spin holding the
    # interpreter's lock, so a rank in one could not hear that another has failed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


def _initialise(deepspeed, module: nn.Module, optimiser: Optimiser, settings: DeepSpeedSettings):
    adam = torch.optim.AdamW
    if settings.offload_optimiser and torch.cuda.is_available():
        adam = deepspeed.ops.adam.DeepSpeedCPUAdam  # vectorised; compiled at the first use
    parameters = [p for p in module.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=adam(
            parameters,
            lr=optimiser.learning_rate,
            betas=(optimiser.beta1, optimiser.beta2),
            eps=optimiser.epsilon,
            weight_decay=optimiser.weight_decay,
        ),
        config=_configuration(optimiser, settings, dtype=parameters[0].dtype),
    )
    return engine


def _configuration(
    optimiser: Optimiser, settings: DeepSpeedSettings, *, dtype: torch.dtype
) -> dict[str, Any]:
    bfloat16, clips = dtype == torch.bfloat16, settings.zero > 0 or dtype == torch.bfloat16
    zero: dict[str, Any] = {"stage": settings.zero}
    if settings.offload_optimiser:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if settings.zero == 3:
        zero["stage3_param_persistence_threshold"] = WHOLE_BELOW
        if settings.offload_parameters:
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants a number, and does not use it
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # gradients add up until `step` is called
        "gradient_clipping": optimiser.gradient_clip if clips else 0.0,
        "bf16": {"enabled": bfloat16},
        "data_types": {"grad_accum_dtype": "bf16" if bfloat16 and settings.zero == 0 else "fp32"},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


class _Clipping:
    """Clips right before the optimiser of a float32 run without ZeRO moves.

    There DeepSpeed would clip as well, but not tell the norm.
    """

    def __init__(self, engine, limit: float) -> None:
        self.norm = torch.tensor(0.0)
        self._parameters, self._limit = list(engine.module.parameters()), limit
        engine.optimizer.register_step_pre_hook(self._clip)

    def _clip(self, *_: object) -> None:
        self.norm = nn.utils.clip_grad_norm_(self._parameters, self._limit)


def _layers_to_compute_twice(model) -> list[nn.Module]:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return [part for part in model.modules() if getattr(part, "gradient_checkpointing", False)]
