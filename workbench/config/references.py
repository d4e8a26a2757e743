"""``${key}`` in a study: it stands for the value of another key of that study, and for nothing else.

OmegaConf also has resolvers, such as ``${oc.env:NAME}``. A study file may come from anybody, and what it resolves to is
tracked: with a ``tracking.uri`` of its own it would send the environment of whoever runs it away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fusion_workbench.core.errors import WorkbenchError

_PLAIN = re.compile(r"\$\{([^${}]*)\}")
_MOST = 1_000_000  # characters of all values once references are written out

Path = tuple[str, ...]


def check_references(plain: Any, where: str) -> None:
    """Hold the references of a study, as it was parsed, against what they may be.

    Raises:
        WorkbenchError: one that asks a resolver, that stands in another, that leads back to itself, or such that the
            values would grow without end.
    """
    referring = [(path, text) for path, text in _words(plain, ()) if "${" in text]
    for path, text in referring:
        key = ".".join(path)
        if _asks(text):
            raise WorkbenchError(
                f"{where}: '{key}' is {text!r}; ${{…}} stands for another key of the study alone. What comes from "
                f'elsewhere, such as the environment, is given on the command line: {key}="$NAME".'
            )
        if "${" in _PLAIN.sub("", text):
            raise WorkbenchError(f"{where}: '{key}' is {text!r}; a reference stands in no other one: write its value.")
    if referring:
        _check_growth(plain, where)


def _words(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _words(inner, (*path, str(key)))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _words(inner, (*path, str(number)))


def _asks(text: str) -> bool:
    """Whether a colon stands within ``${…}``: the name of a resolver, then what it is asked."""
    depth, at = 0, 0
    while at < len(text):
        if text.startswith("${", at):
            depth, at = depth + 1, at + 1
        elif text[at] == "}" and depth:
            depth -= 1
        elif text[at] == ":" and depth:
            return True
        at += 1
    return False


def _check_growth(plain: Any, where: str) -> None:
    sizes: dict[Path, int] = {}
    open_: set[Path] = set()

    def size(value: Any, path: Path) -> int:
        """Characters of a value once its references are written out."""
        if path in sizes:
            return sizes[path]
        if path in open_:
            raise WorkbenchError(f"{where}: '{'.'.join(path)}' refers, by way of others, to itself.")
        open_.add(path)
        if isinstance(value, Mapping):
            total = sum(size(inner, (*path, str(key))) for key, inner in value.items())
        elif isinstance(value, list):
            total = sum(size(inner, (*path, str(number))) for number, inner in enumerate(value))
        else:
            total = len(str(value))
            for reference in _PLAIN.findall(value) if isinstance(value, str) else ():
                target = _target(reference, path)
                total += size(_at(plain, target), target)
        open_.discard(path)
        if total > _MOST:
            raise WorkbenchError(f"{where}: '{'.'.join(path)}' grows by its references beyond {_MOST:,} characters.")
        sizes[path] = total
        return total

    try:
        size(plain, ())
    except RecursionError:
        raise WorkbenchError(f"{where}: references lead from one to the next too often; write the values.") from None


def _target(reference: str, path: Path) -> Path:
    """The key that a reference means: ``a.b``, ``a[0].b``; with a dot before it, seen from where it stands."""
    name = reference.strip()
    up = len(name) - len(name.lstrip("."))
    parts = tuple(part for part in name.replace("[", ".").replace("]", "").split(".") if part)
    return (*path[: len(path) - up], *parts) if up else parts


def _at(plain: Any, path: Path) -> Any:
    """What stands there; empty where the file says nothing, and a default does."""
    node = plain
    for part in path:
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return ""
    return node
