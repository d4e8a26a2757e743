"""One meaning for each of our package names.

``workbench``, ``modules``, ``datamodules``, ``sweeps`` and ``reports`` are common words. A package of the
user's own under one of them would stand in for ours, or ours for theirs, without a word. So importing
``workbench`` checks all five names, importing any of the others checks its own, and what Python could confuse
raises :class:`ShadowedError`.

A folder without ``__init__.py`` (a folder of finished reports, say) cannot stand in for a package and does
not count, unless it holds a module that ours has too, or one that is asked for and that only it has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from workbench.errors import WorkbenchError

NAMES = ("workbench", "modules", "datamodules", "sweeps", "reports")
HOME = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))
_MARK = b"workbench.guard"  # what every __init__.py of ours says
_REMEDY = (
    "Python imports one of them under that name, so one would silently stand in for the other. Rename the "
    "other, take its folder off the import path (PYTHONPATH, the folder of the script, the current folder), "
    "or give the workbench a virtual environment of its own."
)


class ShadowedError(WorkbenchError, ImportError):
    """One of our names means two things here; the message names both places and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.name = "workbench"  # with it, `python -m workbench` prints the message without a traceback


def check() -> None:
    """All five names, in well under 5 ms and without importing any of them. Raises ShadowedError."""
    if _MissingHere not in sys.meta_path:
        sys.meta_path.append(_MissingHere)
    _refuse(NAMES)


def claim(name: str, file: str) -> None:
    """For the ``__init__.py`` at ``file``: ``name`` is this workbench's, and no other is in sight.

    Raises:
        ShadowedError: another package of that name, or one from another copy of the workbench.
    """
    if os.path.realpath(os.path.dirname(os.path.dirname(file))) != HOME:
        raise ShadowedError(
            f"two copies of the workbench are mixed: '{name}' comes from {os.path.dirname(file)}, "
            f"'workbench' from {os.path.join(HOME, 'workbench')}. Keep one of the two on the import path."
        )
    _refuse((name,))


def other(name: str) -> str | None:
    """Where Python finds, or could find, another ``name`` than ours; None when there is no other."""
    found = _resolve(name)
    if found is not None and not _ours(name, found):
        return found
    try:
        with open(os.path.join(HOME, name, "__init__.py"), "rb") as file:
            if _MARK not in file.read():
                return f"what was installed over it ({file.name} is not the workbench's)"
    except OSError:
        pass  # not a plain file: nothing was unpacked over it
    return next(_elsewhere(name), None)


def _refuse(names: Sequence[str]) -> None:
    found = [(name, place) for name in names if (place := other(name))]
    if found:
        pairs = "; ".join(f"'{name}' is {os.path.join(HOME, name)} and {place}" for name, place in found)
        raise ShadowedError(f"a package name of the workbench is taken twice: {pairs}. {_REMEDY}")


def _resolve(name: str) -> str | None:
    """What ``import name`` gives, or would give, without importing it."""
    module = sys.modules.get(name)
    if module is not None:
        return _place(getattr(module, "__spec__", None)) or getattr(module, "__file__", None)
    for finder in sys.meta_path:
        spec = finder.find_spec(name, None) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return _place(spec)
    return None


def _elsewhere(name: str) -> Iterator[str]:
    """Every other place that holds ``name``, wherever on the import path it comes."""
    specs = [PathFinder.find_spec(name, [entry]) for entry in sys.path]
    for finder in sys.meta_path:  # editable installs come through finders of their own
        if finder is not PathFinder and hasattr(finder, "find_spec"):
            specs.append(finder.find_spec(name, None))
    for spec in specs:
        place = _place(spec)
        if spec is None or place is None or _ours(name, place) or _is_copy(place):
            continue
        if _regular(spec) or _common(name, place):
            yield place


def _regular(spec: ModuleSpec) -> bool:
    return spec.origin is not None and spec.origin != "namespace"


def _place(spec: ModuleSpec | None) -> str | None:
    if spec is None:
        return None
    return spec.origin if _regular(spec) else next(iter(spec.submodule_search_locations or ()), None)


def _ours(name: str, place: str) -> bool:
    home = os.path.realpath(os.path.join(HOME, name))
    return home in (os.path.realpath(place), os.path.realpath(os.path.dirname(place)))


def _is_copy(place: str) -> bool:
    """Whether ``place`` is another copy of the workbench: the first on the path serves, whole, as ever."""
    try:
        with open(place, "rb") as file:
            return os.path.basename(place) == "__init__.py" and _MARK in file.read()
    except OSError:
        return False


def _common(name: str, folder: str) -> bool:
    """Whether a folder without ``__init__.py`` holds a module that our package has too."""
    try:
        shared = set(os.listdir(folder)) & set(os.listdir(os.path.join(HOME, name)))
    except OSError:
        return False
    return any(file.endswith(".py") for file in shared)


class _MissingHere:
    """The last of the finders: asked for ``modules.net`` when ours has none, it looks for the user's own."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        name, _, rest = fullname.partition(".")
        if name not in NAMES or not rest:
            return
        for entry in sys.path:
            wanted = os.path.join(os.path.abspath(entry), name, *rest.split("."))
            theirs = next((p for p in (wanted + ".py", wanted) if os.path.exists(p)), None)
            if theirs and not theirs.startswith(os.path.join(HOME, "")):
                raise ShadowedError(
                    f"'{fullname}' is {theirs}, but '{name}' is the workbench's {os.path.join(HOME, name)}, "
                    f"which has none. {_REMEDY}"
                )
