"""The ledger: a study's own database of variant-replicates and their states.

It is the authority. A variant-replicate counts as done when, and only when, its row says so; Optuna and MLflow are
projections of it, reconciled at every start (:mod:`runner.experiment`). SQLite in WAL mode, one writer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.stopping import uninterrupted
from fusion_workbench.schema.names import OBJECTIVE, LedgerState, Status

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    variant   TEXT NOT NULL,
    replicate TEXT NOT NULL,
    state     TEXT NOT NULL CHECK (state IN ('running', 'done')),
    run_id    TEXT,
    outcome   TEXT,
    result    TEXT NOT NULL DEFAULT '{}',
    changed   TEXT NOT NULL DEFAULT (datetime('now')),
    PRIMARY KEY (variant, replicate)
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class LedgerEntry:
    """One variant-replicate."""

    variant: str
    replicate: str  # "0", "1", … or "search"
    state: str  # a LedgerState
    run_id: str | None  # in MLflow
    status: str | None  # a Status, once it is done
    result: dict[str, float]  # the last value of every metric

    @property
    def finished(self) -> bool:
        return self.state == LedgerState.DONE and self.status == Status.FINISHED

    @property
    def objective(self) -> float | None:
        """What the search goes by, more is better; None of one that was not trained to its end."""
        return self.result.get(OBJECTIVE) if self.finished else None


class Ledger:
    """The database file ``path``; made when missing.

    Raises:
        WorkbenchError: the file cannot be opened or is not a ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise WorkbenchError(f"the study's ledger {path} cannot be opened: {error}.") from None

    def close(self) -> None:
        self._db.close()

    def entries(self) -> list[LedgerEntry]:
        rows = self._db.execute("SELECT variant, replicate, state, run_id, outcome, result FROM entries ORDER BY rowid")
        return [LedgerEntry(v, r, s, run, o, json.loads(result)) for v, r, s, run, o, result in rows]

    def find(self, variant: str, replicate: str) -> LedgerEntry | None:
        row = self._db.execute(
            "SELECT state, run_id, outcome, result FROM entries WHERE variant = ? AND replicate = ?",
            (variant, replicate),
        ).fetchone()
        return LedgerEntry(variant, replicate, row[0], row[1], row[2], json.loads(row[3])) if row else None

    def objective(self, variant: str, replicates: Iterable[str]) -> float | None:
        """The mean of a variant's objective over those of some replicates that have one; None where none has."""
        entries = (self.find(variant, replicate) for replicate in replicates)
        values = [e.objective for e in entries if e is not None and e.objective is not None]
        return sum(values) / len(values) if values else None

    def start(self, variant: str, replicate: str, run_id: str) -> None:
        """It trains now, under this MLflow run. What is done stays done."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO entries (variant, replicate, state, run_id) VALUES (?, ?, 'running', ?) "
                "ON CONFLICT (variant, replicate) DO UPDATE SET state = 'running', run_id = excluded.run_id, "
                "outcome = NULL, result = '{}', changed = datetime('now') WHERE state != 'done'",
                (variant, replicate, run_id),
            )

    def finish(self, variant: str, replicate: str, status: str, result: Mapping[str, float]) -> None:
        """The commit: from here on it is never trained again."""
        with self._transaction():
            self._db.execute(
                "UPDATE entries SET state = 'done', outcome = ?, result = ?, changed = datetime('now') "
                "WHERE variant = ? AND replicate = ?",
                (status, json.dumps(dict(result)), variant, replicate),
            )

    def forget(self, variant: str, replicate: str) -> None:
        """Drop a row whose training was interrupted, or whose MLflow run is gone: it will be trained anew."""
        with self._transaction():
            self._db.execute("DELETE FROM entries WHERE variant = ? AND replicate = ?", (variant, replicate))

    def fact(self, name: str) -> Any:
        """A remembered fact of the study (such as its MLflow run), or None."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def remember(self, name: str, value: Any) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, json.dumps(value)))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with uninterrupted():
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise WorkbenchError(f"the study's ledger {self.path} cannot be written: {error}.") from None
