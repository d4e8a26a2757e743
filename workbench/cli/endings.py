"""How a command ends, whatever happens: one line and the right exit status, never a traceback.

0: done. 1: a check that was asked for failed (``report --fail-on``). 2: something to mend, such as a study file, a full
disk or a database that does not answer. 70: a fault of the workbench. 128 + n: stopped by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fusion_workbench.core import stopping
from fusion_workbench.core.errors import WorkbenchError, as_workbench_error, first_line
from fusion_workbench.system.outages import GOES_ON, is_outage, outage_reason

MISTAKE, FAULT = 2, 70
DEBUG = "WORKBENCH_DEBUG"  # set: tracebacks on the terminal, too
_OURS = "fusion_workbench"
_MAY_EXIT = ("click", "typer", "rich", _OURS)  # who may end the process; a plug-in's sys.exit(0) is no success
_EXIT = ("_sitebuiltins",)  # exit() itself
# Of these the line says all there is to know; of others of the system's refusals the traceback is kept.
_CLEAR = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE),
)


def run(app: Callable[[], object]) -> None:
    """Run the command line and exit."""
    _open_streams()
    with stopping.listening():
        status = _status(app)
        stopping.ignore_signals()
        _flush()
    sys.exit(status)


def _status(app: Callable[[], object]) -> int:
    try:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from fusion_workbench.cli.terminal import show_deprecations

        show_deprecations()
        try:
            Path.cwd()
        except OSError:
            raise WorkbenchError(
                "the folder that this command was started in is gone; go to one that is there (cd)."
            ) from None
        app()
    except BaseException as error:
        cause = stopping.cause_of(error)
        if isinstance(cause, stopping.Stopped):
            stopping.ignore_signals()
            with suppress(OSError):
                print(cause, file=sys.stderr)
            return cause.status
        if not isinstance(cause, SystemExit):
            return _tell(*explain(cause))
        if not _is_ours(cause):
            words = f"{_named(cause)} ended the process by sys.exit({cause.code!r}); that is no way to finish."
            return _tell(words, cause)
        return cause.code if isinstance(cause.code, int) else int(cause.code is not None)
    return 0


def explain(error: BaseException) -> tuple[str, BaseException | None, int]:
    """One line for whatever a command raised; the error where its traceback is worth keeping; the exit status."""
    if isinstance(error, WorkbenchError):
        return str(error), None, MISTAKE
    if isinstance(error, KeyboardInterrupt):
        return str(stopping.Stopped(2)), None, 130
    if is_outage(error):
        return f"a server or a database failed: {outage_reason(error)}; {GOES_ON}.", None, MISTAKE
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {_short(error)}; free some, or ask for less, then run the same command.", None, MISTAKE
    if isinstance(error, OSError) and (number := _errno(error)):
        where = error.filename2 or error.filename or "while writing"  # of a copy, what it was written to
        told = str(as_workbench_error(OSError(number, os.strerror(number), where)))
        return told, None if number in _CLEAR else error, MISTAKE
    if (name := _named(error)) != _OURS:
        return f"{name} raised {type(error).__name__}: {_short(error)}", error, MISTAKE
    return f"a fault of the workbench, {type(error).__name__}: {_short(error)}", error, FAULT


def _tell(message: str, error: BaseException | None, status: int = MISTAKE) -> int:
    """Print the line. Of an ``error`` the whole traceback is kept in a file, for whoever mends it."""
    import typer

    from fusion_workbench.cli.terminal import harmless

    if error is not None:
        message = f"{message.rstrip('.')} ({_place(error)}); {_keep_traceback(error)}."
    with suppress(OSError):  # nobody reads it
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(harmless(" ".join(message.splitlines())), err=True)
    return status


# --- where it came from -----------------------------------------------------------------------------------------------


def _modules(trace: TracebackType | None) -> list[str]:
    """The modules that the error passed through, the innermost first."""
    frames = list(traceback.walk_tb(trace))
    return [str(frame.f_globals.get("__name__", "")) for frame, _ in reversed(frames)]


def _is_ours(end: SystemExit) -> bool:
    """Whether the command line itself ended, or what it prints to did: rich ends a process whose pipe was closed."""
    inner = next((name for name in _modules(end.__traceback__) if name not in _EXIT), _OURS)
    return inner.partition(".")[0] in (*_MAY_EXIT, "__main__")


def _named(error: BaseException) -> str:
    """The plug-in that raised ``error``, or ``fusion_workbench``."""
    from importlib.metadata import entry_points

    packages = {
        point.value.partition(":")[0].partition(".")[0]: f"{point.group.partition('.')[2]} plug-in {point.value}"
        for group in entry_points().groups
        if group.startswith(f"{_OURS}.")
        for point in entry_points(group=group)
    }
    for module in _modules(error.__traceback__):
        root = module.partition(".")[0]
        if root in packages:
            return f"the {packages[root]}" if packages[root].endswith(module) else f"the plug-in module {module}"
        if root == _OURS:
            break
    return _OURS


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else "nowhere"


def _keep_traceback(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    if os.environ.get(DEBUG):
        print(text, file=sys.stderr)
        return "its traceback stands above"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="workbench-error-", suffix=".txt", delete=False) as file:
            file.write(" ".join(["workbench", *sys.argv[1:]]) + "\n\n" + text)
    except OSError:
        return f"{DEBUG}=1 shows its traceback"
    return f"its traceback, for a report, is in {file.name}"


def _short(error: BaseException) -> str:
    line = first_line(error)
    return line if len(line) <= 300 else f"{line[:299]}…"


def _errno(error: OSError) -> int:
    """Its number; of errors that gather several (``shutil.Error``) the first that their text names."""
    found = re.search(r"\[Errno (\d+)\]", str(error))
    return error.errno or (int(found[1]) if found else 0)


# --- streams ----------------------------------------------------------------------------------------------------------


def _open_streams() -> None:
    """Where the caller closed standard output or error, what is printed there goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the end


def _flush() -> None:
    """What a reader that has gone (``| head``) did not take is dropped, without a word from the interpreter."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
