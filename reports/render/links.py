"""Every cell's MLflow runs, with links: the way from a number of the report to what it was read from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlsplit

from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.records import Run, StudyRecord
from fusion_workbench.reports.words.units import Unit
from fusion_workbench.schema.names import OBJECTIVE, Phase, Status, on_test, task_metric
from fusion_workbench.schema.records import Cell

UI = "http://127.0.0.1:5000"  # where `workbench ui` serves a database, unless told otherwise
_PHASES = tuple(Phase)
_SAFE = re.compile(r"[\w-]+", re.ASCII)


@dataclass(frozen=True)
class RunRow:
    """One replicate of a cell; ``link`` is empty where there is no run yet.

    ``scores`` are the run's own metrics: the validation objective, then each task on test, empty where it has none.
    """

    what: str
    state: str
    lr: float | None = None
    scores: tuple[str, ...] = ()
    run_id: str = ""
    link: str = ""


def anchor(cell_id: str) -> str:
    """A cell's place in the page. Ids come from data: one that is no plain word is hashed."""
    return f"cell-{cell_id if _SAFE.fullmatch(cell_id) else sha256(cell_id.encode()).hexdigest()[:16]}"


def server(tracking_uri: str) -> str | None:
    """The address of a tracking server, without user and password; None for a database."""
    parts = urlsplit(tracking_uri)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def link(record: StudyRecord, run_id: str) -> str:
    """A run's page in MLflow."""
    place = f"/#/experiments/{quote(record.experiment_id, safe='')}/runs/{quote(run_id, safe='')}"
    return (server(record.tracking_uri) or UI) + place


def cell_runs(analysis: Analysis) -> list[dict[str, Any]]:
    """Cells in the study's order, then those that were searched or confirmed only, each with its runs."""
    record = analysis.record
    keys = [(OBJECTIVE, analysis.objective.unit)]
    keys += [(on_test(task_metric(t.name, t.metric)), analysis.measure(t.name).unit) for t in record.tasks]
    others = [cell for cell in record.searched.values() if cell not in record.cells]
    return [
        {"cell": cell, "facts": _facts(cell), "runs": _rows(record, cell, keys, cell in record.cells)}
        for cell in [*record.cells, *others]
    ]


def _rows(record: StudyRecord, cell: Cell, keys: Sequence[tuple[str, Unit]], planned: bool) -> list[RunRow]:
    found = sorted(record.runs_of(cell.id), key=lambda r: (_rank(r.phase), (r.phase == Phase.SEARCH) * (r.lr or 0.0)))
    have = {run.replicate for run in found if run.phase == Phase.FINAL}
    lacking = [r for r in record.replicates if r not in have] if planned else []
    return [_row(record, run, keys) for run in found] + [RunRow(f"seed {r}", Status.MISSING) for r in lacking]


def _row(record: StudyRecord, run: Run, keys: Sequence[tuple[str, Unit]]) -> RunRow:
    words: dict[str, str] = {Phase.SEARCH: "search", Phase.FINAL: f"seed {run.replicate}"}
    what = words.get(run.phase, f"{run.phase} {run.replicate}")
    scores = tuple(unit.score(run.metrics[key]) if key in run.metrics else "" for key, unit in keys)
    return RunRow(what, run.state, run.lr, scores, run.run_id, link(record, run.run_id))


def _facts(cell: Cell) -> list[str]:
    """What its name leaves out."""
    rate = [] if cell.chosen_lr is None else [f"learning rate {cell.chosen_lr:g}"]
    return [*rate, *(f"{key} {value}" for key, value in cell.options.items()), *cell.baselines]


def _rank(phase: str) -> int:
    return _PHASES.index(Phase(phase)) if phase in _PHASES else len(_PHASES)
