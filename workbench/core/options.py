"""Options of what is registered by name: from a study's plain mapping into a dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.core.parse import as_number, truth_hint


def read_options(owner: str, kind: type[Any], options: Mapping[str, Any]) -> Any:
    """The dataclass ``kind``, filled from ``options``; ``owner`` is who has them, such as ``strategy 'concat'``.

    Raises:
        WorkbenchError: an unknown option, or a value of the wrong type.
    """
    types = get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    values = {}
    for key, value in options.items():
        if key not in names:
            hint = nearest(key, names) or " It has none."
            raise WorkbenchError(f"{owner} has no option '{key}'.{hint}")
        values[key] = _typed(value, types[key], f"option '{key}' of {owner}")
    return kind(**values)


def _typed(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind``: bool, int, float, str, Literal words, or a union of them with None.

    Whole floats pass for int. A string that is none of the words is answered with the nearest of them.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = [word for one in kinds if get_origin(one) is Literal for word in get_args(one)]
    if isinstance(value, str) and value in words:
        return value
    for one in kinds:
        if one in (NoneType, bool, str) and isinstance(value, one):
            return value
        if isinstance(value, bool):
            continue
        if one is int and isinstance(value, int | float) and math.isfinite(value) and value == int(value):
            return int(value)
        if one is float and isinstance(value, int | float):
            return float(value)
    number = as_number(value) if isinstance(value, str) and {int, float} & {*kinds} else None
    if number is not None:  # such as 1e-3, which YAML 1.1 takes for a word
        return _typed(number, kind, where)
    if isinstance(value, str) and words:
        raise WorkbenchError(f"{where} is '{value}'.{nearest(value, words)}")
    names = [f"'{word}'" for word in words] + [
        "nothing" if one is NoneType else one.__name__ for one in kinds if get_origin(one) is not Literal
    ]
    hint = truth_hint(value) if bool in kinds else ""
    raise WorkbenchError(f"{where} is {value!r}; it takes {' or '.join(names)}.{hint}")
