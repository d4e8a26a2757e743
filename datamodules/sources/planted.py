"""Planted: tiny images that name their own class and noise, for studies whose true layers are known.

With the encoder of :mod:`modules.encoders.planted` they make hidden states that are noise but for known layers. No
picture, no download: a study of seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusion_workbench.datamodules.sources.base import Array, Source, register_source
from fusion_workbench.datamodules.sources.drawn import check_sizes, example_ids

if TYPE_CHECKING:
    import pandas as pd

SIDE = 8  # pixels
CLASSES = 9  # three times three: a half in each of two layers


@dataclass(frozen=True)
class PlantedOptions:
    """How many images each split has; ``seed`` makes other ones."""

    train: int = 384
    val: int = 192
    test: int = 256
    seed: int = 0


@register_source("planted")
class Planted(Source):
    """``image[0, 0]`` is (class, 0, 0), ``image[0, 1:3]`` are six bytes of noise seed; all else is 0."""

    options = PlantedOptions
    version = "planted/1"
    group_name = "image"

    def __init__(self, options: PlantedOptions | None = None, folders: Mapping[str, Path] | None = None) -> None:
        chosen = options or PlantedOptions()
        self.sizes = {"train": chosen.train, "val": chosen.val, "test": chosen.test}
        check_sizes(chosen)
        self.seed = chosen.seed

    @property
    def image_size(self) -> int:
        return SIDE

    def size(self, split: str) -> int:
        return self.sizes[split]

    def fingerprint(self, split: str) -> str:
        return hashlib.sha256(f"{self.version} {split} {self.sizes[split]} {self.seed}".encode()).hexdigest()

    def image(self, split: str, index: int) -> Array:
        pixels = self._drawn(split, index)
        image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        image[0, 0, 0] = pixels[0] % CLASSES
        image[0, 1:3] = np.frombuffer(pixels[1:7], dtype=np.uint8).reshape(2, 3)
        return image

    def targets(self, split: str) -> dict[str, Array]:
        labels = [self._drawn(split, index)[0] % CLASSES for index in range(self.size(split))]
        return {"digit.label": np.array(labels, dtype=np.int64)}

    def identity(self, split: str) -> pd.DataFrame:
        import pandas as pd

        names = example_ids(split, self.size(split))
        return pd.DataFrame({"example_id": names, "group": names})

    def classes(self) -> dict[str, list[str]]:
        return {"digit": [f"{a}{b}" for a in "abc" for b in "xyz"]}

    def _drawn(self, split: str, index: int) -> bytes:
        """32 bytes that decide everything of one image. 252 = 28 · 9 makes the classes equally likely."""
        for attempt in range(100):
            digest = hashlib.sha256(f"{self.version} {split} {index} {self.seed} {attempt}".encode()).digest()
            if digest[0] < 252:
                return digest
        raise AssertionError("a byte above 251 a hundred times")
