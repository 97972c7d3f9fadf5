"""The engine that `training.engine` names. DeepSpeed is heavy: imported when it is opened."""

from dynamo_cli.methods.collective import LOCAL, Collective
from dynamo_cli.train.engine import EngineSettings, Optimiser, TrainEngine
from dynamo_cli.train.launching import check_installed


def open_policy(
    settings: EngineSettings,
    model,
    tokenizer,
    optimiser: Optimiser,
    *,
    temperature: float,
    collective: Collective = LOCAL,
) -> TrainEngine:
    """The engine that trains a transformers module, over the ranks of `collective`.

    Raises DynamoError where DeepSpeed is needed and is not installed.
    """
    if settings.kind == "deepspeed":
        check_installed()
        from dynamo_cli.train.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(
            model,
            tokenizer,
            optimiser,
            temperature=temperature,
            settings=settings,
            collective=collective,
        )
    from dynamo_cli.train.local_engine import LocalEngine

    return LocalEngine(model, tokenizer, optimiser, temperature=temperature)
