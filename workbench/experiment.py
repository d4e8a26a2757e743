"""The experiment runner: asks the planner what to train, trains it in banks, writes it down.

The order of writing makes a kill harmless at any moment: a variant-replicate is first in MLflow (RUNNING), then, when
all its numbers and files are there, done in the ledger (the commit), then FINISHED in MLflow, then told to Optuna.
Every start puts MLflow and Optuna right by the ledger.
"""

from __future__ import annotations

import math
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench import provenance
from workbench.config import to_dict, to_yaml
from workbench.errors import WorkbenchError
from workbench.ledger import DONE, RUNNING, Entry, Ledger
from workbench.prepare import Parts, flat, seed_of, variant
from workbench.record import child_files, child_params, final_metrics, study_files
from workbench.tracking import Tracker, default_uri, to_json

if TYPE_CHECKING:
    from modules.bank import Member, MemberConfig
    from sweeps.planner import Planner
    from sweeps.space import Cell, Variant
    from workbench.progress import Display

_EVAL_BATCH = 64  # nothing depends on it
SEARCH = "search"  # the replicate on which learning rates and cells are chosen; never one of those reported


@dataclass(frozen=True)
class Job:
    """One variant-replicate to train."""

    variant: Variant
    replicate: str


@dataclass(frozen=True)
class StudyResult:
    """What a run of a study left behind."""

    name: str
    study_id: str
    run_id: str
    tracking_uri: str
    cells: int
    trained: int
    kept: int
    failed: int


class Experiment:
    """One study, from its first look at the ledger to the last row in MLflow.

    Args:
        parts: the prepared study.
        display: shows progress; see :mod:`workbench.progress`.
        retry_failed: train again what diverged or ran out of memory in an earlier run.

    Raises:
        WorkbenchError: another process runs this study, or a database cannot be opened.
    """

    def __init__(self, parts: Parts, display: Display, retry_failed: bool = False) -> None:
        self.parts = parts
        self.study = parts.study
        self.display = display
        self.retry_failed = retry_failed
        self.trained = self.kept = 0
        self._grid = parts.encoder.grid()

    def run(self) -> StudyResult:
        """Train what is missing and return what there is."""
        from filelock import FileLock, Timeout

        from sweeps.planner import Planner

        folder = self.parts.folder
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            raise WorkbenchError(
                f"study '{self.study.name}' is being run by another process (lock {folder / 'lock'}); "
                "wait for it, or stop it."
            ) from None
        with held:
            (folder / "study.yaml").write_text(to_yaml(self.study), encoding="utf-8")
            uri = self.study.tracking.uri or default_uri(self.parts.workspace)
            with self.display.step("opening MLflow"):
                self.tracker = Tracker(uri, self.study.tracking.experiment, self.parts.workspace / "mlartifacts")
            self.ledger = Ledger(folder / "ledger.db")
            with self.display.step("reconciling ledger, MLflow and Optuna"):
                self._open()
                planner = Planner(self.parts.space, self.study.search, folder / "optuna.journal", self.parts.study_id)
            try:
                self._train_all(planner)
            except BaseException as error:
                killed = isinstance(error, KeyboardInterrupt | SystemExit)
                self.tracker.close(self.run_id, "KILLED" if killed else "FAILED")
                raise
            finally:
                self.ledger.close()
            self.tracker.close(self.run_id, "FINISHED")
        return StudyResult(
            self.study.name,
            self.parts.study_id,
            self.run_id,
            uri,
            len(planner.finalists()),
            self.trained,
            self.kept,
            self.failed,
        )

    # --- stages -------------------------------------------------------------------------------------------------

    def _train_all(self, planner: Planner) -> None:
        self._build_store(planner)
        rates = self._search(planner)
        cells = planner.finalists()
        self.tracker.log_files(self.run_id, {"variants.json": to_json([_describe(c, rates[c.id]) for c in cells])})
        variants = [variant(self.study, cell, rates[cell.id]) for cell in cells]
        jobs = [Job(v, str(r)) for r in range(self.study.replicates) for v in variants]
        self._train(jobs, "final")
        for cell, v in zip(cells, variants, strict=True):
            values = [e.result["val/objective"] for j in jobs if j.variant.id == v.id and (e := self._finished(j))]
            planner.tell(cell, sum(values) / len(values) if values else None)
        done = [self.ledger.find(job.variant.id, job.replicate) for job in jobs]
        self.failed = sum(1 for entry in done if entry is None or not entry.finished)

    def _build_store(self, planner: Planner) -> None:
        if self.parts.store is None:
            return
        layers = planner.layers()
        stats = self.parts.store.build(layers, batch_size=self.study.encoder.batch_size, progress=self.display.progress)
        if stats.images:
            self.display.say(
                f"encoded {stats.images:,} images, layers {layers}, at "
                f"{stats.images / max(stats.seconds, 1e-9):.0f} images/s"
            )
        else:
            self.display.say(f"feature store: layers {layers} are already there")

    def _search(self, planner: Planner) -> dict[str, float]:
        """The learning rate of every finalist: the same rates tried for all, on a replicate of their own."""
        grid = sorted(set(self.study.search.learning_rates))
        rates: dict[str, float] = {}
        if self.study.search.scope == "strategy" and len(grid) > 1:
            chosen = self._rates_by_strategy(planner, grid)

            def grid_of(cell: Cell) -> list[float]:
                return [chosen[cell.strategy, cell.alias]]
        else:

            def grid_of(cell: Cell) -> list[float]:
                return grid

        if planner.exhaustive and all(len(grid_of(cell)) == 1 for cell in planner.finalists()):
            return {cell.id: grid_of(cell)[0] for cell in planner.finalists()}
        while asked := planner.ask(self.study.training.bank_size):
            cells = [a.cell for a in asked]
            self._train([Job(variant(self.study, c, lr), SEARCH) for c in cells for lr in grid_of(c)], "search")
            for cell in cells:
                rates[cell.id], value = self._best_rate(cell, grid_of(cell))
                planner.tell(cell, value)
        return {c.id: rates.get(c.id) or self._best_rate(c, grid_of(c))[0] for c in planner.finalists()}

    def _rates_by_strategy(self, planner: Planner, grid: Sequence[float]) -> dict[tuple[str, str], float]:
        """Scope ``strategy``: one cell stands for all of its strategy."""
        first = planner.representatives()
        self._train([Job(variant(self.study, c, lr), SEARCH) for c in first.values() for lr in grid], "search")
        return {family: self._best_rate(cell, grid)[0] for family, cell in first.items()}

    def _best_rate(self, cell: Cell, grid: Sequence[float]) -> tuple[float, float | None]:
        """The rate with the best validation objective (ties: the lower), and that objective."""
        scored = []
        for lr in grid:
            entry = self._finished(Job(variant(self.study, cell, lr), SEARCH))
            if entry is not None:
                scored.append((-entry.result["val/objective"], lr))
        if not scored:
            return min(grid), None
        value, lr = min(scored)
        return lr, -value

    # --- training -----------------------------------------------------------------------------------------------

    def _train(self, jobs: Sequence[Job], phase: str) -> None:
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
            if phase == "final":
                trainer.test(bank, data, verbose=False)
            for job, member, run_id in zip(jobs, bank.members, run_ids, strict=True):
                self._finish(job, member, run_id, phase)

    @contextmanager
    def _told_truly(self, jobs: Sequence[Job], run_ids: Sequence[str]) -> Any:
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
            f"r{job.replicate}" if phase == "final" else f"search lr {job.variant.lr:g}"
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

    def _finished(self, job: Job) -> Entry | None:
        entry = self.ledger.find(job.variant.id, job.replicate)
        return entry if entry is not None and entry.finished and "val/objective" in entry.result else None

    def _wanted(self, job: Job) -> bool:
        entry = self.ledger.find(job.variant.id, job.replicate)
        return entry is None or entry.state != DONE

    # --- opening ------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """The parent run, and everything an earlier run left half done, put right by the ledger."""
        parts = self.parts
        tags = {
            "workbench.question": self.study.question,
            "workbench.command": " ".join(["workbench", *map(shlex.quote, sys.argv[1:])]),
            "workbench.commit": provenance.commit(),
            "workbench.versions": to_json(provenance.versions()),
            "workbench.device": provenance.device(),
        }
        known = self.ledger.fact("run_id")
        self.run_id = self.tracker.open_study(self.study.name, parts.study_id, known, self._place(), tags)
        self.ledger.remember("run_id", self.run_id)
        if known != self.run_id:
            self.tracker.log_params(self.run_id, flat(to_dict(self.study)))
        self.tracker.log_files(self.run_id, study_files(parts))
        self._reconcile()

    def _place(self) -> str:
        """This study's folder on this machine."""
        return f"{platform.node()}:{self.parts.folder.resolve()}"

    def _reconcile(self) -> None:
        entries = self.ledger.entries()
        runs = self.tracker.children(self.run_id)
        owner = {entry.run_id: entry for entry in entries if entry.state == DONE}
        for run_id, status in runs.items():
            if status not in ("RUNNING", "SCHEDULED"):
                continue
            entry = owner.get(run_id)
            if entry is None:
                self.tracker.close(run_id, "KILLED")
            else:
                self.tracker.close(
                    run_id, "FINISHED" if entry.outcome in ("finished", "pruned") else "FAILED", entry.outcome
                )
        for entry in entries:
            lost = entry.run_id not in runs
            again = self.retry_failed and entry.state == DONE and not entry.finished
            if entry.state == RUNNING or lost or again:
                self.ledger.forget(entry.variant, entry.replicate)
        self.kept = sum(entry.state == DONE for entry in self.ledger.entries())


def _banks(jobs: Iterable[Job], size: int) -> Iterable[list[Job]]:
    """Jobs of one replicate at a time, at most ``size`` together."""
    by_replicate: dict[str, list[Job]] = {}
    for job in jobs:
        by_replicate.setdefault(job.replicate, []).append(job)
    for group in by_replicate.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _describe(cell: Cell, lr: float) -> dict[str, Any]:
    return {
        "cell": cell.id,
        "strategy": cell.strategy,
        "levels": list(cell.selection.levels) or None,
        "query": cell.selection.query,
        "label": cell.label,
        "options": dict(cell.options),
        "alias": cell.alias,
        "baselines": list(cell.baselines),
        "chosen_lr": lr,
    }
