"""Work taken in turn, A B A B …, and the ratios of neighbours.

What else a machine does comes and goes within seconds. Turns that stand side by side share it, so the ratio of two
neighbours says more than the quotient of two means; the median of such ratios is the figure, and their range its
spread.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Meter = Callable[[], float]
"""Does its work once, or some times, and returns seconds a time."""
MOST_CALLS = 10_000  # of a work within a turn


@dataclass(frozen=True)
class Setting:
    """How a run of benchmarks measures.

    Attributes:
        device: ``cpu`` or ``cuda``.
        tiny: smoke sizes; what they measure means nothing.
        repeats: turns of each, after one that warms up.
        scratch: a folder for the run's own files, on the disk that is measured.
    """

    device: str
    tiny: bool
    repeats: int
    scratch: Path

    @property
    def least(self) -> float:
        """Seconds that a turn of quick work lasts at the least, so that the clock's own steps do not count."""
        return 0.0 if self.tiny else 0.1


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios, and their range. Of an absolute figure: of its repeats."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        """Of one value a repeat."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def paired(cls, upper: Sequence[float], lower: Sequence[float], factor: float = 1.0) -> Ratio:
        """Of ``factor · upper / lower``, repeat by repeat."""
        return cls.of([factor * a / max(b, 1e-12) for a, b in zip(upper, lower, strict=True)])


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def clock(work: Callable[[], object], device: str, least: float = 0.0) -> Meter:
    """A meter of ``work``: wall seconds a call, with CUDA waited for at both ends of a turn.

    Args:
        least: seconds that a turn should last: ``work`` is called as often as that takes, which is found at the first
            turn.
    """
    times = 0

    def turn() -> float:
        nonlocal times
        if not times:
            took = _seconds(work, 1, device)
            times = max(1, min(MOST_CALLS, math.ceil(least / max(took, 1e-7))))
        return _seconds(work, times, device) / times

    return turn


def in_turn(meters: Mapping[str, Meter], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each meter, ``repeats`` of them in the order in which they were taken.

    Args:
        warm: turns before them that do not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in meters}
    for repeat in range(repeats + warm):
        for name, meter in meters.items():
            seconds = meter()
            if repeat >= warm:
                taken[name].append(seconds)
    return taken


def _seconds(work: Callable[[], object], times: int, device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return time.perf_counter() - start
