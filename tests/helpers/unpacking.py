"""What an earlier version left behind, laid out as if it had been made here."""

from __future__ import annotations

import json
import math
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

from places import DATA

_TEXT = {"", ".json", ".yaml", ".yml", ".md", ".txt", ".py"}  # MLflow's MLmodel has no suffix


def expected(version: str) -> dict[str, Any]:
    """What that version said of it, as its ``make.py`` wrote it down."""
    said: dict[str, Any] = json.loads((DATA / version / "expected.json").read_text(encoding="utf-8"))
    return said


def unpack(version: str, folder: Path) -> Path:
    """The archive ``tests/data/VERSION/workspace.tar.xz`` in ``folder``, whose paths it then names; returns ``folder``.

    MLflow stores where artifacts are as absolute paths, and so do exports of where their encoder is: whoever moves a
    workspace rewrites them. The database is of the MLflow that ``constraints.txt`` named then; a later one may ask for
    ``mlflow db upgrade`` first, as it does of every user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(DATA / version / "workspace.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    before, now = expected(version)["root"], str(folder.resolve())
    for path in folder.rglob("*"):
        if path.suffix == ".db":
            _rewrite(path, before, now)
        elif path.is_file() and path.suffix in _TEXT:
            content = path.read_text(encoding="utf-8")
            if before in content:
                path.write_text(content.replace(before, now), encoding="utf-8")
    return folder


def _rewrite(path: Path, before: str, now: str) -> None:
    """Replace ``before`` in every column of text of an SQLite database."""
    database = sqlite3.connect(path)
    with database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for column in [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]:
                database.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) '
                    f'WHERE typeof("{column}") = \'text\' AND instr("{column}", ?)',
                    (before, now, before),
                )
    database.close()


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Where ``now`` does not say what ``before`` says, to twelve digits. Keys that were added are no difference."""
    if isinstance(before, dict) and isinstance(now, dict):
        lost = [f"{where}.{key} is gone" for key in before if key not in now]
        kept = [key for key in before if key in now]
        return lost + [line for key in kept for line in differences(before[key], now[key], f"{where}.{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for n, pair in pairs for line in differences(*pair, f"{where}[{n}]")]
    if isinstance(before, float) and isinstance(now, float) and math.isclose(before, now, rel_tol=1e-12, abs_tol=1e-15):
        return []  # other CPUs add up in another order
    return [] if type(before) is type(now) and before == now else [f"{where}: {before!r} is now {now!r}"]
