"""The engine that a block under `engines:` names. Engines are heavy: imported when opened."""

from pathlib import Path
from typing import Any

from dynamo_cli.models_io import load_model, load_tokenizer
from dynamo_cli.rollout.engine import EngineSettings, RolloutEngine


def open_engine(
    settings: EngineSettings, folder: Path, *, dtype: str, device: str, rank: int = 0
) -> tuple[RolloutEngine, Any]:
    """An engine with a model folder's weights, and the tokenizer that frames its questions.

    `rank`: of several processes that sample together, each with an engine; it tells servers apart.
    """
    if settings.kind == "vllm":
        tokenizer = load_tokenizer(folder)
        if settings.server is not None:
            from dynamo_cli.rollout.vllm_server import VLLMServer

            return VLLMServer(settings, folder, tokenizer, device=device, rank=rank), tokenizer
        from dynamo_cli.rollout.vllm_engine import VLLMEngine

        return VLLMEngine(settings, folder, tokenizer, dtype=dtype, device=device), tokenizer
    from dynamo_cli.rollout.hf_engine import HFEngine

    model, tokenizer = load_model(folder, dtype=dtype, device=device)
    return HFEngine(model, tokenizer, max_batch_tokens=settings.max_batch_tokens), tokenizer


def open_sampler(
    settings: EngineSettings,
    folder: Path,
    *,
    share: tuple[Any, Any],
    report_scores: bool,
    dtype: str,
    device: str,
    rank: int = 0,
) -> RolloutEngine:
    """The engine of a training run, over the trainer's own (model, tokenizer) where it can be.

    Other engines start from the model folder. `report_scores` concerns the shared one alone.
    """
    if settings.kind != "hf":
        return open_engine(settings, folder, dtype=dtype, device=device, rank=rank)[0]
    from dynamo_cli.rollout.hf_engine import HFEngine

    return HFEngine(*share, max_batch_tokens=settings.max_batch_tokens, report_scores=report_scores)
