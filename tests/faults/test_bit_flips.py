"""One bit of a stored result is flipped, in every byte in turn: none is ever read as another value."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.reading.artifacts import Artifacts
from fusion_workbench.reports.reading.outcomes import read_outcomes
from fusion_workbench.schema.checksums import to_tags
from fusion_workbench.schema.names import Tag, scores_file
from fusion_workbench.schema.records import Task
from fusion_workbench.study.ledger import Ledger, LedgerEntry
from fusion_workbench.system.checksums import sha256_of

FACTS = {"run_id": "5" * 32, "plan": {"first": {"looks": [2]}, "changes": []}, "schema": 2}


def flips(content: bytes, places: range) -> Iterator[bytes]:
    """The content with one bit flipped: of each byte the one that its place says, so that all bits have their turn."""
    for place in places:
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << (place % 8)
        yield bytes(spoilt)


def test_no_flipped_bit_of_outcomes_is_read(tmp_path: Path) -> None:
    """Through the report's reader, with the sha256 that the run's tags hold."""
    draw = np.random.default_rng(0)
    rows = {"example_id": [f"test-{i:05d}" for i in range(32)] * 2, "group": ["a", "b"] * 32}
    rows |= {"task": ["read"] * 32 + ["digit"] * 32, "score": draw.random(64).astype("float32")}
    table = pd.DataFrame(rows | {"items": np.ones(64, dtype="int32")})
    place = tmp_path / "run" / scores_file("test")
    place.parent.mkdir(parents=True)
    table.to_parquet(place, index=False, compression="zstd")
    whole = place.read_bytes()
    tags = {str(Tag.PARENT): "parent"} | to_tags({scores_file("test"): sha256_of(whole)})
    info = SimpleNamespace(run_id="run", artifact_uri=(tmp_path / "run").as_uri())
    run = SimpleNamespace(info=info, data=SimpleNamespace(tags=tags))
    client = SimpleNamespace(get_run=lambda run_id: run, tracking_uri="http://127.0.0.1:1")
    artifacts = Artifacts(client, [run], tmp_path)  # type: ignore[arg-type, list-item]
    tasks = {name: Task(name) for name in ("read", "digit")}

    def read() -> pd.DataFrame:
        path = artifacts.file("run", scores_file("test"))
        assert path is not None
        return read_outcomes(path, "test", tasks, {}, 32)[0]

    assert np.array_equal(read()["score"], table["score"])
    with place.open("r+b", buffering=0) as file:
        for spoilt in flips(whole, range(len(whole))):
            file.seek(0)
            file.write(spoilt)
            with suppress(WorkbenchError):
                read()
                pytest.fail("a damaged file was read")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger of three rows and three facts, closed: all is in one file."""
    path = tmp_path / "ledger.db"
    made = Ledger(path)
    for number in range(3):
        made.start("a1b2c3d4e5f60718", str(number), f"{number}" * 32)
        files = {scores_file("test"): sha256_of(str(number))}
        made.finish("a1b2c3d4e5f60718", str(number), "finished", {"test/digit/accuracy": 0.125 * number}, files)
    for name, value in FACTS.items():
        made.remember(name, value)
    made.close()
    return path


def read_ledger(path: Path, content: bytes) -> list[LedgerEntry] | None:
    """The rows of a ledger of that content, whose facts are right; None where it is refused."""
    path.write_bytes(content)
    for beside in ("-wal", "-shm"):
        path.with_name(path.name + beside).unlink(missing_ok=True)
    with suppress(WorkbenchError), closing(Ledger(path)) as found:
        assert {name: found.fact(name) for name in FACTS} == FACTS
        entries = found.entries()
        assert [found.find(e.variant, e.replicate) for e in entries] == entries
        return entries
    return None


def held(path: Path, places: range) -> dict[str, int]:
    """What became of one flipped bit in each of the places. Asserts that nothing was read as another value."""
    whole = path.read_bytes()
    rows = read_ledger(path, whole)
    assert rows is not None
    assert len(rows) == 3
    counts = {"refused": 0, "trained again": 0, "equal": 0}
    for place, spoilt in zip(places, flips(whole, places), strict=True):
        found = read_ledger(path, spoilt)
        assert found is None or all(row in rows for row in found), f"byte {place} is read as another value"
        counts["refused" if found is None else "equal" if found == rows else "trained again"] += 1
    return counts


def test_no_flipped_bit_of_a_ledgers_results_is_read(ledger: Path) -> None:
    """Every byte of one row: its result, the sha256 of its files, its own."""
    whole = ledger.read_bytes()
    with closing(sqlite3.connect(ledger)) as database:
        query = "SELECT variant, replicate, result, files, sha256 FROM entries WHERE replicate = '1'"
        (cells,) = database.execute(query).fetchall()
    places = [whole.index(cell.encode()) for cell in cells[2:]]
    for start, cell in zip(places, cells[2:], strict=True):
        counts = held(ledger, range(start, start + len(cell)))
        assert counts == {"refused": 0, "trained again": len(cell), "equal": 0}
        ledger.write_bytes(whole)


@pytest.mark.long
def test_no_flipped_bit_of_a_ledgers_file_is_read(ledger: Path) -> None:
    """Every byte of the file: headers, the schema, indexes, facts and what is free."""
    counts = held(ledger, range(ledger.stat().st_size))
    assert min(counts.values()) > 0
