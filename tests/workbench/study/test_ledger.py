"""The ledger's promises: what is done stays done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
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
