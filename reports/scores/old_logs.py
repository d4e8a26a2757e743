"""What lmms-eval wrote before 0.2: a file a task, one JSON object of ``args``, ``model_configs`` and ``logs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def task_of_header(header: Mapping[str, Any]) -> str:
    """The task that the file names; empty: none."""
    return _word(header.get("model_configs"), "task")


def system_of(header: Mapping[str, Any]) -> str:
    """The weights that were evaluated, as ``--model_args`` has them, or the kind of model; empty: not said."""
    args = header.get("args")
    options = dict(part.partition("=")[::2] for part in _word(args, "model_args").split(","))
    return options.get("pretrained") or options.get("model_version") or _word(args, "model")


def _word(values: Any, key: str) -> str:
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, str) else ""
