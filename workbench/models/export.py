"""``workbench export``: a trained connector, or a whole model, as a folder that loads anywhere.

A connector's folder is described in :mod:`models.connector`, a whole model's in :mod:`models.folder`. The
former can be logged as a model in MLflow too; the latter is in MLflow already, as an artifact of its run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.core.parse import parse_json
from fusion_workbench.core.text import slug
from fusion_workbench.models.cards import connector_card
from fusion_workbench.models.connector import CARD, CONFIG, HEADS, SCHEMA, WEIGHTS, load_parts, read_connector_config
from fusion_workbench.models.files import full_name, read_tensors, write_config, write_tensors
from fusion_workbench.models.folder import check_model_weights, is_model_folder, read_model_config
from fusion_workbench.models.locate import ARTIFACT, Located, check_keeps_model, download, locate
from fusion_workbench.schema.model_config import TRAINED, check_config
from fusion_workbench.schema.names import Artifact, Tag
from fusion_workbench.system.files import atomic_folder, explain_writing, scratch_beside
from fusion_workbench.system.mlflow_database import relocate
from fusion_workbench.system.outages import is_outage, outage_reason
from fusion_workbench.system.tensors import check_finite
from fusion_workbench.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

_TAG = 8000  # characters that MLflow keeps of a tag
_ELSEWHERE = "name another folder with --out"


@dataclass(frozen=True)
class ExportedModel:
    """What was written."""

    folder: Path
    run_id: str
    study: str
    cell: str
    layers: tuple[int, ...]
    model_uri: str  # in MLflow; empty where it was not logged
    whole: bool = False  # a model with its language model, not a connector
    told: str = ""  # a line about what was put right in MLflow before it was logged


def export_run(
    uri: str,
    target: str,
    out: Path | None,
    experiment: str | None = None,
    *,
    overwrite: bool = False,
    log: bool = False,
    folder: Path = Path("exports"),
) -> ExportedModel:
    """Write a trained variant as a folder.

    Args:
        uri: MLflow database or server.
        target: a run, a study or ``STUDY:CELL``; see :func:`models.locate.locate`.
        out: the folder to write; None: below ``folder``, under a name made of study and cell.
        experiment: where to look for a study; None: everywhere.
        overwrite: replace the folder if it is there.
        log: log a connector to MLflow as a model of its run.

    Raises:
        WorkbenchError: no such run, study or cell, a run without weights, or a folder that is there already.
    """
    located = locate(uri, target, experiment)
    record = located.analysis.record
    out = out or folder / slug(f"{record.name} {located.cell.label}", keep=".", lower=False)
    if out.exists() and not overwrite:
        raise WorkbenchError(f"{out} is there already; give --overwrite to replace it, or another folder with --out.")
    whole = record.language is not None
    layers = _write_model(located, out) if whole else _write_connector(located, out)
    told, model_uri = "", ""
    if log and not whole:
        try:
            told = relocate(uri)
            model_uri = _log(located, uri, out)
        except Exception as error:
            if not isinstance(error, OSError) and not is_outage(error):
                raise
            reason = outage_reason(error)
            raise WorkbenchError(
                f"{out} is written, but MLflow does not take it: {reason}; --no-log does without."
            ) from error
    return ExportedModel(out, located.run_id, record.name, located.cell.label, layers, model_uri, whole, told)


def show(console: Console, exported: ExportedModel) -> None:
    """Say what was written and how to load it."""
    if exported.told:
        console.print(exported.told, highlight=False, markup=False)
    console.print(f"exported {exported.cell} of {exported.study}, run {exported.run_id}", highlight=False, markup=False)
    console.print(f"folder: {exported.folder}", highlight=False, markup=False)
    if exported.model_uri:
        console.print(f"in MLflow: {exported.model_uri}", highlight=False, markup=False)
    if exported.whole:
        use = f'ask it: workbench ask --model {exported.folder} --image photo.jpg "…"'
    else:
        code = f'from fusion_workbench import load_connector; load_connector("{exported.folder}")(["photo.jpg"])'
        use = f"load it: {code}"
    console.print(use, highlight=False, markup=False)


# --- a whole model ----------------------------------------------------------------------------------------------


def _write_model(located: Located, out: Path) -> tuple[int, ...]:
    """The folder that the run keeps; returns the layers that the model reads."""
    check_keeps_model(located.client, located.run_id)
    if out.exists() and not is_model_folder(out):
        raise WorkbenchError(f"{out} is no model folder, so it is not replaced; name another folder.")
    with explain_writing(out, _ELSEWHERE), scratch_beside(out) as scratch, atomic_folder(out) as made:
        kept = download(located.client, located.run_id, ARTIFACT, scratch)
        config = read_model_config(kept)
        check_model_weights(kept, config)
        for path in kept.iterdir():
            path.rename(made / path.name)
    return tuple(config["layers"])


# --- a connector ------------------------------------------------------------------------------------------------


def _write_connector(located: Located, out: Path) -> tuple[int, ...]:
    """The folder of a probe's fuser and projector; returns the layers that it reads."""
    if out.exists() and not ((out / CONFIG).is_file() and (out / WEIGHTS).is_file()):
        raise WorkbenchError(f"{out} is not an exported connector, so it is not replaced; name another folder.")
    with explain_writing(out, _ELSEWHERE), scratch_beside(out) as scratch, atomic_folder(out) as made:
        trained = _trained(download(located.client, located.run_id, Artifact.FUSER_CONFIG, scratch), located.run_id)
        where = f"{Artifact.FUSER} of run {located.run_id}"
        tensors = read_tensors(download(located.client, located.run_id, Artifact.FUSER, scratch), where)
        heads = {name: value for name, value in tensors.items() if name.startswith("heads.")}
        others = {name: value for name, value in tensors.items() if name not in heads}
        fuser, _ = load_parts(trained, trained["dim"], trained["encoder"]["grid"], others, where)
        check_finite(heads, where)
        config = _config(trained, fuser.uses, located)
        write_tensors(made / WEIGHTS, others)
        write_tensors(made / HEADS, heads)
        write_config(made, config, connector_card(located.analysis, located.cell, config))
    return tuple(config["layers"])


def _trained(path: Path, run_id: str) -> dict[str, Any]:
    """``fuser/config.json`` of a run. Raises WorkbenchError for one that is damaged."""
    where = f"{Artifact.FUSER_CONFIG} of run {run_id}"
    try:
        trained = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{where} cannot be read as JSON ({first_line(error)}); it is damaged.") from None
    check_config(trained, TRAINED, where)
    return dict(trained)


def _config(trained: Mapping[str, Any], layers: Sequence[int], located: Located) -> dict[str, Any]:
    """``config.json`` of a connector, from that of its training. ``layers``: that its fuser reads."""
    record, tags = located.analysis.record, located.client.get_run(located.run_id).data.tags
    return {
        "schema": SCHEMA,
        "workbench": __version__,
        "strategy": trained["strategy"],
        "options": trained["options"],
        "levels": list(trained["levels"]),
        "query": trained["query"],
        "layers": list(layers),
        "projector": trained["projector"],
        "width": trained["width"],
        "encoder": {**trained["encoder"], "encoder": full_name(trained["encoder"]["encoder"]), "dim": trained["dim"]},
        "training": {**trained["training"], "lr": trained["lr"]},
        "study": {
            "name": record.name,
            "id": record.study_id,
            "run": located.run_id,
            "replicate": tags.get(Tag.REPLICATE, ""),
            "commit": record.tags.get(Tag.COMMIT, ""),
            "command": record.tags.get(Tag.COMMAND, ""),
        },
        **({"code": json.loads(tags[Tag.CODE])} if Tag.CODE in tags else {}),
    }


def _log(located: Located, uri: str, folder: Path) -> str:
    """The folder as a model of its run, from code: nothing is pickled. Returns its URI."""
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from fusion_workbench.models import served

    client, run_id = located.client, located.run_id
    config = read_connector_config(folder)
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
