"""Which files are read, and whose they are."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.scores.columns import shown
from fusion_workbench.reports.scores.sample_logs import is_sample_name

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class File:
    """A file and what its name, or ``--system``, says of it; empty words: nothing."""

    path: Path
    system: str = ""
    replicate: str = ""


def files_of(files: Sequence[str], systems: Sequence[str]) -> list[File]:
    """Every file that is named, folders opened, with what ``--system`` says of it.

    Raises:
        WorkbenchError: a file is not there, is of no kind that is read, or is named as two systems.
    """
    out: dict[Path, File] = {}
    for option in systems:
        name, sign, pattern = option.partition("=")
        system, _, replicate = name.partition("@")
        if not sign or not system or not pattern:
            raise WorkbenchError(f"--system {option}: expected NAME=PATTERN or NAME@REPLICATE=PATTERN.")
        matched = sorted(glob.glob(pattern, recursive=True))
        if not matched:
            raise WorkbenchError(f"--system {option}: no file matches '{pattern}'.")
        for path in (p for m in matched for p in _expanded(Path(m))):
            if path.resolve() in out:
                raise WorkbenchError(
                    f"--system {option}: {path} is named by --system {out[path.resolve()].system} too."
                )
            out[path.resolve()] = File(path, shown(system), shown(replicate))
    for name in files:
        for path in _expanded(Path(name)):
            out.setdefault(path.resolve(), File(path))
    return list(out.values())


def _expanded(path: Path) -> list[Path]:
    if not os.path.exists(path):  # Path.exists raises where a name is too long
        raise WorkbenchError(f"{path}: there is no such file.")
    if not path.is_dir():
        if path.suffix.lower() not in TABLES:
            raise WorkbenchError(f"{path}: '{path.suffix}' is not read; known: {', '.join(TABLES)}.")
        return [path]
    inside = [p for p in sorted(path.rglob("*")) if p.is_file() and p.suffix.lower() in TABLES]
    logs = [p for p in inside if is_sample_name(p)]
    if not inside:
        raise WorkbenchError(f"{path}: the folder holds no sample logs and no tables ({', '.join(TABLES)}).")
    return logs or inside
