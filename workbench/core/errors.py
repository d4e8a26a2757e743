"""Errors that the user caused, in one line each."""

from __future__ import annotations

import errno
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
    """The first line of another library's error, with the next where it only announces that; the name of its type
    where it says nothing.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def reason(error: BaseException) -> str:
    """Why something could not be read or written, in a few words: what the system says, or the first line."""
    return getattr(error, "strerror", None) or first_line(error)


def as_workbench_error(error: OSError) -> WorkbenchError:
    """What the system refuses, whatever it is, as one line that says what to do: the last net under every command."""
    if error.errno is None:  # of a library, in its own words
        return WorkbenchError(first_line(error))
    where = "a file" if error.filename in (None, "") else error.filename
    if len(str(where)) > _LONGEST_PATH:
        where = f"{str(where)[:_LONGEST_PATH]}… ({len(str(where)):,} characters)"
    for numbers, told in _SYSTEM.items():
        if error.errno in numbers:
            return WorkbenchError(told.format(where=where, place=error.filename or "while writing"))
    return WorkbenchError(f"{where} cannot be used: {reason(error)}.")


_LONGEST_PATH = 120  # characters of a path that a message repeats
_SYSTEM: dict[tuple[int, ...], str] = {
    (errno.ENOSPC, errno.EDQUOT): "the disk is full ({place}); free some space, then run the same command.",
    (errno.EACCES, errno.EPERM, errno.EROFS): (
        "no permission to write {where}; choose another place with --workspace."
    ),
    (errno.ENAMETOOLONG,): "{where} is no file: the name is too long.",
    (errno.ENOTDIR,): "{where} cannot be reached: a part of the path is a file, and must be a folder.",
    (errno.EISDIR,): "{where} is a folder, and must be a file; move it away, or name another place.",
    (errno.EEXIST, errno.ENOTEMPTY): "{where} is in the way; move it away, or name another place.",
    (errno.ELOOP,): "{where} cannot be reached: a link leads back to itself.",
    (errno.EMFILE, errno.ENFILE): "too many files are open; raise the limit (ulimit -n 4096), then run it again.",
    (errno.ENOENT,): "{where} does not exist; it, or the folder that the command was started in, was removed.",
    (errno.EFBIG,): "{where} would be larger than this system lets files be (ulimit -f, or the file system).",
    (errno.EIO,): "{where} cannot be read or written: the disk reports an error; nothing more was written.",
}


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
