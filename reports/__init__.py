"""Reads a study from MLflow, judges it, and writes the layer-selection report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.reports.render.paths import ReportPaths

if TYPE_CHECKING:
    from fusion_workbench.reports.analysis.fresh_replicates import Picks

__all__ = ["ReportPaths", "find_picks", "is_confirmed", "is_decided", "write_report"]


def write_report(
    tracking_uri: str,
    study: str,
    out: Path,
    experiment: str | None = None,
    against: str | None = None,
    against_uri: str | None = None,
    probes: str | None = None,
) -> ReportPaths:
    """Write the layer-selection report of a study from MLflow alone.

    Args:
        tracking_uri: an MLflow database or server.
        study: a study's name (its latest parent run counts), its 16-digit id, or the MLflow run id of its parent run.
        out: folder to write to; made when missing, files of an earlier report are replaced.
        experiment: MLflow experiment to look in; None: all of them.
        against: another study to compare with: its name or id, or the path of an earlier report.json, which may lie in
            ``out`` (it is read before it is replaced). None: no other, or with ``against_uri`` the study of that name.
        against_uri: the MLflow that holds it; None: the same one.
        probes: the study of probes to hold a study of language models against, of the same experiment; None: the one
            that the study itself names, if MLflow has it.

    Raises:
        WorkbenchError: MLflow cannot be opened, holds no such study, ``out`` cannot be a folder, or there is nothing to
            compare with (``against``, ``probes``).
    """
    from fusion_workbench.reports.against.sides import ComparedSource
    from fusion_workbench.reports.render.report import (
        write,  # imports are seconds; the command line's help does not wait for them
    )

    other = ComparedSource(against or study, against_uri) if against or against_uri else None
    return write(tracking_uri, study, out, experiment, other, probes)


def find_picks(tracking_uri: str, study: str, experiment: str | None = None) -> Picks | None:
    """What a study's validation points to: winner, best fusion, baselines; None where nothing has finished.

    Raises:
        WorkbenchError: MLflow cannot be opened, or holds no such study.
    """
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.analysis.fresh_replicates import picks
    from fusion_workbench.reports.reading.query import read_study

    return picks(Analysis(read_study(tracking_uri, study, experiment)))


def is_confirmed(tracking_uri: str, study: str, experiment: str | None = None) -> bool:
    """As :func:`is_decided`, of the winner on its fresh replicates.

    Raises:
        WorkbenchError: MLflow cannot be opened, or holds no such study.
    """
    from fusion_workbench.reports.analysis.answer import decided
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.analysis.fresh_replicates import judge_fresh_replicates
    from fusion_workbench.reports.reading.query import read_study

    found = judge_fresh_replicates(Analysis(read_study(tracking_uri, study, experiment)))
    return found is not None and found.winner is not None and decided(found.analysis, found.winner)


def is_decided(tracking_uri: str, study: str, experiment: str | None = None) -> bool:
    """Whether the replicates so far settle a study: the recommended cell has a verdict, on the primary measure and
    other than *not distinguishable*, against every baseline.

    Raises:
        WorkbenchError: MLflow cannot be opened, or holds no such study.
    """
    from fusion_workbench.reports.analysis.answer import decided
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.reading.query import read_study

    analysis = Analysis(read_study(tracking_uri, study, experiment))
    ranked = analysis.ranked(analysis.objective.name)
    return bool(ranked) and decided(analysis, ranked[0])
