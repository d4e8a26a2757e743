"""Tree crowns: four real aerial photographs with 951 boxes drawn by hand, cut into tiles.

The photographs come with DeepForest (Weinstein et al., Remote Sensing 2019, 11(11) 1309; MIT licence): airborne images
of the National Ecological Observatory Network, 0.1 m per pixel, at Yellowstone (two), Ordway-Swisher (Florida) and
Soaproot Saddle (California). Whole photographs go to training, validation or test, so nothing of a test photograph is
ever seen before. Four photographs are few: what a study finds here holds for these photographs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.boxes import Box, padded, points_inside
from fusion_workbench.datamodules.sources.base import Array, register_source
from fusion_workbench.datamodules.sources.drawn import DrawnSource, check_sizes, content_of
from fusion_workbench.datamodules.transforms import load_image

if TYPE_CHECKING:
    import pandas as pd

# Yellowstone is learned and tested on two photographs; validation is in Florida, so that picks are not fitted to it.
PHOTOGRAPHS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "SOAP_061"),
    "val": ("OSBS_029",),
    "test": ("2019_YELL_2_541000_4977000_image_crop",),
}
SEEN = 0.5  # share of a crown's box that must lie in a tile for the crown to count there


@dataclass(frozen=True)
class CrownsOptions:
    """What ``source.options`` may say."""

    train: int = 800
    val: int = 200
    test: int = 400
    size: int = 112  # pixels of a tile's side, as the encoder reads it
    span: int = 160  # pixels of the photograph that it covers
    seed: int = 0


@dataclass(frozen=True)
class Tile:
    """Where a tile lies in its photograph, and how it is turned: rotations by 90° and a flip, as seen from above."""

    photograph: str
    left: int
    top: int
    turns: int
    flip: bool


@register_source("crowns")
class Crowns(DrawnSource[CrownsOptions]):
    """The source ``crowns``. A tile is placed at random around a crown drawn at random, so each holds one at least.

    A crown counts in a tile when half of its box lies in it, and its box is clipped at the tile's edge.

    Targets, with G the most crowns of a tile: ``segment.box`` and ``locate.box`` float32 [N, G, 4] (x1, y1, x2, y2 in
    [0, 1]), ``segment.valid`` and ``locate.valid`` bool [N, G], ``locate.point`` float32 [N, G, 2] (a point in the
    middle half of each box), ``count.number`` float32 [N].

    Raises:
        WorkbenchError: options that no tile can meet.
    """

    options = CrownsOptions
    version = "crowns/1"
    group_name = "photograph"

    def __init__(self, options: CrownsOptions | None = None, folders: Mapping[str, Path] | None = None) -> None:
        self.chosen = options or CrownsOptions()
        _check(self.chosen)
        self._folders = folders
        self._tiles: dict[str, list[Tile]] = {}

    @functools.cached_property
    def folder(self) -> Path:
        """The photographs and their annotations, fetched on first use."""
        if self._folders is not None:
            return self._folders["crowns"]
        from fusion_workbench.assets import home as assets

        return assets.ensure("crowns")["crowns"]

    def content(self, split: str) -> str:
        folders = self._folders
        if folders is None:
            from fusion_workbench.assets import home as assets

            folders = assets.ensure("crowns", thorough=True)
        return content_of(self.fingerprint(split), [folders["crowns"]])

    @functools.cache  # noqa: B019 - one source per process
    def photograph(self, name: str) -> Array:
        """A photograph, uint8 ``[H, W, 3]``."""
        return load_image(self.folder / f"{name}.png")

    @functools.cache  # noqa: B019 - one source per process
    def crowns(self, name: str) -> Array:
        """The crowns of a photograph, int64 ``[crowns, 4]`` (x1, y1, x2, y2 in pixels), from its Pascal VOC file."""
        boxes = ElementTree.parse(self.folder / f"{name}.xml").getroot().iterfind("object/bndbox")
        corners = ("xmin", "ymin", "xmax", "ymax")
        return np.array([[int(box.findtext(corner, "0")) for corner in corners] for box in boxes], np.int64)

    def classes(self) -> dict[str, list[str]]:
        return {"segment": ["ground", "crown"]}

    # --- tiles --------------------------------------------------------------------------------------------------

    def tile(self, split: str, index: int) -> Tile:
        """Tile ``index`` of a split: the same whatever the number of tiles."""
        self.check_index(split, index)
        draw, span = self.stream(split, index, "tile"), self.chosen.span
        every = [(name, crown) for name in PHOTOGRAPHS[split] for crown in self.crowns(name)]
        name, (x1, y1, x2, y2) = every[int(draw.randint(len(every)))]
        height, width = self.photograph(name).shape[:2]
        left = _around(draw, int(x1), int(x2), span, width)
        top = _around(draw, int(y1), int(y2), span, height)
        return Tile(name, left, top, int(draw.randint(4)), bool(draw.randint(2)))

    def boxes(self, tile: Tile) -> list[Box]:
        """The crowns that count in a tile, clipped at its edge and turned with it."""
        span = self.chosen.span
        crowns = self.crowns(tile.photograph).astype(np.float64)
        inside = (crowns - [tile.left, tile.top, tile.left, tile.top]).clip(0, span)
        share = _areas(inside) / _areas(crowns)
        corners = inside[share >= SEEN] / span
        for _ in range(tile.turns):  # counter-clockwise: (x, y) → (y, 1 - x)
            x1, y1, x2, y2 = corners.T
            corners = np.stack([y1, 1 - x2, y2, 1 - x1], 1)
        if tile.flip:
            x1, y1, x2, y2 = corners.T
            corners = np.stack([1 - x2, y1, 1 - x1, y2], 1)
        return [tuple(map(float, box)) for box in corners]  # type: ignore[misc]

    def image(self, split: str, index: int) -> Array:
        """Tile ``index``: uint8 ``[size, size, 3]``."""
        tile, span, size = self.tile(split, index), self.chosen.span, self.chosen.size
        cut = self.photograph(tile.photograph)[tile.top : tile.top + span, tile.left : tile.left + span]
        turned = np.rot90(cut, tile.turns)
        turned = turned[:, ::-1] if tile.flip else turned
        picture = Image.fromarray(np.ascontiguousarray(turned))
        return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))

    def targets(self, split: str) -> dict[str, Array]:
        tiles = self._all(split)
        boxes, valid = padded([self.boxes(tile) for tile in tiles])
        draws = [self.stream(split, index, "points") for index in range(len(tiles))]
        return {
            "segment.box": boxes,
            "segment.valid": valid,
            "count.number": valid.sum(1).astype(np.float32),
            "locate.box": boxes,
            "locate.valid": valid,
            "locate.point": points_inside(boxes, draws),
        }

    def identity(self, split: str) -> pd.DataFrame:
        import pandas as pd

        tiles = self._all(split)
        return pd.DataFrame(
            {
                "example_id": self.example_ids(split),
                "group": [tile.photograph for tile in tiles],
                "left": [tile.left for tile in tiles],
                "top": [tile.top for tile in tiles],
            }
        )

    def _all(self, split: str) -> list[Tile]:
        if split not in self._tiles:
            self._tiles[split] = [self.tile(split, index) for index in range(self.size(split))]
        return self._tiles[split]


def _around(draw: np.random.RandomState, low: int, high: int, span: int, room: int) -> int:
    """A start in ``0 … room - span`` from which ``span`` pixels hold ``low … high``, or its middle if it is longer."""
    if high - low > span:
        low = high = (low + high) // 2
    first, last = max(0, high - span), min(low, room - span)
    return first + int(draw.randint(max(0, last - first) + 1))


def _areas(boxes: Array) -> Array:
    areas: Array = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return areas


def _check(options: CrownsOptions) -> None:
    check_sizes(options)
    if not 28 <= options.size <= 1024:
        raise WorkbenchError(f"source.options.size is {options.size}; tiles are 28 to 1024 px.")
    if not 64 <= options.span <= 400:
        raise WorkbenchError(
            f"source.options.span is {options.span}; a tile covers 64 to 400 px, the side of the smallest photograph."
        )
