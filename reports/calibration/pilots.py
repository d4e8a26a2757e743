"""What the noise of paired differences is made of, read from a study that was run: a pilot for those to come."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.statistics.components import VarianceComponents, variance_components
from fusion_workbench.reports.statistics.example_scores import codes
from fusion_workbench.schema.names import Tag

PILOTS = Path(__file__).with_name("pilots.json")
_PLACES = re.compile(r" (--workspace|-w|--out|-o)[ =]('[^']*'|\S+)")  # folders of one machine
QUANTILES = {"min": 0.0, "q1": 0.25, "median": 0.5, "q3": 0.75, "max": 1.0}


def components_of(analysis: Analysis) -> list[VarianceComponents]:
    """Shares of every cell against every baseline on every measure, a pair that meets twice counted once."""
    pairs = {
        (c.measure, *sorted((c.cell, c.against))): (c.cell, c.against)
        for c in analysis.comparisons.values()
        if c.difference is not None
    }
    out = []
    for (measure, *_), (cell, against) in pairs.items():
        paired = analysis.paired(cell, against, measure)
        if paired is None or min(paired.scores.shape) < 2:
            continue
        groups = codes(paired.groups)
        if groups is not None and groups.max() + 1 >= len(groups):
            groups = None  # every example is its own group
        parts = variance_components(paired.scores, groups)
        total = parts.replicate + parts.example + parts.interaction
        if total > 0:
            out.append(VarianceComponents(parts.replicate / total, parts.example / total, parts.interaction / total))
    return out


def pilot(record: StudyRecord) -> dict[str, Any]:
    """A study's row of ``pilots.json``: real pairs at the quartiles of the replicate's share, and who they were of.

    Raises:
        WorkbenchError: no pair of the study has two replicates.
    """
    analysis = Analysis(record)
    pilot_components = sorted(components_of(analysis), key=lambda m: (m.replicate, m.example))
    if not pilot_components:
        raise WorkbenchError(
            f"the study '{record.name}' has no pair of cells with two finished replicates; its noise cannot be read."
        )
    shapes = [o.scores.shape for (_, _, split), o in record.example_scores.items() if split == "test"]
    return {
        "study": record.name,
        "command": _PLACES.sub("", record.tags.get(Tag.COMMAND, "")),
        "version": record.tags.get(Tag.COMMIT, ""),
        "cells": len(record.cells),
        "replicates": max(r for r, _ in shapes),
        "examples": max(n for _, n in shapes),
        "groups": len(record.groups),
        "pairs": len(pilot_components),
        "mixes": {
            name: _plain(pilot_components[round(q * (len(pilot_components) - 1))]) for name, q in QUANTILES.items()
        },
        "quartiles": {
            part: [
                round(float(v), 4)
                for v in np.quantile([getattr(m, part) for m in pilot_components], [*QUANTILES.values()])
            ]
            for part in ("replicate", "example", "interaction")
        },
    }


@cache
def pilots() -> tuple[Mapping[str, Any], ...]:
    """The rows that come with the package."""
    return tuple(json.loads(PILOTS.read_text(encoding="utf-8"))["pilots"])


def pilot_components(rows: Sequence[Mapping[str, Any]]) -> dict[str, VarianceComponents]:
    """One mix for each quantile: of the least replicate share at ``min`` to the largest at ``max``, over all pilots."""
    out = {}
    for name, q in QUANTILES.items():
        ordered = sorted((VarianceComponents(**row["mixes"][name]) for row in rows), key=lambda m: m.replicate)
        out[name] = ordered[round(q * (len(ordered) - 1))]
    return out


def _plain(variance_components: VarianceComponents) -> dict[str, float]:
    return {part: round(getattr(variance_components, part), 4) for part in ("replicate", "example", "interaction")}
