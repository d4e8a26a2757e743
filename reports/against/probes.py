"""Do probes predict the multimodal language model? Rank agreement over the same cells of two studies.

A cell's id is a hash of strategy, layers, options and alias, so the same cell has the same id in a study of probes and
in one of language models. Kendall's tau-b (Biometrika 33, 1945) between their test means, exact p as in
:mod:`reports.statistics.ranks`; its interval draws the replicates of both studies again, each on its own.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.against.agreement import by_replicate
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.statistics.ranks import RESAMPLED, exact_p, tau_b
from fusion_workbench.reports.words.wording import pvalue
from fusion_workbench.schema.names import OVERALL
from fusion_workbench.schema.records import Cell

FEWEST_CELLS = 3


@dataclass(frozen=True)
class RankAgreement:
    """One measure of the language models and what the probes' measure says of it.

    Attributes:
        replicates: of the language models and of the probes, that all cells share.
        low, high: of tau; nan where either study has one replicate.
        pick: what the probes' validation picks among the shared cells, :attr:`best` what the language models' does.
        regret: the language models' test score of best minus pick, paired; None where they are one cell or not known.
        random: what a cell drawn at random would lose against best, on average.
        agree: how often both pick the same cell when replicates are drawn again; nan as the interval.
    """

    measure: Measure
    probe: Measure
    cells: tuple[Cell, ...]
    tau: float
    low: float
    high: float
    p: float
    replicates: tuple[int, int]
    pick: Cell | None
    best: Cell | None
    regret: Estimate | None
    random: float
    same_pick: float

    @property
    def smallest_p(self) -> float:
        """The p of a perfect order of so many cells: none can be smaller."""
        return 2 / math.factorial(len(self.cells))

    @property
    def within(self) -> bool | None:
        """Whether the probes' pick is the language models' own, or not distinguishable from it; None: not known."""
        if self.pick is None or self.best is None:
            return None
        return self.pick.id == self.best.id or (self.regret is not None and self.regret.low <= 0 <= self.regret.high)


@dataclass(frozen=True)
class Probes:
    """A study of probes compared with a study of language models; ``reason`` says why there are no ``pairs``."""

    name: str
    analysis: Analysis | None
    pairs: tuple[RankAgreement, ...]
    reason: str = ""


def find_probes(uri: str, record: StudyRecord, name: str | None) -> StudyRecord | None:
    """The study of probes that ``name``, or else language_model.json, names; None where it is not there.

    Raises:
        WorkbenchError: ``name`` is given and MLflow has no such study, it is the study itself, or the study has no
            language model.
    """
    if record.language is None:
        if name:
            raise WorkbenchError(
                f"--probes compares a study of language models with one of probes; '{record.name}' has no language "
                "model. To compare two studies of probes use --against."
            )
        return None
    probes_name = name or record.language.probes
    if not probes_name:
        return None
    try:
        probes_record = read_study(uri, probes_name, record.experiment)
    except WorkbenchError:
        if name:
            raise
        return None
    if probes_record.run_id == record.run_id:
        if name:
            raise WorkbenchError(f"'{name}' is the study of this report itself; --probes names a study of probes.")
        return None
    return probes_record


def compare_with_probes(analysis: Analysis, found: StudyRecord | None) -> Probes | None:
    """None for a study without a language model."""
    language = analysis.record.language
    if language is None:
        return None
    if found is None:
        if not language.probes:
            return Probes("", None, (), "This study names no study of probes of the same cells.")
        return Probes(language.probes, None, (), f"The study of probes '{language.probes}' is not in this MLflow.")
    probes = Analysis(found, judged=())
    shared = [c for c in analysis.record.cells if c.id in {other.id for other in found.cells}]
    if len(shared) < FEWEST_CELLS:
        few = f"{len(shared)} cell{'s' * (len(shared) != 1)}" if shared else "no cell"
        return Probes(
            found.name,
            probes,
            (),
            f"The study of probes '{found.name}' shares {few} with this one; an order takes {FEWEST_CELLS}.",
        )
    made = (_pair(analysis, probes, shared, mine, theirs) for mine, theirs in _measures(analysis, probes))
    pairs = tuple(pair for pair in made if pair is not None)
    reason = "" if pairs else f"The study of probes '{found.name}' has no scores of {FEWEST_CELLS} shared cells yet."
    return Probes(found.name, probes, pairs, reason)


def _measures(analysis: Analysis, probes: Analysis) -> list[tuple[Measure, Measure]]:
    """The mean (what cells are picked by) with the mean first, then tasks of one name."""
    theirs = {m.name: m for m in probes.measures}
    means = (analysis.objective, probes.objective)
    named = [(m, theirs[m.name]) for m in analysis.measures if m.name in theirs and m.name != OVERALL]
    return [means, *(pair for pair in named if pair != means)]


def _pair(
    analysis: Analysis, probes: Analysis, shared: list[Cell], mine: Measure, theirs: Measure
) -> RankAgreement | None:
    cells = [c for c in shared if (c.id, mine.name) in analysis.means and (c.id, theirs.name) in probes.means]
    if len(cells) < FEWEST_CELLS:
        return None
    own, probed = by_replicate(analysis, cells, mine), by_replicate(probes, cells, theirs)
    if own is None or probed is None:
        return None
    x, y = probed.mean(1), own.mean(1)
    low, high, same_pick = _resampled(probed, own)
    best = next(iter(analysis.ranked(mine.name, [c for c in analysis.eligible if c in cells])), None)
    by_id = {c.id: c for c in cells}
    eligible = [c for c in probes.eligible if c.id in by_id]
    pick = next((by_id[c.id] for c in probes.ranked(theirs.name, eligible)), None)
    regret, lost = None, float("nan")
    if best is not None:
        lost = float(y[cells.index(best)] - y.mean())
        if pick is not None and pick.id != best.id:
            regret = _regret(analysis, best, pick, mine)
    return RankAgreement(
        measure=mine,
        probe=theirs,
        cells=tuple(cells),
        tau=float(tau_b(x, y[None])[0]),
        low=low,
        high=high,
        p=exact_p(x, y),
        replicates=(own.shape[1], probed.shape[1]),
        pick=pick,
        best=best,
        regret=regret,
        random=lost,
        same_pick=same_pick,
    )


def _regret(analysis: Analysis, best: Cell, pick: Cell, measure: Measure) -> Estimate | None:
    """Best minus pick where more is better, pick minus best where less is: what is lost is positive."""
    first, second = (best, pick) if measure.sign > 0 else (pick, best)
    return analysis.difference(first.id, second.id, measure.name)


def _resampled(probed: Floats, own: Floats, level: float = 0.95) -> tuple[float, float, float]:
    """Interval of tau, and the share of draws that have one best cell; ``[cells, R]`` of both drawn again."""
    if min(probed.shape[1], own.shape[1]) < 2:
        return float("nan"), float("nan"), float("nan")
    draw = np.random.default_rng(0)
    x, y = (_means(draw, scores) for scores in (probed, own))
    low, high = np.quantile(tau_b(x, y), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), float((x.argmax(1) == y.argmax(1)).mean())


def _means(draw: np.random.Generator, scores: Floats) -> NDArray[np.float64]:
    """``[draws, cells]``: means over replicates drawn with replacement, the same for all cells."""
    replicates = scores.shape[1]
    times = draw.multinomial(replicates, [1 / replicates] * replicates, RESAMPLED)
    return np.asarray(times @ scores.T / replicates, dtype=float)


def trust_sentence(agreement: RankAgreement, level: float = 0.05) -> str:
    """One sentence: whether the probes' cheap answer can be trusted here."""
    cells = len(agreement.cells)
    if agreement.smallest_p > level:
        return (
            f"Whether the cheap answer can be trusted cannot be told from {cells} cells: even a perfect order of so "
            f"few has p {pvalue(agreement.smallest_p)}."
        )
    if not math.isfinite(agreement.low):
        return "Whether the cheap answer can be trusted cannot be told: one of the two studies has a single replicate."
    unit = agreement.measure.unit
    if agreement.p < level and agreement.high < 0:
        return "The cheap answer cannot be trusted here: probes put the cells in the opposite order."
    if agreement.p < level and agreement.low > 0:
        if agreement.regret is not None and agreement.regret.low > 0:
            return (
                "The cheap answer can be trusted for the order here, but not for the winner: following the probes "
                f"loses {unit.size(agreement.regret)}."
            )
        lost = (
            "pick the same winner"
            if agreement.regret is None
            else f"following their pick loses {unit.size(agreement.regret)} "
            f"(a random cell: {unit.score(agreement.random)})"
        )
        return (
            f"The cheap answer can be trusted here: probes order the cells much as the language models do, and {lost}."
        )
    return (
        "The cheap answer is not shown to be trustworthy here: the order of the cells agrees no better than chance and "
        "noise allow."
    )


def probes_json(found: Probes | None) -> dict[str, Any] | None:
    """Plain values."""
    if found is None:
        return None
    record = found.analysis.record if found.analysis else None
    return {
        "name": found.name,
        "study": record.study_id if record else None,
        "run": record.run_id if record else None,
        "reason": found.reason,
        "agreement": [_plain(found, pair) for pair in found.pairs],
        "said": trust_sentence(found.pairs[0]) if found.pairs else "",
    }


def _plain(found: Probes, pair: RankAgreement) -> dict[str, Any]:
    assert found.analysis is not None
    return {
        "measure": pair.measure.name,
        "probe": pair.probe.name,
        "tau": pair.tau,
        "low": pair.low,
        "high": pair.high,
        "p": pair.p,
        "replicates": pair.replicates[0],
        "probe_replicates": pair.replicates[1],
        "cells": [
            {"cell": c.id, "probe_score": asdict(found.analysis.means[c.id, pair.probe.name])} for c in pair.cells
        ],
        "probes_pick": pair.pick.id if pair.pick else None,
        "own_pick": pair.best.id if pair.best else None,
        "regret": asdict(pair.regret) if pair.regret else None,
        "random_regret": pair.random,
        "same_pick": pair.same_pick,
        "within": pair.within,
    }
