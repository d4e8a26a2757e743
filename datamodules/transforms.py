"""Images from files, as the uint8 arrays that encoders take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from workbench.errors import WorkbenchError


def load_image(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image file as RGB, uint8 ``[H, W, 3]``.

    Raises:
        WorkbenchError: the file is missing, is not an image, or is cut off.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise WorkbenchError(f"image {path} does not exist.") from None
    except UnidentifiedImageError:
        raise WorkbenchError(f"image {path} is not an image that Pillow reads (PNG, JPEG, WebP, TIFF …).") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise WorkbenchError(f"image {path} cannot be read, it may be cut off or damaged: {error}.") from None


def fit(image: np.ndarray[Any, np.dtype[np.uint8]], size: int | tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The largest centred part of an image that has the shape of ``size`` (a side, or height and width), resized to it.

    Bicubic, ``[H, W, 3] → [height, width, 3]``.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    height, width = image.shape[:2]
    tall, wide = min(height, width * rows // columns), min(width, height * columns // rows)
    left, top = (width - wide) // 2, (height - tall) // 2
    part = Image.fromarray(image).crop((left, top, left + wide, top + tall))
    return np.asarray(part.resize((columns, rows), Image.Resampling.BICUBIC))
