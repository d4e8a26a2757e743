"""What an encoder's config says of it. No weights are read, and transformers imports none of its models for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.encoders.families import Family, family_of, square
from fusion_workbench.modules.encoders.loading import prefix_tokens, read_commit
from fusion_workbench.system.pretrained_config import check_sizes

Size = int | tuple[int, int]  # pixels: the side of a square, or height and width


@dataclass(frozen=True)
class EncoderDescription:
    """An encoder as its config describes it.

    Attributes:
        name: as it was given.
        config: of a model of two towers, that of the vision tower.
        revision: the commit that a hub name was resolved to; None for folders.
        image_size: an int for squares, else height and width.
    """

    name: str
    revision: str | None
    config: Any
    family_name: str
    family: Family
    depth: int
    dim: int
    patch: int
    image_size: Size
    prefix_tokens: int

    def info(self) -> dict[str, Any]:
        """:meth:`VisionEncoder.encoder_info` without precision, parameters and fingerprint."""
        height, width = height_width(self.image_size)
        rows, columns = height // self.patch, width // self.patch
        return {
            "encoder": self.name,
            "revision": self.revision,
            "family": self.family_name,
            "depth": self.depth,
            "dim": self.dim,
            "patch": self.patch,
            "image_size": self.image_size if isinstance(self.image_size, int) else list(self.image_size),
            "grid": [rows, columns],
            "tokens": rows * columns,
            "prefix_tokens": self.prefix_tokens,
            "final_norm": self.family.final_norm,
            "positions": self.family.positions,
        }


def describe(name: str, config: Any, image_size: int | Sequence[int], revision: str | None) -> EncoderDescription:
    """An encoder from its config, as :func:`modules.encoders.loading.read_config` gives it.

    Args:
        image_size: as :class:`modules.encoders.encoder.VisionEncoder` takes it.

    Raises:
        WorkbenchError: an unknown family, one of sound, sizes that no model has, or an image size that it cannot take.
    """
    family = family_of(config, name)
    commit = read_commit(name, revision)
    if family.audio:
        raise WorkbenchError(
            f"encoder '{name}' is of the family '{config.model_type}', whose tokens are moments of sound. Its "
            "hidden states can be read and fused "
            "(fusion_workbench.modules.encoders.families.read), but there is no source of sound yet."
        )
    vision = getattr(config, "vision_config", config)
    check_sizes(vision, f"encoder '{name}'", ("num_hidden_layers", "hidden_size", "patch_size"))
    patch = _side(vision, "patch_size", name)
    return EncoderDescription(
        name=name,
        revision=commit,
        config=vision,
        family_name=config.model_type,
        family=family,
        depth=vision.num_hidden_layers,
        dim=vision.hidden_size,
        patch=patch,
        image_size=_size(image_size, vision, patch, name),
        prefix_tokens=prefix_tokens(family, vision, name),
    )


def height_width(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def _size(requested: int | Sequence[int], config: Any, patch: int, name: str) -> Size:
    """The size to encode at, an int for squares. Raises WorkbenchError for one that is no multiple of the patch."""
    if isinstance(requested, int):
        sides = [requested or _trained_size(config, patch, name)] * 2
    else:
        sides = [int(side) for side in requested]
    if len(sides) != 2 or any(side % patch or side < patch for side in sides):
        right = [max(patch, round(side / patch) * patch) for side in sides]
        example = right[0] if len(set(right)) == 1 else right
        raise WorkbenchError(
            f"encoder.image_size is {requested}; {name} has patches of {patch} px, so it must be a multiple of "
            f"{patch}, such as {example}, or [height, width] of such."
        )
    return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])


def _trained_size(config: Any, patch: int, name: str) -> int:
    """The side of the square that a model was trained at; where it only names a number of patches, their square."""
    if getattr(config, "image_size", None):
        return _side(config, "image_size", name)
    if not getattr(config, "num_patches", None):
        raise WorkbenchError(f"encoder '{name}' does not say what size it was trained at; name encoder.image_size.")
    return math.isqrt(config.num_patches) * patch


def _side(config: Any, key: str, name: str) -> int:
    """A side of the config's. Raises WorkbenchError for what is no square."""
    try:
        return square(getattr(config, key))
    except WorkbenchError as error:
        more = "; name encoder.image_size" if key == "image_size" else ""
        raise WorkbenchError(f"encoder '{name}': {key}: {str(error).rstrip('.')}{more}.") from None
