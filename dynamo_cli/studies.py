"""The grid, and what tables and figures show beside it: sections of params.yaml."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from pydantic import Field

from dynamo_cli.schema import Section


class Cell(NamedTuple):
    """One run and its evaluation."""

    model: str
    method: str
    variant: str | None  # a name under variants:
    seed: int

    @property
    def name(self) -> str:
        """Its folder under paths.runs and paths.evals; dvc.yaml spells it the same way."""
        return "-".join(filter(None, (self.model, self.method, self.variant, str(self.seed))))


class Cells(Section):
    """Models x methods x seeds. Without methods there are none."""

    models: list[str] = Field(min_length=1)
    methods: list[str]
    seeds: list[int] = Field(min_length=1)

    def cells(self) -> Iterator[Cell]:
        """Every one of them; one seed of all methods comes before the next seed."""
        for seed, model, method in product(self.seeds, self.models, self.methods):
            yield Cell(model, method, None, seed)


class Grid(Cells):
    """The cells of the main table, scored on suites."""

    methods: list[str] = Field(min_length=1)
    suites: list[str] = Field(min_length=1)


class Varied(Cells):
    """The same for each of some variants, names under variants:."""

    variants: list[str]

    def cells(self) -> Iterator[Cell]:
        for cell, variant in product(super().cells(), self.variants):
            yield cell._replace(variant=variant)


class Studies(Section):
    """What tables and figures show beside the grid, and the cells that this takes."""

    ablation: list[str] = Field(min_length=1)  # methods, by rows of the table
    allocators: list[str] = Field(min_length=1)
    tables: list[str]  # that the pipeline draws up beside `main` and `settings`
    figures: list[str]
    more_seeds: list[int]  # of the grid's cells, beside grid.seeds
    presets: Cells  # methods of these tables that the grid has not
    scales: Cells  # models that the grid has not
    budget: Varied
    sensitivity: Varied

    def cells(self, grid: Grid, only: str | None = None) -> list[Cell]:
        """Every cell beside the grid's stages, each once; `only`: those of one table or figure."""
        more = grid.model_copy(update={"seeds": self.more_seeds})
        groups = (more, self.presets, self.scales, self.budget, self.sensitivity)
        if only is not None:
            groups = self.shown(more)[only]
        return list(dict.fromkeys(cell for group in groups for cell in group.cells()))

    def shown(self, more: Grid) -> dict[str, tuple[Cells, ...]]:
        """By table and figure, its cells beside the grid's."""

        def rows(methods: list[str]) -> Cells:
            known = [method for method in self.presets.methods if method in methods]
            return self.presets.model_copy(update={"methods": known})

        return {
            "main": (more,),
            "ablation": (rows(self.ablation),),
            "allocators": (rows(self.allocators),),
            "scales": (self.scales,),
            "budget": (rows(self.budget.methods), self.budget),  # the first at the budget in use
            "sensitivity": (self.sensitivity,),
        }

    def named(self) -> Iterator[tuple[str, list[str], str]]:
        """Each list of names: its place, the names, and the section that must hold them."""
        yield "ablation", self.ablation, "methods"
        yield "allocators", self.allocators, "methods"
        for place in ("presets", "scales", "budget", "sensitivity"):
            cells = getattr(self, place)
            yield f"{place}.models", cells.models, "models"
            yield f"{place}.methods", cells.methods, "methods"
            if isinstance(cells, Varied):
                yield f"{place}.variants", cells.variants, "variants"
