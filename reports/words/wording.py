"""How numbers and verdicts are written, the same in every format."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from fusion_workbench.reports.words.units import MINUS
from fusion_workbench.schema.names import Verdict

DASH = "–"
SYMBOLS: dict[str, str] = {
    Verdict.BETTER: "▲",
    Verdict.WORSE: "▼",
    Verdict.EQUIVALENT: "=",
    Verdict.SAME: "≈",
    Verdict.NONE: "○",
    Verdict.ITSELF: "◆",
}


def plural(noun: str, count: int) -> str:
    """``1 photograph``, ``4 photographs``, ``2 categories``."""
    if count == 1:
        return noun
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"


def pvalue(p: float) -> str:
    if math.isnan(p):
        return DASH
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def count(value: float | None) -> str:
    """Three digits and k, M, G or T."""
    if value is None or not math.isfinite(value):
        return DASH
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits, never in the scientific form below a million."""
    if value is None or not math.isfinite(value):
        return DASH
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(places, 6)}f}".replace("-", MINUS)


def signed(value: float) -> str:
    """Two decimals, the sign always shown, with a true minus; zero has none."""
    shown = f"{value:+.2f}"
    return shown[1:] if float(shown) == 0 else shown.replace("-", MINUS)


def when(milliseconds: int | None) -> str:
    """A moment in UTC, to the minute."""
    if not milliseconds:
        return DASH
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)
