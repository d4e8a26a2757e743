"""The ledger's promises: what is done stays done."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.names import LedgerState
from fusion_workbench.study.ledger import Ledger


def test_start_finish_forget(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.start("v", "0", "run-a")
    entry = ledger.find("v", "0")
    assert entry is not None
    assert (entry.state, entry.run_id, entry.finished) == (LedgerState.RUNNING, "run-a", False)
    ledger.start("v", "0", "run-b")
    ledger.finish("v", "0", "finished", {"val/objective": 0.5})
    ledger.start("v", "0", "run-c")  # changes nothing: it is done
    entry = ledger.find("v", "0")
    assert entry is not None
    assert (entry.state, entry.run_id, entry.result) == (LedgerState.DONE, "run-b", {"val/objective": 0.5})
    assert entry.finished
    ledger.forget("v", "0")
    assert ledger.entries() == []


def test_facts_outlive_the_process(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.db").remember("run_id", "abc")
    assert Ledger(tmp_path / "ledger.db").fact("run_id") == "abc"
    assert Ledger(tmp_path / "ledger.db").fact("other") is None


def test_a_commit_survives_sigkill(tmp_path: Path) -> None:
    program = f"""
        import os, signal
        from pathlib import Path
        from fusion_workbench.study.ledger import Ledger
        ledger = Ledger(Path({str(tmp_path / "ledger.db")!r}))
        for i in range(5):
            ledger.start(str(i), "0", "run")
            ledger.finish(str(i), "0", "finished", {{}})
        ledger.start("5", "0", "run")
        ledger._db.execute("BEGIN IMMEDIATE")
        ledger._db.execute("DELETE FROM entries")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    states = [entry.state for entry in Ledger(tmp_path / "ledger.db").entries()]
    assert states == [LedgerState.DONE] * 5 + [LedgerState.RUNNING]


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(WorkbenchError, match="cannot be opened"):
        Ledger(path)


def test_files_and_results_come_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.start("v", "0", "run")
    ledger.finish("v", "0", "finished", {"test/loss": 0.1}, {"outcomes/test.parquet": "ab" * 32})
    ledger.close()
    entry = Ledger(tmp_path / "ledger.db").find("v", "0")
    assert entry is not None
    assert (entry.result, entry.files) == ({"test/loss": 0.1}, {"outcomes/test.parquet": "ab" * 32})
    with pytest.raises(WorkbenchError, match="lost the row"):
        Ledger(tmp_path / "ledger.db").finish("v", "1", "finished", {})  # nobody started it


def test_a_ledger_of_0_1_0_is_taken_and_gets_checksums(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(
            """
            CREATE TABLE entries (
                variant   TEXT NOT NULL,
                replicate TEXT NOT NULL,
                state     TEXT NOT NULL CHECK (state IN ('running', 'done')),
                run_id    TEXT,
                outcome   TEXT,
                result    TEXT NOT NULL DEFAULT '{}',
                changed   TEXT NOT NULL DEFAULT (datetime('now')),
                PRIMARY KEY (variant, replicate)
            );
            CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
            INSERT INTO entries (variant, replicate, state, run_id, outcome, result) VALUES
                ('v', '0', 'done', 'a', 'finished', '{"val/objective": 0.5}'),
                ('v', '1', 'done', 'b', 'finished', 'no JSON');
            INSERT INTO facts VALUES ('run_id', '"abc"');
            """
        )
    ledger = Ledger(path)
    assert [(e.run_id, e.result, e.files) for e in ledger.entries()] == [("a", {"val/objective": 0.5}, {})]
    assert ledger.fact("run_id") == "abc"
    assert (ledger.damaged(), ledger.drop_damaged(), ledger.damaged()) == (1, 1, 0)
    ledger.close()
    with closing(sqlite3.connect(path)) as now:  # from here on a missing sha256 is damage
        now.execute("""UPDATE entries SET result = '{"val/objective": 0.9}', sha256 = NULL""")
        now.commit()
    assert Ledger(path).entries() == []


@pytest.mark.parametrize(
    "spoil",
    [
        """UPDATE entries SET result = '{"val/objective": 0.6}'""",
        "UPDATE entries SET result = 'no JSON'",
        "UPDATE entries SET result = CAST(x'ff00' AS TEXT)",
        "UPDATE entries SET outcome = 'diverged'",
        "UPDATE entries SET files = '{}'",
        "UPDATE entries SET run_id = 'of another'",
        "UPDATE entries SET replicate = '1'",
    ],
)
def test_a_damaged_row_is_as_good_as_none(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.start("v", "0", "run")
    ledger.finish("v", "0", "finished", {"val/objective": 0.5}, {"a": "b"})
    ledger._db.execute(spoil)
    assert ledger.entries() == []
    assert ledger.find("v", "0") is None
    assert ledger.damaged() == 1
    ledger.start("v", "0", "again")
    ledger.finish("v", "0", "finished", {"val/objective": 0.5})
    assert [(entry.replicate, entry.run_id) for entry in ledger.entries()] == [("0", "again")]
    ledger.drop_damaged()
    assert len(ledger.entries()) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE facts SET value = '\"abd\"'",
        "UPDATE facts SET value = 'garbage'",
        "UPDATE facts SET name = 'qlan'",
        "UPDATE facts SET sha256 = NULL",
    ],
)
def test_a_damaged_fact_is_refused(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.remember("plan", "abc")
    ledger._db.execute(spoil)
    ledger.close()
    with pytest.raises(WorkbenchError, match=r"is damaged in what it remembers as '.lan'; restore a copy"):
        Ledger(path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    for i in range(200):
        ledger.start(str(i), "0", "run")
    ledger.close()
    content = bytearray(path.read_bytes())
    content[8192 : 8192 + 4096] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(WorkbenchError, match=r"(damaged|malformed).*; restore a copy of the file, or move it away"):
        Ledger(path)


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(WorkbenchError, match=r"is another program's database \(its tables: songs\)"):
        Ledger(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE entries (name TEXT)")
    with pytest.raises(WorkbenchError, match="cannot be written: no such column: variant; restore"):
        Ledger(path)
