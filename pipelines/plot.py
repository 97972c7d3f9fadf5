"""Stage `plot`: the records of training runs become a figure."""

from collections.abc import Sequence
from pathlib import Path

from dynamo_cli.records import draft
from dynamo_cli.reporting import figures
from dynamo_cli.reporting.results import read_runs


def run(
    name: str,
    *,
    models: Sequence[str],
    seeds: Sequence[int],
    runs: Path,
    out: Path,
    methods: Sequence[str] | None = None,
    bounds: tuple[int, int] | None = None,
) -> list[Path]:
    """Draw one figure; returns the paths of `<name>.png`, `<name>.svg` and `<name>.csv` in `out`.

    Reads `runs`/<model>-<method>-<seed>/ for the given models and seeds, and for the methods that
    the figure is about unless others are given. `bounds`: fewest and most rollouts per problem, for
    the figure `allocation`; by default the observed ones. The CSV holds the data that were drawn.
    """
    figure = figures.find(name)
    data = figure.select(
        read_runs(
            runs, models=models, methods=methods or figure.methods, seeds=seeds, file=figure.file
        )
    )
    drawing = figure.draw(data, **({"bounds": bounds} if name == "allocation" else {}))
    paths = [out / f"{name}{ending}" for ending in (".png", ".svg", ".csv")]
    for path in paths[:2]:
        with draft(path) as scratch:
            figures.save(drawing, scratch, kind=path.suffix[1:])
    with draft(paths[2]) as scratch:
        data.to_csv(scratch, index=False, lineterminator="\n")
    return paths
