"""A source from its name and options. Importing this file registers the sources that come with the workbench."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.core.parse import as_number, truth_hint
from fusion_workbench.datamodules.conversations import finescenes as questions  # noqa: F401  (each registers its source)
from fusion_workbench.datamodules.conversations import planted as planted_questions  # noqa: F401
from fusion_workbench.datamodules.rows import hub, llava  # noqa: F401
from fusion_workbench.datamodules.sources import crowns, finescenes, planted  # noqa: F401
from fusion_workbench.datamodules.sources.base import SOURCES, Source

__all__ = ["SOURCES", "build_source"]


def build_source(name: str, options: Mapping[str, Any], folders: Mapping[str, Path] | None = None) -> Source:
    """The source ``name`` with ``options``; ``folders`` stands in for the embedded assets.

    Raises:
        WorkbenchError: an unknown source or option, or an option of the wrong type or value.
    """
    cls = SOURCES.find(name)
    fields_of = {f.name: f for f in fields(cls.options)}
    for key, value in options.items():
        if key not in fields_of:
            raise WorkbenchError(f"source.options: unknown key '{key}' of '{name}'.{nearest(key, fields_of)}")
        expected = type(_default(fields_of[key]))
        number = as_number(value) if isinstance(value, str) and expected in (int, float) else None
        if number is not None and (expected is float or isinstance(number, int)):  # such as 1e-3
            options = {**options, key: number}
            continue
        is_int_for_float = expected is float and type(value) is int
        if type(value) is not expected and not is_int_for_float:
            raise WorkbenchError(
                f"source.options.{key} is {value!r}; it must be of type {expected.__name__}."
                + (truth_hint(value) if expected is bool else " Quote it." if expected is str else "")
            )
    return cls(cls.options(**options), folders)  # type: ignore[call-arg]


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()
