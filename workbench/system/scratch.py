"""Temporary folders that do not outlive their process: what a killed one left is removed by the next that needs one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

PREFIX = "workbench-"
_LOCK = "lock"  # held as long as the process that made the folder lives, whatever ends it


@contextmanager
def scratch_folder(purpose: str = "files") -> Iterator[Path]:
    """An empty folder in the system's temporary folder, for the time of the block.

    Folders of processes that are gone are removed first; those of living ones, in other containers too, are locked.

    Args:
        purpose: a word in its name.

    Raises:
        OSError: it cannot be made.
    """
    _sweep_once(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{purpose}-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        made = folder / f".{_LOCK}"
        with made.open("wb") as lock:
            with suppress(OSError):  # a file system without locks: then nobody takes it for left behind either
                fcntl.flock(lock, fcntl.LOCK_EX)
            made.rename(folder / _LOCK)  # under its name it was never unlocked
            inner = folder / "content"
            inner.mkdir()
            yield inner


@cache
def _sweep_once(place: str) -> None:
    sweep(place)


def sweep(place: str) -> None:
    """Remove the temporary folders in ``place`` of processes that are gone."""
    with suppress(OSError):
        for entry in list(os.scandir(place)):
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError), (Path(entry.path) / _LOCK).open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its process lives
                    shutil.rmtree(entry.path, ignore_errors=True)
