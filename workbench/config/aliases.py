"""Old names of keys, which go on working: reported once as deprecated, and an error beside the new name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from fusion_workbench.config.history import KeyPath, changes_after, move, path_of, places, translate, translated
from fusion_workbench.core.errors import WorkbenchError


class DeprecatedKeyWarning(FutureWarning):
    """A study uses the name that a key had in an earlier version."""


def rename_keys(plain: dict[str, Any], where: str, strategy: str = "") -> None:
    """Give the keys of a study file, or of a strategy's options, the names of today; ``where`` names it in messages.

    Raises:
        WorkbenchError: a key under its old and its new name.
    """
    for changes in changes_after(0, strategy):
        for new, old in changes.renamed.items():
            _rename(plain, path_of(old), path_of(new), where, old, new, changes.values.get(new, {}))


def rename_override(key: str, value: Any) -> tuple[str, Any]:
    """Key and value of an override as they are called today. Old names inside of ``value``, a mapping or a list, are
    renamed in place.

    Raises:
        WorkbenchError: a key under its old and its new name.
    """
    where = f"override '{key}'"
    for changes in changes_after(0):
        for new, old in changes.renamed.items():
            path, start, goal = path_of(key), path_of(old), path_of(new)
            shared = list(zip(start, path, strict=False))
            if not all(part == named or (not part and named.isdigit()) for part, named in shared):
                continue
            values = changes.values.get(new, {})
            if len(path) >= len(start):  # the key itself, or what is inside of it
                value = translated(value, values) if len(path) == len(start) else value
                _tell(where, old, new)
                numbers = iter([named for part, named in shared if not part])
                key = ".".join((*(part or next(numbers) for part in goal), *path[len(start) :]))
            elif start[: len(path)] == goal[: len(path)]:
                _rename(value, start[len(path) :], goal[len(path) :], where, old, new, values)
    return key, value


def _rename(
    plain: Any, start: KeyPath, goal: KeyPath, where: str, old: str, new: str, values: Mapping[Any, Any]
) -> None:
    if start[:-1] == goal[:-1]:
        both = any(start[-1] in holder and goal[-1] in holder for _, holder in places(plain, start))
    else:
        both = all(any(path[-1] in holder for _, holder in places(plain, path)) for path in (start, goal))
    if both:
        raise WorkbenchError(f"{where}: '{old}' is the old name of '{new}'; give one of the two.")
    translate(plain, start, values)
    if move(plain, start, goal):
        _tell(where, old, new)


def _tell(where: str, old: str, new: str) -> None:
    warnings.warn(
        f"{where}: '{old}' is called '{new}' now; the old name is deprecated.", DeprecatedKeyWarning, stacklevel=2
    )
