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


def fit(image: np.ndarray[Any, np.dtype[np.uint8]], size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The centred square of an image, resized to ``[size, size, 3]`` by bicubic interpolation."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = Image.fromarray(image).crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
