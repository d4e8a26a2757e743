"""MLflow: a parent run for each study, a child run for each variant-replicate, statuses that tell the truth.

Nothing here decides anything: the ledger is the authority, this is how it is shown. Only the study's own process
writes, and metrics are buffered by the epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.stopping import uninterrupted
from fusion_workbench.reports.reading.connect import search_runs
from fusion_workbench.schema.checksums import from_tags, is_of_sums, of_metrics, to_tags
from fusion_workbench.schema.names import TRACKING_SCHEMA, RunKind, RunStatus, Tag, closing_status
from fusion_workbench.study.patient_client import PatientClient
from fusion_workbench.system.checksums import sha256_of
from fusion_workbench.system.mlflow_database import DATABASE, opening, relocate, sqlite_path, sqlite_uri
from fusion_workbench.system.mlflow_uri import check_uri, impatient, quiet_mlflow, without_password
from fusion_workbench.system.outages import Outage, outage_reason
from fusion_workbench.system.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient


def default_uri(workspace: Path) -> str:
    """An SQLite file in the workspace."""
    return sqlite_uri(workspace / DATABASE)


def existing_uri(workspace: Path) -> str:
    """The workspace's MLflow. Raises WorkbenchError where there is none yet."""
    uri = default_uri(workspace)
    try:
        there = (workspace / DATABASE).is_file()
    except OSError as error:
        raise WorkbenchError(f"the workspace {workspace} cannot be read ({error.strerror}).") from None
    if not there:
        raise WorkbenchError(
            f"{workspace} holds no MLflow database yet; run a study first (workbench quickstart), or name another "
            "place with --workspace or --uri."
        )
    return uri


class Tracker:
    """One MLflow experiment at one tracking URI.

    Args:
        uri: tracking URI.
        experiment: name; made when missing.
        artifacts: where artifacts go when the URI is a database (a server decides for itself).
        lock: the study's own, which its process holds.

    Attributes:
        told: lines about what was put right on opening, for the user.

    Raises:
        WorkbenchError: the URI cannot be used.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path, lock: Path | None = None) -> None:
        check_uri(uri)
        self.uri = uri
        self.experiment = experiment
        self.told: list[str] = []
        quiet_mlflow()
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            if (database := sqlite_path(uri)) is not None:
                database.parent.mkdir(parents=True, exist_ok=True)
            with opening(uri), impatient():
                self._tell(relocate(uri, lock))
                self._patient = PatientClient(MlflowClient(tracking_uri=uri), uri)
                self.client = cast("MlflowClient", self._patient)
                self.experiment_id = self._open_experiment(artifacts.resolve())
        except WorkbenchError as error:
            if not isinstance(error, Outage):
                raise
            raise WorkbenchError(_told(uri, "opened", error.__cause__ or error)) from None
        except MlflowException as error:
            raise WorkbenchError(_told(uri, "used", error)) from None
        except Exception as error:  # drivers and file systems raise their own
            raise WorkbenchError(_told(uri, "opened", error)) from None

    def _open_experiment(self, artifacts: Path) -> str:
        """Its id. One that was deleted is restored, with its runs."""
        existing = self.client.get_experiment_by_name(self.experiment)
        if existing is None:
            place = None if self.uri.startswith(("http", "databricks")) else artifacts.as_uri()
            return str(self.client.create_experiment(self.experiment, artifact_location=place))
        if existing.lifecycle_stage == "deleted":
            self.client.restore_experiment(existing.experiment_id)
            self._tell(f"experiment '{self.experiment}' was deleted in MLflow; it is restored, with its runs")
        return str(existing.experiment_id)

    def _tell(self, line: str) -> None:
        if line:
            self.told.append(line)

    # --- the study ----------------------------------------------------------------------------------------------

    def open_study(self, name: str, study_id: str, known_run: str | None, folder: str, tags: Mapping[Tag, str]) -> str:
        """The parent run: the one it had, set to RUNNING again, or a new one. Returns its run id.

        ``folder`` tells this study's own parent runs from those of the same study elsewhere: one that a kill left
        RUNNING before the ledger knew of it is closed.
        """
        tags = {
            Tag.KIND: RunKind.STUDY,
            Tag.STUDY: name,
            Tag.STUDY_ID: study_id,
            Tag.SCHEMA: TRACKING_SCHEMA,
            Tag.FOLDER: folder,
            **tags,
        }
        if known_run is not None and self.exists(known_run):
            self.client.update_run(known_run, status=str(RunStatus.RUNNING))
            self.set_tags(known_run, tags)
            return known_run
        orphans = f"tags.`{Tag.STUDY_ID}` = '{study_id}' and attributes.status = '{RunStatus.RUNNING}'"
        for orphan in self.client.search_runs([self.experiment_id], orphans):
            if orphan.data.tags.get(Tag.FOLDER) == folder:  # only parent runs have the tag
                self.close(str(orphan.info.run_id), RunStatus.KILLED)
        run = self.client.create_run(self.experiment_id, run_name=name, tags=_plain(tags))
        return str(run.info.run_id)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Once for each key; values are cut by nobody, as the whole config is an artifact."""
        from mlflow.entities import Param

        have = self.client.get_run(run_id).data.params
        fresh = [Param(key, str(value)[:6000]) for key, value in params.items() if key not in have]
        for start in range(0, len(fresh), 100):
            self.client.log_batch(run_id, params=fresh[start : start + 100])

    def log_files(self, run_id: str, files: Mapping[str, str | bytes | Path]) -> dict[str, str]:
        """Artifacts by their path in the run: text, bytes, or a file to copy.

        Their sha256 becomes a tag of the run before they are there, beside that of a file which they replace: a kill in
        between leaves no file that a reader would refuse.

        Returns:
            path → sha256 in hex.
        """
        sums = {name: sha256_of(content) for name, content in files.items()}
        before = from_tags(self.client.get_run(run_id).data.tags)
        replaced = {name: old for name, sha in sums.items() if (old := before.get(name, sha)) != sha}
        if replaced or not sums.keys() <= before.keys():
            self.record_sums(run_id, sums | {name: f"{sums[name]} {old}" for name, old in replaced.items()})
        with scratch_folder() as folder:
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    path.symlink_to(content.resolve())
                else:
                    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            self.client.log_artifacts(run_id, str(folder))
        if replaced:
            self.record_sums(run_id, sums)
        return sums

    def record_sums(self, run_id: str, sums: Mapping[str, str]) -> None:
        """Put sha256 of artifacts, by their path, beside those that the run's tags hold already."""
        from mlflow.entities import RunTag

        tags = self.client.get_run(run_id).data.tags
        emptied = {key: "{}" for key in tags if is_of_sums(key)}  # there may be fewer pieces than there were
        pieces = emptied | to_tags(from_tags(tags) | dict(sums))
        self.client.log_batch(run_id, tags=[RunTag(key, piece) for key, piece in pieces.items()])

    def set_tags(self, run_id: str, tags: Mapping[Tag, str]) -> None:
        """Set or replace tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in _plain(tags).items()])

    # --- variant-replicates -------------------------------------------------------------------------------------

    def start_child(
        self, parent: str, name: str, tags: Mapping[Tag, str] | Mapping[str, str], params: Mapping[str, Any]
    ) -> str:
        """A child run, RUNNING. Returns its run id."""
        run = self.client.create_run(
            self.experiment_id,
            run_name=name,
            tags=_plain({Tag.PARENT: parent, Tag.KIND: RunKind.VARIANT_REPLICATE}) | _plain(tags),
        )
        run_id = str(run.info.run_id)
        self.log_params(run_id, params)
        return run_id

    def log_metrics(self, run_id: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Rows of (step, {metric: value}) in as few calls as MLflow allows."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(str(key), float(value), now, step) for step, row in rows for key, value in row.items()]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])

    def close(self, run_id: str, run_status: RunStatus, status: str | None = None) -> None:
        """Set MLflow's final status (FINISHED, FAILED, KILLED) and ours, a :class:`~schema.names.Status`."""
        if status is not None:
            self.set_tags(run_id, {Tag.STATUS: status})
        self.client.set_terminated(run_id, status=str(run_status))

    def close_done(self, run_id: str, status: str, result: Mapping[str, float]) -> None:
        """As :meth:`close`, of a variant-replicate that the ledger has: ``result``, the last value of every metric."""
        self.set_tags(run_id, {Tag.STATUS: status, Tag.METRICS: of_metrics(result)})
        self.client.set_terminated(run_id, status=str(closing_status(status)))

    def close_broken(self, run_ids: Sequence[str], run_status: RunStatus) -> None:
        """As :meth:`close`, where something went wrong already: what can be reached is closed, nothing is raised.

        A run that stays RUNNING is closed at the study's next start. A server that did not answer is not asked again.
        """
        with uninterrupted():
            for run_id in run_ids:
                if self._patient.gone:
                    return
                try:
                    self.close(run_id, run_status)
                except Exception:  # the error that led here is the one to tell
                    return

    def find(self, run_id: str) -> MlflowRun | None:
        """The run, in whatever experiment, deleted or not; None where MLflow does not have it."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def exists(self, run_id: str) -> bool:
        """Whether the experiment still has the run, and it was not deleted."""
        run = self.find(run_id)
        return run is not None and self.has(run) and run.info.lifecycle_stage == "active"

    def has(self, run: MlflowRun) -> bool:
        """Whether a run, deleted or not, is in the experiment."""
        return str(run.info.experiment_id) == self.experiment_id

    def children(self, parent: str) -> dict[str, str]:
        """run id → status of every child of a study."""
        return {str(run.info.run_id): str(run.info.status) for run in self.child_runs(parent)}

    def child_runs(self, parent: str) -> list[MlflowRun]:
        """Every child of a study."""
        return list(search_runs(self.client, [self.experiment_id], f"tags.`{Tag.PARENT}` = '{parent}'"))


def _told(uri: str, what: str, error: BaseException) -> str:
    return without_password(f"tracking.uri '{uri}' cannot be {what}: {outage_reason(error)}.")


def to_json(value: Any) -> str:
    """Readable JSON for artifacts."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def _plain(tags: Mapping[Tag, str] | Mapping[str, str]) -> dict[str, str]:
    """As strings and nothing else: a database driver need not know of enums."""
    return {str(key): str(value) for key, value in tags.items()}
