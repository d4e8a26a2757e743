"""Sources: where samples come from. Image, targets, identity, and the group that a split must not cut through.

A source is built by name with :func:`datamodules.build.build_source`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.core.registry import Registry, check_options

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "val", "test")
Array = np.ndarray[Any, Any]


class Source(ABC):
    """Samples in three splits, each made or read by its index alone."""

    name: ClassVar[str]
    options: ClassVar[type]  # a dataclass; what a study's source.options may say
    version: str  # changes whenever any byte of any sample would
    group_name: ClassVar[str] = "group"  # what a group is: photograph, document, speaker

    @property
    @abstractmethod
    def image_size(self) -> int | tuple[int, int]:
        """Pixels of the images: of a side of the square, or height and width."""

    @abstractmethod
    def size(self, split: str) -> int:
        """How many samples the split has."""

    @abstractmethod
    def fingerprint(self, split: str) -> str:
        """sha256 over the version and every option that decides the bytes of the split's samples."""

    def content(self, split: str) -> str:
        """sha256 over the bytes of the split's images, read in full: what a study holds against its earlier runs.

        Every image is read here; a source that knows the files that its images are made of hashes these.

        Raises:
            WorkbenchError: an image cannot be read, or what it is made of was altered.
        """
        sha = hashlib.sha256(self.fingerprint(split).encode())
        for index in range(self.size(split)):
            try:
                image = np.ascontiguousarray(self.image(split, index))
            except (OSError, SyntaxError, ValueError) as error:  # of whatever decodes it
                raise WorkbenchError(
                    f"image {index} in the {split} split of source '{self.name}' cannot be read: "
                    f"{type(error).__name__}: {first_line(error)}"
                ) from None
            sha.update(f"{image.dtype} {image.shape}".encode())
            sha.update(image.data)
        return sha.hexdigest()

    @abstractmethod
    def image(self, split: str, index: int) -> Array:
        """One image, uint8 ``[H, W, 3]``."""

    @abstractmethod
    def targets(self, split: str) -> dict[str, Array]:
        """The targets of all samples, first axis = sample. Renders nothing."""

    @abstractmethod
    def identity(self, split: str) -> pd.DataFrame:
        """One row per sample: ``example_id``, ``group``, and what else distinguishes samples."""

    @abstractmethod
    def classes(self) -> dict[str, list[str]]:
        """The class names of each task that the source has labels for."""


SOURCES: Registry[type[Source]] = Registry(
    "source",
    "sources",
    group="fusion_workbench.sources",
    base=Source,
    decorator="@register_source('a_name')",
    requires=("options",),
)
S = TypeVar("S", bound=type[Source])


def register_source(name: str) -> Callable[[S], S]:
    """Class decorator that makes a source known under ``name``.

    Raises:
        WorkbenchError: the name is taken by another class, the class is no Source or lacks something of one, or its
            options are no dataclass with defaults.
    """

    def add(cls: S) -> S:
        SOURCES.check(name, cls)
        check_options(f"source '{name}'", cls.options)
        SOURCES.add(name, cls, cls)
        cls.name = name
        return cls

    return add
