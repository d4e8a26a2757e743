"""What MLflow lost of a study, or another MLflow never had, is written there again; nothing is trained twice.

The ledger knows every variant-replicate by its MLflow run. Where that run is not among the study's own at the tracking
URI and experiment that it runs under now, it is looked for by its id: there, in the MLflow that the study was in
before, and, by its artifacts alone, in the workspace. What is found becomes a run of this place, with tags, params,
metrics and artifacts; then the ledger names that run. A kill in between leaves the ledger as it was, and the next
start begins anew with what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.runner.variant_files import phase_of, read_variant
from fusion_workbench.schema.checksums import from_tags, is_whole
from fusion_workbench.schema.dependencies import TrackedDependencies, combined
from fusion_workbench.schema.names import Artifact, LedgerState, Tag, closing_status, scores_file
from fusion_workbench.study.changes import ENVIRONMENTS_FACT, NUMERICS_FACT
from fusion_workbench.study.changes import FACT as DEPENDENCIES
from fusion_workbench.study.jobs import Job, JobTrainer
from fusion_workbench.study.ledger import Ledger, LedgerEntry
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.record import keeps_results
from fusion_workbench.study.tracking import Tracker, default_uri
from fusion_workbench.system.mlflow_database import ARTIFACTS, DATABASE, artifact_folder, sqlite_path
from fusion_workbench.system.mlflow_uri import without_password
from fusion_workbench.system.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

    from fusion_workbench.sweeps.space import Variant

FACT = "tracking"  # in the ledger: the places that the study was written to, the last first
_OWN = ""  # for the URI of the workspace's own database, which moves with it


@dataclass(frozen=True)
class Lost:
    """A finished variant-replicate that has no run in this place.

    Attributes:
        run: what some MLflow has of it; None where only the ledger knows.
        client: of that MLflow.
        folder: its artifacts on this machine; None where they have to be downloaded from ``client``.
        variant: from its artifacts, where there is no run to read.
    """

    entry: LedgerEntry
    run: MlflowRun | None
    client: MlflowClient | None
    folder: Path | None
    variant: Variant | None


class Restorer:
    """Finds and restores what this place does not have of a study.

    Args:
        parts: the prepared study.
        ledger: the study's own record, which decides.
        tracker: MLflow, as the study runs under it now.
        retrain_lost: forget what is nowhere found, so that it is trained again.

    Attributes:
        known_run: the study's parent run in this place; None where it has none yet.
        told: lines about what was done, for the user.
    """

    def __init__(self, parts: Parts, ledger: Ledger, tracker: Tracker, retrain_lost: bool = False) -> None:
        self.parts = parts
        self.ledger = ledger
        self.tracker = tracker
        self.told: list[str] = []
        self.places: list[dict[str, str]] = ledger.fact(FACT) or []
        self._was: str | None = ledger.fact("run_id")
        self._former = self._former_clients()
        if not self.places:
            self.places = self._begun()
        parent = self._parent()
        self.known_run = str(parent.info.run_id) if parent is not None else None
        self._kept: list[tuple[LedgerEntry, str]] = []  # rows whose run is here under another id
        self._deleted: list[str] = []  # runs that were deleted in MLflow and are there still
        self._altered: list[LedgerEntry] = []  # rows whose run is here with other metrics, or without them
        self._lost: list[Lost] = []
        if gone := self._look():
            self._refuse(gone, retrain_lost)
        if parent is not None and parent.info.lifecycle_stage == "deleted":
            tracker.client.restore_run(parent.info.run_id)
            self.told.append("the study's run was deleted in MLflow; it is restored")

    def _parent(self) -> MlflowRun | None:
        """The parent run that the study has in this place, deleted or not."""
        earlier = [p["run_id"] for p in self.places if (p["uri"], p["experiment"]) == self._place()]
        for run_id in filter(None, [self.ledger.fact("run_id"), *earlier]):
            run = self.tracker.find(run_id)
            if run is not None and self.tracker.has(run):
                return run
        return None

    def _begun(self) -> list[dict[str, str]]:
        """Where a study of 0.1.0, which did not remember it, was begun, as far as its parent run is found."""
        run_id = self.ledger.fact("run_id")
        for client in [self.tracker.client, *self._former] if run_id else []:
            if (run := _run_of(client, run_id)) is not None:
                name = str(client.get_experiment(run.info.experiment_id).name)
                return [{"uri": self._named(client.tracking_uri), "experiment": name, "run_id": str(run_id)}]
        return []

    def _place(self) -> tuple[str, str]:
        """URI, without a password, and experiment."""
        return self._named(self.tracker.uri), self.tracker.experiment

    def _named(self, uri: str) -> str:
        path, own = sqlite_path(uri), self.parts.workspace / DATABASE
        return _OWN if path is not None and path.resolve() == own.resolve() else without_password(uri)

    # --- looking ------------------------------------------------------------------------------------------------

    def _look(self) -> list[LedgerEntry]:
        """Find what is not listed in this place; returns what is found nowhere."""
        done = [entry for entry in self.ledger.entries() if entry.state == LedgerState.DONE]
        here = {str(r.info.run_id): r for r in self.tracker.child_runs(self.known_run)} if self.known_run else {}
        twins = {(_tag(r, Tag.VARIANT), _tag(r, Tag.REPLICATE)): r for r in here.values() if _ended(r)}
        gone = []
        for entry in done:
            if (run := here.get(str(entry.run_id))) is not None:
                if _ended(run) and _other_metrics(run, entry):
                    self._altered.append(entry)
                continue
            twin = twins.get((entry.variant, entry.replicate))
            if twin is not None and _says(twin, entry):
                self._kept.append((entry, str(twin.info.run_id)))
                continue
            run = self.tracker.find(str(entry.run_id))
            if run is not None and _tag(run, Tag.PARENT) == self.known_run and run.info.lifecycle_stage == "deleted":
                self._deleted.append(str(entry.run_id))
            elif found := self._find(entry, run):
                self._lost.append(found)
            else:
                gone.append(entry)
        return gone

    def _find(self, entry: LedgerEntry, run: MlflowRun | None) -> Lost | None:
        """Where the row's artifacts are, whole, with the run that they are of."""
        sources: list[tuple[MlflowClient, MlflowRun]] = [(self.tracker.client, run)] if run is not None else []
        if run is None:
            for client in self._former:
                if (found := _run_of(client, str(entry.run_id))) is not None:
                    sources.append((client, found))
        for client, found in sources:
            place = artifact_folder(client.tracking_uri, str(entry.run_id), str(found.info.artifact_uri))
            if place is None or _whole(entry, place):
                return Lost(entry, found, client, place, None)
        folder = self.parts.workspace / ARTIFACTS / str(entry.run_id) / "artifacts"
        if not _whole(entry, folder):
            return None
        if sources:
            return Lost(entry, sources[0][1], sources[0][0], folder, None)
        variant = read_variant(self.parts, folder / Artifact.VARIANT)
        if variant is None or variant.id != entry.variant:
            return None
        return Lost(entry, None, None, folder, variant)

    def _former_clients(self) -> list[MlflowClient]:
        """Where the study was before: every place that the ledger knows, and the workspace's own database."""
        from fusion_workbench.reports.reading.connect import connect

        clients = []
        for name in dict.fromkeys([*(p["uri"] for p in self.places), _OWN]):
            if name == self._place()[0]:
                continue
            try:
                clients.append(connect(name or default_uri(self.parts.workspace)))
            except WorkbenchError:  # it is gone: the artifacts may be here
                continue
        return clients

    def _refuse(self, gone: Sequence[LedgerEntry], retrain_lost: bool) -> None:
        """Raises WorkbenchError, unless the user wants them to be trained again."""
        if retrain_lost:
            for entry in gone:
                self.ledger.forget(entry.variant, entry.replicate)
            self.told.append(f"{_runs(len(gone))} {_are(gone)} lost and trained again")
            return
        done = sum(entry.state == LedgerState.DONE for entry in self.ledger.entries())
        raise WorkbenchError(
            f"{len(gone)} of {done} finished variant-replicates are in no MLflow that this study was in, and their "
            f"files are not, or not whole, in {self.parts.workspace / ARTIFACTS}; bring these back, or train them "
            "again with --retrain-lost. Nothing was changed."
        )

    # --- writing ------------------------------------------------------------------------------------------------

    def write(self, run_id: str, trainer: JobTrainer) -> None:
        """Restore all that was found, as children of ``run_id``, and let the ledger name where it is now."""
        if self.known_run is None and self._was is not None:
            self._describe_again(self._was, run_id)
        for deleted in self._deleted:
            self.tracker.client.restore_run(deleted)
        for entry, here in self._kept:
            self.ledger.move(entry.variant, entry.replicate, here)
        for entry in self._altered:
            self.tracker.log_metrics(str(entry.run_id), [(trainer.units, entry.result)])
            self.tracker.close_done(str(entry.run_id), str(entry.status), entry.result)
        for lost in self._lost:
            self._write_again(lost, run_id, trainer)
        uri, experiment = self._place()
        place = {"uri": uri, "experiment": experiment, "run_id": run_id}
        others = [p for p in self.places if (p["uri"], p["experiment"]) != (uri, experiment)]
        if self.places[:1] != [place]:
            self.ledger.remember(FACT, [place, *others])
        where = f"experiment '{experiment}' of MLflow at {without_password(self.tracker.uri)}"
        if self._deleted:
            self.told.append(f"{_runs(len(self._deleted))} {_were(self._deleted)} deleted in MLflow; restored")
        if self._altered:
            one = len(self._altered) == 1
            self.told.append(
                f"the metrics of {_runs(len(self._altered))} {'was' if one else 'were'} not in MLflow as the study "
                "wrote them; written there again"
            )
        if self._kept:
            self.told.append(f"{_runs(len(self._kept))} of before {_were(self._kept)} found in {where}")
        if self._lost:
            self.told.append(f"{_runs(len(self._lost))} {_were(self._lost)} not in {where}; written there again")

    def _describe_again(self, was: str, run_id: str) -> None:
        """What the former parent run ``was`` kept and this start has not written yet: what the rows were trained on,
        which of a study of 0.1.0 stands there alone, and steps that are taken once."""
        place, sums = self.parts.workspace / ARTIFACTS / was / "artifacts", {}
        with scratch_folder("restore") as scratch:
            for client in (self.tracker.client, *self._former):
                if (run := _run_of(client, was)) is not None:
                    sums = from_tags(run.data.tags)
                    here = artifact_folder(client.tracking_uri, was, str(run.info.artifact_uri))
                    if here is None:
                        with suppress(Exception):  # every artifact store has its own way to say that there is none
                            client.download_artifacts(was, "", str(scratch))
                    place = here or scratch
                    break
            written = from_tags(self.tracker.client.get_run(run_id).data.tags)
            names = sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())
            left = [name for name in names if name not in written]
            whole = [name for name in left if name in sums and is_whole(place / name, sums[name])]
            if whole:
                self.tracker.log_files(run_id, {name: place / name for name in whole})
            for name in left:
                if name not in sums:  # of 0.1.0, or of a database that is lost: nothing is made to say it is whole
                    self.tracker.client.log_artifact(run_id, str(place / name), name.rpartition("/")[0] or None)

    def _write_again(self, lost: Lost, parent: str, trainer: JobTrainer) -> None:
        entry = lost.entry
        if lost.run is not None and lost.client is not None:
            name = str(lost.run.info.run_name)
            tags = {k: v for k, v in lost.run.data.tags.items() if not k.startswith("mlflow.") and k != Tag.STATUS}
            params: Mapping[str, Any] = lost.run.data.params
            rows = _rows(lost.client, lost.run)
        else:
            assert lost.variant is not None
            job = Job(lost.variant, entry.replicate)
            name, own = trainer.described(job, phase_of(entry.replicate))
            tags, params = {str(k): v for k, v in own.items()}, trainer.params(job)
            tags |= {str(k): v for k, v in self._origin().items()}
            rows = [(trainer.units, entry.result)]
        with ExitStack() as stack:
            folder = lost.folder
            if folder is None:
                folder = stack.enter_context(scratch_folder("restore"))
                assert lost.client is not None
                lost.client.download_artifacts(str(entry.run_id), "", str(folder))
                if not _whole(entry, folder):
                    where = without_password(lost.client.tracking_uri)
                    raise WorkbenchError(
                        f"the files of run {entry.run_id} in MLflow at {where} are not whole; restore them, or train "
                        "again with --retrain-lost what cannot be restored."
                    )
            run_id = self.tracker.start_child(parent, name, tags | {Tag.RESTORED: str(entry.run_id)}, params)
            self.tracker.log_metrics(run_id, rows)
            if entry.files:
                self.tracker.log_files(run_id, {name: folder / name for name in entry.files})
            else:  # of 0.1.0: nobody knows whether they are what was written, so nothing is made to say so
                self.tracker.client.log_artifacts(run_id, str(folder))
        self.ledger.move(entry.variant, entry.replicate, run_id)
        self.tracker.close_done(run_id, str(entry.status), entry.result)

    def _origin(self) -> dict[Tag, str]:
        """What every row was trained under, by the ledger; of a mixture nobody knows under which one was."""
        numerics = self.ledger.fact(NUMERICS_FACT) or []
        tracked = TrackedDependencies.read(self.ledger.fact(DEPENDENCIES) or {})
        environments = self.ledger.fact(ENVIRONMENTS_FACT) or []
        tags = {Tag.NUMERICS: str(numerics[0])} if len(numerics) == 1 else {}
        if len(environments) == 1 and not tracked.recorded:
            tags[Tag.ENVIRONMENT] = environments[0]
        if tracked.fingerprints and not tracked.changes and not tracked.recorded:
            tags[Tag.DEPENDENCIES] = combined(tracked.fingerprints)
        return tags


def _rows(client: MlflowClient, run: MlflowRun) -> list[tuple[int, dict[str, float]]]:
    """The metrics of a run, by step."""
    steps: dict[int, dict[str, float]] = {}
    for key in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, key):
            steps.setdefault(int(point.step), {})[key] = float(point.value)
    return sorted(steps.items())


def _whole(entry: LedgerEntry, folder: Path) -> bool:
    """Whether a folder holds what the ledger remembers of the run's artifacts; of 0.1.0, what a report needs."""
    if entry.files:
        return all(is_whole(folder / name, sha) for name, sha in entry.files.items())
    needed: list[str] = [Artifact.VARIANT]
    if keeps_results(phase_of(entry.replicate), entry.status):
        needed += [scores_file("test")]
    return all((folder / name).is_file() for name in needed)


def _says(run: MlflowRun, entry: LedgerEntry) -> bool:
    """Whether a run ended as the ledger says, with the same numbers."""
    metrics = run.data.metrics
    return _tag(run, Tag.STATUS) == entry.status and all(metrics.get(k) == v for k, v in entry.result.items())


def _other_metrics(run: MlflowRun, entry: LedgerEntry) -> bool:
    """Whether MLflow's metrics of a run are not those that the ledger has; others that the user added are no matter."""
    known = run.data.metrics
    return any(
        key not in known or not math.isclose(known[key], value, rel_tol=1e-8)
        for key, value in entry.result.items()
        if math.isfinite(value)
    )


def _ended(run: MlflowRun) -> bool:
    return str(run.info.status) == closing_status(_tag(run, Tag.STATUS) or None)


def _run_of(client: MlflowClient, run_id: str) -> MlflowRun | None:
    try:
        return client.get_run(run_id)
    except Exception:  # a place that the study was in before need not answer any more
        return None


def _tag(run: MlflowRun, tag: Tag) -> str:
    return str(run.data.tags.get(tag, ""))


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _were(some: Sequence[Any]) -> str:
    return "was" if len(some) == 1 else "were"


def _are(some: Sequence[Any]) -> str:
    return "is" if len(some) == 1 else "are"
