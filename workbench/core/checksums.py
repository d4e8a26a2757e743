"""sha256 of files: what was written is what is read, or it is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.files import write_file

SUMS = "SHA256SUMS"  # of a folder, in the form of sha256sum, so that sha256sum -c checks it too


def sha256_of(content: str | bytes | Path) -> str:
    """In hex, of text as UTF-8, of bytes, or of a file's. Raises OSError."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(content.encode("utf-8") if isinstance(content, str) else content).hexdigest()


def write_sums(folder: Path, leave_out: frozenset[str] = frozenset()) -> None:
    """Write ``SHA256SUMS`` of all that is in ``folder`` but what ``leave_out`` names. Raises OSError."""
    left_out = leave_out | {SUMS}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    lines = [f"{sha256_of(path)}  {name}\n" for name, path in sorted(files.items()) if name not in left_out]
    write_file(folder / SUMS, "".join(lines))


def check_sums(folder: Path) -> None:
    """Hold the files of ``folder`` against its ``SHA256SUMS``; a folder without one passes, as those of 0.1 do.

    Raises:
        WorkbenchError: the first file that is another now, or gone.
    """
    path = folder / SUMS
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        sums = dict(reversed(line.split("  ", 1)) for line in lines)
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{path} cannot be read ({error}); write the folder again.") from None
    check_files({folder / name: sha for name, sha in sums.items()}, f"the sha256 that {path} holds")


def check_files(files: Mapping[Path, str], recorded: str) -> None:
    """Raises WorkbenchError for the first of ``files`` that has another sha256 than ``recorded``, or is gone."""
    for path, sha in files.items():
        try:
            actual = sha256_of(path)
        except (OSError, ValueError) as error:
            raise WorkbenchError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
        if actual != sha:
            raise WorkbenchError(
                f"{path} is damaged or was changed: it does not have {recorded}; restore it, or write the folder again."
            )
