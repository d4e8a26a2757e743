"""CSV of the report's files and of the data under its figures: the same dialect, and safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\n")


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A head and rows as CSV with ``\\n`` ends. None is an empty field.

    A text that a spreadsheet would run as a formula (a class called ``=cmd``) gets an apostrophe before it, as OWASP
    advises ("CSV Injection"); numbers stay numbers.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_plain(value) for value in row] for row in rows)
    return out.getvalue()


def _plain(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # csv leaves a lone \r unquoted where lines end in \n
    return f"'{text}" if text.startswith(_FORMULA) else text
