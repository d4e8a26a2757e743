"""``workbench export``: a trained connector as a folder that loads anywhere, and as a model in MLflow.

::

    model.safetensors    fuser.* and projector.*
    heads.safetensors    the heads of the study's tasks
    config.json          everything needed to build the modules again; see CONFIG_SCHEMA
    README.md            the model card, with what the study found of it
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.connector_card import card
from fusion_workbench.version import __version__

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from rich.console import Console
    from torch import Tensor

    from fusion_workbench.modules.connector import VisualConnector
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.reading.records import Cell

CONFIG_SCHEMA = 1
_TAG = 8000  # characters that MLflow keeps of a tag
WEIGHTS, HEADS, CONFIG, CARD = "model.safetensors", "heads.safetensors", "config.json", "README.md"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    run_id: str
    study: str
    cell: str
    layers: tuple[int, ...]
    model_uri: str  # in MLflow; empty where it was not logged


def export_run(
    uri: str,
    target: str,
    out: Path | None,
    experiment: str | None = None,
    *,
    overwrite: bool = False,
    log: bool = False,
    folder: Path = Path("exports"),
) -> Exported:
    """Write a trained variant as a folder.

    Args:
        uri: MLflow database or server.
        target: an MLflow run of a trained variant-replicate; a study's name or id, which stands for its recommended
            cell; or ``STUDY:CELL`` with a label of the report. Of a cell the first replicate is taken: to take the one
            with the best score would be to choose on the test set.
        out: the folder to write; None: below ``folder``, under a name made of study and cell.
        experiment: where to look for a study; None: everywhere.
        overwrite: replace the folder if it is there.
        log: log it to MLflow as a model of its run.

    Raises:
        WorkbenchError: no such run, study or cell, a run without weights, or a folder that is there already.
    """
    from fusion_workbench.models.export_model import export_model
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.reading.connect import connect
    from fusion_workbench.reports.reading.query import read_study

    client = connect(uri)
    run_id, study = _run_of(client, target)
    name, _, label = target.partition(":")
    analysis = Analysis(read_study(uri, study or name, None if study else experiment))
    if run_id is None:
        run_id, cell = _chosen(analysis, label)
    else:
        cell = _cell_of(analysis, client, run_id)
    out = out or folder / _slug(f"{analysis.record.name} {cell.label}")
    if out.exists() and not overwrite:
        raise WorkbenchError(f"{out} is there already; give --overwrite to replace it, or another folder with --out.")
    if analysis.record.language is not None:  # a whole model, which is a folder already
        layers = export_model(client, run_id, out)
        return Exported(out, run_id, analysis.record.name, cell.label, layers, "")
    written = _write(client, analysis, cell, run_id, out)
    model_uri = _log(client, uri, run_id, out) if log else ""
    return Exported(out, run_id, analysis.record.name, cell.label, tuple(written["layers"]), model_uri)


def run_of(uri: str, target: str, experiment: str | None = None) -> tuple[MlflowClient, str]:
    """The MLflow run that ``target`` means, as :func:`export_run` takes it. Raises WorkbenchError as that does."""
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.reading.connect import connect
    from fusion_workbench.reports.reading.query import read_study

    client = connect(uri)
    run_id, _ = _run_of(client, target)
    if run_id is None:
        name, _, label = target.partition(":")
        run_id, _ = _chosen(Analysis(read_study(uri, name, experiment)), label)
    return client, run_id


def load_connector(folder: str | Path, device: str | None = None, encoder: str | None = None) -> VisualConnector:
    """A folder of :func:`export_run` as a module: ``load_connector(folder)(["photo.jpg"])`` gives its tokens.

    Args:
        folder: what was exported.
        device: where to; None: CUDA if there is one.
        encoder: where the encoder lies now, if its folder has moved; held against the fingerprint all the same.

    Raises:
        WorkbenchError: not such a folder, one of a newer workbench, damaged weights, a strategy that is not installed,
            or an encoder that is not the one it was trained on.
    """
    from functools import partial

    from fusion_workbench.config.study import EncoderConfig
    from fusion_workbench.core.layers import Selection
    from fusion_workbench.modules.connector import VisualConnector
    from fusion_workbench.modules.fusion import build
    from fusion_workbench.study.encoder_store import load_encoder

    folder = Path(folder)
    config = read_config(folder)
    wanted = config["encoder"]
    size = wanted["image_size"]
    name = encoder or wanted["encoder"]
    if wanted["revision"] is None and not name.startswith("assets:") and not Path(name).is_dir():
        raise WorkbenchError(
            f"{folder} was trained on the encoder in the folder {name}, which is not here; say where it is: "
            'load_connector(…, encoder="its/folder").'
        )
    read = load_encoder(EncoderConfig(name, wanted["revision"], size, precision=wanted["precision"]), progress=False)
    if read.fingerprint != wanted["fingerprint"]:
        raise WorkbenchError(
            f"{folder} was trained on another '{name}' (fingerprint {wanted['fingerprint'][:12]}, this "
            f"one is {read.fingerprint[:12]}): other weights, config or preprocessing, so its tokens would mean "
            "nothing."
        )
    fuser = build(
        config["strategy"], Selection(tuple(config["levels"]), config["query"]), wanted["dim"], config["options"]
    )
    projector = fuser.projector(config["projector"], config["width"], read.grid())
    weights = _tensors(folder / WEIGHTS)
    for part, module in (("fuser", fuser), ("projector", projector)):
        own = {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise WorkbenchError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {first}") from None
    connector = VisualConnector(read, fuser, projector, config["width"], partial(opened, size=read.image_size))
    return connector.to(device or read.device).eval()


def opened(images: Any, size: int | tuple[int, int]) -> Any:
    """A picture or a list of pictures (paths, PIL images, uint8 arrays ``[H, W, 3]``) as uint8 ``[B, *size, 3]``.

    The largest centred part of the encoder's shape is cut out and resized. Raises WorkbenchError for what is none.
    """
    import numpy as np
    from PIL import Image

    from fusion_workbench.datamodules.transforms import fit, load_image

    def one(image: Any) -> Any:
        if isinstance(image, str | Path):
            return fit(load_image(Path(image)), size)
        array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise WorkbenchError(
                f"a picture is a path, a PIL image or a uint8 array [height, width, 3]; got {array.dtype} "
                f"{list(array.shape)}."
            )
        return fit(array, size)

    several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
    return np.stack([one(image) for image in (images if several else [images])])


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of an exported folder. Raises WorkbenchError."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{folder} is not an exported connector: {path.name} cannot be read ({error}).") from None
    schema = config.get("schema") if isinstance(config, dict) else None
    if not isinstance(schema, int) or schema > CONFIG_SCHEMA:
        raise WorkbenchError(
            f"{path} is of schema {schema}, and this workbench ({__version__}) reads up to {CONFIG_SCHEMA}; update it."
        )
    return dict(config)


def show(console: Console, exported: Exported) -> None:
    """Say what was written and how to load it."""
    from fusion_workbench.models.export_model import usage

    console.print(f"exported {exported.cell} of {exported.study}, run {exported.run_id}", highlight=False, markup=False)
    console.print(f"folder: {exported.folder}", highlight=False, markup=False)
    if exported.model_uri:
        console.print(f"in MLflow: {exported.model_uri}", highlight=False, markup=False)
    if ask := usage(exported.folder):
        console.print(f"ask it: {ask}", highlight=False, markup=False)
        return
    code = (
        f'from fusion_workbench.models.export import load_connector; load_connector("{exported.folder}")(["photo.jpg"])'
    )
    console.print(f"load it: {code}", highlight=False, markup=False)


# --- what is meant ----------------------------------------------------------------------------------------------


def _run_of(client: MlflowClient, target: str) -> tuple[str | None, str]:
    """The run that ``target`` names, and its study's id; (None, "") where it names a study."""
    if not re.fullmatch(r"[0-9a-f]{32}", target):
        return None, ""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(target)
    except MlflowException:
        raise WorkbenchError(f"MLflow has no run {target}.") from None
    tags = run.data.tags
    if tags.get("workbench.phase") != "final":
        what = "a step of a learning-rate search" if "workbench.phase" in tags else "not a variant's"
        raise WorkbenchError(f"run {target} is {what}: only runs of the replicates keep their weights.")
    if run.info.status != "FINISHED":
        raise WorkbenchError(f"run {target} was not trained to its end ({run.info.status}), so it has no weights.")
    return target, str(tags["workbench.study_id"])


def _chosen(analysis: Analysis, label: str) -> tuple[str, Cell]:
    """The first finished replicate of the recommended cell, or of the one that is named."""
    from fusion_workbench.reports.analysis.answer import answer

    record = analysis.record
    if label:
        from fusion_workbench.core.errors import nearest

        found = next((cell for cell in record.cells if label in (cell.label, cell.id)), None)
        if found is None:
            hint = nearest(label, [cell.label for cell in record.cells])
            raise WorkbenchError(f"study '{record.name}' has no cell '{label}'.{hint}")
    else:
        found = answer(analysis).cell
        if found is None:
            raise WorkbenchError(f"study '{record.name}' recommends nothing yet: no cell has been trained to its end.")
    runs = record.finals(found.id)
    if not runs:
        raise WorkbenchError(f"no replicate of {found.label} was trained to its end in study '{record.name}'.")
    return runs[0].run_id, found


def _cell_of(analysis: Analysis, client: MlflowClient, run_id: str) -> Cell:
    cell = client.get_run(run_id).data.tags["workbench.cell"]
    found = next((c for c in analysis.record.cells if c.id == cell), None)
    if found is None:
        raise WorkbenchError(f"run {run_id} is of a cell that its study no longer holds.")
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


# --- writing ----------------------------------------------------------------------------------------------------


def _write(client: MlflowClient, analysis: Analysis, cell: Cell, run_id: str, out: Path) -> dict[str, Any]:
    """The folder, whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-")
    except OSError as error:
        raise WorkbenchError(f"{out} cannot be written ({error.strerror}); name another folder with --out.") from None
    with beside as scratch:
        made = Path(scratch) / "folder"
        made.mkdir()
        trained = _artifact(client, run_id, "fuser/config.json", Path(scratch))
        config = _config(json.loads(trained.read_text(encoding="utf-8")), analysis, cell, client, run_id)
        tensors = _tensors(_artifact(client, run_id, "fuser/model.safetensors", Path(scratch)))
        _save({k: v for k, v in tensors.items() if not k.startswith("heads.")}, made / WEIGHTS)
        _save({k: v for k, v in tensors.items() if k.startswith("heads.")}, made / HEADS)
        (made / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (made / CARD).write_text(card(analysis, cell, config), encoding="utf-8")
        if out.exists():
            if not (out / CONFIG).is_file() or not (out / WEIGHTS).is_file():
                raise WorkbenchError(f"{out} is not an exported connector, so it is not replaced; name another folder.")
            os.replace(out, Path(scratch) / "old")
        os.replace(made, out)
    return config


def _config(
    trained: Mapping[str, Any], analysis: Analysis, cell: Cell, client: MlflowClient, run_id: str
) -> dict[str, Any]:
    from fusion_workbench.core.layers import Selection
    from fusion_workbench.modules.fusion import build

    record, tags = analysis.record, client.get_run(run_id).data.tags
    levels = list(trained["levels"])
    fuser = build(trained["strategy"], Selection(tuple(levels), trained["query"]), trained["dim"], trained["options"])
    return {
        "schema": CONFIG_SCHEMA,
        "workbench": __version__,
        "strategy": trained["strategy"],
        "options": trained["options"],
        "levels": levels,
        "query": trained["query"],
        "layers": list(fuser.uses),
        "projector": trained["projector"],
        "width": trained["width"],
        "encoder": {**trained["encoder"], "encoder": _place(trained["encoder"]["encoder"]), "dim": trained["dim"]},
        "training": {**trained["training"], "lr": trained["lr"]},
        "study": {
            "name": record.name,
            "id": record.study_id,
            "run": run_id,
            "replicate": tags.get("workbench.replicate", ""),
            "commit": record.tags.get("workbench.commit", ""),
            "command": record.tags.get("workbench.command", ""),
        },
    }


def _place(encoder: str) -> str:
    """A folder by its full path, so that it is found from elsewhere; other names as they are."""
    return str(Path(encoder).resolve()) if Path(encoder).is_dir() else encoder


def _artifact(client: MlflowClient, run_id: str, path: str, scratch: Path) -> Path:
    try:
        return Path(client.download_artifacts(run_id, path, str(scratch)))
    except Exception as error:  # every artifact store has its own way to say that there is none
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WorkbenchError(f"run {run_id} has no {path}, so there is nothing to export: {first}") from None


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WorkbenchError(f"{path} cannot be read as safetensors, it may be cut off: {error}.") from None


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes for its owner alone


# --- MLflow -----------------------------------------------------------------------------------------------------


def _log(client: MlflowClient, uri: str, run_id: str, folder: Path) -> str:
    """The folder as a model of its run, from code: nothing is pickled. Returns its URI."""
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from fusion_workbench.models import served

    config = read_config(folder)
    tokens = TensorSpec(np.dtype(np.float32), (-1, -1, config["width"]), "tokens")
    before, was = mlflow.get_tracking_uri(), client.get_run(run_id).info
    mlflow.set_tracking_uri(uri)
    try:
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="connector",
                python_model=str(Path(served.__file__)),
                artifacts={"connector": str(folder)},
                signature=ModelSignature(outputs=Schema([tokens])),
                pip_requirements=[f"fusion-workbench=={__version__}"],
            )
        text = (folder / CARD).read_text(encoding="utf-8").split("---\n", 2)[-1].strip()[:_TAG]
        client.set_logged_model_tags(logged.model_id, {"mlflow.note.content": text})  # shown on the model's page
    finally:
        mlflow.set_tracking_uri(before)
        client.set_terminated(run_id, was.status, was.end_time)  # logging to a run opens it again
    return str(logged.model_uri)
