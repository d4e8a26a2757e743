"""The code of plug-ins: a hash over the files of the package that one comes from, by which a study knows it again."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

OWN = "fusion_workbench"
SUFFIXES = frozenset({".py", ".pyx", ".so", ".pyd", ".dll", ".dylib", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h"})

_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # class or function → its hash


def code_hash(owner: type[Any] | Any) -> str:
    """12 hex digits over the code of a class or function from outside the workbench; empty for the workbench's own.

    Hashed is every file of code of its top-level package (``my_package`` for ``my_package.fusers.mine``), or the file
    of its module where that is in no package: a helper that it calls may be anywhere in its package. What the package
    itself imports from others is not; versions of libraries are recorded beside.
    """
    while isinstance(owner, functools.partial):
        owner = owner.func
    top = str(getattr(owner, "__module__", "") or "").partition(".")[0]
    if top in {OWN, "builtins"}:
        return ""
    if owner not in _known:
        _known[owner] = _hashed(owner, top)
    return _known[owner]


def _hashed(owner: Any, top: str) -> str:
    sha = hashlib.sha256()
    for name, path in _files(top):
        sha.update(name.encode())
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    if not _files(top):  # typed into a session
        try:
            sha.update(inspect.getsource(owner).encode())
        except (OSError, TypeError):
            sha.update(f"{owner.__module__}.{owner.__qualname__}".encode())
    return sha.hexdigest()[:12]


def _files(top: str) -> list[tuple[str, Path]]:
    """The files of code of a package or module, by their names in it."""
    module = sys.modules.get(top)
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    found = {
        path.relative_to(folder).as_posix(): path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES and path.is_file() and "__pycache__" not in path.parts
    }
    file = getattr(module, "__file__", None)
    if not folders and file and Path(file).is_file():
        found[Path(file).name] = Path(file)
    return sorted(found.items())
