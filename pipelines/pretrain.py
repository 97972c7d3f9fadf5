"""Stage `pretrain`: a recipe and a width become a base model of the ladder."""

import time
from collections.abc import Callable
from pathlib import Path

from dynamo_cli.config import Compute
from dynamo_cli.pretraining import Pretraining, pretrain
from dynamo_cli.provenance import write_manifest

Report = Callable[..., None]  # (steps done, steps in all, loss=)


def run(
    recipe: Pretraining,
    *,
    name: str,
    width: int,
    layers: int,
    learning_rate: float,
    compute: Compute,
    out: Path,
    report: Report,
) -> None:
    """Write the model's folder `out`, and `<out>.manifest.json` beside it.

    The manifest holds the time and the commit, so inside the folder it would change the folder's
    hash, and with it every run that starts from the model, where no weight has changed.
    """
    started = time.monotonic()
    compute.apply()
    pretrain(
        recipe,
        width=width,
        layers=layers,
        learning_rate=learning_rate,
        out=out,
        progress=lambda done, total, loss: report(done, total, loss=loss),
    )
    write_manifest(
        out.with_name(f"{out.name}.manifest.json"),
        parameters={
            "name": name,
            "width": width,
            "layers": layers,
            "learning_rate": learning_rate,
            "pretraining": recipe.model_dump(),
            "compute": compute.model_dump(),
        },
        inputs={},
        device="cpu",
        seconds=time.monotonic() - started,
    )
