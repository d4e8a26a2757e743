"""A connector that was exported: a folder to load, anywhere, as a module from images to tokens.

::

    model.safetensors    fuser.* and projector.*
    heads.safetensors    the heads of the study's tasks
    config.json          everything needed to build the modules again, and the sha256 of all; see SCHEMA
    README.md            the model card, with what the study found of it
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.code import code_hash
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.connector_files import check_weights, load_weights
from fusion_workbench.models.files import (
    CARD,
    CONFIG,
    check_layers,
    check_schema,
    check_sums,
    read_config,
    read_tensors,
    trained_encoder,
)
from fusion_workbench.schema.model_config import CONNECTOR, check_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusion_workbench.modules.connector import Images, VisualConnector
    from fusion_workbench.modules.fusion import Fusion

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

    from fusion_workbench.modules.connector import VisualConnector

    folder = Path(folder)
    config = read_connector_config(folder)
    vision = trained_encoder(folder, config["encoder"], encoder)
    check_layers(folder, config, vision.depth)
    weights = read_tensors(folder / WEIGHTS)
    fuser, projector = load_parts(config, config["encoder"]["dim"], vision.grid(), weights, str(folder / WEIGHTS))
    _tell_other_code(folder, config, type(fuser))
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


def load_parts(
    config: Mapping[str, Any], dim: int, grid: Sequence[int], weights: Mapping[str, Tensor], where: str
) -> tuple[Fusion, nn.Module]:
    """Fuser and projector with their weights.

    Args:
        config: names strategy, options, levels, query, projector and width.
        dim, grid: channels and grid of the encoder.
        weights: ``fuser.*`` and ``projector.*``, all of both and no others.
        where: they are from, for messages.

    Raises:
        WorkbenchError: the config names no such modules, or weights are missing, too many, of other shapes, or no
            numbers.
    """
    from fusion_workbench.core.layers import Selection
    from fusion_workbench.modules.fusion import build
    from fusion_workbench.modules.meta import on_meta

    def make() -> dict[str, Any]:
        fuser = build(config["strategy"], Selection(tuple(config["levels"]), config["query"]), dim, config["options"])
        return {"fuser": fuser, "projector": fuser.projector(config["projector"], config["width"], (grid[0], grid[1]))}

    shapes = on_meta(make)  # held against the weights before memory is taken
    own = {
        part: {key.removeprefix(f"{part}."): weights[key] for key in weights if key.startswith(f"{part}.")}
        for part in shapes
    }
    try:
        for key in weights:
            if key.partition(".")[0] not in shapes:
                raise WorkbenchError(f"it holds {key}, which is neither the fuser's nor the projector's.")
        for part, module in shapes.items():
            check_weights(module, own[part], part)
        parts = make()
        for part, module in parts.items():
            load_weights(module, own[part], part)
    except WorkbenchError as error:
        raise WorkbenchError(f"{where} does not fit its {CONFIG}: {error}") from None
    return parts["fuser"], parts["projector"]


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
    check_config(config, CONNECTOR, str(folder / CONFIG))
    return dict(config)
