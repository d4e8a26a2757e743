"""What is held against the statistics of the report: each check simulates studies of known truth and counts.

Every verdict and interval is made by the functions that the report itself uses (``judge`` and ``verdict`` of
:mod:`reports.statistics.verdicts`, ``noise`` of :mod:`reports.statistics.intervals`); nothing of them is written
again here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fusion_workbench.reports.calibration.simulation import (
    BASELINES,
    HEAVY,
    ITEMS,
    NORMAL,
    QUOTIENT,
    Study,
    World,
    draw,
    interval,
)
from fusion_workbench.reports.statistics.components import VarianceComponents
from fusion_workbench.reports.statistics.intervals import noise
from fusion_workbench.reports.statistics.power import power
from fusion_workbench.reports.statistics.verdicts import Judged, PairedScores, judge, verdict
from fusion_workbench.schema.names import OVERALL, Verdict
from fusion_workbench.schema.plan import FEWEST, ComparisonFamily, Plan

FALSE_VERDICT, COVERAGE, FALSE_EQUIVALENCE, POWER = "false verdict", "coverage", "false equivalence", "power"
REAL_AA, PLANTED = "real A/A", "planted layers"
LEVEL = 0.05
FINESCENES = ("right or wrong", "share of 6 items")
PILOT_QUANTILES = (
    "q1",
    "median",
    "q3",
    "max",
)  # of the pilots; at the least, replicates differ in nothing but interaction
_WIDE = 6.0  # standard errors of the margin: narrower, equivalence is called even less often
_CHUNK = 1 << 22  # scores drawn at once


@dataclass(frozen=True)
class CheckResult:
    """One check: of ``total`` simulated studies, how many did what is counted.

    Attributes:
        bar: what the rate is held against, in words.
        passed: whether it holds, given the Monte-Carlo interval ``low`` to ``high``.
        promised: of power, what was expected.
    """

    check: str
    setting: Mapping[str, Any]
    count: int
    total: int
    bar: str
    passed: bool
    low: float
    high: float
    promised: float | None = None

    @property
    def rate(self) -> float:
        return self.count / self.total

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"rate": self.rate}


@dataclass(frozen=True)
class Check:
    """A check that waits to be run: ``run(studies, rng)`` counts."""

    check: str
    setting: Mapping[str, Any]
    run: Callable[[int, np.random.Generator], int]
    short: bool = False  # belongs to the short form
    promised: float | None = None

    def row(self, studies: int, seed: int) -> CheckResult:
        name = f"{self.check} {sorted(self.setting.items())}"
        count = self.run(studies, np.random.default_rng([seed, zlib.crc32(name.encode())]))
        return row(self.check, self.setting, count, studies, self.promised)


def row(check: str, setting: Mapping[str, Any], count: int, total: int, promised: float | None = None) -> CheckResult:
    """A row with its Monte-Carlo interval, held against its bar."""
    low, high = interval(count, total)
    if check == COVERAGE and setting["replicates"] >= FEWEST:
        bar, passed = "93 to 97 %", high >= 0.93 and low <= 0.97
    elif check == COVERAGE:
        bar, passed = "at least 90 %", high >= 0.90
    elif check == POWER:
        assert promised is not None
        bar, passed = f"{100 * promised:.0f} % promised", high >= promised - 0.01
    elif check == PLANTED:
        bar, passed = "at least 95 %", count >= 0.95 * total
    else:
        bar, passed = "at most 5 %", low <= LEVEL
    return CheckResult(check, dict(setting), count, total, bar, passed, low, high, promised)


def checks(pilot_components: Mapping[str, VarianceComponents]) -> Iterator[Check]:
    """All of them, the quick ones first."""
    yield from _coverages(pilot_components)
    yield from _equivalences(pilot_components)
    yield from _powers(pilot_components)
    yield from _false_verdicts(pilot_components)


# --- intervals -------------------------------------------------------------------------------------------------


def _coverages(pilot_components: Mapping[str, VarianceComponents]) -> Iterator[Check]:
    for replicates in (3, 5, 10):
        for clusters in (2, 10, 30):
            for kind in (NORMAL, HEAVY, *ITEMS, QUOTIENT):
                for name in PILOT_QUANTILES:
                    world = World(pilot_components[name], replicates, clusters=clusters, kind=kind)
                    short = name == "median" and kind in (NORMAL, FINESCENES[0]) and clusters < 30
                    yield Check(COVERAGE, _setting(world, name), _covered(world), short)


def _covered(world: World) -> Callable[[int, np.random.Generator], int]:
    def run(studies: int, rng: np.random.Generator) -> int:
        held = 0
        for size in _chunks(studies, 2 * world.replicates * world.examples):
            scores, truth = draw(world, size, rng)
            estimates = noise(scores[:, 0] - scores[:, 1], world.codes)
            held += int((np.abs(estimates.mean - (truth[:, 0] - truth[:, 1])) <= estimates.half()).sum())
        return held

    return run


# --- single comparisons ----------------------------------------------------------------------------------------


def _equivalences(pilot_components: Mapping[str, VarianceComponents]) -> Iterator[Check]:
    """A true difference of exactly the margin, judged alone: a study's other comparisons only make it rarer."""
    for replicates, clusters, kind, name in (
        (5, 2, NORMAL, "median"),
        (5, 2, HEAVY, "q3"),
        (5, 10, FINESCENES[1], "median"),
        (10, 2, FINESCENES[0], "q1"),
        (10, 30, NORMAL, "q3"),
    ):
        world = World(pilot_components[name], replicates, clusters=clusters, kind=kind)
        margin = min(_WIDE * float(np.sqrt(world.variance)), 0.3 if kind in ITEMS else np.inf)
        setting = _setting(world, name) | {"comparisons": 1}
        yield Check(FALSE_EQUIVALENCE, setting, _alone(world, margin, margin, Verdict.EQUIVALENT), kind == NORMAL)


def _powers(pilot_components: Mapping[str, VarianceComponents]) -> Iterator[Check]:
    for replicates, clusters, name, wanted in (
        (5, 2, "median", 3.5),
        (10, 2, "median", 3.0),
        (5, 30, "q3", 3.5),
        (10, 30, "q1", 2.5),
    ):
        world = World(pilot_components[name], replicates, clusters=clusters)
        difference = wanted * float(np.sqrt(world.variance))
        promised = expected_power(world, difference)
        setting = _setting(world, name) | {"difference": f"{wanted:g} standard errors"}
        yield Check(POWER, setting, _alone(world, difference, None, Verdict.BETTER), replicates == 5, promised)


def expected_power(world: World, difference: float, alpha: float = LEVEL) -> float:
    """What ``workbench power`` promises one comparison alone, given the variance components that were simulated."""
    m, n, r = world.components, world.examples, world.replicates
    seeds = m.replicate + m.interaction / n
    sampled = world.clusters if world.sampled else n
    return power(difference, seeds, (world.variance - seeds / r) * sampled, r, sampled, alpha)


def _alone(world: World, shift: float, margin: float | None, word: str) -> Callable[[int, np.random.Generator], int]:
    """Counts a verdict on two cells that differ by ``shift``, in a study of nothing else."""
    plan = Plan(OVERALL, (ComparisonFamily((OVERALL,), 1.0),), LEVEL, margin, (world.replicates,))
    rows, groups = tuple(range(world.replicates)), world.codes

    def run(studies: int, rng: np.random.Generator) -> int:
        found = 0
        for size in _chunks(studies, 2 * world.replicates * world.examples):
            scores, _ = draw(world, size, rng, (shift, 0.0))
            for one in scores[:, 0] - scores[:, 1]:
                pair = PairedScores(OVERALL, ("a", "b"), one, rows, margin, groups)
                judged = judge([pair], plan, world.replicates)[OVERALL, "a", "b"]
                found += _called(judged, float(one.mean()), LEVEL, {word})
        return found

    return run


# --- whole studies ---------------------------------------------------------------------------------------------


def _false_verdicts(pilot_components: Mapping[str, VarianceComponents]) -> Iterator[Check]:
    """Studies of equals: cells whose means are the same and whose examples differ, or aliases, whose do not."""
    items = FINESCENES
    for replicates, clusters, kinds, name, looks, aliases in (
        (5, 2, items, "median", (), False),
        (5, 2, items, "median", (), True),
        (5, 2, (NORMAL, NORMAL), "q3", (), False),
        (5, 10, (HEAVY, HEAVY), "median", (), False),
        (10, 2, items, "q1", (), False),
        (10, 30, (NORMAL, HEAVY), "median", (), False),
        (10, 2, items, "median", (5, 10), False),
        (20, 10, items, "q3", (5, 10, 20), False),
    ):
        components = pilot_components[name]
        if aliases:
            components = replace(components, example=0.0)
        study = Study(World(components, replicates, clusters=clusters), kinds, looks=looks)
        setting = _setting(study.world, name) | {
            "scores": " and ".join(dict.fromkeys(kinds)),
            "looks": list(study.plan.looks),
            "cells": "aliases" if aliases else "equals",
            "comparisons": 3 * sum(study.cells - 1 - b for b in range(BASELINES)),
        }
        short = replicates == 5 and name == "median" and clusters == 2
        yield Check(FALSE_VERDICT, setting, _any(study, 0.0, {Verdict.BETTER, Verdict.WORSE}), short)
    world = World(pilot_components["median"], 5)
    margin = _WIDE * float(np.sqrt(world.variance))
    study = Study(world, margin=margin)
    setting = _setting(world, "median") | {"comparisons": 3 * BASELINES * (study.cells - BASELINES)}
    yield Check(FALSE_EQUIVALENCE, setting, _any(study, margin, {Verdict.EQUIVALENT}))


def _any(study: Study, shift: float, words: set[str]) -> Callable[[int, np.random.Generator], int]:
    """Counts studies in which any comparison of a cell with a baseline is called one of ``words``."""

    def run(studies: int, rng: np.random.Generator) -> int:
        found = 0
        for _ in range(studies):
            pairs = [p for p in study.pairs(rng, shift) if not shift or study.differ(p)]
            judged = judge(pairs, study.plan, study.world.replicates)
            found += any(_called(judged[p.measure, *p.key], float(p.scores.mean()), study.level, words) for p in pairs)
        return found

    return run


def _called(judged: Judged, mean: float, level: float, words: set[str]) -> bool:
    """Whether a verdict is one of ``words``. A difference comes before equivalence; here the latter counts always."""
    return verdict(mean, judged, level) in words or (Verdict.EQUIVALENT in words and judged.p_equivalent < level)


def _setting(world: World, name: str) -> dict[str, Any]:
    return {
        "replicates": world.replicates,
        "clusters": world.clusters,
        "taken as": "sampled" if world.sampled else "given",
        "scores": world.kind,
        "mix": name,
        "examples": world.examples,
    }


def _chunks(studies: int, scores: int) -> Iterator[int]:
    """Sizes that add up to ``studies``, none of more than :data:`_CHUNK` scores."""
    size = max(_CHUNK // scores, 1)
    while studies > 0:
        yield min(size, studies)
        studies -= size
