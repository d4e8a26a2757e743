"""What every folder of a trained model holds: ``config.json``, a card, tensors, and the name of its encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError, reason
from fusion_workbench.core.layers import parse_layer
from fusion_workbench.core.parse import parse_json
from fusion_workbench.system.checksums import sha256_of
from fusion_workbench.system.files import read_small, write_file
from fusion_workbench.system.tensors import check_finite
from fusion_workbench.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_workbench.modules.encoders.encoder import VisionEncoder

CONFIG, CARD = "config.json", "README.md"
SUMS = "sha256"  # the key of config.json: file of the folder → sha256 in hex


def write_config(folder: Path, config: Mapping[str, Any], card: str) -> None:
    """Write ``config.json`` and the model card, beside all else that the folder is to hold: its sha256 goes with it.

    Raises:
        OSError: it cannot be written.
    """
    sums = {name: sha256_of(path) for name, path in sorted(_files(folder).items()) if name not in (CONFIG, CARD)}
    plain = dict(config) | {SUMS: sums | {CONFIG: _sum_of(config)}}
    write_file(folder / CONFIG, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
    write_file(folder / CARD, card)


def check_sums(folder: Path, config: Mapping[str, Any]) -> None:
    """Hold a folder against the sha256 in its ``config.json``; folders of before 0.2 have none.

    Raises:
        WorkbenchError: the first file that is not what was written, or is gone.
    """
    sums = config.get(SUMS)
    files = _files(folder)
    for name, sha in sums.items() if isinstance(sums, dict) else ():
        if name != CONFIG and name not in files:
            raise WorkbenchError(f"{folder} lacks {name}, which was written with it; restore it, or write it anew.")
        if sha != (_sum_of(config) if name == CONFIG else sha256_of(files[name])):
            raise WorkbenchError(
                f"{folder / name} is damaged or was changed: it does not have the sha256 that was written with it; "
                "restore it, or write the folder anew."
            )


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def _sum_of(config: Mapping[str, Any]) -> str:
    """Over a ``config.json`` without the places of encoder and language model, which may move."""
    plain = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items() if key != SUMS}
    for part, place in (("encoder", "encoder"), ("language", "name")):
        if isinstance(plain.get(part), dict):
            plain[part].pop(place, None)
    return sha256_of(json.dumps(plain, sort_keys=True))


def read_config(folder: Path, otherwise: str) -> Any:
    """``config.json`` of a folder.

    Args:
        otherwise: what a folder without one is, such as ``no model folder``.

    Raises:
        WorkbenchError: there is no such file, or it is no JSON.
    """
    try:
        return parse_json(read_small(folder / CONFIG))
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{folder} is {otherwise}: its {CONFIG} cannot be read ({reason(error)}).") from None


def check_schema(folder: Path, config: Any, newest: int) -> None:
    """Raises WorkbenchError for a ``config.json`` of a newer workbench, or of none."""
    schema = config.get("schema") if isinstance(config, dict) else None
    if not isinstance(schema, int) or schema > newest:
        raise WorkbenchError(
            f"{folder / CONFIG} is of schema {schema}, and this workbench ({__version__}) reads up to {newest}; "
            "update it."
        )


def check_layers(folder: Path, config: Mapping[str, Any], depth: int) -> None:
    """Raises WorkbenchError where a config names a layer that its encoder of ``depth`` blocks does not have."""
    for layer in (*config["levels"], config["query"]):
        try:
            parse_layer(layer, depth)
        except WorkbenchError as error:
            raise WorkbenchError(f"{folder / CONFIG}: {error}") from None


def read_tensors(path: Path, where: str = "") -> dict[str, Tensor]:
    """A safetensors file. Raises WorkbenchError. ``where``: what it is in messages; empty: its path."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WorkbenchError(f"{where or path} cannot be read as safetensors, it may be truncated: {error}.") from None


def check_tensors(path: Path) -> None:
    """Raises WorkbenchError for a safetensors file with values that are no numbers; read tensor by tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                check_finite({name: file.get_tensor(name)}, str(path))
    except (OSError, SafetensorError) as error:
        raise WorkbenchError(f"{path} cannot be read as safetensors, it may be truncated: {error}.") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file that others may read too; the library writes for its owner alone. Raises OSError."""
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})
    path.chmod(0o644)


def full_name(name: str) -> str:
    """A folder by its full path, so that it is found from elsewhere; names of other kinds as they are."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def trained_encoder(folder: Path, expected: Mapping[str, Any], name: str | None = None) -> VisionEncoder:
    """The encoder that the model in ``folder`` was trained on.

    Args:
        wanted: :meth:`modules.encoders.encoder.VisionEncoder.encoder_info` of then.
        name: where it lies now, if it has moved.

    Raises:
        WorkbenchError: it is not there, or another.
    """
    from fusion_workbench.config.study import EncoderConfig
    from fusion_workbench.study.encoder_store import load_encoder

    place = name or expected["encoder"]
    named = expected["revision"] is not None or ":" in place  # on the hub; or embedded or planted, which are no folders
    if not named and not Path(place).is_dir():
        raise WorkbenchError(
            f"{folder} was trained on the encoder in the folder {place}, which is not here; say where it is with "
            "encoder=…, on the command line --encoder."
        )
    config = EncoderConfig(place, expected["revision"], expected["image_size"], precision=expected["precision"])
    encoder = load_encoder(config, progress=False)
    if encoder.fingerprint != expected["fingerprint"]:
        raise WorkbenchError(
            f"{folder} was trained on another '{place}' (fingerprint {expected['fingerprint'][:12]}, this one is "
            f"{encoder.fingerprint[:12]}): other weights, config or preprocessing, so its tokens would mean nothing."
        )
    return encoder
