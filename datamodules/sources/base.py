"""Sources: where samples come from. Image, targets, identity, and the group that a split must not cut through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from fusion_workbench.core.errors import WorkbenchError, nearest

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

    @abstractmethod
    def image(self, split: str, index: int) -> Array:
        """One image, uint8 ``[H, W, 3]``."""

    @abstractmethod
    def targets(self, split: str) -> dict[str, Array]:
        """The targets of all samples, first axis = sample. Renders nothing."""

    @abstractmethod
    def identity(self, split: str) -> pd.DataFrame:
        """A row a sample: ``example_id``, ``group``, and what else tells samples apart."""

    @abstractmethod
    def classes(self) -> dict[str, list[str]]:
        """The class names of each task that the source has labels for."""


SOURCES: dict[str, type[Source]] = {}
S = TypeVar("S", bound=type[Source])


def register_source(name: str) -> Callable[[S], S]:
    """Class decorator: make a source known under ``name``."""

    def add(cls: S) -> S:
        cls.name = name
        SOURCES[name] = cls
        return cls

    return add


def build_source(name: str, options: Mapping[str, Any], folders: Mapping[str, Path] | None = None) -> Source:
    """The source ``name`` with ``options``; ``folders`` stands in for the embedded assets.

    Raises:
        WorkbenchError: an unknown source or option, or an option of the wrong type or value.
    """
    import fusion_workbench.datamodules.conversations.finescenes  # each registers itself
    import fusion_workbench.datamodules.conversations.planted
    import fusion_workbench.datamodules.rows.hub
    import fusion_workbench.datamodules.rows.llava
    import fusion_workbench.datamodules.sources.crowns
    import fusion_workbench.datamodules.sources.finescenes
    import fusion_workbench.datamodules.sources.planted  # noqa: F401

    if name not in SOURCES:
        raise WorkbenchError(f"unknown source '{name}'.{nearest(name, SOURCES)}")
    cls = SOURCES[name]
    assert is_dataclass(cls.options)
    known = {f.name: f for f in fields(cls.options)}
    for key, value in options.items():
        if key not in known:
            raise WorkbenchError(f"source.options: unknown key '{key}' of '{name}'.{nearest(key, known)}")
        wanted = type(_default(known[key]))
        whole = wanted is float and type(value) is int
        if type(value) is not wanted and not whole:
            raise WorkbenchError(f"source.options.{key} is {value!r}; it must be of type {wanted.__name__}.")
    return cls(cls.options(**options), folders)  # type: ignore[call-arg]


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()
