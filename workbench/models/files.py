"""What every folder of a trained model holds: ``config.json``, a card, tensors, and the name of its encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError, reason
from fusion_workbench.core.files import read_small, write_file
from fusion_workbench.core.parse import parse_json
from fusion_workbench.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_workbench.modules.encoders.encoder import VisionEncoder

CONFIG, CARD = "config.json", "README.md"


def write_config(folder: Path, config: Mapping[str, Any], card: str) -> None:
    """Write ``config.json`` and the model card. Raises OSError."""
    write_file(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    write_file(folder / CARD, card)


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises WorkbenchError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
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
