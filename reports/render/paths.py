"""The files of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReportPaths:
    """What was written, and the answer in a paragraph."""

    html: Path
    markdown: Path
    json: Path
    csv: Path  # one row a cell, task and replicate
    intervals: Path  # one row a cell and task, with its verdict against every baseline
    figures: tuple[Path, ...]
    answer: str
    tex: Path  # tables for a paper
    against: str  # what changed since another study, in a paragraph; empty where nothing was compared
    failures: Mapping[str, str]  # what --fail-on would fail on, and why: see reports/against/fail_on.py
