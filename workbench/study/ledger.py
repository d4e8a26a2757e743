"""The ledger: a study's own database of variant-replicates and their states.

It is the authority. A variant-replicate counts as done when, and only when, its row says so; Optuna and MLflow are
projections of it, reconciled at every start (:mod:`runner.experiment`). SQLite in WAL mode, one writer.

SQLite itself would not see a flipped bit in a number, so every row and every fact carries a sha256 of what it says.
A row that does not fit its own is as good as none: it is trained again. A fact has nothing that it could be made from
again, so a ledger with a damaged one is refused. Rows that 0.1.0 wrote have no sha256 and are taken as they are; they
get one when the ledger is first opened.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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
# What 0.1.0 did not have.
_ADDED = {"entries": {"files": "TEXT NOT NULL DEFAULT '{}'", "sha256": "TEXT"}, "facts": {"sha256": "TEXT"}}
_CHECKED = 1  # SQLite's user_version of a ledger in which everything has a sha256; 0 of one of 0.1.0

_ERRORS = (sqlite3.Error, UnicodeError)  # the latter where SQLite's own message has damaged words in it
# Errors of SQLite that mean that the file is damaged, or another program's.
_NO_LEDGER = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA)

_CONTENT = "variant, replicate, state, run_id, outcome, result, files"  # what a row's sha256 is over
_ROWS = f"SELECT rowid, sha256, {_CONTENT} FROM entries"
_KEY = "WHERE variant = ? AND replicate = ?"


@dataclass(frozen=True)
class LedgerEntry:
    """One variant-replicate."""

    variant: str
    replicate: str  # "0", "1", … or "search"
    state: str  # a LedgerState
    run_id: str | None  # in MLflow
    status: str | None  # a Status, once it is done
    result: dict[str, float]  # the last value of every metric
    files: dict[str, str] = field(default_factory=dict)  # artifact of the run → sha256 in hex; of 0.1.0 none

    @property
    def finished(self) -> bool:
        return self.state == LedgerState.DONE and self.status == Status.FINISHED

    @property
    def objective(self) -> float | None:
        """What the search goes by, more is better; None of one that was not trained to its end."""
        return self.result.get(OBJECTIVE) if self.finished else None


class Ledger:
    """The database file ``path``; made when missing, and brought to what this version keeps in it.

    Raises:
        WorkbenchError: the file cannot be opened or read, is not a ledger, or holds a damaged fact. Every method
            raises it where the file can no longer be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            # A byte that is no UTF-8 is found by the sha256 of its row; as an error it would hide all other rows.
            self._db.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._check_pages()
            self._db.executescript(_SCHEMA)
            self._bring_up()
            self._check_facts()
            self.damaged()  # whether rows can be read at all
        except (*_ERRORS, OSError, WorkbenchError) as error:
            if hasattr(self, "_db"):
                self._db.close()
            raise (error if isinstance(error, WorkbenchError) else self._explained(error, "opened")) from None

    def close(self) -> None:
        self._db.close()

    # --- variant-replicates -------------------------------------------------------------------------------------

    def entries(self) -> list[LedgerEntry]:
        """Every row that is whole, in the order of writing."""
        return [entry for _, entry in self._rows() if entry is not None]

    def damaged(self) -> int:
        """How many rows do not fit their sha256, or say nothing that a row could say. They count as none."""
        return sum(entry is None for _, entry in self._rows())

    def drop_damaged(self) -> int:
        """Drop the rows that are damaged, so that they are trained again. Returns how many there were."""
        damaged = [(number,) for number, entry in self._rows() if entry is None]
        if damaged:
            with self._transaction():
                self._db.executemany("DELETE FROM entries WHERE rowid = ?", damaged)
        return len(damaged)

    def find(self, variant: str, replicate: str) -> LedgerEntry | None:
        """The row of a variant-replicate; None where there is none, or a damaged one."""
        return next((entry for _, entry in self._rows(_KEY, (variant, replicate))), None)

    def objective(self, variant: str, replicates: Iterable[str]) -> float | None:
        """The mean of a variant's objective over those of some replicates that have one; None where none has."""
        entries = (self.find(variant, replicate) for replicate in replicates)
        values = [e.objective for e in entries if e is not None and e.objective is not None]
        return sum(values) / len(values) if values else None

    def start(self, variant: str, replicate: str, run_id: str) -> None:
        """It trains now, under this MLflow run. What is done stays done."""
        with self._transaction():
            entry = self.find(variant, replicate)
            if entry is None or entry.state != LedgerState.DONE:
                self._put(variant, replicate, LedgerState.RUNNING, run_id, None, {}, {})

    def finish(
        self,
        variant: str,
        replicate: str,
        status: str,
        result: Mapping[str, float],
        files: Mapping[str, str] | None = None,
    ) -> None:
        """The commit: from here on it is never trained again.

        Args:
            status: a :class:`~schema.names.Status`.
            result: the last value of every metric.
            files: the artifacts of its run, path → sha256 in hex.

        Raises:
            WorkbenchError: it was not started, or the row was damaged meanwhile.
        """
        with self._transaction():
            entry = self.find(variant, replicate)
            if entry is None:
                raise self._damaged(f"lost the row of variant {variant}, replicate {replicate}, while it was training")
            self._put(variant, replicate, LedgerState.DONE, entry.run_id, status, result, files or {})

    def move(self, variant: str, replicate: str, run_id: str) -> None:
        """What is done lies under another MLflow run now, which says the same."""
        with self._transaction():
            entry = self.find(variant, replicate)
            if entry is not None and entry.state == LedgerState.DONE:
                self._put(variant, replicate, entry.state, run_id, entry.status, entry.result, entry.files)

    def forget(self, variant: str, replicate: str) -> None:
        """Drop a row whose training was interrupted, or whose MLflow run is gone: it will be trained anew."""
        with self._transaction():
            self._db.execute(f"DELETE FROM entries {_KEY}", (variant, replicate))

    # --- facts --------------------------------------------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """A remembered fact of the study (such as its MLflow run), or None."""
        for value, sha in self._read("SELECT value, sha256 FROM facts WHERE name = ?", (name,)):
            try:
                if sha == _sha256(name, value):
                    return json.loads(value)
            except (ValueError, TypeError, RecursionError):
                pass
            raise self._damaged(f"is damaged in what it remembers as '{name}'")
        return None

    def remember(self, name: str, value: Any) -> None:
        text = json.dumps(value)
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO facts (name, value, sha256) VALUES (?, ?, ?)",
                (name, text, _sha256(name, text)),
            )

    # --- the file -----------------------------------------------------------------------------------------------

    def _rows(self, where: str = "", of: tuple[str, ...] = ()) -> list[tuple[int, LedgerEntry | None]]:
        """Number and entry of rows, None of one that is damaged."""
        rows = self._read(f"{_ROWS} {where} ORDER BY rowid", of)
        return [(number, _entry(content) if sha == _sha256(*content) else None) for number, sha, *content in rows]

    def _put(
        self,
        variant: str,
        replicate: str,
        state: str,
        run_id: str | None,
        status: str | None,
        result: Mapping[str, float],
        files: Mapping[str, str],
    ) -> None:
        """Write a row in the place of the one that there is, in a transaction of the caller's."""
        numbers, sums = json.dumps(dict(result)), json.dumps(dict(files), sort_keys=True)
        content = (variant, replicate, str(state), run_id, status and str(status), numbers, sums)
        self._db.execute(
            f"INSERT INTO entries ({_CONTENT}, sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (variant, replicate) DO UPDATE SET state = excluded.state, run_id = excluded.run_id, "
            "outcome = excluded.outcome, result = excluded.result, files = excluded.files, "
            "sha256 = excluded.sha256, changed = datetime('now')",
            (*content, _sha256(*content)),
        )

    def _bring_up(self) -> None:
        """Add the columns that 0.1.0 did not have, and a sha256 to what it wrote."""
        if self._db.execute("PRAGMA user_version").fetchone()[0]:
            return
        with self._transaction():
            for table, columns in _ADDED.items():
                have = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
                for name, kind in columns.items():
                    if name not in have:
                        self._db.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
            for number, sha, *content in self._db.execute(f"{_ROWS} ORDER BY rowid").fetchall():
                if sha is None and _entry(content) is not None:
                    self._db.execute("UPDATE entries SET sha256 = ? WHERE rowid = ?", (_sha256(*content), number))
            for name, value in self._db.execute("SELECT name, value FROM facts WHERE sha256 IS NULL").fetchall():
                self._db.execute("UPDATE facts SET sha256 = ? WHERE name = ?", (_sha256(name, value), name))
            self._db.execute(f"PRAGMA user_version = {_CHECKED}")

    def _check_pages(self) -> None:
        """Whether SQLite finds its file whole. An index that lost rows is made again: the rows are still there."""
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not tables & _ADDED.keys():
            raise self._damaged(f"is another program's database (its tables: {', '.join(sorted(map(str, tables)))})")
        found = self._problems()
        if found and all(re.fullmatch(r"row \d+ missing from index \w+", line) for line in found):
            self._db.execute("REINDEX")
            found = self._problems()
        if found:
            raise self._damaged(f"is damaged: {' '.join(found[0].split())}")

    def _problems(self) -> list[str]:
        found = [str(line) for (line,) in self._db.execute("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def _check_facts(self) -> None:
        """All of them at once: one whose *name* is damaged would be missed by nobody."""
        for (name,) in self._read("SELECT name FROM facts"):
            self.fact(name)

    def _read(self, query: str, of: tuple[str, ...] = ()) -> list[Any]:
        try:
            return self._db.execute(query, of).fetchall()
        except _ERRORS as error:
            raise self._explained(error, "read") from None

    def _explained(self, error: Exception, done: str) -> WorkbenchError:
        """Says what to do where the file is no ledger; of a lock, or a full disk, SQLite's own words do."""
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(error, UnicodeError) or (code is not None and code & 0xFF in _NO_LEDGER):
            return self._damaged(f"cannot be {done}: {error}")
        return WorkbenchError(f"the study's ledger {self.path} cannot be {done}: {error}.")

    def _damaged(self, what: str) -> WorkbenchError:
        return WorkbenchError(
            f"the study's ledger {self.path} {what}; restore a copy of the file, or move it away: then all is trained "
            "again, and what MLflow has of the study stays there."
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with uninterrupted():
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
        except (*_ERRORS, WorkbenchError) as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, WorkbenchError):
                raise
            raise self._explained(error, "written") from None


def _sha256(*content: Any) -> str:
    """Over the cells of a row, each with its type: a damaged one may have become a number, or bytes."""
    return hashlib.sha256(json.dumps(content, default=repr).encode("ascii")).hexdigest()


def _entry(content: list[Any]) -> LedgerEntry | None:
    """What the cells of a row say; None where they say nothing that a row could say."""
    variant, replicate, state, run_id, status, result, files = content
    try:
        numbers, hashes = json.loads(result), json.loads(files)
        return LedgerEntry(
            variant,
            replicate,
            LedgerState(state),
            run_id,
            status,
            {str(key): float(value) for key, value in numbers.items()},
            {str(key): str(value) for key, value in hashes.items()},
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
