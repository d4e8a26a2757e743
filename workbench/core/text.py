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
