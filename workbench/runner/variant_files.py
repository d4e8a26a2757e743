"""``variant.yaml``, which every run has among its artifacts, read back: which variant of the study it is of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fusion_workbench.config.study import SelectionConfig, StrategyConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.schema.names import SEARCH_REPLICATE, Phase, fresh_replicate
from fusion_workbench.study.identity import variant
from fusion_workbench.study.prepare import Parts

if TYPE_CHECKING:
    from fusion_workbench.sweeps.space import Cell, Variant

_MOST_BYTES = 1_000_000


def read_variant(parts: Parts, path: Path) -> Variant | None:
    """The variant that a run's ``variant.yaml`` describes; None where it describes none of this study."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        plain: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        cell = _cell(parts, plain)
        if cell is None:
            return None
        lr = float(plain["lr"])  # of a plug-in whose code has changed since, it is the one or the other
        return next(
            (v for v in (parts.variant(cell, lr), variant(parts.study, cell, lr)) if v.id == plain["variant"]), None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError, WorkbenchError):
        return None


def phase_of(replicate: str) -> Phase:
    """The part of a study that a replicate belongs to, by its name."""
    if replicate == SEARCH_REPLICATE:
        return Phase.SEARCH
    fresh = replicate.removeprefix(fresh_replicate(0)[:-1])
    return Phase.CONFIRM if fresh != replicate and fresh.isdigit() else Phase.FINAL


def _cell(parts: Parts, plain: Any) -> Cell | None:
    """The file does not hold the alias of a strategy; the cell's id tells which of the study's it was."""
    selection = Selection(tuple(int(level) for level in plain["levels"]), int(plain["query"]))
    aliases = dict.fromkeys(["", *(s.alias for s in parts.study.strategies if s.name == plain["strategy"])])
    for alias in aliases:
        config = StrategyConfig(
            str(plain["strategy"]), dict(plain["options"]), selections=[SelectionConfig()], alias=alias
        )
        for cell in parts.space.cells(config, selection):
            if cell.id == plain["cell"]:
                return cell
    return None
