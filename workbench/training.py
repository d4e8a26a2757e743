"""Training what a study asks for: jobs in banks, each written down so that a kill at any moment is harmless.

A variant-replicate is first in MLflow (RUNNING), then, when all its numbers and files are there, done in the ledger
(the commit), then FINISHED in MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.ledger import DONE, RUNNING, Entry, Ledger
from workbench.prepare import Parts, seed_of, variant
from workbench.record import child_files, child_params, final_metrics
from workbench.tracking import Tracker

if TYPE_CHECKING:
    from modules.bank import Member, MemberConfig
    from sweeps.space import Cell, Variant
    from workbench.progress import Display

_EVAL_BATCH = 64  # nothing depends on it
SEARCH = "search"  # the phase, and the replicate, on which learning rates are chosen; never one of those reported
FINAL = "final"  # the phase of the study's replicates, 0, 1, …
CONFIRM = "confirm"  # the phase of the fresh replicates, c0, c1, …, on which the winner is judged


@dataclass(frozen=True)
class Job:
    """One variant-replicate to train."""

    variant: Variant
    replicate: str


def fresh(number: int) -> str:
    """The name of a fresh replicate."""
    return f"c{number}"


class BankTrainer:
    """Trains jobs that the ledger does not hold, and writes down what became of them.

    Args:
        parts: the prepared study.
        tracker: MLflow.
        ledger: the study's own record, which decides.
        run_id: the study's parent run.
        display: shows progress.
    """

    def __init__(self, parts: Parts, tracker: Tracker, ledger: Ledger, run_id: str, display: Display) -> None:
        self.parts = parts
        self.study = parts.study
        self.tracker = tracker
        self.ledger = ledger
        self.run_id = run_id
        self.display = display
        self.trained = 0
        self._grid = parts.encoder.grid()

    def train(self, jobs: Sequence[Job], phase: str) -> None:
        """Train what the ledger does not hold, a bank at a time; members of a bank share a replicate."""
        missing = [job for job in dict.fromkeys(jobs) if self._wanted(job)]
        steps = self.study.training.epochs
        with self.display.training(phase, total=len(missing) * steps, kept=len(set(jobs)) - len(missing)) as bar:
            for bank in _banks(missing, self.study.training.bank_size):
                self._train_bank(bank, phase, bar)

    def _train_bank(self, jobs: Sequence[Job], phase: str, advance: Callable[[int], None]) -> None:
        import lightning as L

        from datamodules.datamodule import AblationDataModule
        from modules.bank import FusionBank
        from workbench.callbacks import BankRecorder, quiet_lightning

        quiet_lightning()
        replicate = jobs[0].replicate
        layers = sorted({layer for job in jobs for layer in job.variant.cell.selection.layers})
        bank = FusionBank([self._member(job) for job in jobs], self.parts.tasks, layers, self._grid)
        data = AblationDataModule(
            self.parts.source,
            self.parts.store,
            self.parts.encoder if self.parts.store is None else None,
            layers=tuple(layers),
            batch_size=self.study.training.batch_size,
            order_seed=seed_of("order", replicate),
            eval_batch_size=max(_EVAL_BATCH, self.study.training.batch_size),
        )
        run_ids = [self._start(job, phase) for job in jobs]
        training = self.study.training
        trainer = L.Trainer(
            max_epochs=training.epochs,
            accelerator=training.accelerator,
            devices=training.devices,
            precision=training.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[BankRecorder(self.tracker, run_ids, advance)],
            default_root_dir=self.parts.folder,
        )
        with self._told_truly(jobs, run_ids):
            trainer.fit(bank, data)
            if phase != SEARCH:
                trainer.test(bank, data, verbose=False)
            for job, member, run_id in zip(jobs, bank.members, run_ids, strict=True):
                self._finish(job, member, run_id, phase)

    @contextmanager
    def _told_truly(self, jobs: Sequence[Job], run_ids: Sequence[str]) -> Iterator[None]:
        """A bank that is broken off leaves no run RUNNING and no row in the ledger."""
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
            for job, run_id in zip(jobs, run_ids, strict=True):
                entry = self.ledger.find(job.variant.id, job.replicate)
                if entry is None or entry.state == RUNNING:
                    self.ledger.forget(job.variant.id, job.replicate)
                    self.tracker.close(run_id, status)
            raise

    def _member(self, job: Job) -> MemberConfig:
        from modules.bank import MemberConfig, OptimizerConfig
        from modules.probe import ProbeConfig

        training, cell = self.study.training, job.variant.cell
        return MemberConfig(
            variant=job.variant.id,
            label=cell.label,
            probe=ProbeConfig(
                strategy=cell.strategy,
                selection=cell.selection,
                dim=self.parts.encoder.dim,
                options=dict(cell.options),
                projector=training.projector,
                width=training.width,
                head_hidden=training.head_hidden,
                grid=self._grid,
            ),
            optimizer=OptimizerConfig(
                lr=job.variant.lr,
                scales={
                    "fuser": training.fuser_lr_scale,
                    "gates": training.gates_lr_scale,
                    "projector": training.projector_lr_scale,
                    "head": training.head_lr_scale,
                },
                weight_decay=training.weight_decay,
                warmup=training.warmup,
                gradient_clip=training.gradient_clip,
            ),
            init_seed=seed_of("init", job.replicate, job.variant.id),
            dropout_seed=seed_of("dropout", job.replicate, job.variant.id),
        )

    def _start(self, job: Job, phase: str) -> str:
        name = f"{job.variant.cell.label} " + (
            f"search lr {job.variant.lr:g}" if phase == SEARCH else f"r{job.replicate}"
        )
        tags = {
            "workbench.study_id": self.parts.study_id,
            "workbench.cell": job.variant.cell.id,
            "workbench.variant": job.variant.id,
            "workbench.phase": phase,
            "workbench.replicate": job.replicate,
        }
        run_id = self.tracker.start_child(self.run_id, name, tags, child_params(self.study, job.variant, job.replicate))
        self.ledger.start(job.variant.id, job.replicate, run_id)
        return run_id

    def _finish(self, job: Job, member: Member, run_id: str, phase: str) -> None:
        metrics = final_metrics(member, self.parts, self._grid, phase)
        files = child_files(member, self.parts, job.variant, phase)
        self.tracker.log_metrics(run_id, [(len(member.history), metrics)])
        self.tracker.log_files(run_id, files)
        outcome = member.outcome or "pruned"
        result = {k: v for k, v in (member.history[-1] if member.history else {}).items() if math.isfinite(v)} | metrics
        self.ledger.finish(job.variant.id, job.replicate, outcome, result)
        self.tracker.close(run_id, "FINISHED" if outcome in ("finished", "pruned") else "FAILED", outcome)
        self.trained += 1

    def finished(self, job: Job) -> Entry | None:
        """The ledger's entry of a job that was trained to its end; None of any other."""
        entry = self.ledger.find(job.variant.id, job.replicate)
        return entry if entry is not None and entry.finished and "val/objective" in entry.result else None

    def best_rate(self, cell: Cell, grid: Sequence[float]) -> tuple[float, float | None]:
        """The rate with the best validation objective (ties: the lower), and that objective."""
        scored = []
        for lr in grid:
            entry = self.finished(Job(variant(self.study, cell, lr), SEARCH))
            if entry is not None:
                scored.append((-entry.result["val/objective"], lr))
        if not scored:
            return min(grid), None
        value, lr = min(scored)
        return lr, -value

    def _wanted(self, job: Job) -> bool:
        entry = self.ledger.find(job.variant.id, job.replicate)
        return entry is None or entry.state != DONE


def _banks(jobs: Iterable[Job], size: int) -> Iterable[list[Job]]:
    """Jobs of one replicate at a time, at most ``size`` together."""
    by_replicate: dict[str, list[Job]] = {}
    for job in jobs:
        by_replicate.setdefault(job.replicate, []).append(job)
    for group in by_replicate.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
