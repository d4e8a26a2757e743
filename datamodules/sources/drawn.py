"""What sources have in common whose samples are drawn from a seed: sizes, fingerprints, names and streams of numbers.

Sample ``i`` of a split is the same bytes on every machine and does not depend on how many samples there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import Field, asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from fusion_workbench.assets.manifest import MANIFEST
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.sources.base import SPLITS, Array, Source
from fusion_workbench.system.checksums import sha256_of


class DrawnOptions(Protocol):
    """The options that every such source has; a dataclass with one more for each split, the number of its samples."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def size(self) -> int: ...  # pixels of the image's side
    @property
    def seed(self) -> int: ...


MOST_SAMPLES = 10_000_000  # of a split

O = TypeVar("O", bound=DrawnOptions)  # noqa: E741 - options


class DrawnSource(Source, Generic[O]):
    """A source whose samples are a function of its version, its options, the split and the index.

    Attributes:
        chosen: the options; a subclass sets and checks them.
    """

    chosen: O

    @property
    def image_size(self) -> int:
        return self.chosen.size

    def size(self, split: str) -> int:
        return int(getattr(self.chosen, split))

    def fingerprint(self, split: str) -> str:
        return hashlib.sha256(f"{self.version}|{split}|{sorted(self.facts().items())}".encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """The options that decide the bytes of a sample."""
        return {key: value for key, value in asdict(self.chosen).items() if key not in SPLITS}

    def example_ids(self, split: str) -> list[str]:
        """The name of each sample of a split."""
        return example_ids(split, self.size(split))

    def check_index(self, split: str, index: int) -> None:
        """Raises IndexError for a sample that the split does not have."""
        if not 0 <= index < self.size(split):
            raise IndexError(f"sample {index} of {self.size(split)} in '{split}'")

    def stream(self, split: str, index: int, purpose: str) -> np.random.RandomState:
        """The random numbers of a sample for one purpose."""
        return frozen_stream(self.version, self.chosen.seed, split, index, purpose)


class _Unseeded(ISeedSequence):
    """Stands for a seed that is given later: to work one out for every sample takes longer than to draw its ink."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Array:
        return np.zeros(n_words, dtype)


def frozen_stream(*words: object) -> np.random.RandomState:
    """Random numbers that are a function of ``words``. RandomState, not Generator: its stream is frozen for good."""
    digest = hashlib.sha256("|".join(map(str, words)).encode()).digest()
    stream = np.random.RandomState(np.random.MT19937(_Unseeded()))  # type: ignore[arg-type]  # it takes any ISeedSequence
    stream.seed(np.frombuffer(digest, dtype="<u4"))
    return stream


def example_ids(split: str, size: int) -> list[str]:
    """The name of each of ``size`` samples."""
    return [f"{split}-{index:05d}" for index in range(size)]


def content_of(fingerprint: str, folders: Iterable[Path]) -> str:
    """sha256 over a split's fingerprint and every byte of the files that its samples are drawn from."""
    sha = hashlib.sha256(fingerprint.encode())
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            sha.update(f"{path.parent.name}/{path.name} {sha256_of(path)}".encode())
    return sha.hexdigest()


def check_sizes(options: object) -> None:
    """Raises WorkbenchError unless the options ask for a sample at least of each split, and not too many."""
    for split in SPLITS:
        size = getattr(options, split)
        if size < 1:
            raise WorkbenchError(f"source.options.{split} is {size}; it must be at least 1.")
        if size > MOST_SAMPLES:
            raise WorkbenchError(
                f"source.options.{split} is {size:,}; it must be at most {MOST_SAMPLES:,}: each is held in memory."
            )
