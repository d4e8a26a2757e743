import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fusion_workbench.datamodules.sources.base import Source, register_source


@dataclass(frozen=True)
class HalvesOptions:
    train: int = 64
    val: int = 32
    test: int = 32


@register_source("halves")
class Halves(Source):
    options = HalvesOptions
    version = "halves/1"  # another one whenever a byte of any sample changes
    image_size = 56

    def __init__(self, options, folders=None):
        self.sizes = {"train": options.train, "val": options.val, "test": options.test}

    def size(self, split):
        return self.sizes[split]

    def fingerprint(self, split):  # names the bytes of the split's images: the feature store is kept under it
        return hashlib.sha256(f"{self.version} {split} {self.size(split)}".encode()).hexdigest()

    def image(self, split, index):
        draw = np.random.RandomState([index, *split.encode()])
        image = draw.randint(0, 100, (56, 56, 3)).astype(np.uint8)
        image[:, 28:] += np.uint8(100 * (index % 2))
        image[:, :28] += np.uint8(100 * (1 - index % 2))
        return image

    def targets(self, split):
        return {"side": np.arange(self.size(split), dtype=np.int64) % 2}

    def identity(self, split):
        names = [f"{split}-{index}" for index in range(self.size(split))]
        return pd.DataFrame({"example_id": names, "group": names})

    def classes(self):
        return {"side": ["left", "right"]}
