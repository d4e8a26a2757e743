"""How the scores of a task are written: shares in per cent, everything else as the number it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fusion_workbench.reports.statistics.intervals import Estimate

MINUS = "−"


@dataclass(frozen=True)
class Unit:
    """``factor`` turns a score into what is printed, with so many ``decimals``."""

    name: str
    factor: float
    decimals: int
    symbol: str = ""  # of a score
    difference: str = ""  # what differences are called

    def score(self, value: float) -> str:
        """A score, without its symbol: heads and axes name it once."""
        return self.signed(value).removeprefix("+")

    def signed(self, value: float) -> str:
        """A difference, its sign always shown, with a true minus."""
        if not math.isfinite(value):
            return "?"
        shown = f"{self.factor * value:+.{self.decimals}f}"
        return shown[1:] if float(shown) == 0 else shown.replace("-", MINUS)

    def half(self, e: Estimate) -> str:
        """``± half`` of the interval."""
        return f"± {self.score(e.half)}"

    def effect(self, e: Estimate) -> str:
        """A difference with its interval: ``+1.2 [+0.4, +2.0]``."""
        return f"{self.signed(e.mean)} [{self.signed(e.low)}, {self.signed(e.high)}]"

    def size(self, e: Estimate) -> str:
        """The same with the word for it, for a sentence."""
        return " ".join(filter(None, [self.effect(e), self.difference]))

    def after(self, words: str) -> str:
        """``words, %`` for a head or an axis."""
        return f"{words}, {self.symbol}" if self.symbol else words


SHARE = Unit("share", 100, 1, "%", "points")
COUNT = Unit("count", 1, 2)
CHANCE_NORMALISED = Unit("gain", 100, 1, "%", "points")  # of the way from chance to perfect: tasks whose units differ
MIXED = Unit("mixed", 1, 3)  # the mean of tasks whose units differ, where chance or perfect is not known
_KNOWN = {unit.name: unit for unit in (SHARE, COUNT, CHANCE_NORMALISED, MIXED)}


def unit_of(name: str) -> Unit:
    """The unit that a task names; one that is not known is printed as a number with its name."""
    return _KNOWN.get(name) or Unit(name, 1, 3, name, name)


def common(units: Iterable[Unit]) -> Unit:
    """The unit of a mean over tasks."""
    found = set(units)
    return found.pop() if len(found) == 1 else MIXED
