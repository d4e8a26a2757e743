"""A source of seeded noise, and an encoder that counts, for the tests of the store and the data module."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from fusion_workbench.modules.encoders.encoder import VisionEncoder


class TinySource:
    """Noise images of 56 px; the label of the image is in the brightness of its first rows."""

    version = "tiny/1"
    image_size = 56

    def __init__(self, train: int = 22, val: int = 9, test: int = 10, seed: int = 0) -> None:
        self.sizes = {"train": train, "val": val, "test": test}
        self.seed = seed
        self.drawn: list[tuple[str, int]] = []
        self.threads: set[str] = set()

    def fingerprint(self, split: str) -> str:
        facts = f"{self.version} {split} {self.sizes[split]} {self.seed}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def size(self, split: str) -> int:
        return self.sizes[split]

    def image(self, split: str, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        self.drawn.append((split, index))
        self.threads.add(threading.current_thread().name)
        image = self._random(split, index).integers(0, 200, (56, 56, 3), dtype=np.uint8)
        image[:14] += np.uint8(10 * self._label(split, index))
        return image

    def targets(self, split: str) -> dict[str, np.ndarray[Any, Any]]:
        examples = range(self.size(split))
        labels = np.array([self._label(split, i) for i in examples], dtype=np.int64)
        boxes = np.array([self._random(split, i).random(4) for i in examples], dtype=np.float32)
        return {"digit.label": labels, "digit.box": boxes}

    def identity(self, split: str) -> pd.DataFrame:
        names = [f"{split}/{i}" for i in range(self.size(split))]
        return pd.DataFrame({"example_id": names, "group": [f"{split}-{i % 3}" for i in range(len(names))]})

    def classes(self) -> dict[str, list[str]]:
        return {"digit": [str(i) for i in range(5)]}

    def _label(self, split: str, index: int) -> int:
        return int(self._random(split, index).integers(5))

    def _random(self, split: str, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, len(split), sum(split.encode()), index])


class Counting:
    """An encoder that records its calls."""

    def __init__(self, encoder: VisionEncoder, fingerprint: str | None = None) -> None:
        self.encoder = encoder
        self.name = "tiny"
        self.depth, self.dim, self.image_size = encoder.depth, encoder.dim, encoder.image_size
        self.fingerprint = fingerprint or encoder.fingerprint
        self.calls: list[tuple[int, tuple[int, ...]]] = []  # images, layers

    @property
    def images(self) -> int:
        return sum(images for images, _ in self.calls)

    def grid(self, size: int | None = None) -> tuple[int, int]:
        return self.encoder.grid(size)

    def encode(self, images: np.ndarray[Any, Any] | Tensor, layers: Sequence[int]) -> Tensor:
        self.calls.append((len(images), tuple(layers)))
        return self.encoder.encode(images, layers)
