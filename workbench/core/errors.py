"""Errors that the user caused, in one line each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from fusion_workbench.core import stopping

_LONGEST = 300  # letters of another's error that are told


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
    """The first line of another library's error; the name of its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def error_words(error: BaseException) -> str:
    """Type and first line of another's error, such as ``ValueError: no such mode``."""
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r})"
    line, kind = first_line(error), type(error).__name__
    words = kind if line == kind else f"{kind}: {line}"
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


@contextmanager
def code_of(what: str) -> Iterator[None]:
    """Code of anybody runs in the block, such as a plug-in's; ``what`` names it: ``source 'mine'``.

    Raises:
        WorkbenchError: as the code does, or instead of any other error, its ``sys.exit`` included.
    """
    try:
        yield
    except WorkbenchError:
        raise
    except (Exception, SystemExit) as error:
        stopping.check()
        raise WorkbenchError(f"{what} broke off: {error_words(error)}.") from error
