"""FineScenes: composites with exact labels, fine detail and a category in one image.

The background is a crop of a real photograph. On it stand one real handwritten digit (large: a category) and several
small printed glyphs (fine detail), none over another. Everything is drawn from a seed: sample ``i`` of a split is the
same bytes on every machine and does not depend on how many samples there are. Photographs, handwriting samples and
typefaces are each split, so that nothing that is seen in training is seen again in validation or test.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.boxes import padded, points_inside
from fusion_workbench.datamodules.sources.base import Array, register_source
from fusion_workbench.datamodules.sources.drawn import DrawnSource, check_sizes, content_of
from fusion_workbench.datamodules.sources.finescenes_parts import CLASSES, Parts

if TYPE_CHECKING:
    import pandas as pd

NATIVE = 112  # the size in pixels that the ranges below are written for
DIGIT_SIDE = (36, 56)  # of the handwritten digit's box at the native size
GLYPH_HEIGHT = (11, 18)
GAP = 1  # pixels between boxes, and to the edge
CONTRAST = 80  # least difference of luma (0–255) between ink and what it covers, on average
_TRIES = 400


@dataclass(frozen=True)
class FineScenesOptions:
    """What ``source.options`` may say."""

    train: int = 1000
    val: int = 300
    test: int = 400
    size: int = NATIVE
    glyphs: int = 6  # in every scene; at most so many where ``fewest`` is set
    fewest: int = 0  # a random number of glyphs from this on; 0: always ``glyphs``
    seed: int = 0


@dataclass(frozen=True)
class PlacedGlyph:
    """Something drawn: what, and where in pixels (left, top, width, height)."""

    which: int  # sample of handwriting, or typeface
    label: int
    left: int
    top: int
    width: int
    height: int

    def apart(self, other: PlacedGlyph) -> bool:
        """Whether at least ``GAP`` pixels lie between the two boxes."""
        return (
            self.left + self.width + GAP <= other.left
            or other.left + other.width + GAP <= self.left
            or self.top + self.height + GAP <= other.top
            or other.top + other.height + GAP <= self.top
        )


@dataclass(frozen=True)
class Layout:
    """One scene before it is drawn."""

    photograph: int
    crop: tuple[int, int, int]  # left, top, side in the photograph
    flip: bool
    digit: PlacedGlyph
    glyphs: tuple[PlacedGlyph, ...]


@register_source("finescenes")
class FineScenes(DrawnSource[FineScenesOptions]):
    """The source ``finescenes``.

    Targets: ``read.label`` int64 [N, G], ``read.box`` float32 [N, G, 4] (x1, y1, x2, y2 in [0, 1]), ``read.valid``
    bool [N, G], ``digit.label`` int64 [N], ``digit.box`` float32 [N, 4]. The glyphs are also the foreground of
    ``segment`` and what ``count`` counts; ``locate`` asks for the boxes of the digit and of every glyph.

    Raises:
        WorkbenchError: options that no scene can meet.
    """

    options = FineScenesOptions
    version = "finescenes/1"
    group_name = "photograph"

    def __init__(self, options: FineScenesOptions | None = None, folders: Mapping[str, Path] | None = None) -> None:
        self.chosen = options or FineScenesOptions()
        _check(self.chosen)
        self._folders = folders
        self._layouts: dict[str, list[Layout]] = {}

    @functools.cached_property
    def parts(self) -> Parts:
        """Photographs, handwriting and typefaces, read on first use."""
        folders = self._folders
        if folders is None:
            from fusion_workbench.assets import home as assets

            folders = assets.ensure("photographs", "digits", "typefaces")
        return Parts(folders["photographs"], folders["digits"], folders["typefaces"])

    def content(self, split: str) -> str:
        folders = self._folders
        if folders is None:
            from fusion_workbench.assets import home as assets

            folders = assets.ensure("photographs", "digits", "typefaces", thorough=True)
        return content_of(self.fingerprint(split), [folders[name] for name in ("photographs", "digits", "typefaces")])

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        if not facts["fewest"]:
            del facts["fewest"]  # the scenes of before this option was there, and their stored features
        return facts

    def classes(self) -> dict[str, list[str]]:
        return {"read": list(CLASSES), "digit": [str(d) for d in range(10)]}

    # --- layout -------------------------------------------------------------------------------------------------

    def layout(self, split: str, index: int) -> Layout:
        """Scene ``index`` of a split: what stands where."""
        parts, size = self.parts, self.chosen.size
        draw = self.stream(split, index, "layout")
        photograph = int(draw.choice(parts.photographs_of(split)))
        height, width = parts.photograph(photograph).shape[:2]
        side = int(draw.randint(min(size, height, width), min(height, width) + 1))
        crop = (int(draw.randint(width - side + 1)), int(draw.randint(height - side + 1)), side)
        flip = bool(draw.randint(2))
        number = self._number(split, index)
        for _ in range(_TRIES):
            digit = self._digit(draw, split)
            glyphs = self._glyphs(draw, split, digit, number)
            if glyphs is not None:
                return Layout(photograph, crop, flip, digit, glyphs)
        raise WorkbenchError(
            f"source.options: {self.chosen.glyphs} glyphs and a digit do not fit into {size} px; name fewer glyphs."
        )

    def _digit(self, draw: np.random.RandomState, split: str) -> PlacedGlyph:
        which = int(draw.choice(self.parts.handwriting_of(split)))
        side = self._scaled(int(draw.randint(DIGIT_SIDE[0], DIGIT_SIDE[1] + 1)))
        left, top = self._corner(draw, side, side)
        return PlacedGlyph(which, self.parts.handwriting_label(which), left, top, side, side)

    def _number(self, split: str, index: int) -> int:
        """How many glyphs the scene holds; a stream of its own, so that the default scenes stay what they were."""
        if not self.chosen.fewest:
            return self.chosen.glyphs
        return int(self.stream(split, index, "number").randint(self.chosen.fewest, self.chosen.glyphs + 1))

    def _glyphs(
        self, draw: np.random.RandomState, split: str, digit: PlacedGlyph, number: int
    ) -> tuple[PlacedGlyph, ...] | None:
        placed = [digit]
        for _ in range(number):
            face = int(draw.choice(self.parts.typefaces_of(split)))
            label = int(draw.randint(len(CLASSES)))
            height = self._scaled(int(draw.randint(GLYPH_HEIGHT[0], GLYPH_HEIGHT[1] + 1)))
            width = self.parts.glyph_width(face, label, height)
            for _ in range(50):
                glyph = PlacedGlyph(face, label, *self._corner(draw, width, height), width, height)
                if all(glyph.apart(other) for other in placed):
                    placed.append(glyph)
                    break
            else:
                return None
        return tuple(placed[1:])

    def _corner(self, draw: np.random.RandomState, width: int, height: int) -> tuple[int, int]:
        room = self.chosen.size - 2 * GAP + 1
        return GAP + int(draw.randint(room - width)), GAP + int(draw.randint(room - height))

    def _scaled(self, pixels: int) -> int:
        return max(1, (pixels * self.chosen.size + NATIVE // 2) // NATIVE)

    def layouts(self, split: str) -> list[Layout]:
        """Every scene of a split before it is drawn, worked out once."""
        if split not in self._layouts:
            self._layouts[split] = [self.layout(split, index) for index in range(self.size(split))]
        return self._layouts[split]

    # --- what a study reads -------------------------------------------------------------------------------------

    def image(self, split: str, index: int) -> Array:
        """Draw scene ``index``: uint8 ``[size, size, 3]``."""
        self.check_index(split, index)
        scene = self._layouts[split][index] if split in self._layouts else self.layout(split, index)
        colours = _colours(self.stream(split, index, "ink"))
        canvas = self.parts.background(scene.photograph, scene.crop, scene.flip, self.chosen.size)
        _ink(canvas, scene.digit, self.parts.handwriting(scene.digit.which, scene.digit.width), colours)
        for glyph in scene.glyphs:
            _ink(canvas, glyph, self.parts.glyph(glyph.which, glyph.label, glyph.width, glyph.height), colours)
        return canvas

    def targets(self, split: str) -> dict[str, Array]:
        scenes = self.layouts(split)
        size = self.chosen.size
        glyphs, valid = padded([[_box(g, size) for g in scene.glyphs] for scene in scenes])
        labels = np.zeros(valid.shape, np.int64)
        labels[valid] = [g.label for scene in scenes for g in scene.glyphs]
        objects, there = padded([[_box(g, size) for g in (scene.digit, *scene.glyphs)] for scene in scenes])
        draws = [self.stream(split, index, "points") for index in range(len(scenes))]
        return {
            "read.label": labels,
            "read.box": glyphs,
            "read.valid": valid,
            "digit.label": np.array([scene.digit.label for scene in scenes], np.int64),
            "digit.box": np.array([_box(scene.digit, size) for scene in scenes], np.float32),
            "segment.box": glyphs,
            "segment.valid": valid,
            "count.number": valid.sum(1).astype(np.float32),
            "locate.box": objects,
            "locate.valid": there,
            "locate.point": points_inside(objects, draws),
        }

    def identity(self, split: str) -> pd.DataFrame:
        import pandas as pd

        scenes = self.layouts(split)
        return pd.DataFrame(
            {
                "example_id": self.example_ids(split),
                "group": [self.parts.photograph_name(scene.photograph) for scene in scenes],
                "handwriting": [scene.digit.which for scene in scenes],
                "typefaces": [" ".join(sorted({self.parts.typeface_name(g.which) for g in s.glyphs})) for s in scenes],
            }
        )


def _colours(draw: np.random.RandomState) -> Iterator[list[int]]:
    """Red, green and blue, without end; many at a time, which are the numbers that one at a time would be."""
    while True:
        yield from draw.randint(0, 256, (64, 3)).tolist()


def _ink(canvas: Array, where: PlacedGlyph, coverage: Array, colours: Iterator[list[int]]) -> None:
    """Paint ``coverage`` (uint8 [h, w]) in a random colour that stands off from what it covers. Integers only."""
    patch = canvas[where.top : where.top + where.height, where.left : where.left + where.width]
    ground = _luma(np.add.reduce(patch, (0, 1), np.int64).tolist()) // (where.width * where.height)
    # Black or white is always far enough, so this ends.
    colour = next(colour for colour in colours if abs(_luma(colour) - ground) >= CONTRAST)
    alpha = coverage[:, :, None].astype(np.uint16)
    # At most 255 · 255 + 127: sixteen bits hold it.
    patch[:] = (patch * (255 - alpha) + np.array(colour, np.uint16) * alpha + 127) // 255


def _luma(colour: Sequence[int]) -> int:
    """ITU-R BT.601 luma in integers."""
    red, green, blue = colour
    return (299 * red + 587 * green + 114 * blue) // 1000


def _box(placed: PlacedGlyph, size: int) -> tuple[float, float, float, float]:
    left, top = placed.left, placed.top
    return left / size, top / size, (left + placed.width) / size, (top + placed.height) / size


def _check(options: FineScenesOptions) -> None:
    check_sizes(options)
    if not 56 <= options.size <= 300:
        raise WorkbenchError(f"source.options.size is {options.size}; scenes are 56 to 300 px.")
    if not 1 <= options.glyphs <= 12:
        raise WorkbenchError(f"source.options.glyphs is {options.glyphs}; a scene holds 1 to 12.")
    if not 0 <= options.fewest <= options.glyphs:
        raise WorkbenchError(
            f"source.options.fewest is {options.fewest}; it must be 0 (always {options.glyphs} glyphs) or 1 to "
            f"{options.glyphs}."
        )
