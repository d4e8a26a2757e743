"""Where a model is: a folder, or the artifacts of the MLflow run that trained it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.folder import CONFIG
from fusion_workbench.study.tracking import existing_uri

ARTIFACT = "model"  # the folder among a run's artifacts


@contextmanager
def model_place(target: str, uri: str, workspace: Path, experiment: str | None) -> Iterator[Path]:
    """The folder of a model, there as long as the context is.

    Args:
        target: a folder; or what :func:`models.export.run_of` takes: a run, a study (its recommended cell) or
            ``STUDY:CELL``.

    Raises:
        WorkbenchError: neither a folder nor a run, or a run that keeps no model.
    """
    if Path(target).is_dir():
        yield Path(target)
        return
    if not uri and not (workspace / "mlflow.db").is_file():
        raise WorkbenchError(
            f"--model {target}: there is no such folder, and {workspace} holds no MLflow database to look it up in; "
            "name a folder, or another place with --workspace or --uri."
        )
    from fusion_workbench.models.export import run_of

    client, run_id = run_of(uri or existing_uri(workspace), target, experiment)
    if not any(file.path == f"{ARTIFACT}/{CONFIG}" for file in client.list_artifacts(run_id, ARTIFACT)):
        raise WorkbenchError(
            f"run {run_id} keeps no model: only finished replicates of a study with a language model do (a study with "
            "language_model: in its YAML). Of a probe, workbench export writes the connector."
        )
    with tempfile.TemporaryDirectory(prefix="workbench-model-") as scratch:
        yield Path(client.download_artifacts(run_id, ARTIFACT, scratch))
