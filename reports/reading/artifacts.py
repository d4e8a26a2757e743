"""Files of a study's runs: in place where they are on this machine, else downloaded, and held against their sha256."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.checksums import fits, from_tags
from fusion_workbench.schema.names import Tag
from fusion_workbench.system.checksums import sha256_of
from fusion_workbench.system.mlflow_database import artifact_folder

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient


class Artifacts:
    """The artifacts of some runs.

    Args:
        client: of the MLflow that holds them.
        runs: whose artifacts are asked for.
        folder: where downloads go.
    """

    def __init__(self, client: MlflowClient, runs: Iterable[MlflowRun], folder: Path) -> None:
        self._client = client
        self._folder = folder
        listed = list(runs)
        self._places = {str(run.info.run_id): str(run.info.artifact_uri) for run in listed}
        self._sums = {str(run.info.run_id): from_tags(run.data.tags) for run in listed}
        # A child run's files are written once, so all have a sum or none; a parent's may be of several versions.
        self._children = {str(run.info.run_id) for run in listed if Tag.PARENT in run.data.tags}

    def has_sums(self, run_id: str) -> bool:
        """Whether the run was written by a version that records the sha256 of its artifacts."""
        return bool(self._sums.get(run_id))

    def is_recorded(self, run_id: str, path: str) -> bool:
        """Whether the run's tags say that it has this artifact."""
        return path in self._sums.get(run_id, {})

    def file(self, run_id: str, path: str) -> Path | None:
        """An artifact as a file here; None where the run has none of that path.

        Raises:
            WorkbenchError: it is not what was written; the message goes on from the artifact's name.
        """
        file = self._find(run_id, path)
        if file is None or not self._sums.get(run_id):
            return file
        if not self.is_recorded(run_id, path):
            if run_id in self._children:
                raise WorkbenchError("has no sha256, though the run's other files have one")
            return file
        try:
            if not self._is_whole(run_id, path, file):
                # A study that goes on meanwhile may have written it anew since its tags were read.
                self._sums[run_id] = from_tags(self._client.get_run(run_id).data.tags)
                if not self._is_whole(run_id, path, self._find(run_id, path) or file):
                    raise WorkbenchError("does not have the sha256 that was recorded when it was written")
        except OSError as error:
            raise WorkbenchError(f"cannot be read ({error.strerror or type(error).__name__})") from None
        return file

    def _is_whole(self, run_id: str, path: str, file: Path) -> bool:
        return fits(self._sums[run_id].get(path, ""), sha256_of(file))

    def _find(self, run_id: str, path: str) -> Path | None:
        here = artifact_folder(self._client.tracking_uri, run_id, self._places.get(run_id, ""))
        if here is not None:  # on this machine: MLflow would copy it, forty times as slowly
            file = here / path
            return file if file.is_file() else None
        target = self._folder / run_id
        target.mkdir(exist_ok=True)
        try:
            return Path(self._client.download_artifacts(run_id, str(path), str(target)))
        except Exception:  # every artifact store has its own way to say that there is none
            return None
