"""What a study could train: cells (strategy, selection, options) and variants (a cell at a learning rate)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fusion_workbench.config.history import as_version_1
from fusion_workbench.config.study import SelectionConfig, StrategyConfig, StudyConfig, digest
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import LayerRef, Selection, parse_layer
from fusion_workbench.schema.names import SINGLE_LAYER, Baseline
from fusion_workbench.schema.records import Cell as TrackedCell

MIDDLE = ("25%", "33%", "42%", "50%")  # the layers of the middle concat


@dataclass(frozen=True)
class Traits:
    """What the planner needs to know of a strategy, handed in so that it never imports one."""

    uses_levels: bool
    canonical: Callable[[Mapping[str, Any]], dict[str, Any]]  # options with defaults filled in; raises WorkbenchError


@dataclass(frozen=True)
class Cell:
    """One cell of the ablation: what the report's table shows."""

    strategy: str
    selection: Selection
    options: tuple[tuple[str, Any], ...] = ()
    alias: str = ""
    baselines: tuple[str, ...] = field(default=(), compare=False)
    note: str = field(default="", compare=False)  # the options that are not the strategy's defaults, in words

    @property
    def family(self) -> str:
        """Equal for cells that differ in their selection alone: what shares a learning rate and a budget."""
        options = as_version_1(dict(self.options), self.strategy)
        return digest({"strategy": self.strategy, "options": options, "alias": self.alias})

    @property
    def id(self) -> str:
        return digest(
            {
                "strategy": self.strategy,
                "levels": list(self.selection.levels),
                "query": self.selection.query,
                "options": as_version_1(dict(self.options), self.strategy),
                "alias": self.alias,
            }
        )

    @property
    def label(self) -> str:
        alias = f" ({self.alias})" if self.alias else ""
        return f"{self.strategy}{self.note} {self.selection.label}{alias}"

    def tracked(self, lr: float | None) -> TrackedCell:
        """The cell at its learning rate, as a study writes it down; None: it has none yet."""
        return TrackedCell(
            id=self.id,
            strategy=self.strategy,
            levels=self.selection.levels,
            query=self.selection.query,
            label=self.label,
            options=dict(self.options),
            alias=self.alias,
            baselines=self.baselines,
            chosen_lr=lr,
        )


@dataclass(frozen=True)
class Variant:
    """A cell with the hyperparameters it is trained with; its id is the hash of all of them.

    ``code``: of a plug-in whose code has changed since the study was begun, what tells its cells apart from those of
    the earlier code; else empty.
    """

    cell: Cell
    lr: float
    training: tuple[tuple[str, Any], ...]
    code: str = ""

    @property
    def id(self) -> str:
        training = as_version_1({"training": dict(self.training)})["training"]
        code = {"code": self.code} if self.code else {}
        return digest({"cell": self.cell.id, "lr": self.lr, "training": training, **code})


@dataclass(frozen=True)
class Space:
    """The study's cells: those that are listed, and a space of selections to draw from."""

    depth: int
    listed: tuple[Cell, ...]  # always trained: strategies × listed selections, single layers, baselines
    strategies: tuple[StrategyConfig, ...]
    traits: Mapping[str, Traits]
    counts: tuple[int, ...] = ()  # how many levels; empty: no space beyond the listed cells
    candidates: tuple[int, ...] = ()  # layers the levels are drawn from
    queries: tuple[int, ...] = ()

    def size(self, strategy: StrategyConfig) -> int:
        """Cells that the space holds for one strategy, beyond the listed."""
        if not self.counts:
            return 0
        choices = math.prod(len(values) for values in strategy.choices.values())
        if not self.traits[strategy.name].uses_levels:
            return choices * len(self.queries)
        return choices * sum(
            math.comb(len(self.below(query)), count) for query in self.queries for count in self.counts
        )

    def below(self, query: int) -> tuple[int, ...]:
        """Candidate levels under ``query``."""
        return tuple(layer for layer in self.candidates if layer < query)

    def enumerate(self, strategy: StrategyConfig) -> Iterator[Cell]:
        """Every cell of the space for one strategy, without repeats."""
        seen: set[str] = set()
        for query in self.queries:
            for count in self.counts:
                for levels in itertools.combinations(self.below(query), count):
                    for cell in self.cells(strategy, Selection(levels, query)):
                        if cell.id not in seen:
                            seen.add(cell.id)
                            yield cell

    def first_cells(self, strategy: StrategyConfig) -> Iterator[Cell]:
        """The cells of the space's first selection: one for each combination of the strategy's choices."""
        if self.size(strategy):
            levels = self.below(self.queries[-1])[: self.counts[0]]
            yield from self.cells(strategy, Selection(levels, self.queries[-1]))

    def has_cell(self, strategy: StrategyConfig, cell: Cell) -> bool:
        """Whether ``cell`` is one of ``strategy``: its name, alias and options, each one of its choices."""
        if (cell.strategy, cell.alias) != (strategy.name, strategy.alias):
            return False
        fixed = self.traits[strategy.name].canonical(strategy.options)
        return all(value in strategy.choices.get(key, [fixed[key]]) for key, value in cell.options)

    def cells(self, strategy: StrategyConfig, selection: Selection) -> Iterator[Cell]:
        """The cells of one strategy at one selection: one for each combination of its choices."""
        traits = self.traits[strategy.name]
        chosen = selection if traits.uses_levels else Selection((), selection.query)
        names = list(strategy.choices)
        for values in itertools.product(*strategy.choices.values()):
            options = traits.canonical({**strategy.options, **dict(zip(names, values, strict=True))})
            note = _note(options, traits.canonical({}))
            yield Cell(strategy.name, chosen, tuple(sorted(options.items())), strategy.alias, note=note)


def build_space(study: StudyConfig, depth: int, traits: Mapping[str, Traits]) -> Space:
    """Normalise a study's strategies, selections and baselines for an encoder of ``depth`` blocks.

    Raises:
        WorkbenchError: a layer that does not exist, two references to one layer, a strategy that needs levels and
            gets none, a space without a single selection, two strategies that are the same.
    """
    _refuse_repeats(study.strategies)
    space = Space(depth, (), tuple(study.strategies), traits, **_bounds(study, depth))
    cells: dict[str, Cell] = {}

    def add(cell: Cell, *baselines: str) -> None:
        present = cells.get(cell.id, cell)
        cells[cell.id] = replace(present, baselines=tuple(dict.fromkeys((*present.baselines, *baselines))))

    for strategy in study.strategies:
        for selection in (_parse(selection, depth) for selection in strategy.selections or study.selections):
            if traits[strategy.name].uses_levels and not selection.levels:
                raise WorkbenchError(
                    f"strategy '{strategy.name}' reads levels, and the selection with query {selection.query} "
                    "names none."
                )
            for cell in space.cells(strategy, selection):
                add(cell)
    for layer in _single_layers(study.single_layers, depth):
        add(_single(layer, traits), SINGLE_LAYER)
    if study.baselines:
        add(_single(depth, traits), Baseline.DEEPEST)
        if depth > 1:
            add(_single(depth - 1, traits), Baseline.PENULTIMATE)
        middle = sorted({parse_layer(ref, depth) for ref in MIDDLE})
        if len(middle) > 1 and "concat" in traits:
            selection = Selection(tuple(middle[:-1]), middle[-1])
            for cell in space.cells(StrategyConfig(name="concat"), selection):
                add(cell, Baseline.MIDDLE)
    final = tuple(
        replace(c, baselines=tuple(dict.fromkeys((*c.baselines, SINGLE_LAYER))))
        if c.strategy == "deep_only" and not c.alias and SINGLE_LAYER not in c.baselines
        else c
        for c in cells.values()
    )
    if not final and not any(space.size(strategy) for strategy in study.strategies):
        raise WorkbenchError("the study trains nothing: give it selections, a space, single_layers or baselines.")
    return replace(space, listed=final)


def _refuse_repeats(strategies: Sequence[StrategyConfig]) -> None:
    """Raises WorkbenchError for a strategy that is listed twice."""
    seen: set[str] = set()
    for number, strategy in enumerate(strategies):
        key = digest([strategy.name, dict(strategy.options), dict(strategy.choices), strategy.alias])
        if key in seen:
            raise WorkbenchError(
                f"strategies[{number}] is '{strategy.name}' with the same options as one before it; give it other "
                "options, or an alias to compare a strategy with itself."
            )
        seen.add(key)


def _note(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """``(attention=global, self_attention=False)``: what sets a cell apart from its strategy's defaults."""
    changed = [f"{key}={value}" for key, value in sorted(options.items()) if value != defaults[key]]
    return f"({', '.join(changed)})" if changed else ""


def _bounds(study: StudyConfig, depth: int) -> dict[str, tuple[int, ...]]:
    if study.space is None:
        return {}
    queries = tuple(sorted({parse_layer(ref, depth) for ref in study.space.queries})) or (depth,)
    candidates = _distinct(study.space.layers, depth, "space.layers") or tuple(range(max(queries)))
    counts = tuple(sorted(set(study.space.count)))
    if not counts or counts[0] < 1:
        raise WorkbenchError(
            f"space.count is {list(study.space.count)}; it must name numbers of levels, such as [2, 3]."
        )
    room = max(sum(layer < query for layer in candidates) for query in queries)
    if counts[-1] > room:
        raise WorkbenchError(
            f"space.count asks for {counts[-1]} levels, and only {room} candidate layers lie below the query."
        )
    return {"counts": counts, "candidates": candidates, "queries": queries}


def _distinct(refs: Sequence[LayerRef], depth: int, where: str) -> tuple[int, ...]:
    seen: dict[int, LayerRef] = {}
    for ref in refs:
        layer = parse_layer(ref, depth)
        if layer in seen:
            raise WorkbenchError(f"{where}: {ref!r} and {seen[layer]!r} are both layer {layer}; name each layer once.")
        seen[layer] = ref
    return tuple(sorted(seen))


def _single_layers(refs: Sequence[LayerRef], depth: int) -> tuple[int, ...]:
    return tuple(range(depth + 1)) if list(refs) == ["all"] else _distinct(refs, depth, "single_layers")


def _single(layer: int, traits: Mapping[str, Traits]) -> Cell:
    return Cell("deep_only", Selection((), layer), tuple(sorted(traits["deep_only"].canonical({}).items())))


def _parse(selection: SelectionConfig, depth: int) -> Selection:
    return Selection.parse(selection.levels, selection.query, depth)
