"""``key=value`` on the command line, and what OmegaConf says of it in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from fusion_workbench.config.aliases import rename_override
from fusion_workbench.core.errors import WorkbenchError, first_line, nearest


def parse_values(pairs: Sequence[str]) -> dict[str, Any]:
    """``["points=8", "self_attention=false"]`` as a mapping. Raises WorkbenchError for what is not key=value."""
    return dict(_pair(pair) for pair in pairs)


def _pair(override: str) -> tuple[str, Any]:
    key, sep, value = override.partition("=")
    if not sep or not key:
        raise WorkbenchError(f"override '{override}' is not of the form key=value, such as training.epochs=4.")
    try:
        return key, yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        raise WorkbenchError(f"override '{override}': the value is not valid YAML.") from None


def apply_override(config: Any, override: str) -> tuple[str, Any]:
    """Set one ``key=value`` in a structured config; returns the key by its name of today, and the value.

    Raises:
        WorkbenchError: an unknown key or a wrong type.
    """
    key, parsed = _pair(override)
    key = rename_override(key, parsed)
    _check_override_key(config, key)
    try:
        OmegaConf.update(config, key, parsed, merge=True)
    except (OmegaConfBaseException, IndexError, TypeError) as error:
        raise WorkbenchError(explain(error, f"override '{override}'")) from None
    return key, parsed


def _check_override_key(config: Any, key: str) -> None:
    """Walk ``key`` down the schema; the first unknown part is answered with the nearest known ones."""
    node = config
    walked: list[str] = []
    for part in key.replace("[", ".").replace("]", "").split("."):
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
