"""A connector that was exported: a folder to load, anywhere, as a module from images to tokens.

::

    model.safetensors    fuser.* and projector.*
    heads.safetensors    the heads of the study's tasks
    config.json          everything needed to build the modules again, and the sha256 of all; see SCHEMA
    README.md            the model card, with what the study found of it
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.code import code_hash
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.connector_files import load_weights
from fusion_workbench.models.files import (
    CARD,
    CONFIG,
    check_schema,
    check_sums,
    read_config,
    read_tensors,
    trained_encoder,
)

if TYPE_CHECKING:
    from fusion_workbench.modules.connector import Images, VisualConnector

__all__ = ["CARD", "CONFIG", "HEADS", "SCHEMA", "WEIGHTS", "load_connector", "load_images", "read_connector_config"]

SCHEMA = 1
WEIGHTS, HEADS = "model.safetensors", "heads.safetensors"


def load_connector(folder: str | Path, device: str | None = None, encoder: str | None = None) -> VisualConnector:
    """A folder of ``workbench export`` as a module: ``load_connector(folder)(["photo.jpg"])`` gives its tokens.

    Args:
        folder: what was exported.
        device: where to; None: CUDA if there is one.
        encoder: where the encoder lies now, if its folder has moved; held against the fingerprint all the same.

    Raises:
        WorkbenchError: not such a folder, one of a newer workbench, damaged weights, a strategy that is not installed,
            or an encoder that is not the one it was trained on.
    """
    from functools import partial

    from fusion_workbench.core.layers import Selection
    from fusion_workbench.modules.connector import VisualConnector
    from fusion_workbench.modules.fusion import build

    folder = Path(folder)
    config = read_connector_config(folder)
    vision = trained_encoder(folder, config["encoder"], encoder)
    selection = Selection(tuple(config["levels"]), config["query"])
    fuser = build(config["strategy"], selection, config["encoder"]["dim"], config["options"])
    _tell_other_code(folder, config, type(fuser))
    projector = fuser.projector(config["projector"], config["width"], vision.grid())
    weights = read_tensors(folder / WEIGHTS)
    for part, module in (("fuser", fuser), ("projector", projector)):
        own = {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
        try:
            load_weights(module, own, part)
        except WorkbenchError as error:
            raise WorkbenchError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {error}") from None
    check_sums(folder, config)
    connector = VisualConnector(vision, fuser, projector, config["width"], partial(load_images, size=vision.image_size))
    return connector.to(device or vision.device).eval()


def _tell_other_code(folder: Path, config: Mapping[str, Any], cls: type) -> None:
    """Warn where a plug-in's strategy has other code than the weights were trained with."""
    name = config["strategy"]
    trained = (config.get("code") or {}).get(name)
    if trained and (now := code_hash(cls)) != trained:
        warnings.warn(
            f"{folder} was trained with other code of the strategy '{name}' (its package's hash was {trained}, and is "
            f"{now or 'none'} now): the weights fit, but what they give may be something else.",
            stacklevel=3,
        )


def load_images(images: Any, size: int | tuple[int, int]) -> Images:
    """A picture or a list of pictures (paths, PIL images, uint8 arrays ``[H, W, 3]``) as uint8 ``[B, *size, 3]``.

    The largest centred part of the encoder's shape is cut out and resized. Raises WorkbenchError for all else.
    """
    import numpy as np

    from fusion_workbench.datamodules.transforms import fit, pixels

    several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
    return np.stack([fit(pixels(image), size) for image in (images if several else [images])])


def read_connector_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of an exported folder. Raises WorkbenchError."""
    config = read_config(folder, "not an exported connector")
    check_schema(folder, config, SCHEMA)
    return dict(config)
