"""What a target names: a folder, or a trained variant among the runs of MLflow."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError, first_line, nearest
from fusion_workbench.models.files import CONFIG
from fusion_workbench.schema.checksums import from_tags, is_whole
from fusion_workbench.schema.names import KEPT_WEIGHTS, Phase, RunStatus, Tag
from fusion_workbench.study.tracking import existing_uri
from fusion_workbench.system.mlflow_database import artifact_folder
from fusion_workbench.system.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.schema.records import Cell

ARTIFACT = "model"  # the folder of a whole model among a run's artifacts


@dataclass(frozen=True)
class Located:
    """A trained variant-replicate and the study that it is of."""

    client: MlflowClient
    run_id: str
    analysis: Analysis
    cell: Cell


def locate(uri: str, target: str, experiment: str | None = None) -> Located:
    """The trained variant that ``target`` means, with its study.

    Args:
        uri: MLflow database or server.
        target: an MLflow run of a trained variant-replicate; a study's name or id, which stands for its recommended
            cell; or ``STUDY:CELL`` as the report calls a cell (``deep_only 12``, ``layer 12 alone``). Of a cell the
            first replicate is taken: to take the one with the best score would be to choose on the test set.
        experiment: where to look for a study; None: everywhere.

    Raises:
        WorkbenchError: no such run, study or cell, or a run that keeps no weights.
    """
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.reading.connect import connect
    from fusion_workbench.reports.reading.parsing import altered_metrics
    from fusion_workbench.reports.reading.query import read_study

    client = connect(uri)
    if not _is_run(target):
        name, _, label = target.partition(":")
        analysis = Analysis(read_study(uri, name, experiment))
        if not label and (altered := altered_metrics(analysis.record.runs)):
            raise WorkbenchError(f"{altered[0]} The recommended cell is chosen by them; name one with {name}:CELL.")
        run_id, cell = _replicate(analysis, label)
        return Located(client, run_id, analysis, cell)
    tags = _tags(client, target)
    analysis = Analysis(read_study(uri, tags.get(Tag.PARENT) or tags[Tag.STUDY_ID]))
    cell_id = tags[Tag.CELL]
    match = next((cell for cell in analysis.record.cells if cell.id == cell_id), None)
    if match is None:
        raise WorkbenchError(f"run {target} is of a cell that its study no longer holds.")
    return Located(client, target, analysis, match)


def find_run(uri: str, target: str, experiment: str | None = None) -> tuple[MlflowClient, str]:
    """The MLflow run that ``target`` means, as :func:`locate` takes it; a run's study is not read. Raises as that."""
    from fusion_workbench.reports.reading.connect import connect

    if _is_run(target):
        client = connect(uri)
        _tags(client, target)
        return client, target
    located = locate(uri, target, experiment)
    return located.client, located.run_id


@contextmanager
def model_folder(target: str, uri: str, workspace: Path, experiment: str | None) -> Iterator[Path]:
    """The folder of a whole model, there as long as the context is.

    Args:
        target: a folder; or what :func:`locate` takes: a run, a study (its recommended cell) or ``STUDY:CELL``.
        uri: MLflow database or server; empty: the workspace's.

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
    client, run_id = find_run(uri or existing_uri(workspace), target, experiment)
    check_keeps_model(client, run_id)
    with scratch_folder("model") as scratch:
        yield download(client, run_id, ARTIFACT, scratch)


def check_keeps_model(client: MlflowClient, run_id: str) -> None:
    """Raises WorkbenchError where a run has no model among its artifacts."""
    if keeps_model(client, run_id):
        return
    if client.get_run(run_id).data.params.get(KEPT_WEIGHTS) == "none":
        raise WorkbenchError(
            f"run {run_id} keeps no model, as its study said (language_model.keep_weights: none). With bf16 or float32 "
            "further replicates keep theirs."
        )
    raise WorkbenchError(
        f"run {run_id} keeps no model: only finished replicates of a study with a language model do (a study with "
        "language_model: in its YAML). Of a probe, workbench export writes the connector."
    )


def keeps_model(client: MlflowClient, run_id: str) -> bool:
    """Whether a run has a whole model's folder among its artifacts."""
    if (here := _folder(client, run_id)) is not None:
        return (here / ARTIFACT / CONFIG).is_file()
    return any(file.path == f"{ARTIFACT}/{CONFIG}" for file in client.list_artifacts(run_id, ARTIFACT))


def _folder(client: MlflowClient, run_id: str) -> Path | None:
    """Where the run's artifacts lie on this machine; None where they do not."""
    return artifact_folder(client.tracking_uri, run_id, str(client.get_run(run_id).info.artifact_uri))


def download(client: MlflowClient, run_id: str, path: str, scratch: Path) -> Path:
    """An artifact of a run, file or folder, in ``scratch``.

    Raises:
        WorkbenchError: there is none, or it does not have the sha256 that was recorded when it was written.
        OSError: there is, and ``scratch`` does not take it.
    """
    try:
        if (here := _folder(client, run_id)) is not None:
            kept, found = here / path, scratch / path
            found.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(kept, found) if kept.is_dir() else shutil.copyfile(kept, found)
        else:
            found = Path(client.download_artifacts(run_id, path, str(scratch)))
    except Exception as error:  # every artifact store has its own way to say that there is none
        _try_writing(client, run_id, path, scratch)
        first = first_line(error)
        raise WorkbenchError(f"run {run_id} has no {path}, so there is nothing to export: {first}") from None
    _check(client, run_id, path, found)
    return found


def _check(client: MlflowClient, run_id: str, path: str, found: Path) -> None:
    """Raises WorkbenchError where a file is not what the run's tags say; a run of before 0.2 has no such tags."""
    sums = from_tags(client.get_run(run_id).data.tags)
    own = {name: sha for name, sha in sums.items() if name == path or name.startswith(f"{path}/")}
    for name, sha in own.items():
        file = found if name == path else found / name.removeprefix(f"{path}/")
        if not is_whole(file, sha):
            state = "does not have the sha256 that was recorded with it" if file.is_file() else "is missing"
            raise WorkbenchError(
                f"{name} of run {run_id} {state}, so it is not used; restore it, or run the same workbench sweep: it "
                "trains that run again."
            )
    if sums and not own:
        raise WorkbenchError(
            f"{path} of run {run_id} has no sha256, though the run's other files have; it is not used."
        )


def _try_writing(client: MlflowClient, run_id: str, path: str, scratch: Path) -> None:
    """Raises OSError where the disk refuses as many bytes as the artifact has: MLflow does not pass that on."""
    folder = path.rpartition("/")[0] or None
    try:
        size = next((file.file_size or 0 for file in client.list_artifacts(run_id, folder) if file.path == path), 0)
    except Exception:  # then what it said first is what there is to say
        return
    with tempfile.TemporaryFile(dir=scratch) as probe:
        while size > 0:
            size -= probe.write(bytes(min(size, 2**20)))
        probe.flush()


def _is_run(target: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{32}", target) is not None


def _tags(client: MlflowClient, run_id: str) -> dict[str, str]:
    """The tags of a run that keeps weights."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise WorkbenchError(f"MLflow has no run {run_id}.") from None
    tags: dict[str, str] = run.data.tags
    if tags.get(Tag.PHASE) != Phase.FINAL:
        what = "a step of a learning-rate search" if Tag.PHASE in tags else "not a variant's"
        raise WorkbenchError(f"run {run_id} is {what}: only runs of the replicates keep their weights.")
    if run.info.status != RunStatus.FINISHED:
        raise WorkbenchError(f"run {run_id} was not trained to its end ({run.info.status}), so it has no weights.")
    return tags


def _replicate(analysis: Analysis, label: str) -> tuple[str, Cell]:
    """The run of the first finished replicate of the recommended cell, or of the one that is named."""
    from fusion_workbench.reports.analysis.answer import answer

    record = analysis.record
    if label:
        match = next((cell for cell in record.cells if label in (cell.label, cell.name, cell.id)), None)
        if match is None:
            hint = nearest(label, [name for cell in record.cells for name in dict.fromkeys((cell.label, cell.name))])
            raise WorkbenchError(f"study '{record.name}' has no cell '{label}'.{hint}")
    else:
        match = answer(analysis).cell
        if match is None:
            raise WorkbenchError(f"study '{record.name}' recommends nothing yet: no cell has been trained to its end.")
    runs = record.finals(match.id)
    if not runs:
        raise WorkbenchError(f"no replicate of {match.label} was trained to its end in study '{record.name}'.")
    return runs[0].run_id, match
