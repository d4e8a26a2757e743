"""The experiment runner: gets from the planner what to train, trains it, records it.

The order of writing makes a kill harmless at any moment: a variant-replicate is first in MLflow (RUNNING), then, when
all its numbers and files are there, done in the ledger (the commit), then FINISHED in MLflow, then told to Optuna.
Every start puts MLflow and Optuna right by the ledger.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_workbench.config.study import digest, to_track, to_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.stopping import cause_of, uninterrupted
from fusion_workbench.datamodules.sources.base import SPLITS
from fusion_workbench.runner.as_before import AsBefore
from fusion_workbench.runner.confirm import Confirmer
from fusion_workbench.runner.damage import mend
from fusion_workbench.runner.layer_analysis import log_layers
from fusion_workbench.runner.recall import recall
from fusion_workbench.runner.restore import Restorer
from fusion_workbench.runner.resume import reconcile
from fusion_workbench.runner.token_maps import log_token_maps
from fusion_workbench.schema.names import (
    SEARCH_REPLICATE,
    Artifact,
    Phase,
    RunStatus,
    Tag,
)
from fusion_workbench.study import provenance
from fusion_workbench.study.changes import ChangeRefused, DependencyCheck
from fusion_workbench.study.dependencies import store_notes
from fusion_workbench.study.identity import LEDGER, remember_schema
from fusion_workbench.study.jobs import Job, JobTrainer
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.plan_log import register_plan, write_plan
from fusion_workbench.study.prepare import Parts, flat
from fusion_workbench.study.record import study_files
from fusion_workbench.study.tracking import Tracker, default_uri, to_json
from fusion_workbench.system.mlflow_database import ARTIFACTS, LOCK

if TYPE_CHECKING:
    from fusion_workbench.datamodules.store.store import FeatureStore
    from fusion_workbench.study.progress import Display
    from fusion_workbench.sweeps.planner import Planner
    from fusion_workbench.sweeps.space import Cell, Variant


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
    """One study, from the opening of its ledger to the last row in MLflow.

    Args:
        parts: the prepared study.
        display: shows progress; see :mod:`study.progress`.
        retry_failed: train again what diverged or ran out of memory in an earlier run.
        accept_change: go on where what the study depends on has changed since its finished rows (:mod:`study.changes`).
        retrain_lost: train again what is finished and nowhere found, instead of refusing to go on.

    Raises:
        WorkbenchError: another process runs this study, or a database cannot be opened.
    """

    def __init__(
        self,
        parts: Parts,
        display: Display,
        retry_failed: bool = False,
        accept_change: bool = False,
        retrain_lost: bool = False,
    ) -> None:
        self.parts = parts
        self.study = parts.study
        self.display = display
        self.retry_failed = retry_failed
        self.accept_change = accept_change
        self.retrain_lost = retrain_lost
        self.kept = 0
        self.run_id = ""  # until MLflow has one

    def run(self) -> StudyResult:
        """Train what is missing and return what there is."""
        from filelock import FileLock, Timeout

        from fusion_workbench.sweeps.planner import Planner

        folder = self.parts.folder
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            raise WorkbenchError(
                f"study '{self.study.name}' is being run by another process (lock {folder / LOCK}); "
                "wait for it, or stop it."
            ) from None
        with held:
            self.before = AsBefore(folder)
            (folder / Artifact.STUDY).write_text(to_yaml(self.study), encoding="utf-8")
            uri = self.study.tracking.uri or default_uri(self.parts.workspace)
            with self.display.step("opening MLflow"):
                self.tracker = Tracker(
                    uri, self.study.tracking.experiment, self.parts.workspace / ARTIFACTS, lock=folder / LOCK
                )
            self.ledger = Ledger(folder / LEDGER)
            try:
                with self.display.step("reconciling ledger, MLflow and Optuna"):
                    self._open()
                    journal = folder / "optuna.journal"
                    planner = Planner(self.parts.space, self.study.search, journal, self._optuna_name())
                    if planner.told:
                        self.display.say(planner.told)
                    recall(planner, self.parts, self.trainer)
                self._train_all(planner)
            except ChangeRefused:
                self.before.restore(self.ledger, self.tracker, self.run_id)
                raise
            except BaseException as error:
                status = RunStatus.of_error(cause_of(error))
                self.tracker.close_broken([self.run_id] if self.run_id else [], status)
                raise
            finally:
                self.ledger.close()
            self.tracker.close(self.run_id, RunStatus.FINISHED)
        return StudyResult(
            self.study.name,
            self.parts.study_id,
            self.run_id,
            uri,
            len(planner.finalists()),
            self.trainer.trained,
            self.kept,
            self.failed,
        )

    # --- stages -------------------------------------------------------------------------------------------------

    def _train_all(self, planner: Planner) -> None:
        self.trainer.begin, self.trainer.origin = lambda: self._begin(planner), self.changes.tags
        rates = self._search(planner)
        cells = planner.finalists()
        self.tracker.log_files(self.run_id, {Artifact.CELLS: to_json([c.tracked(rates[c.id]).plain() for c in cells])})
        variants = [self.parts.variant(cell, rates[cell.id]) for cell in cells]
        jobs = self._replicate(variants)
        for cell, v in zip(cells, variants, strict=True):
            planner.tell(cell, self.ledger.objective(v.id, [j.replicate for j in jobs if j.variant == v]))
        done = [self.ledger.find(job.variant.id, job.replicate) for job in jobs]
        self.failed = sum(1 for entry in done if entry is None or not entry.finished)
        self.failed += Confirmer(self.parts, self.trainer, cells, rates).run(self.plan["confirm"])
        if self.trainer.token_maps:
            log_token_maps(
                self.parts, self.tracker, self.run_id, variants, self.ledger, self.display, self.changes.check
            )
        log_layers(
            self.parts, self.tracker, self.run_id, variants, planner, self.ledger, self.display, self.changes.check
        )
        self.trainer.tell_broken()

    def _replicate(self, variants: list[Variant]) -> list[Job]:
        """Train replicate by replicate; between two interim analyses of the plan, stop where the answer is decided."""
        jobs: list[Job] = []
        for look in self.plan["looks"]:
            more = [Job(v, str(r)) for r in range(len(jobs) // len(variants), look) for v in variants]
            self.trainer.train(more, Phase.FINAL)
            jobs += more
            if look < self.plan["looks"][-1] and self._decided(look):
                self.ledger.remember("stopped", look)
                self.display.say(f"decided after {look} replicates, as planned: no more are needed")
                break
        else:
            self.ledger.remember("stopped", None)
        write_plan(self.ledger, self.tracker, self.run_id)
        return jobs

    def _decided(self, look: int) -> bool:
        from fusion_workbench.reports import is_decided

        with self.display.step(f"interim analysis after {look} replicates"):
            return is_decided(self.tracker.uri, self.run_id, self.study.tracking.experiment)

    def _begin(self, planner: Planner) -> None:
        """Before the first job that is missing: what the study depends on is checked, told and encoded; once.

        Raises:
            WorkbenchError: it is not what the finished rows were trained under.
        """
        if self.changes.checked:
            return
        self.changes.check()
        self._describe()
        for note in store_notes(self.parts, self.changes.now):
            self.display.say(note)
        self._build_store(planner)

    def _build_store(self, planner: Planner) -> None:
        layers = planner.layers()
        for store in self.parts.stores:
            # Of a stage's own source the training split alone is read; it need not have others.
            self._fill(store, layers, SPLITS if store is self.parts.store else ("train",))

    def _fill(self, store: FeatureStore, layers: list[int], splits: Sequence[str]) -> None:
        batch_size = self.study.encoder.batch_size
        stats = store.build(layers, splits, batch_size=batch_size, progress=self.display.progress)
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
                return [chosen[cell.family]]
        else:

            def grid_of(cell: Cell) -> list[float]:
                return grid

        if planner.exhaustive and all(len(grid_of(cell)) == 1 for cell in planner.finalists()):
            return {cell.id: grid_of(cell)[0] for cell in planner.finalists()}
        while proposals := planner.ask(self.study.training.bank_size):
            cells = [a.cell for a in proposals]
            self.trainer.train(
                [Job(self.parts.variant(c, lr), SEARCH_REPLICATE) for c in cells for lr in grid_of(c)], Phase.SEARCH
            )
            for cell in cells:
                rates[cell.id], value = self.trainer.best_rate(cell, grid_of(cell))
                planner.tell(cell, value)
        return {c.id: rates.get(c.id) or self.trainer.best_rate(c, grid_of(c))[0] for c in planner.finalists()}

    def _rates_by_strategy(self, planner: Planner, grid: Sequence[float]) -> dict[str, float]:
        """Scope ``strategy``: one cell stands for all that differ from it in their layers alone."""
        first = planner.representatives()
        self.trainer.train(
            [Job(self.parts.variant(c, lr), SEARCH_REPLICATE) for c in first.values() for lr in grid], Phase.SEARCH
        )
        return {family: self.trainer.best_rate(cell, grid)[0] for family, cell in first.items()}

    # --- opening ------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """The parent run, and everything an earlier run left half done, reconciled with the ledger."""
        parts = self.parts
        tags = {
            Tag.QUESTION: self.study.question,
            Tag.COMMAND: provenance.command(),
            Tag.COMMIT: provenance.commit(),
            Tag.VERSIONS: to_json(provenance.versions()),
            Tag.DEVICE: provenance.device(),
        }
        self.before.remember(self.ledger, self.tracker)
        remember_schema(self.study, self.ledger)
        restorer = Restorer(parts, self.ledger, self.tracker, self.retrain_lost)
        known_run = restorer.known_run
        with uninterrupted():
            self.run_id = self.tracker.open_study(self.study.name, parts.study_id, known_run, self._place(), tags)
            self.ledger.remember("run_id", self.run_id)
        if known_run != self.run_id:
            self.tracker.log_params(self.run_id, flat(to_track(self.study)))
        self.tracker.log_files(self.run_id, {Artifact.STUDY: to_yaml(self.study)})
        self.plan = register_plan(self.study, self.ledger, self.tracker, self.run_id)
        self.trainer = trainer_of(parts)(parts, self.tracker, self.ledger, self.run_id, self.display)
        restorer.write(self.run_id, self.trainer)
        for line in (*self.tracker.told, *restorer.told):
            self.display.say(line)
        undescribed = mend(self.ledger, self.tracker, self.run_id, self.display)
        self.kept = reconcile(self.ledger, self.tracker, self.run_id, self.retry_failed)
        self.changes = DependencyCheck(parts, self.ledger, self.tracker, self.run_id, self.display, self.accept_change)
        self.changes.open()
        if undescribed and not self.changes.differs():
            self._describe()

    def _describe(self) -> None:
        """The artifacts of the parent run that say what rows are trained on; those of earlier rows stand until then."""
        self.tracker.log_files(self.run_id, study_files(self.parts) | self.trainer.study_files(self.parts))

    def _optuna_name(self) -> str:
        """Optuna's name of the study: another where code has changed, so that the cells of a plug-in are tried anew."""
        return f"{self.parts.study_id}-{digest(self.parts.new_code)}" if self.parts.new_code else self.parts.study_id

    def _place(self) -> str:
        """This study's folder on this machine."""
        return f"{platform.node()}:{self.parts.folder.resolve()}"


def trainer_of(parts: Parts) -> type[JobTrainer]:
    """What trains the cells of a study: probes in banks, or language models one by one."""
    if parts.language is None:
        from fusion_workbench.training.probes import BankTrainer

        return BankTrainer
    from fusion_workbench.training.language_jobs import LanguageTrainer

    return LanguageTrainer
