"""Which cells (chosen on validation) and which test examples (each with its reason) the token maps show."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion_workbench.schema.names import Baseline, ExampleKind

if TYPE_CHECKING:
    from fusion_workbench.sweeps.space import Cell

Floats = NDArray[np.float64]

_MOST_CELLS = 5
_MOST_LAYERS = 8


@dataclass(frozen=True)
class ChosenCells:
    """Positions among a study's cells.

    Attributes:
        baseline: the deepest layer alone; None where the study has no single layer.
        featured: the best fused cell on validation (of a study without fusion, the best other cell).
        shown: fused cells whose output is shown: the best of each strategy on validation, the featured one first.
    """

    baseline: int | None
    featured: int | None
    shown: tuple[int, ...]


@dataclass(frozen=True)
class ChosenExample:
    """A test example, and why it is shown. ``task`` is empty for one that was drawn at random."""

    index: int
    kind: str
    task: str


def choose_cells(
    cells: Sequence[Cell], fusing: Sequence[bool], trained: Sequence[bool], ranked: Sequence[int]
) -> ChosenCells:
    """The cells to show, by validation alone.

    Args:
        cells: C of them.
        fusing: whether each reads more than one layer (a budget-matched control may name levels and read none).
        trained: whether a replicate of each was trained to its end.
        ranked: positions of those that can be chosen, the best on validation first
            (:meth:`reports.reading.ranking.Ranking.ranked`).
    """
    singles = [i for i in range(len(cells)) if trained[i] and not cells[i].selection.levels]
    named = [i for i in singles if Baseline.DEEPEST in cells[i].baselines]
    baseline = next(iter(named or sorted(singles, key=lambda i: -cells[i].selection.query)), None)
    fused = [i for i in ranked if fusing[i]]
    others = [i for i in ranked if i != baseline]
    best: dict[str, int] = {}
    for i in fused:
        best.setdefault(cells[i].strategy, i)
    return ChosenCells(baseline, next(iter(fused or others), None), tuple(best.values())[:_MOST_CELLS])


def choose_layers(cells: Iterable[Cell]) -> tuple[int, ...]:
    """The layers that the cells read, in order; where they are many, those of the first cells."""
    read = dict.fromkeys(layer for cell in cells for layer in (cell.selection.query, *cell.selection.levels))
    return tuple(sorted(list(read)[:_MOST_LAYERS]))


def choose_examples(
    scores: Mapping[str, Floats],
    signs: Mapping[str, int],
    baseline: int | None,
    featured: int | None,
    seed: int,
    at_random: int = 4,
    each: int = 3,
) -> list[ChosenExample]:
    """Test examples: some at random, then for each task the hardest, the most improved and the most worsened.

    Hardest: the worst mean score over all cells and replicates. Improved and worsened: by the featured cell's paired
    gain over the baseline, the mean over the replicates that both have; only gains that are gains (losses that are
    losses) count. No example is chosen twice: one drawn at random is not shown again for another reason.

    Args:
        scores: for each task ``[C, R, N]``, nan where there is none.
        signs: +1 where more is better, -1 where less is.
        baseline, featured: positions on the first axis.
        seed: of the random draw.
        at_random: how many at random.
        each: how many of every other kind and task.
    """
    scored = [i for i in range(_examples(scores)) if any(np.isfinite(s[..., i]).any() for s in scores.values())]
    drawn = sorted(random.Random(seed).sample(scored, min(at_random, len(scored))))
    chosen = {i: ChosenExample(i, ExampleKind.RANDOM, "") for i in drawn}

    def take(kind: str, task: str, badness: Floats, limit: float = np.inf) -> None:
        order = [int(i) for i in np.argsort(badness, kind="stable") if badness[i] < limit and int(i) not in chosen]
        chosen.update({i: ChosenExample(i, kind, task) for i in order[:each]})

    for task, values in scores.items():
        signed = signs[task] * values
        take(ExampleKind.HARDEST, task, _mean(signed, (0, 1)))
        if baseline is not None and featured is not None and baseline != featured:
            gain = _mean(signed[featured] - signed[baseline], 0)
            take(ExampleKind.IMPROVED, task, -gain, limit=-1e-9)
            take(ExampleKind.WORSENED, task, gain, limit=-1e-9)
    return list(chosen.values())


def _examples(scores: Mapping[str, Floats]) -> int:
    return max((values.shape[-1] for values in scores.values()), default=0)


def _mean(values: Floats, axes: int | tuple[int, ...]) -> Floats:
    """Mean of what is known; nan where nothing is."""
    finite = np.isfinite(values)
    count = finite.sum(axes)
    total = np.where(finite, values, 0.0).sum(axes)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan), dtype=float)
