"""Text for LaTeX: whatever comes from data or configuration, as text that pdflatex sets with no package."""

from __future__ import annotations

import re
import unicodedata

_PLAIN = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "[": "{[}",  # behind a line's end it would be an argument
    "]": "{]}",
    "*": "{*}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedblright{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquoteright{}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\ldots{}",
    "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
}
_MATH = {
    "→": r"\rightarrow",
    "←": r"\leftarrow",
    "±": r"\pm",
    "≈": r"\approx",
    "−": "-",
    "×": r"\times",
    "·": r"\cdot",
    "≤": r"\le",
    "≥": r"\ge",
    "≠": r"\ne",
    "∞": r"\infty",
    "√": r"\surd",
    "°": r"^{\circ}",
    "²": "^{2}",
    "³": "^{3}",
    "µ": r"\mu",
}
_MATH |= {
    chr(code): "\\" + unicodedata.name(chr(code)).split()[-1].lower()
    for code in range(0x3B1, 0x3CA)
    if chr(code) not in "οςλ"
}
_MATH["λ"] = r"\lambda"
_ACCENTS = {  # combining characters
    "̀": "`",
    "́": "'",
    "̂": "^",
    "̃": "~",
    "̈": '"',
    "̄": "=",
    "̇": ".",
    "̆": "u",
    "̌": "v",
    "̊": "r",
    "̋": "H",
    "̧": "c",
}


def escape(text: object) -> str:
    """As text that stands for itself on one line. A character that TeX's fonts lack is named: ``[U+4E2D]``."""
    return "".join(_character(c) for c in re.sub(r"\s+", " ", str(text)).strip())


def _character(c: str) -> str:
    if c in _PLAIN:
        return _PLAIN[c]
    if c in _MATH:
        return rf"\ensuremath{{{_MATH[c]}}}"
    if " " <= c <= "~":
        return c
    parts = unicodedata.normalize("NFD", c)
    if len(parts) == 2 and parts[1] in _ACCENTS and parts[0].isascii() and parts[0].isalpha():
        return rf"\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"{{[}}U+{ord(c):04X}{{]}}"
