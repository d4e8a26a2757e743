"""Small trained studies whose truth is known: a signal in two layers, or one strategy under several names."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusion_workbench.config.study import SelectionConfig, StrategyConfig, StudyConfig, load_study
from fusion_workbench.schema.names import Baseline

if TYPE_CHECKING:
    from fusion_workbench.reports.calibration.checks import CheckResult
    from fusion_workbench.reports.reading.records import StudyRecord

DEPTH = 4
_MIDDLE = {1, 2}  # what the middle concat of four blocks reads: planted there, two cells would be equally right
PAIRS = tuple(pair for pair in itertools.combinations(range(DEPTH), 2) if not set(pair) <= _MIDDLE)
ALIASES = 6
_BASELINES = (Baseline.DEEPEST, Baseline.PENULTIMATE, Baseline.MIDDLE)


def named(studies: int, seed: int, workspace: Path, advance: Callable[[int], None]) -> CheckResult:
    """Run studies of ``sweeps/planted.yaml`` with other layers, data and noise; count those that name the layers."""
    from fusion_workbench.reports.analysis.answer import answer
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.calibration.checks import PLANTED, row

    drawn = np.random.default_rng([seed, 1])
    right = 0
    for number in range(studies):
        pair = PAIRS[int(drawn.integers(len(PAIRS)))]
        cell = answer(Analysis(_run(planted_study(pair, seed + number), workspace))).cell
        right += cell is not None and cell.levels == pair
        advance(1)
    setting = {"replicates": 5, "cells": "12 cells, 6 pairs of layers", "what": "trained, and read from MLflow"}
    return row(PLANTED, setting, right, studies)


def aliased(studies: int, seed: int, workspace: Path, advance: Callable[[int], None]) -> CheckResult:
    """Train studies of one strategy under :data:`ALIASES` names; count those with any verdict better or worse."""
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.calibration.checks import REAL_AA, row
    from fusion_workbench.schema.names import Verdict

    false = comparisons = 0
    for number in range(studies):
        analysis = Analysis(_equals(_run(aliased_study(seed + number), workspace)))
        verdicts = [c.verdict for c in analysis.comparisons.values() if c.difference is not None]
        comparisons = len(verdicts)
        false += bool({Verdict.BETTER, Verdict.WORSE} & set(verdicts))
        advance(1)
    setting = {"replicates": 5, "cells": f"{ALIASES} aliases of concat", "comparisons": comparisons}
    return row(REAL_AA, setting, false, studies)


def planted_study(pair: tuple[int, ...], seed: int) -> StudyConfig:
    """``sweeps/planted.yaml`` with the signal in ``pair``, and noise and images of ``seed``."""
    encoder = f"planted:depth={DEPTH},signal={'+'.join(map(str, pair))},seed={seed}"
    overrides = [f'encoder.name="{encoder}"', f"source.options.seed={seed}", "plan.confirm=[]"]
    return load_study("planted", overrides)  # nothing is trained again: the layers are named before


def aliased_study(seed: int) -> StudyConfig:
    """The same data, and nothing but one cell under several names."""
    study = planted_study(PAIRS[seed % len(PAIRS)], seed)
    study.strategies = [StrategyConfig(name="concat", alias=f"alias {n}") for n in range(1, ALIASES + 1)]
    study.selections = [SelectionConfig(levels=[*PAIRS[seed % len(PAIRS)]])]
    study.space, study.single_layers, study.baselines = None, [], False
    study.name = "aliases"
    return study


def _equals(record: StudyRecord) -> StudyRecord:
    """The record with the first aliases as baselines, so that the report's own comparisons are all of equals."""
    tagged = tuple(replace(cell, baselines=_BASELINES[number : number + 1]) for number, cell in enumerate(record.cells))
    return replace(record, cells=tagged)


def _run(study: StudyConfig, workspace: Path) -> StudyRecord:
    from fusion_workbench.reports.reading.query import read_study
    from fusion_workbench.runner.experiment import Experiment
    from fusion_workbench.study.prepare import prepare
    from fusion_workbench.study.progress import Display
    from fusion_workbench.system.console import WordsConsole

    parts = prepare(study, workspace, progress=False)
    result = Experiment(parts, Display(WordsConsole(file=io.StringIO()), progress=False)).run()
    return read_study(result.tracking_uri, result.run_id, study.tracking.experiment)
