"""Whether the fight was fair, from the record: equal tuning, equal steps, trainings that came to their end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.words.wording import listed
from fusion_workbench.schema.names import CONVERGED, GATES_OPENED, Phase, Status
from fusion_workbench.schema.records import Cell

_STEPS = ("epochs", "batch_size")


def flags(record: StudyRecord, cell: Cell) -> list[str]:
    """What a reader should mind of a cell's training, in words; none for one that trained as it should."""
    runs = [r for r in record.runs if r.cell == cell.id and r.phase != Phase.SEARCH and r.state == Status.FINISHED]
    warnings = []
    converged = [r.metrics[CONVERGED] >= 0.5 for r in runs if CONVERGED in r.metrics]
    if converged and not all(converged):
        warnings.append(f"loss still falling in {len(converged) - sum(converged)} of {len(converged)}")
    opened = [r.metrics[GATES_OPENED] >= 0.5 for r in runs if GATES_OPENED in r.metrics]
    if opened and not all(opened):
        warnings.append(f"gates stayed shut in {len(opened) - sum(opened)} of {len(opened)}")
    tried = rates(record).get(cell.id, ())
    if len(tried) > 2 and cell.chosen_lr is not None and cell.chosen_lr in (tried[0], tried[-1]):
        end = "lowest" if cell.chosen_lr == tried[0] else "highest"
        warnings.append(f"took the {end} learning rate that was tried")
    return warnings


def rates(record: StudyRecord) -> Mapping[str, tuple[float, ...]]:
    """cell → the learning rates that it, or the one that stood for its strategy, was tried at."""
    tried: dict[str, set[float]] = defaultdict(set)
    by_strategy: dict[tuple[str, str, str], set[float]] = defaultdict(set)
    for run in record.runs:
        if run.phase == Phase.SEARCH and run.lr is not None:
            tried[run.cell].add(run.lr)
            by_strategy[_strategy_key(record.cell(run.cell))].add(run.lr)
    cells = {**record.searched, **{c.id: c for c in record.cells}}
    nothing: set[float] = set()
    return {
        name: tuple(sorted(tried.get(name) or by_strategy.get(_strategy_key(cell), nothing)))
        for name, cell in cells.items()
    }


def budgets(record: StudyRecord) -> list[str]:
    """Sentences on equal budgets, checked and not assumed."""
    sentences = []
    tried_rates = rates(record)
    by_rates: dict[tuple[float, ...], list[str]] = defaultdict(list)
    for cell in record.cells:
        by_rates[tried_rates.get(cell.id, ())].append(cell.name)
    if set(by_rates) == {()}:
        sentences.append("No learning rate was searched: every cell took the one that the study names.")
    elif len(by_rates) == 1:
        (tried,) = by_rates
        sentences.append(
            f"Equal tuning: every cell, or one for each strategy, was tried at {listed([f'{r:g}' for r in tried])}."
        )
    else:
        parts = [
            f"{listed([f'{r:g}' for r in tried]) or 'no rate'} for {len(cells)} ({', '.join(cells[:3])}"
            f"{', …' if len(cells) > 3 else ''})"
            for tried, cells in by_rates.items()
        ]
        sentences.append(f"Unequal tuning: learning rates {'; '.join(parts)}.")
    if any(len(tried) == 2 for tried in by_rates):  # said once, and not of every cell
        sentences.append("Of two rates each is at an end of what was tried; a third might do better.")
    steps = {
        tuple(run.params.get(name, "") for name in _STEPS)
        for run in record.runs
        if run.phase != Phase.SEARCH and run.state == Status.FINISHED
    }
    if len(steps) == 1:
        epochs, batch = next(iter(steps))
        sentences.append(f"Equal steps: {epochs} epochs of batches of {batch} for all." if epochs else "")
    elif steps:
        sentences.append(f"Unequal steps: {listed([f'{e} epochs at batch {b}' for e, b in sorted(steps)])}.")
    return [sentence for sentence in sentences if sentence]


def _strategy_key(cell: Cell) -> tuple[str, str, str]:
    return cell.strategy, repr(sorted(cell.options.items())), cell.alias
