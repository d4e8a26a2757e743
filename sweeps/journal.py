"""The file that Optuna keeps a study's trials in: a projection of the ledger, so that losing it loses nothing.

Its last line may be torn by a full disk or a kill, and is cut; a file that cannot be read is set aside, and Optuna is
told anew. Optuna's own lock is not needed, since the study's own keeps other processes out, nor is a flush to the disk
for each line.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fusion_workbench.core.errors import WorkbenchError


def open_journal(path: Path, study: str) -> tuple[JournalStorage, str]:
    """The journal ``path`` of ``study``; made when missing.

    Returns:
        The storage, and one line where a file was set aside, else nothing.

    Raises:
        WorkbenchError: the file system refuses.
    """
    told = ""
    try:
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # 0.1.0 let Optuna make one
        if path.exists() and (problem := _problem(path, study)):
            aside = _free(path.with_name(f"{path.name}.unreadable"))
            path.rename(aside)
            told = f"Optuna's journal {problem}; it is set aside as {aside}, and Optuna is told anew by the ledger"
        return JournalStorage(_Backend(path)), told
    except OSError as error:
        raise WorkbenchError(f"Optuna's journal {path} cannot be used ({error.strerror or error}).") from None


def _problem(path: Path, study: str) -> str:
    """Why the journal cannot be used, in words; a torn last line is cut and no reason."""
    if not path.is_file():
        return "is no file"
    _cut(path)
    try:
        with path.open("rb") as lines:
            if not all(isinstance(json.loads(line), dict) for line in lines):
                return "holds something else than its lines"
        names = [known.study_name for known in JournalStorage(_Backend(path)).get_all_studies()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, RecursionError):
        return "cannot be read"
    except OSError:
        raise
    except Exception:  # Optuna's own, of lines that contradict each other
        return "cannot be read"
    own = study.partition("-")[0]  # a study whose plug-ins have other code now has a name that goes on after its id
    return f"is of another study ({names[0]})" if names and own not in {n.partition("-")[0] for n in names} else ""


def _cut(path: Path) -> None:
    """Cut what follows the last line break."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                break
            end = start
        whole = start + last + 1 if end > 0 else 0
        if whole < file.seek(0, os.SEEK_END):
            file.truncate(whole)


def _free(path: Path) -> Path:
    """``path``, or with a number where there is one."""
    number, free = 1, path
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


class _Backend(JournalFileBackend):
    """Optuna's file, appended to as it is: Optuna's lock is never taken, and nothing waits for the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._path.open("ab") as file:
            file.write(lines.encode("utf-8"))
