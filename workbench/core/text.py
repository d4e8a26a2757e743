"""Words from elsewhere made fit for names and for one line."""

from __future__ import annotations

import re
import unicodedata


def slug(text: object, keep: str = "", lower: bool = True) -> str:
    """``text`` as a part of a file name, an id or a label: letters and digits of ASCII, all else one dash.

    Accents are dropped; where nothing is left it is ``x``.

    Args:
        keep: other characters that stay.
        lower: make letters small.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", str(text)) if not unicodedata.combining(c))
    plain = re.sub(rf"[^A-Za-z0-9{re.escape(keep)}]+", "-", plain).strip("-") or "x"
    return plain.lower() if lower else plain


def folder_name(text: str, most: int = 200) -> str:
    """``text`` as the name of one folder: letters and digits of any script, ``-``, ``_`` and ``.``, all else a dash.

    Names of studies stay as they are; what MLflow calls a study need not be the name of one.

    Args:
        most: bytes that it may take.
    """
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in text).lstrip(".") or "x"
    return plain.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


# Control characters but for line breaks and tabs, other line breaks, and what turns the direction of text about.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Words of a file or a model, without what would move a terminal's cursor, colours or reading direction."""
    return _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", text)
