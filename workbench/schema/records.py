"""What a study tracks of itself: tasks, cells, contenders, source; each with what writes it and what reads it back.

Writers give plain values for JSON. Readers take what an older version or another hand left: what is optional has a
default, what cannot be read raises KeyError, TypeError, ValueError or AttributeError, which whoever reads turns into a
note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.layers import MOST_LAYERS, Selection
from fusion_workbench.schema.names import SINGLE_LAYER, Budget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LAYER = re.compile("[0-9]{1,6}")
_OPTION = "options."  # begins MLflow's params of a cell's options


@dataclass(frozen=True)
class Task:
    """What probes predict from the fused tokens, or questions ask: an entry of ``tasks.json``, by its name."""

    name: str
    metric: str = "accuracy"
    direction: str = "maximize"
    chance: float | None = None
    title: str = ""
    unit: str = "share"  # of the scores; see reports/words/units.py
    perfect: float | None = None  # the metric of a model that is always right
    ratio: tuple[str, str] | None = None  # statistics whose sums' quotient the metric is; None: a mean over examples
    chance_test: float | None = None  # of the same chance baseline, on test; they differ where the splits do

    @property
    def sign(self) -> int:
        """+1 where more is better, -1 where less is."""
        return 1 if self.direction == "maximize" else -1

    @property
    def normalisable(self) -> bool:
        """Whether it is known how far it is from chance to perfect."""
        return self.chance is not None and self.perfect is not None and self.chance != self.perfect

    @property
    def chance_baseline(self) -> float | None:
        """What the chance baseline, which uses no image, reaches on test."""
        return self.chance if self.chance_test is None else self.chance_test

    def chance_normalised(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores as shares of the way from chance (0) to perfect (1). Only where :attr:`normalisable`."""
        assert self.chance is not None
        assert self.perfect is not None
        return (scores - self.chance) / (self.perfect - self.chance)

    def plain(self) -> dict[str, Any]:
        """Its entry."""
        return {
            "metric": self.metric,
            "direction": self.direction,
            "unit": self.unit,
            "chance": self.chance,
            "chance_test": self.chance_test,
            "perfect": self.perfect,
            "ratio": list(self.ratio) if self.ratio else None,
            "title": self.title,
        }

    @classmethod
    def read(cls, name: str, entry: Any) -> Task:
        """The task that an entry describes; whatever the entry lacks, or is no number, is as if it were not known."""
        entry = entry if isinstance(entry, Mapping) else {}
        ratio = entry.get("ratio")
        return cls(
            name=name,
            metric=str(entry.get("metric", "accuracy")),
            direction=str(entry.get("direction", "maximize")),
            chance=number(entry.get("chance")),
            title=str(entry.get("title", "")),
            unit=str(entry.get("unit") or "share"),
            perfect=number(entry.get("perfect")),
            ratio=(str(ratio[0]), str(ratio[1])) if isinstance(ratio, list) and len(ratio) == 2 else None,
            chance_test=number(entry.get("chance_test")),
        )


@dataclass(frozen=True)
class Cell:
    """A strategy, a selection, options: one cell of the report's table, an entry of ``variants.json``."""

    id: str
    strategy: str
    levels: tuple[int, ...]
    query: int
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    alias: str = ""
    baselines: tuple[str, ...] = ()
    chosen_lr: float | None = None

    @property
    def selection(self) -> Selection:
        return Selection(self.levels, self.query)

    @property
    def single(self) -> bool:
        """One layer, unfused."""
        return not self.levels

    @property
    def name(self) -> str:
        """How a sentence calls it."""
        alone = self.strategy == "deep_only" and self.single
        alias = f" ({self.alias})" if self.alias else ""
        return f"layer {self.query} alone{alias}" if alone else self.label

    # --- written down -----------------------------------------------------------------------------------------------

    def core(self) -> dict[str, Any]:
        """What every description of a cell has."""
        return {
            "cell": self.id,
            "strategy": self.strategy,
            "levels": list(self.levels),
            "query": self.query,
            "options": dict(self.options),
        }

    def plain(self) -> dict[str, Any]:
        """Its entry."""
        more = {"label": self.label, "alias": self.alias, "baselines": list(self.baselines)}
        return self.core() | {"levels": list(self.levels) or None} | more | {"chosen_lr": self.chosen_lr}

    def params(self) -> dict[str, Any]:
        """MLflow's params of a run of it."""
        return {
            "strategy": self.strategy,
            "levels": ",".join(map(str, self.levels)),
            "query": self.query,
            "alias": self.alias,
            **{f"{_OPTION}{key}": value for key, value in self.options.items()},
        }

    # --- read -------------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Cell:
        """The cell that an entry describes, of ``variants.json``, ``contenders.json`` or a ``report.json``.

        Raises:
            KeyError: it names no cell, strategy or query.
            TypeError, ValueError, AttributeError: it describes no cell.
        """
        lr = entry.get("chosen_lr", entry.get("lr"))
        return cls(
            id=str(entry["cell"]),
            strategy=str(entry["strategy"]),
            levels=tuple(_layer(level) for level in entry.get("levels") or ()),
            query=_layer(entry["query"]),
            label=str(entry.get("label") or entry["strategy"]),
            options=dict(entry.get("options") or {}),
            alias=str(entry.get("alias") or ""),
            baselines=tuple(map(str, entry.get("baselines") or ())),
            chosen_lr=None if lr is None else float(lr),
        )

    @classmethod
    def read_params(cls, cell_id: str, params: Mapping[str, str], chosen_lr: float | None) -> Cell:
        """The cell as the params of one of its runs tell it; options are words. What is no layer is left out."""
        words = [word.strip() for word in params.get("levels", "").split(",")]
        levels = tuple(int(word) for word in words if _LAYER.fullmatch(word))
        query = int(params["query"]) if _LAYER.fullmatch(params.get("query", "")) else 0
        strategy = params.get("strategy", "?")
        alias = params.get("alias", "")
        return cls(
            id=cell_id,
            strategy=strategy,
            levels=levels,
            query=query,
            label=f"{strategy} {Selection(levels, query).label}" + (f" ({alias})" if alias else ""),
            options={k.removeprefix(_OPTION): v for k, v in params.items() if k.startswith(_OPTION)},
            alias=alias,
            baselines=(SINGLE_LAYER,) if strategy == "deep_only" and not levels else (),
            chosen_lr=chosen_lr,
        )


@dataclass(frozen=True)
class Contender:
    """A cell that is trained again on fresh replicates, and why: an entry of ``contenders.json``.

    Attributes:
        roles: among ``winner`` (the best on validation) and ``fusion`` (the best that reads several layers).
        stands_for: the (measure, baseline) that it was picked as.
        controls: the budgets of the best fusion that it matches with one layer: ``parameters``, ``flops``.
        without: the layer of the best fusion that it does without.
    """

    cell: Cell
    roles: tuple[str, ...] = ()
    stands_for: tuple[tuple[str, str], ...] = ()
    controls: tuple[str, ...] = ()
    without: int | None = None

    def plain(self) -> dict[str, Any]:
        """Its entry."""
        return self.cell.plain() | {
            "roles": list(self.roles),
            "stands_for": [list(pair) for pair in self.stands_for],
            "controls": list(self.controls),
            "without": self.without,
        }

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Contender:
        """The contender that an entry describes. Raises as :meth:`Cell.read`."""
        without = entry.get("without")
        return cls(
            cell=Cell.read(entry),
            roles=tuple(map(str, entry.get("roles") or ())),
            stands_for=tuple((str(measure), str(name)) for measure, name in entry.get("stands_for") or ()),
            controls=tuple(str(Budget(one)) for one in entry.get("controls") or ()),
            without=None if without is None else _layer(without),
        )


@dataclass(frozen=True)
class TrackedSource:
    """Where the samples came from: ``source.json``.

    Attributes:
        version: changes when the samples that it makes do.
        fingerprints, sizes: of each split.
        classes: of each task.
        groups: of each split the names of groups that no split cuts through; empty where they are too many to list.
        group_counts: of each split, how many there are.
        group_name: what one of them is called.
    """

    name: str = ""
    version: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    group_counts: Mapping[str, int] = field(default_factory=dict)
    group_name: str = "group"

    def plain(self) -> dict[str, Any]:
        """The content of ``source.json``."""
        return {
            "name": self.name,
            "version": self.version,
            "fingerprints": dict(self.fingerprints),
            "sizes": dict(self.sizes),
            "classes": {task: list(names) for task, names in self.classes.items()},
            "groups": {split: list(names) for split, names in self.groups.items()},
            "group_counts": dict(self.group_counts),
            "group_name": self.group_name,
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> TrackedSource:
        """The source that the file describes; what it lacks, or holds nonsense of, is as if it were not known."""
        return cls(
            name=str(plain.get("name") or ""),
            version=str(plain.get("version") or ""),
            fingerprints={split: str(value) for split, value in _mapping(plain.get("fingerprints")).items() if value},
            sizes=_mapping(plain.get("sizes")),
            classes=_lists(plain.get("classes")),
            groups=_lists(plain.get("groups")),
            group_counts=_mapping(plain.get("group_counts")),
            group_name=str(plain.get("group_name") or "group"),
        )


def _layer(value: Any) -> int:
    """As the number of a layer. Raises ValueError for one that no encoder has, and as ``int`` for what is no number."""
    layer = int(value)
    if not 0 <= layer <= MOST_LAYERS:
        raise ValueError(f"{layer} is no layer")
    return layer


def number(value: Any) -> float | None:
    """As a number; None for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return {str(key): inner for key, inner in value.items()} if isinstance(value, Mapping) else {}


def _lists(value: Any) -> dict[str, tuple[str, ...]]:
    return {key: tuple(map(str, names)) for key, names in _mapping(value).items() if isinstance(names, list | tuple)}
