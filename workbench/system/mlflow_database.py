"""The SQLite database that MLflow keeps a workspace in: its address, its opening, and artifacts that moved with it.

MLflow stores where each run's artifacts lie as an absolute path. A workspace may be moved, renamed, copied or mounted
elsewhere, so what lies beside the database, in ``mlartifacts``, under a run's id counts before the path that MLflow
knows: readers look there first (:func:`artifact_folder`), and who is going to write has MLflow's paths put right before
(:func:`relocate`), lest it write into the place that the workspace was moved or copied from.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from fusion_workbench.core.errors import WorkbenchError

DATABASE, ARTIFACTS, STUDIES, LOCK = "mlflow.db", "mlartifacts", "studies", "lock"  # in a workspace
_PATIENCE = 120  # seconds for which another process may be opening the database
# Where MLflow keeps places of artifacts.
_PLACES = (
    ("experiments", "artifact_location"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)

# --- the address ----------------------------------------------------------------------------------------------------


def sqlite_uri(path: Path) -> str:
    """The tracking URI of a database file.

    Raises:
        WorkbenchError: MLflow would read another path out of it: ``?`` begins options, ``%41`` is an A.
    """
    place = str(path.resolve())
    if odd := re.search(r"\?|%[0-9A-Fa-f]{2}", place):
        raise WorkbenchError(
            f"the path {place} holds '{odd[0]}', which an address of a database cannot; choose another folder with "
            "--workspace, or another MLflow with tracking.uri."
        )
    return f"sqlite:///{place}"


def sqlite_path(uri: str) -> Path | None:
    """The file that a tracking URI means; None where it is no SQLite file's."""
    scheme, found, rest = uri.partition(":///")
    path = unquote(rest.partition("?")[0])
    if not found or scheme.partition("+")[0] != "sqlite" or path in ("", ":memory:"):
        return None
    return Path(path)


# --- the opening ----------------------------------------------------------------------------------------------------


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """One process at a time: MLflow's makes its tables when it finds none, and two at once break each other's.

    Where there is no file of a database, or no lock can be made (a read-only folder, in which nobody makes tables),
    nothing is waited for.

    Raises:
        WorkbenchError: another process has been at it for minutes.
    """
    from filelock import FileLock, Timeout

    path = sqlite_path(uri)
    lock = None
    if path is not None and path.parent.is_dir():
        lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise WorkbenchError(
                f"another process has been opening {path} for {_PATIENCE} s (lock {lock.lock_file}); wait for it, or "
                "stop it."
            ) from None
        except (OSError, NotImplementedError):
            lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


# --- artifacts beside the database ----------------------------------------------------------------------------------


def artifact_folder(uri: str, run_id: str, place: str) -> Path | None:
    """The folder that a run's artifacts lie in on this machine; None where they lie elsewhere.

    Args:
        uri: of the MLflow that has the run.
        place: where MLflow says they are, its ``artifact_uri``.
    """
    database = sqlite_path(uri)
    if database is not None:
        beside = database.parent.resolve() / ARTIFACTS / run_id / "artifacts"
        if beside.is_dir():
            return beside
    return Path(url2pathname(urlsplit(place).path)) if place.startswith("file:") else None


def relocate(uri: str, own_lock: Path | None = None) -> str:
    """Let MLflow's places of artifacts be those beside its database, where the folder was moved, copied or mounted.

    A place is former where artifacts of its runs lie here, beside the database. All rows that lie in it are changed
    at once, but for runs whose artifacts are there alone; what is there is left alone.

    Args:
        uri: of MLflow; other databases than SQLite have no place of their own.
        own_lock: of the study that asks.

    Returns:
        One line about what was changed, or nothing.

    Raises:
        WorkbenchError: a study is running that knows this folder under its former path, or the database cannot be
            written.
    """
    path = sqlite_path(uri)
    if path is None or not path.is_file():
        return ""
    here = path.parent.resolve() / ARTIFACTS
    if not here.is_dir():
        return ""
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as database:
            if not {"runs", "experiments"} <= _tables(database):
                return ""
            if not _former(database, here):
                return ""
            _refuse_running(path.parent, own_lock)
            database.execute("BEGIN IMMEDIATE")
            former = _former(database, here)
            for place, runs in former.items():
                _rewrite(database, place, runs, here.as_uri())
            database.execute("COMMIT")
    except sqlite3.Error as error:
        raise WorkbenchError(
            f"{path} was moved or copied here, and where its artifacts lie cannot be written into it: {error}."
        ) from None
    before = ", ".join(str(Path(url2pathname(urlsplit(place).path)).parent) for place in former)
    return f"the workspace was at {before} before; its artifacts are now looked for, and written, in {here}"


def _former(database: sqlite3.Connection, here: Path) -> dict[str, list[str]]:
    """Other places of artifacts → the runs that MLflow has there, where artifacts of any of them lie ``here``."""
    places: dict[str, list[str]] = {}
    own = here.as_uri()
    for run_id, uri in database.execute("SELECT run_uuid, artifact_uri FROM runs WHERE artifact_uri LIKE 'file:%'"):
        place = uri.removesuffix(f"/{run_id}/artifacts")
        if place not in (uri, own):
            places.setdefault(place, []).append(run_id)
    return {place: runs for place, runs in places.items() if any((here / run).is_dir() for run in runs)}


def _rewrite(database: sqlite3.Connection, place: str, runs: list[str], here: str) -> None:
    there = Path(url2pathname(urlsplit(place).path))
    beside = Path(url2pathname(urlsplit(here).path))
    moved = [run for run in runs if (beside / run).is_dir() or not (there / run).is_dir()]
    database.executemany(
        "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", [(f"{here}/{run}/artifacts", run) for run in moved]
    )
    tables = _tables(database)
    for table, column in _PLACES:
        if table in tables and column in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}:
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (here, len(place) + 1, place, len(place) + 1, f"{place}/"),
            )


def _refuse_running(workspace: Path, own_lock: Path | None) -> None:
    from filelock import FileLock, Timeout

    for path in sorted(workspace.glob(f"{STUDIES}/*/{LOCK}")):
        if own_lock is not None and path.resolve() == own_lock.resolve():
            continue
        try:
            with FileLock(path).acquire(timeout=0):
                pass
        except Timeout:
            raise WorkbenchError(
                f"the study in {path.parent} is running and knows {workspace} under another path; wait for it, or use "
                "that path."
            ) from None
        except OSError:
            continue


def _tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
