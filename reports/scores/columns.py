"""Which column of a table holds what, and what stands in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.core.text import printable
from fusion_workbench.reports.scores.score_names import CORRECT, GRADED, LARGEST, plain

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
    "score": ("value", *CORRECT, *(name for name in GRADED if name != "score")),
    "replicate": ("seed", "run", "rep", "trial"),
    "group": ("cluster", "group_id", "cluster_id"),
    "measure": ("task", "metric", "dataset", "benchmark"),  # several are joined
}
_WORDS = {"true": 1.0, "false": 0.0}


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
        found = _WORDS[said.lower()] if said.lower() in _WORDS else float(said.replace("_", "?"))  # 1_0 is no ten
    except ValueError:
        found = float("nan")
    if not np.isfinite(found):
        wrong = f"'{said}' is no number" if said else "there is no number"
        raise WorkbenchError(
            f"{where}: {wrong} (column '{column}'); a score is a finite number, or true or false{_instead(said)}."
        )
    if abs(found) > LARGEST:
        raise WorkbenchError(f"{where}: '{said}' is too large for a score (column '{column}'; at most {LARGEST:g}).")
    return found


def _instead(said: str) -> str:
    """How a number is written that people write otherwise."""
    if re.fullmatch(r"[+-]?\d*,\d+", said):
        return f", with a decimal point: {said.replace(',', '.')}"
    if re.fullmatch(r"[+-]?\d{1,3}([,.' _]\d{3})+([.,]\d+)?", said):
        return ", without separators of thousands"
    return ", without a sign of per cent" if said.endswith("%") else ""


def word(values: Sequence[Any], at: Sequence[int]) -> str:
    """The named columns' words, joined; a whole number reads the same whatever type holds it."""
    words = []
    for i in at:
        value = values[i]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and value == value and str(value).strip():  # NaN is what pandas makes of an empty cell
            words.append(str(value).strip())
    return shown("/".join(words))


def shown(text: str) -> str:
    """A name as every output may show it: no control characters, nor half a surrogate pair, which JSON can hold."""
    return printable(text.encode(errors="replace").decode())


def columns_of(path: Path, names: Sequence[str], mapping: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Where each role stands."""
    read = [plain(n) for n in names]
    out: dict[str, tuple[int, ...]] = {}
    for role, synonyms in ROLES.items():
        if role in mapping:
            if mapping[role] not in names:
                raise WorkbenchError(
                    f"{path}: there is no column '{mapping[role]}' for the {role}.{nearest(mapping[role], names)}"
                )
            if list(names).count(mapping[role]) > 1:
                raise WorkbenchError(f"{path}: two columns are called '{mapping[role]}'; rename one.")
            out[role] = (list(names).index(mapping[role]),)
            continue
        taken = {i for own in out.values() for i in own}
        free = [i for i in range(len(read)) if i not in taken and names[i] not in mapping.values()]
        known = [i for s in (role, *synonyms) for i in free if read[i] == s]
        if known and role != "measure":
            _one_of_a_name(path, role, [names[i] for i in known if read[i] == read[known[0]]])
        if role == "measure" and known:
            out[role] = tuple(known)
        elif len(known) > 1 and read[known[0]] != role:
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


def _one_of_a_name(path: Path, role: str, called: Sequence[str]) -> None:
    """Raises WorkbenchError where two columns have one name, but for capitals and spaces."""
    if len(called) > 1:
        either = " and ".join(f"'{name}'" for name in called)
        way = f"say which with --column {role}=NAME" if len(set(called)) == len(called) else "rename one"
        raise WorkbenchError(f"{path}: two columns are called as the {role} is ({either}); {way}.")


def passed_over(names: Sequence[str], at: Mapping[str, tuple[int, ...]], mapping: Mapping[str, str]) -> str:
    """A note where a column beside the score may be meant as well; empty: there is none."""
    taken = {i for own in at.values() for i in own}
    others = [str(n) for i, n in enumerate(names) if i not in taken and plain(n) in (*CORRECT, *GRADED)]
    if "score" in mapping or not others:
        return ""
    return f"The score is column '{names[at['score'][0]]}'; there is '{others[0]}' too (--column score={others[0]})."
