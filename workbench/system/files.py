"""Files and folders: written atomically, so that they appear whole or not at all, and read with a limit.

Each is written beside its place under a temporary name and renamed when all is in it, so whoever is killed or runs out
of disk leaves what was there before. What a kill leaves under a temporary name may be removed: ``*.part`` is a file,
``.tmp-*`` a folder.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from fusion_workbench.core.errors import WorkbenchError

PART = ".part"  # ends the name of a file that is not whole yet
SCRATCH = ".tmp-"  # begins the name of a folder that is not whole yet
MOST_BYTES = 16_000_000  # of a file of settings or results in JSON, which is read whole

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` at the end of the block and goes where the block raises.

    The file is on the disk, not only in its cache, before it gets its name.

    Raises:
        OSError: the file system refuses; what was at ``path`` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        yield part
        sync(part)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: str | bytes, errors: str = "strict") -> None:
    """Write ``path``, text as UTF-8 with line breaks as they are.

    Args:
        errors: what becomes of characters that UTF-8 does not have (half a surrogate pair), as in :meth:`str.encode`.

    Raises:
        OSError: as :func:`atomic_file`.
    """
    with atomic_file(path) as part:
        if isinstance(content, str):
            part.write_text(content, encoding="utf-8", errors=errors, newline="\n")
        else:
            part.write_bytes(content)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder, which becomes ``path`` at the end of the block and goes where the block raises.

    A folder that is at ``path`` is replaced; whether it may be is for the caller to ask.

    Raises:
        OSError: the file system refuses; what was at ``path`` is still there.
    """
    with scratch_beside(path) as scratch:
        made, old = scratch / "made", scratch / "old"
        made.mkdir()
        yield made
        if path.exists():  # a folder cannot be replaced by a folder in one step
            os.replace(path, old)
        try:
            os.replace(made, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        sync(path.parent)


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A folder on the disk of ``path``, for the time of the block. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f"{SCRATCH}{path.name}-", ignore_cleanup_errors=True
    ) as scratch:
        yield Path(scratch)


@contextmanager
def explain_writing(path: Path, remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """What the file system refuses about ``path`` as one line that ends in ``remedy``, such as ``name another file``.

    Args:
        kinds: other errors that mean the same, such as a library's own.

    Raises:
        WorkbenchError: instead of an OSError.
    """
    refused: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except refused as error:
        reason = getattr(error, "strerror", None) or error
        raise WorkbenchError(f"{path} cannot be written ({reason}); {remedy}.") from None


def sync(path: Path) -> None:
    """fsync a file, or a folder where the system can, so that its names survive a power cut. Raises OSError."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    with suppress(OSError) if folder else nullcontext():
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# --- reading ----------------------------------------------------------------------------------------------------


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file that somebody named, or that lies where anybody may write, whole.

    Neither what never ends (a device) or never begins (a pipe that nobody writes to) is waited for, nor is a file taken
    in that is larger than ``most`` bytes. Every reader of settings, indices and descriptions goes through here.

    Raises:
        OSError: there is none, it cannot be read, it is no file, or it is too large; ``strerror`` says which.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError:  # a NUL in the name
        raise OSError(errno.EINVAL, "no file has such a name", str(path)) from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}", str(path))
    with open(handle, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most / 1e6:g} MB", str(path))
    return content
