"""What an encoder is made of, out of its folder or from the hub: config, scale of its input, and weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.modules.encoders.families import Family, blocks_of
from fusion_workbench.system.pretrained import load_pretrained
from fusion_workbench.system.pretrained_config import check_described, read_pretrained_config

PREPROCESSOR = "preprocessor_config.json"


def read_config(name: str, revision: str | None) -> Any:
    """``config.json``. Raises WorkbenchError."""
    unknown = "is neither a transformers folder nor a model that can be had from the hub"
    return read_pretrained_config(name, revision, f"encoder '{name}'", unknown)


def read_commit(name: str, revision: str | None) -> str | None:
    """The commit that a hub name was resolved to; None for a folder."""
    from transformers.utils.hub import cached_file

    if Path(name).is_dir():
        return None
    file = cached_file(name, "config.json", revision=revision)
    return Path(str(file)).parent.name  # …/snapshots/COMMIT/config.json


def prefix_tokens(family: Family, config: Any, name: str) -> int:
    """How many tokens stand before the patches. Raises WorkbenchError where the family's row cannot tell."""
    try:
        count: Any = family.prefix_tokens(config)
    except Exception as error:  # a row of somebody's own
        count = f"fails ({type(error).__name__}: {error})"
    if not isinstance(count, int) or count < 0:
        raise WorkbenchError(f"encoder '{name}': prefix_tokens of the row of '{config.model_type}' is {count}.")
    return count


def load_weights(
    name: str, revision: str | None, family: Family, config: Any, states: Callable[[nn.Module], Tensor]
) -> nn.Module:
    """The model of a family, float32, on the CPU, every weight that is read of it from its files.

    Args:
        config: as it was read, of all towers.
        states: all hidden states that a model gives, by which is found whether a weight is read.

    Raises:
        WorkbenchError: the row does not fit the model; or as :func:`system.pretrained.load_pretrained`.
    """
    import transformers

    what = f"encoder '{name}'"
    model_class: Any = getattr(transformers, family.model_class, None)
    if model_class is None:
        raise WorkbenchError(
            f"{what}: the row of '{config.model_type}' names the class {family.model_class}, which transformers "
            f"{transformers.__version__} does not have."
        )
    vision = getattr(config, "vision_config", config)
    if Path(name).is_dir():
        whole = isinstance(config, model_class.config_class)
        check_described(Path(name), model_class, config if whole else vision, what)

    def read(model: nn.Module) -> Tensor:
        _check_row(model, family, vision, what)
        return states(model)

    model: nn.Module = load_pretrained(model_class, name, what, read, revision=revision, dtype=torch.float32)
    _check_row(model, family, vision, what)
    return model


def _check_row(model: nn.Module, family: Family, config: Any, what: str) -> None:
    """Raises WorkbenchError where the family's row is wrong about the model's blocks."""
    try:
        blocks = blocks_of(model, family)
    except WorkbenchError as error:
        raise WorkbenchError(f"{what}: the row of '{config.model_type}' does not fit: {error}") from None
    if len(blocks) != config.num_hidden_layers:
        raise WorkbenchError(
            f"{what}: {family.blocks} of {type(model).__name__} holds {len(blocks)} blocks, and config.json says "
            f"{config.num_hidden_layers}."
        )


def read_scale(name: str, revision: str | None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixels in [0, 1], from the model's preprocessor_config.json.

    A model that rescales otherwise than by 1/255, or does not normalise, is put into the same two numbers.

    Raises:
        WorkbenchError: there is no such file, or it holds other things than numbers for each of three channels.
    """
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        processor, _ = BaseImageProcessor.get_image_processor_dict(name, revision=revision)
        mean, std = [0.0] * 3, [1.0] * 3
        if processor.get("do_normalize", True):
            mean, std = (_channels(processor, key) for key in ("image_mean", "image_std"))
        factor = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        said = "" if isinstance(error, OSError) else f": {first_line(error)}"
        if isinstance(error, AttributeError):
            said = ": it holds no names with values"
        raise WorkbenchError(
            f"encoder '{name}' has no {PREPROCESSOR} with image_mean and image_std, so its input scale is unknown "
            f"({type(error).__name__}{said})."
        ) from None
    if not (math.isfinite(factor) and factor > 0 and all(value > 0 for value in std)):
        raise WorkbenchError(
            f"encoder '{name}': its {PREPROCESSOR} says image_std {std} and rescale_factor {factor:g}; pixels are "
            "divided by the one and multiplied by the other, so all must be above 0."
        )
    scale = 255 * factor  # (255 · x · factor - mean) / std = (x - mean / scale) / (std / scale)
    if not math.isclose(scale, 1.0, rel_tol=1e-9):
        mean, std = [v / scale for v in mean], [v / scale for v in std]
    return mean, std


def _channels(processor: Any, key: str) -> list[float]:
    """Three finite numbers. Raises ValueError and what ``float`` raises."""
    values = processor[key]
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"{key} is not a list of three")
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{key} is not finite")
    return numbers
