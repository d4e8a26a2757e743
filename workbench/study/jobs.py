"""Training what a study asks for, each job written down so that a kill at any moment is harmless.

A variant-replicate is first in MLflow (RUNNING), then, when all its numbers and files are there, done in the ledger
(the commit), then FINISHED in MLflow. What a job *is* (a probe in a probe bank, a vision-language model) is the
business of the two kinds of trainer: :mod:`training.probes` and :mod:`training.language_jobs`.
"""

from __future__ import annotations

import gc
import math
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core import stopping
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.text import printable
from fusion_workbench.schema.names import SEARCH_REPLICATE, LedgerState, Phase, RunStatus, Tag
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.tracking import Tracker
from fusion_workbench.version import NUMERICS

if TYPE_CHECKING:
    from fusion_workbench.study.progress import Display
    from fusion_workbench.sweeps.space import Cell, Variant


@dataclass(frozen=True)
class Job:
    """One variant-replicate to train."""

    variant: Variant
    replicate: str


class JobTrainer(ABC):
    """Trains jobs that the ledger does not hold, and writes down what became of them.

    Args:
        parts: the prepared study.
        tracker: MLflow.
        ledger: the study's own record, which decides.
        run_id: the study's parent run.
        display: shows progress.
    """

    unit: str = "variant-epochs"  # of the progress bar
    token_maps: bool = False  # whether what it trains can be shown on test images

    @property
    def together(self) -> int:
        """Jobs of one replicate that are trained side by side."""
        return 1

    def __init__(self, parts: Parts, tracker: Tracker, ledger: Ledger, run_id: str, display: Display) -> None:
        self.parts = parts
        self.study = parts.study
        self.tracker = tracker
        self.ledger = ledger
        self.run_id = run_id
        self.display = display
        self.trained = 0
        # What comes before the first job that is missing, and what runs of a cell say of what they depend on
        # (:mod:`study.changes`); the experiment sets both.
        self.begin: Callable[[], None] = lambda: None
        self.origin: Callable[[Cell], Mapping[Tag, str]] = lambda cell: {}
        self.broken: list[tuple[Job, str]] = []  # what broke off with an error, and which

    @classmethod
    def study_files(cls, parts: Parts) -> dict[str, str | bytes]:
        """Artifacts of the parent run that studies of this kind alone have, by their path."""
        return {}

    @property
    @abstractmethod
    def units(self) -> int:
        """How far one job moves the bar."""

    @abstractmethod
    def train_group(
        self, jobs: Sequence[Job], run_ids: Sequence[str], phase: str, advance: Callable[[int], None]
    ) -> None:
        """Train jobs of one replicate and :meth:`commit` each."""

    @abstractmethod
    def params(self, job: Job) -> dict[str, Any]:
        """Flat scalars of the job's MLflow run."""

    def train(self, jobs: Sequence[Job], phase: str) -> None:
        """Train what the ledger does not hold; jobs that are trained together share a replicate."""
        missing = [job for job in dict.fromkeys(jobs) if self._is_missing(job)]
        kept = len(set(jobs)) - len(missing)
        if missing:
            self.begin()
        with self.display.training(phase, total=len(missing) * self.units, kept=kept, unit=self.unit) as bar:
            for group in _groups(missing, self.together):
                run_ids: list[str] = []
                with self._closing_on_error(group, run_ids):
                    for job in group:
                        with stopping.uninterrupted():
                            run_ids.append(self._start(job, phase))
                    self.train_group(group, run_ids, phase, bar)
                gc.collect()  # a module and its trainer know each other: a whole bank would stay for a while

    def commit(
        self,
        job: Job,
        run_id: str,
        status: str,
        step: int,
        metrics: Mapping[str, float],
        files: Mapping[str, str | bytes | Path],
        last: Mapping[str, float],
        error: str = "",
    ) -> None:
        """Metrics at ``step`` and files to MLflow, then the ledger's row: ``last``, the metrics, the files' sha256.

        ``error``: what it broke off with, and where.
        """
        if error:
            self.tracker.set_tags(run_id, {Tag.ERROR: error})
            self.broken.append((job, error))
        self.tracker.log_metrics(run_id, [(step, metrics)])
        sums = self.tracker.log_files(run_id, files)
        result = {key: value for key, value in last.items() if math.isfinite(value)} | dict(metrics)
        with stopping.uninterrupted():
            self.ledger.finish(job.variant.id, job.replicate, status, result, sums)
            self.tracker.close_done(run_id, status, result)
        self.trained += 1

    def objective(self, job: Job) -> float | None:
        """The validation objective of a job; None of one that was not trained to its end."""
        return self.ledger.objective(job.variant.id, [job.replicate])

    def best_rate(self, cell: Cell, grid: Sequence[float]) -> tuple[float, float | None]:
        """The rate with the best validation objective (ties: the lower), and that objective.

        What is trained must not depend on the plan, which may change later: rates and cells are searched by the mean
        of the tasks, whatever the plan's primary measure is.
        """
        tried = {lr: self.objective(Job(self.parts.variant(cell, lr), SEARCH_REPLICATE)) for lr in grid}
        scored = [(-value, lr) for lr, value in tried.items() if value is not None]
        if not scored:
            return min(grid), None
        value, lr = min(scored)
        return lr, -value

    def described(self, job: Job, phase: str) -> tuple[str, dict[Tag, str]]:
        """Name and tags of the job's MLflow run."""
        name = f"{job.variant.cell.label} " + (
            f"search lr {job.variant.lr:g}" if phase == Phase.SEARCH else f"r{job.replicate}"
        )
        tags = {
            Tag.STUDY_ID: self.parts.study_id,
            Tag.CELL: job.variant.cell.id,
            Tag.VARIANT: job.variant.id,
            Tag.PHASE: phase,
            Tag.REPLICATE: job.replicate,
        }
        return name, tags

    def _start(self, job: Job, phase: str) -> str:
        name, tags = self.described(job, phase)
        tags |= {Tag.NUMERICS: str(NUMERICS), **self.origin(job.variant.cell)}
        run_id = self.tracker.start_child(self.run_id, name, tags, self.params(job))
        self.ledger.start(job.variant.id, job.replicate, run_id)
        return run_id

    @contextmanager
    def _closing_on_error(self, jobs: Sequence[Job], run_ids: Sequence[str]) -> Iterator[None]:
        """An interrupted group leaves no run RUNNING and no row in the ledger."""
        try:
            stopping.check()
            yield
        except BaseException as error:
            with stopping.uninterrupted():
                self.tracker.close_broken(self._forgotten(jobs, run_ids), RunStatus.of_error(stopping.cause_of(error)))
            raise

    def _forgotten(self, jobs: Sequence[Job], run_ids: Sequence[str]) -> list[str]:
        """Drop the rows of jobs that are not done; their runs. What cannot be dropped is at the study's next start."""
        open_runs = []
        for job, run_id in zip(jobs, run_ids, strict=False):  # the last of them may not have been started
            with suppress(WorkbenchError, sqlite3.Error):
                entry = self.ledger.find(job.variant.id, job.replicate)
                if entry is None or entry.state == LedgerState.RUNNING:
                    open_runs.append(run_id)
                    self.ledger.forget(job.variant.id, job.replicate)
        return open_runs

    def tell_broken(self) -> None:
        """Say what broke off with an error: a line for each cell and error, with the first of its replicates."""
        by_cell: dict[tuple[str, str], list[Job]] = {}
        for job, error in self.broken:
            by_cell.setdefault((job.variant.cell.label, error), []).append(job)
        for (label, error), jobs in by_cell.items():
            replicates = ", ".join(dict.fromkeys(job.replicate for job in jobs))
            self.display.say(printable(f"{label} broke off (replicate {replicates}): {error}"))
        if by_cell:
            self.display.say("--retry-failed trains again what broke off")

    def _is_missing(self, job: Job) -> bool:
        entry = self.ledger.find(job.variant.id, job.replicate)
        return entry is None or entry.state != LedgerState.DONE


def _groups(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Jobs of one replicate at a time, at most ``size`` together."""
    by_replicate: dict[str, list[Job]] = {}
    for job in jobs:
        by_replicate.setdefault(job.replicate, []).append(job)
    for group in by_replicate.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
