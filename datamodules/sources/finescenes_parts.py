"""What FineScenes are made of: photographs, handwriting, typefaces, and which split each belongs to."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.transforms import load_image

Array = np.ndarray[Any, Any]

# 34 classes: no zero and no one, which some typefaces draw like O and I.
CLASSES = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ23456789")

PHOTOGRAPHS = {
    "train": ("astronaut.png", "coffee.png", "rocket.jpg", "brick.png", "gravel.png", "china.jpg"),
    "val": ("chelsea.png", "coins.png"),
    "test": ("flower.jpg", "grass.png"),
}
# Split by superfamily: the sans, serif and mono of one design never meet across splits.
TYPEFACES = {
    "train": (
        "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono.ttf",
        "DejaVuSansMono-Bold.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf", "Manrope-Regular.ttf", "Manrope-Bold.ttf",
        "Caladea-Regular.ttf", "Caladea-Bold.ttf",
    ),
    "val": ("cmr10.ttf", "cmss10.ttf", "cmtt10.ttf", "RedHatDisplay-Regular.ttf", "RedHatDisplay-Bold.ttf"),
    "test": (
        "SourceSansPro-Regular.ttf", "SourceSansPro-Bold.ttf", "SourceSerifPro-Regular.ttf", "SourceSerifPro-Bold.ttf",
        "Lato-Regular.ttf", "Lato-Bold.ttf",
    ),
}  # fmt: skip
HANDWRITING_SHARE = {"train": (0, 300), "val": (300, 400), "test": (400, 500)}  # of each digit's samples, in order
_MASTER = 160  # points: glyphs are rasterised once, large, and reduced by averaging


class Parts:
    """The raw material, by number. Photographs, typefaces and handwriting are numbered over all splits."""

    def __init__(self, photographs: Path, digits: Path, typefaces: Path) -> None:
        self._photographs = [photographs / name for names in PHOTOGRAPHS.values() for name in names]
        self._typefaces = [typefaces / name for names in TYPEFACES.values() for name in names]
        for path in (*self._photographs, *self._typefaces):
            if not path.is_file():
                raise WorkbenchError(
                    f"FineScenes needs {path}, which is missing; restore it with: workbench assets --repair"
                )
        try:
            with np.load(digits / "digits.npz", allow_pickle=False) as arrays:
                self._strokes: Array = arrays["X"]
                self._labels: Array = arrays["y"]
        except Exception as error:  # a damaged archive: zipfile, zlib and NumPy raise their own
            raise WorkbenchError(
                f"the handwriting {digits / 'digits.npz'} cannot be read ({error}); restore it with: "
                "workbench assets --repair"
            ) from None

    # --- photographs --------------------------------------------------------------------------------------------

    def photographs_of(self, split: str) -> range:
        return _numbers(PHOTOGRAPHS, split)

    def photograph(self, number: int) -> Array:
        return _photograph(self._photographs[number])

    def photograph_name(self, number: int) -> str:
        return self._photographs[number].stem

    def background(self, number: int, crop: tuple[int, int, int], flip: bool, size: int) -> Array:
        """A square of the photograph as ``[size, size, 3]``, by averaging."""
        left, top, side = crop
        square = _picture(self._photographs[number]).crop((left, top, left + side, top + side))
        if flip:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(square.resize((size, size), Image.Resampling.BOX))

    # --- handwriting --------------------------------------------------------------------------------------------

    @functools.lru_cache(maxsize=8)  # noqa: B019 - as many as there are splits
    def handwriting_of(self, split: str) -> Array:
        """Samples of the split: the same share of every digit's."""
        first, last = HANDWRITING_SHARE[split]
        return np.concatenate([np.flatnonzero(self._labels == digit)[first:last] for digit in range(10)])

    def handwriting_label(self, number: int) -> int:
        return int(self._labels[number])

    def handwriting(self, number: int, side: int) -> Array:
        """Coverage uint8 ``[side, side]``: the ink, cut to its square and resized."""
        return np.array(self._square(number).resize((side, side), Image.Resampling.BILINEAR))

    @functools.cache  # noqa: B019 - small, and as many as there are samples
    def _square(self, number: int) -> Image.Image:
        stroke = self._strokes[number]
        rows, columns = np.flatnonzero(stroke.any(1)), np.flatnonzero(stroke.any(0))
        ink = stroke[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        long = max(ink.shape)
        square = np.zeros((long, long), np.uint8)
        top, left = (long - ink.shape[0]) // 2, (long - ink.shape[1]) // 2
        square[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
        return Image.fromarray(square)

    # --- typefaces ----------------------------------------------------------------------------------------------

    def typefaces_of(self, split: str) -> range:
        return _numbers(TYPEFACES, split)

    def typeface_name(self, number: int) -> str:
        return self._typefaces[number].stem

    def glyph_width(self, face: int, label: int, height: int) -> int:
        """Pixels across at ``height``, in the proportions of the typeface; at least 2."""
        rows, columns = _master(self._typefaces[face], CLASSES[label]).shape
        return max(2, (int(columns) * height + int(rows) // 2) // int(rows))

    def glyph(self, face: int, label: int, width: int, height: int) -> Array:
        """Coverage uint8 ``[height, width]``: the large glyph, averaged down."""
        return _reduced(self._typefaces[face], CLASSES[label], width, height)


_photograph = functools.cache(load_image)


@functools.cache
def _picture(path: Path) -> Image.Image:
    return Image.fromarray(_photograph(path))


@functools.cache  # a few hundred bytes each, some thousands at one size of scene
def _reduced(typeface: Path, character: str, width: int, height: int) -> Array:
    large = Image.fromarray(_master(typeface, character))
    return np.array(large.resize((width, height), Image.Resampling.BOX))


@functools.cache
def _master(typeface: Path, character: str) -> Array:
    """A character rasterised large and cut to its ink: uint8 ``[rows, columns]``."""
    font = ImageFont.truetype(str(typeface), _MASTER, layout_engine=ImageFont.Layout.BASIC)
    canvas = Image.new("L", (3 * _MASTER, 3 * _MASTER))
    ImageDraw.Draw(canvas).text((_MASTER, _MASTER), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        raise WorkbenchError(f"typeface {typeface.name} draws nothing for '{character}'.")
    return np.array(canvas.crop(box))


def _numbers(groups: dict[str, tuple[str, ...]], split: str) -> range:
    start = 0
    for name, members in groups.items():
        if name == split:
            return range(start, start + len(members))
        start += len(members)
    raise WorkbenchError(f"unknown split '{split}'; there are {', '.join(groups)}.")
