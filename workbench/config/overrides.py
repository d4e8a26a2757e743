"""``key=value`` on the command line, and what OmegaConf says of it in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from fusion_workbench.config.aliases import rename_override
from fusion_workbench.config.history import path_of
from fusion_workbench.config.references import check_references
from fusion_workbench.core.errors import WorkbenchError, first_line, nearest
from fusion_workbench.core.parse import parse_yaml


def parse_values(pairs: Sequence[str]) -> dict[str, Any]:
    """``["points=8", "self_attention=false"]`` as a mapping.

    Raises:
        WorkbenchError: what is not key=value, or a key that is given twice.
    """
    check_repeats(pairs)
    return dict(_pair(pair) for pair in pairs)


def check_repeats(overrides: Sequence[str]) -> None:
    """Raises WorkbenchError for two overrides of one key: which of them was meant nobody can tell."""
    seen: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0]
        if (before := seen.setdefault(".".join(path_of(key)), override)) is not override:
            raise WorkbenchError(f"'{key}' is given twice, as '{before}' and '{override}'; keep one.")


def refuse_unquoted(kind: Any, value: Any, where: str, name: str = "") -> None:
    """A key that takes a word is not let have what YAML took for something else, in which its spelling is lost.

    Args:
        kind: the type that is declared: a dataclass for a mapping of keys.
        name: of the key that has ``value``; empty for the whole study.

    Raises:
        WorkbenchError: a number with a point (``revision: 1.10`` is 1.1), or true or false, where a word is meant.
    """
    if kind is str and isinstance(value, bool | float):
        what = "true or false" if isinstance(value, bool) else "a number"
        raise WorkbenchError(f"{where}: '{name}' takes words, and YAML reads {what} there; quote it as it is meant.")
    if is_dataclass(kind) and isinstance(value, Mapping):
        for key, inner in value.items():
            refuse_unquoted(_inside(kind, str(key)), inner, where, f"{name}.{key}" if name else str(key))
    elif get_origin(kind) is list and isinstance(value, list):
        for number, inner in enumerate(value):
            refuse_unquoted(_inside(kind, str(number)), inner, where, f"{name}[{number}]")
    elif get_origin(kind) is UnionType:
        for one in get_args(kind):
            refuse_unquoted(one, value, where, name)


def _inside(kind: Any, part: str) -> Any:
    """The type that is declared for a key of ``kind``, or for the entries of a list; None where there is none."""
    if get_origin(kind) is UnionType:
        return next((found for one in get_args(kind) if (found := _inside(one, part)) is not None), None)
    if get_origin(kind) is list:
        return get_args(kind)[0]
    return get_type_hints(kind).get(part) if is_dataclass(kind) else None


def _pair(override: str) -> tuple[str, Any]:
    key, sep, value = override.partition("=")
    if not sep or not key:
        raise WorkbenchError(f"override '{override}' is not of the form key=value, such as training.epochs=4.")
    where = f"override '{override}'"
    try:
        parsed = parse_yaml(value, where) if value else ""
    except WorkbenchError as error:
        if "control character" in str(error):
            raise
        raise WorkbenchError(f"{where}: the value is not valid YAML{str(error).removeprefix(where)}") from None
    check_references({key: parsed}, where)
    return key, parsed


def apply_override(config: Any, override: str) -> tuple[str, Any]:
    """Set one ``key=value`` in a structured config; returns the key by its name of today, and the value.

    Raises:
        WorkbenchError: an unknown key or a wrong type.
    """
    key, parsed = _pair(override)
    key, parsed = rename_override(key, parsed)
    _check_override_key(config, key)
    kind = OmegaConf.get_type(config)
    for part in path_of(key):
        kind = _inside(kind, part)
    refuse_unquoted(kind, parsed, f"override '{override}'", key)
    try:
        OmegaConf.update(config, key, parsed, merge=True)
    except (OmegaConfBaseException, IndexError, TypeError) as error:
        raise WorkbenchError(explain(error, f"override '{override}'")) from None
    return key, parsed


def _check_override_key(config: Any, key: str) -> None:
    """Walk ``key`` down the schema; the first unknown part is answered with the nearest known ones."""
    node = config
    walked: list[str] = []
    for part in path_of(key):
        if OmegaConf.is_list(node):
            if not part.isdigit() or int(part) >= len(node):
                raise WorkbenchError(
                    f"override '{key}': {'.'.join(walked)} has {len(node)} entries, numbered from 0; '{part}' is none."
                )
            node = node[int(part)]
        elif OmegaConf.is_dict(node):
            kind = OmegaConf.get_type(node)
            if is_dataclass(kind) and part not in node:
                place = f" of '{'.'.join(walked)}'" if walked else ""
                raise WorkbenchError(f"override '{key}': unknown key '{part}'{place}.{nearest(part, map(str, node))}")
            node = node.get(part) if part in node else None
        else:
            return
        walked.append(part)


_PLAIN = {  # what OmegaConf says in words of its own
    "is not a ListConfig": "it must be a list, in brackets",
    "is not a subclass of": "it must be a mapping of keys",
    "is not Optional": "it cannot be null",
}


def explain(error: Exception, where: str) -> str:
    """One line about an error of OmegaConf's, for the user."""
    key = getattr(error, "full_key", None) or getattr(error, "key", None) or ""
    first = first_line(error)
    if isinstance(error, ConfigKeyError):
        return f"{where}: unknown key '{key}'. {first}"
    if isinstance(error, ValidationError):
        plain = next((words for told, words in _PLAIN.items() if told in first), first.rstrip("."))
        return f"{where}: wrong type for '{key}': {plain}."
    return f"{where}: {first}"
