"""Optuna told anew: values of searched cells that the ledger has and Optuna's journal no longer does."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from fusion_workbench.runner.variant_files import read_variant
from fusion_workbench.schema.names import SEARCH_REPLICATE, Artifact, LedgerState
from fusion_workbench.study.jobs import JobTrainer
from fusion_workbench.study.prepare import Parts
from fusion_workbench.system.mlflow_database import artifact_folder
from fusion_workbench.system.scratch import scratch_folder

if TYPE_CHECKING:
    from fusion_workbench.study.tracking import Tracker
    from fusion_workbench.sweeps.planner import Planner
    from fusion_workbench.sweeps.space import Cell, Variant


def recall(planner: Planner, parts: Parts, trainer: JobTrainer) -> None:
    """Tell the planner of a sampled space what its journal has lost, in the order of training.

    A space that is enumerated needs nothing: its cells are asked for again, and found in the ledger.
    """
    if planner.exhaustive:
        return
    study, ledger = parts.study, trainer.ledger
    grid = sorted(set(study.search.learning_rates))
    known = {parts.variant(cell, lr).id for cell in planner.known_cells() for lr in grid}
    searched = [e for e in ledger.entries() if e.replicate == SEARCH_REPLICATE and e.state == LedgerState.DONE]
    cells: dict[str, Cell] = {}
    rates: dict[str, set[float]] = defaultdict(set)
    for entry in searched:
        found = _variant(parts, trainer.tracker, str(entry.run_id)) if entry.variant not in known else None
        if found is not None and found.id == entry.variant == parts.variant(found.cell, found.lr).id:
            cells.setdefault(found.cell.id, found.cell)
            rates[found.cell.id].add(found.lr)
    by_strategy = study.search.scope == "strategy" and len(grid) > 1
    # Cells that stood for their strategy were tried at all rates; whether they were proposed too is not known.
    stand_ins = {cell.id for cell in planner.representatives().values()} if by_strategy else set()
    for cell in cells.values():
        if cell.id not in stand_ins and (by_strategy or rates[cell.id] >= set(grid)):
            planner.recall(cell, trainer.best_rate(cell, sorted(rates[cell.id]))[1])


def _variant(parts: Parts, tracker: Tracker, run_id: str) -> Variant | None:
    run = tracker.find(run_id)
    if run is None:
        return None
    here = artifact_folder(tracker.uri, run_id, str(run.info.artifact_uri))
    if here is not None:
        return read_variant(parts, here / Artifact.VARIANT)
    with scratch_folder("recall") as folder:
        tracker.client.download_artifacts(run_id, str(Artifact.VARIANT), str(folder))
        return read_variant(parts, folder / Artifact.VARIANT)
