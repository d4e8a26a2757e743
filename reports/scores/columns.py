"""Which column of a table holds what, and what stands in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_workbench.core.errors import WorkbenchError, nearest

# What a column may be called. A role's own name wins; two of the others need --column.
ROLES: dict[str, tuple[str, ...]] = {
    "system": ("model", "method", "variant", "strategy", "approach", "cell"),
    "example": (
        "example_id",
        "doc_id",
        "question_id",
        "sample_id",
        "item_id",
        "image_id",
        "id",
        "sample",
        "item",
        "image",
        "index",
    ),
    "score": ("value", "correct", "is_correct", "accuracy", "acc"),
    "replicate": ("seed", "run", "rep", "trial"),
    "group": ("cluster", "group_id", "cluster_id"),
    "measure": ("task", "metric", "dataset", "benchmark"),  # several are joined
}
_WORDS = {"true": 1.0, "false": 0.0}
LARGEST = 1e100  # of a score: squares and their sums stay finite


def mapping_of(columns: Sequence[str]) -> dict[str, str]:
    """``ROLE=COLUMN`` options, a role each."""
    out = {}
    for option in columns:
        role, sign, column = option.partition("=")
        if not sign or not column:
            raise WorkbenchError(f"--column {option}: expected ROLE=COLUMN, such as system=model.")
        if role not in ROLES:
            raise WorkbenchError(f"--column {option}: there is no role '{role}'.{nearest(role, ROLES)}")
        out[role] = column
    return out


def number(value: Any, where: str, column: str) -> float:
    """A finite score. Raises WorkbenchError that says where there is none."""
    said = str(value).strip() if value is not None else ""
    try:
        found = _WORDS[said.lower()] if said.lower() in _WORDS else float(said)
    except ValueError:
        found = float("nan")
    if not np.isfinite(found):
        wrong = f"'{said}' is no number" if said else "there is no number"
        raise WorkbenchError(f"{where}: {wrong} (column '{column}'); a score is a finite number, or true or false.")
    if abs(found) > LARGEST:
        raise WorkbenchError(f"{where}: '{said}' is too large for a score (column '{column}'; at most {LARGEST:g}).")
    return found


def word(values: Sequence[Any], at: Sequence[int]) -> str:
    """The named columns' words, joined; a whole number reads the same whatever type holds it."""
    words = []
    for i in at:
        value = values[i]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and str(value).strip():
            words.append(str(value).strip())
    return "/".join(words).encode(errors="replace").decode()  # half a surrogate pair, which JSON can hold, is no text


def columns_of(path: Path, names: Sequence[str], mapping: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Where each role stands."""
    plain = [str(n).strip().lower().replace(" ", "_").replace("-", "_") for n in names]
    out: dict[str, tuple[int, ...]] = {}
    for role, synonyms in ROLES.items():
        if role in mapping:
            if mapping[role] not in names:
                raise WorkbenchError(
                    f"{path}: there is no column '{mapping[role]}' for the {role}.{nearest(mapping[role], names)}"
                )
            out[role] = (list(names).index(mapping[role]),)
            continue
        known = [plain.index(s) for s in (role, *synonyms) if s in plain]
        taken = {i for own in out.values() for i in own}
        known = [i for i in known if i not in taken and names[i] not in mapping.values()]
        if role == "measure" and known:
            out[role] = tuple(known)
        elif len(known) > 1 and role not in plain:
            either = " or ".join(f"'{names[i]}'" for i in known)
            raise WorkbenchError(f"{path}: the {role} could be {either}; say which with --column {role}=NAME.")
        elif known:
            out[role] = (known[0],)
    for role in ("example", "score"):
        if role not in out:
            listed = ", ".join(map(str, names))
            raise WorkbenchError(
                f"{path}: no column holds the {role}; there are {listed or 'none'}. Name it with --column {role}=NAME."
            )
    return out
