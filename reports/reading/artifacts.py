"""Files of a study's runs: in place where they are on this machine, else downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.core.mlflow_database import artifact_folder

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
        self._places = {str(run.info.run_id): str(run.info.artifact_uri) for run in runs}

    def file(self, run_id: str, path: str) -> Path | None:
        """An artifact as a file here; None where the run has none of that path."""
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
