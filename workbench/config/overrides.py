"""``key=value`` on the command line, and what OmegaConf says of it in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

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


def refuse_unquoted(schema: Any, key: str, value: Any, where: str) -> None:
    """A key that takes a word is not let have what YAML took for something else, in which its spelling is lost.

    Args:
        schema: the dataclass that has the key.
        where: names the key in the message.

    Raises:
        WorkbenchError: a number with a point (``revision: 1.10`` is 1.1), or true or false, where a word is meant.
    """
    kind = next((str(f.type) for f in fields(schema) if f.name == key), "")
    values = value if kind == "list[str]" and isinstance(value, list) else [value]
    wrong = [one for one in values if kind in ("str", "str | None", "list[str]") and isinstance(one, bool | float)]
    if wrong:
        what = "true or false" if isinstance(wrong[0], bool) else "a number"
        raise WorkbenchError(f"{where} takes words, and YAML reads {what} there; put it in quotes as it is meant.")


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
    key = rename_override(key, parsed)
    _check_override_key(config, key, parsed)
    try:
        OmegaConf.update(config, key, parsed, merge=True)
    except (OmegaConfBaseException, IndexError, TypeError) as error:
        raise WorkbenchError(explain(error, f"override '{override}'")) from None
    return key, parsed


def _check_override_key(config: Any, key: str, value: Any) -> None:
    """Walk ``key`` down the schema; the first unknown part is answered with the nearest known ones."""
    node = config
    walked: list[str] = []
    parts = path_of(key)
    for part in parts:
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
            if is_dataclass(kind):
                refuse_unquoted(kind, part, value if part == parts[-1] else None, f"override '{key}'")
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
