"""Per-example scores as arrays, and the groups that examples come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ExampleScores:
    """Scores of one cell on one task and split.

    Attributes:
        replicates: R names, in order.
        examples: N identifiers, sorted.
        scores: ``[R, N]``, the mean over each example's items; of a metric that is a ratio of sums, each example's
            share of it, so that the mean over examples is the metric.
        groups: of each example; empty where it is not known.
    """

    replicates: tuple[str, ...]
    examples: tuple[str, ...]
    scores: Floats
    groups: tuple[str, ...] = ()

    def cut(self, replicates: Sequence[str], examples: Sequence[str]) -> Floats:
        """``[R, N]`` scores of some replicates and examples, in that order."""
        if tuple(replicates) == self.replicates and tuple(examples) == self.examples:
            return self.scores
        rows = {name: i for i, name in enumerate(self.replicates)}
        columns = {name: i for i, name in enumerate(self.examples)}
        chosen = self.scores[np.ix_([rows[r] for r in replicates], [columns[e] for e in examples])]
        return np.asarray(chosen, dtype=float)


@lru_cache(maxsize=1024)
def codes(groups: tuple[str, ...]) -> NDArray[np.int64] | None:
    """Groups as numbers; None where none are known."""
    return np.unique(groups, return_inverse=True)[1].reshape(-1) if groups else None


def natural_key(word: str) -> tuple[int, str, int]:
    """Sorts replicates: 2 before 10, c2 before c10, numbers before words."""
    if word.isdecimal():
        return (0, "", int(word))
    head, digits = word[:1], word[1:]
    return (1, head, int(digits)) if digits.isdecimal() else (2, word, 0)
