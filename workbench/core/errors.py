"""Errors that the user caused, in one line each."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class WorkbenchError(Exception):
    """A mistake that the user can fix. Its message says what was wrong, where, and what would be right.

    The command line prints it alone, without a traceback, and exits with status 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the known names closest to ``word``, or all of them when none is close.

    Returns a sentence with a leading space, such as ``" Did you mean 'concat'?"``.
    """
    names = sorted(known)
    close = get_close_matches(str(word), names, n=3, cutoff=0.5)
    if close:
        return " Did you mean " + " or ".join(f"'{name}'" for name in close) + "?"
    return " Known: " + ", ".join(names) + "." if names else ""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, with the next where it only announces that; the name of its type
    where it says nothing.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
