"""Images from files, as the uint8 arrays that encoders take."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fusion_workbench.core.errors import WorkbenchError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
CLIP_MEAN = (122, 116, 104)  # of CLIP's preprocessing, in whole numbers of 255: what LLaVA-1.5 pads with
WIDEST = 20_000  # px, the longer side of what is padded to a square: 1.2 GB of memory
NARROWEST = 3_000  # the longer side over the shorter of what is resized before it is cropped: 1.0 GB at 336 px
# Pillow's own lines about large images and odd metadata, with its paths: what is wrong in earnest is an error of ours.
warnings.filterwarnings("ignore", module=r"PIL\.")


def load_image(path: Path) -> Pixels:
    """An image file as RGB, uint8 ``[H, W, 3]``; see :func:`decode`.

    Raises:
        WorkbenchError: the file is missing, is not an image, is truncated, or is too large to be one in earnest.
    """
    try:
        with path.open("rb") as file:
            return decode(file, f"image {path}")
    except FileNotFoundError:
        raise WorkbenchError(f"image {path} does not exist.") from None
    except OSError as error:
        raise WorkbenchError(f"image {path} cannot be read: {error.strerror or error}.") from None


def decode(file: IO[bytes], name: str) -> Pixels:
    """An encoded image as RGB, uint8 ``[H, W, 3]``, turned upright where its EXIF data say how it was held.

    16-bit greys are scaled to 8 bits. Transparency is dropped, as LLaVA does. Of several frames the first is taken.

    Raises:
        WorkbenchError: as :func:`load_image`; ``name`` begins it.
    """
    try:
        with Image.open(file) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except _RangeError as error:
        raise WorkbenchError(f"{name} {error}.") from None
    except UnidentifiedImageError:
        raise WorkbenchError(f"{name} is not an image that Pillow reads (PNG, JPEG, WebP, TIFF …).") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise WorkbenchError(f"{name} claims more than {limit:,} pixels; make it smaller.") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise WorkbenchError(f"{name} cannot be read, it may be cut off or damaged: {error}.") from None


def rgb(image: Image.Image) -> Pixels:
    """A Pillow image of any mode as uint8 ``[H, W, 3]``, upright.

    Raises:
        WorkbenchError: greys that 8 bits cannot hold.
    """
    try:
        return _rgb(ImageOps.exif_transpose(image))
    except _RangeError as error:
        raise WorkbenchError(f"an image {error}.") from None


class _RangeError(Exception):
    """Greys that would be clipped: they are neither of 8 nor of 16 bits."""


def _rgb(upright: Image.Image) -> Pixels:
    if upright.mode.startswith(("I", "F")):
        grey = np.asarray(upright)
        low, high = grey.min(), grey.max()
        fits = low >= 0 and (high <= 65535 if upright.mode != "F" else high == 0 or 1 < high <= 255)
        if not fits:
            raise _RangeError(f"holds greys from {low:g} to {high:g}; write them in 8 or 16 bits")
        if upright.mode != "F":  # 16 bits, perhaps in 32: Pillow would clip them
            grey = grey.astype(np.int64)
            upright = Image.fromarray((grey >> 8 if high > 255 else grey).astype(np.uint8))
    return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def pixels(image: Path | str | Image.Image | np.ndarray[Any, Any]) -> Pixels:
    """A picture as uint8 ``[H, W, 3]``: the path of a file, a PIL image of any mode, or such an array already.

    Raises:
        WorkbenchError: it is none of these, or as :func:`load_image`.
    """
    if isinstance(image, str | Path):
        return load_image(Path(image))
    array = rgb(image) if isinstance(image, Image.Image) else np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise WorkbenchError(
            f"a picture is a path, a PIL image or a uint8 array [height, width, 3]; got {array.dtype} "
            f"{list(array.shape)}."
        )
    return array


def squared(image: Pixels, size: int, padding: str, background: Sequence[int]) -> Pixels:
    """An image as a square of ``size`` px, bicubic, ``[H, W, 3] → [size, size, 3]``; see :data:`PADDINGS`.

    Args:
        background: red, green, blue of what a padded image does not cover.

    Raises:
        WorkbenchError: a side too long to be padded to a square, or too long a strip to be cropped; few pixels would
            fill the memory.
    """
    if fault := too_long(image.shape[0], image.shape[1], padding):
        raise WorkbenchError(f"{fault}.")
    return PADDINGS[padding](image, size, background)


def too_long(height: int, width: int, padding: str) -> str:
    """Why an image cannot become a square in the way ``padding``; empty where it can."""
    what, long, short = f"an image of {height:,} × {width:,} px is", max(height, width), min(height, width)
    if padding == "square" and long > WIDEST:
        return f"{what} too long to be padded to a square (at most {WIDEST:,}); crop it"
    if padding == "crop" and long > NARROWEST * short:
        return f"{what} too narrow to be resized and cropped (at most {NARROWEST:,} : 1); cut it out of its file"
    return ""


def _padded(image: Pixels, size: int, background: Sequence[int]) -> Pixels:
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:  # nothing to pad, and a large one need not be held twice
        return _resized(image, size)
    square = np.full((side, side, 3), background, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return _resized(square, size)


def _resized(image: Pixels, size: int) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _cropped(image: Pixels, size: int) -> Pixels:
    """CLIP's preprocessing (``CLIPImageProcessor``): the shorter side resized to ``size``, then the middle cut out.

    The longer side is rounded down, and so is where the middle begins.
    """
    height, width = image.shape[:2]
    short, long = sorted((height, width))
    longer = int(size * long / short)
    columns, rows = (size, longer) if height > width else (longer, size)
    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC)
    left, top = (columns - size) // 2, (rows - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


# How an image becomes a square: all of it on a background (LLaVA-1.5's image_aspect_ratio "pad"), its middle (CLIP's
# preprocessing, LLaVA's "square"), or all of it out of proportion. Last what 0.1.0 called "crop", for what it trained.
PADDINGS: Mapping[str, Callable[[Pixels, int, Sequence[int]], Pixels]] = {
    "square": _padded,
    "crop": lambda image, size, background: _cropped(image, size),
    "stretch": lambda image, size, background: _resized(image, size),
    "crop_then_resize": lambda image, size, background: fit(image, size),
}
# The same in fingerprints of images, which do not move with a name: what were other pixels has another word.
HASHED_PADDINGS: Mapping[str, str] = {"crop": "resize, crop", "crop_then_resize": "crop"}


def fit(image: Pixels, size: int | tuple[int, int]) -> Pixels:
    """The largest centred part of an image that has the shape of ``size`` (a side, or height and width), resized to it.

    Bicubic, ``[H, W, 3] → [height, width, 3]``.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    height, width = image.shape[:2]
    tall, wide = min(height, width * rows // columns), min(width, height * columns // rows)
    left, top = (width - wide) // 2, (height - tall) // 2
    part = Image.fromarray(image).crop((left, top, left + wide, top + tall))
    return np.asarray(part.resize((columns, rows), Image.Resampling.BICUBIC))
