"""Replicates that are the same on every example: one evaluation that was repeated, not several trainings.

Scores of few values agree by chance as well. Where other replicates of the system differ, their agreement says how
likely that is; where all are the same, nothing does, and enough examples on which not all scores are one value must.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from fusion_workbench.reports.statistics.example_scores import ExampleScores, Floats, natural_key

LEAST = 10  # scores that have to be the same
CHANCE = 0.01  # of any two replicates being the same that were drawn independently of each other


@dataclass(frozen=True)
class Copies:
    """Replicates of one system.

    Attributes:
        alike: those that are the same, two or more each, in order.
        replicates: how many there are.
        scores: of one replicate, over all measures.
        certain: too many agree for that to be chance.
    """

    alike: tuple[tuple[str, ...], ...]
    replicates: int
    scores: int
    certain: bool

    @property
    def all(self) -> bool:
        """Whether all replicates are one."""
        return len(self.alike) == 1 and len(self.alike[0]) == self.replicates

    @property
    def dropped(self) -> frozenset[str]:
        """All but the first of each."""
        return frozenset(name for names in self.alike for name in names[1:])


def copies(measures: Sequence[ExampleScores]) -> Copies | None:
    """Replicates of a system that are the same on every example of all its measures; None where there are none.

    Nothing is said of a system whose scores are all one value: that it is never wrong, or always, is no copy.
    """
    rows: dict[str, list[Floats | None]] = {}
    for at, m in enumerate(measures):
        for name, row in zip(m.replicates, m.scores, strict=True):
            rows.setdefault(name, [None] * len(measures))[at] = row + 0.0  # -0 is 0
    same: dict[tuple[bytes | None, ...], list[str]] = {}
    for name in sorted(rows, key=natural_key):
        same.setdefault(tuple(None if row is None else row.tobytes() for row in rows[name]), []).append(name)
    alike = tuple(tuple(names) for names in same.values() if len(names) > 1)
    if not alike or not any(np.ptp(m.scores) > 0 for m in measures if m.scores.size):
        return None
    number = sum(row.size for row in rows[alike[0][0]] if row is not None)
    if len(same) == 1:
        return Copies(alike, len(rows), number, number >= LEAST)
    different = [rows[names[0]] for names in same.values()]
    return Copies(alike, len(rows), number, _chance(different, len(rows)) < CHANCE)


def _chance(different: Sequence[Sequence[Floats | None]], replicates: int) -> float:
    """At most the chance that any two of so many replicates agree everywhere, from how often different ones agree.

    An example's share of agreement to the power of their number is more than the product of each example's own.
    """
    agreed = compared = 0
    for one, other in combinations(different, 2):
        both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
        agreed += sum(int((a == b).sum()) for a, b in both)
        compared += sum(a.size for a, _ in both)
    number = sum(row.size for row in different[0] if row is not None)
    pairs = replicates * (replicates - 1) / 2
    return float(pairs * ((agreed + 1) / (compared + 2)) ** number)


def counted_once(
    measures: Mapping[str, ExampleScores], system: str
) -> tuple[Mapping[str, ExampleScores], tuple[str, ...]]:
    """A system's scores by measure, without replicates that are copies of others, and what there is to say of them."""
    found = copies(list(measures.values()))
    if found is None:
        return measures, ()
    if not found.certain:
        return measures, () if found.scores < 3 else tuple(
            f"Replicates {_named(names)} of {system} are the same on all {found.scores} scores; on so few that can be "
            f"chance, and they count as {len(names)}."
            for names in found.alike
        )
    out = {}
    for measure, m in measures.items():
        kept = tuple(name for name in m.replicates if name not in found.dropped)
        out[measure] = ExampleScores(kept, m.examples, m.cut(kept, m.examples), m.groups)
    if found.all:
        note = (
            f"The {found.replicates} replicates of {system} are identical on all {found.scores} scores, so nothing is "
            "known of seeds: they count as one."
        )
        return out, (note,)
    return out, tuple(
        f"Replicates {_named(names)} of {system} are identical on all {found.scores} scores and count as one."
        for names in found.alike
    )


def _named(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
