"""``workbench export`` of a study of language models: the whole model's folder, out of MLflow."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.folder import CONFIG, KIND, read_model_config
from fusion_workbench.models.locate import ARTIFACT

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def export_model(client: MlflowClient, run_id: str, out: Path) -> tuple[int, ...]:
    """Write the folder that the run keeps to ``out``, whole or not at all; the layers that the model reads.

    Raises:
        WorkbenchError: the run keeps no model, or ``out`` is there and no model, or cannot be written.
    """
    if not any(file.path == f"{ARTIFACT}/{CONFIG}" for file in client.list_artifacts(run_id, ARTIFACT)):
        raise WorkbenchError(
            f"run {run_id} keeps no model: only finished replicates do, so there is nothing to export."
        )
    if out.exists() and not (out / CONFIG).is_file():
        raise WorkbenchError(f"{out} is no model folder, so it is not replaced; name another folder.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            made = Path(client.download_artifacts(run_id, ARTIFACT, scratch))
            config = read_model_config(made)
            if out.exists():
                os.replace(out, Path(scratch) / "old")
            shutil.move(made, out)
    except OSError as error:
        raise WorkbenchError(f"{out} cannot be written ({error.strerror}); name another folder with --out.") from None
    return tuple(config["layers"])


def usage(folder: Path) -> str:
    """How to use what was exported; empty where it is a connector."""
    try:
        is_model = read_model_config(folder)["kind"] == KIND
    except WorkbenchError:
        return ""
    return f'workbench ask --model {folder} --image photo.jpg "…"' if is_model else ""
