"""Faults in time: kills, signals, a database that is locked or goes away, a disk that fills up, two at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from injected.harness import Fault

AGAIN = "sweep {s} -w {w} -q"  # what heals


def _signals(number: int, delay: float, times: int = 1, pause: float = 0.05) -> Callable[[int], None]:
    def watch(child: int) -> None:
        time.sleep(delay)
        for _ in range(times):
            with suppress(ProcessLookupError):
                os.kill(child, number)
            time.sleep(pause)

    return watch


def signals() -> Iterator[Fault]:
    """At random moments of a new study, start-up and report included; then the same command."""
    draw = random.Random(13)
    moments = [draw.uniform(0.05, 6.0) for _ in range(60)]
    for part, number, status, count in (
        ("SIGKILL", signal.SIGKILL, -9, 16),
        ("Ctrl-C", signal.SIGINT, 130, 14),
        ("SIGTERM", signal.SIGTERM, 143, 8),
    ):
        for i in range(count):
            at = moments.pop()
            yield Fault(
                part,
                f"{i}, at {at:.2f} s",
                commands=(AGAIN, AGAIN),
                fresh=True,
                statuses=(status,),
                watch=_signals(number, at),
            )
    for i, times in enumerate((2, 2, 4, 4)):
        at = moments.pop()
        yield Fault(
            "Ctrl-C",
            f"{times} times, {i}, at {at:.2f} s",
            commands=(AGAIN, AGAIN),
            fresh=True,
            statuses=(130,),
            watch=_signals(signal.SIGINT, at, times),
        )


def _locked(seconds: float) -> Callable[[Path], None]:
    """Another program holds the database for a while."""

    def inject(folder: Path) -> None:
        db = sqlite3.connect(folder / "W" / "mlflow.db", isolation_level=None, check_same_thread=False)
        db.execute("BEGIN EXCLUSIVE")

        def release() -> None:
            time.sleep(seconds)
            db.execute("ROLLBACK")
            db.close()

        threading.Thread(target=release, daemon=True).start()

    return inject


def _gone_while_training(name: str, put: Callable[[Path], None]) -> Fault:
    """Something happens to MLflow's database in the middle of more replicates."""

    def inject(folder: Path) -> None:
        database = folder / "W" / "mlflow.db"

        def strike() -> None:
            time.sleep(2.5)
            with suppress(OSError):
                put(database)

        threading.Thread(target=strike, daemon=True).start()

    return Fault("tracking", name, inject, ("sweep {s} replicates=4 -w {w} -q", AGAIN), retrained=2, statuses=(1,))


def tracking() -> Iterator[Fault]:
    """MLflow's database or server is not there, or not for a while."""
    yield Fault("tracking", "locked for 3 s", _locked(3))
    yield Fault("tracking", "locked for 90 s", _locked(90), ("sweep {s} -w {w} -q",))
    for uri in (
        "http://127.0.0.1:9",
        "postgresql://wb:s3cretPW@127.0.0.1:9/wb",
        "mysql://u:s3cretPW@127.0.0.1/x",
        "sqlite:////proc/none/a.db",
        "sqlite:////dev/null/a.db",
        "ftp://x",
        "mlruns",
        "http://[::1",
    ):
        yield Fault(
            "tracking", uri, commands=(f"sweep {{s}} 'tracking.uri={uri}' -w {{w}} -q",), fresh=True, must_refuse=True
        )
    yield Fault("tracking", "deleted run", _delete_runs(1))
    yield Fault("tracking", "every run deleted", _delete_runs(9))
    yield Fault("tracking", "deleted experiment", _sql("UPDATE experiments SET lifecycle_stage = 'deleted'"))
    yield Fault("tracking", "emptied", _empty_mlflow, ("sweep {s} -w {w} -q", "report {n} -w {w}"))
    yield Fault("tracking", "lost", lambda f: (f / "W/mlflow.db").unlink(), (AGAIN, "report {n} -w {w}"))
    yield Fault("tracking", "other experiment", commands=("sweep {s} tracking.experiment=other -w {w} -q", AGAIN))
    yield Fault(
        "tracking", "other database", commands=("sweep {s} tracking.uri=sqlite:///{d}/else.db -w {w} -q", AGAIN)
    )
    yield Fault("tracking", "metrics gone", _sql("DELETE FROM latest_metrics; DELETE FROM metrics"))
    yield Fault("tracking", "tags gone", _sql("DELETE FROM tags"))
    yield Fault("tracking", "params gone", _sql("DELETE FROM params"))
    yield Fault(
        "tracking",
        "a test metric changed",
        _sql("UPDATE latest_metrics SET value = value + 0.3 WHERE key LIKE 'test/%/accuracy'"),
    )


def _sql(statements: str) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        with sqlite3.connect(folder / "W" / "mlflow.db") as db:
            db.executescript(statements)

    return inject


def _delete_runs(count: int) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        with sqlite3.connect(folder / "W" / "mlflow.db") as db:
            db.execute(
                "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid IN (SELECT run_uuid FROM tags WHERE "
                "key = 'workbench.kind' AND value = 'variant-replicate' LIMIT ?)",
                [count],
            )

    return inject


def _empty_mlflow(folder: Path) -> None:
    with sqlite3.connect(folder / "W" / "mlflow.db") as db:
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            db.execute(f"DELETE FROM {table}")


def _tmpfs(place: str, size: str) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        target = folder / place
        kept = None
        if target.exists():
            kept = target.with_name(target.name + ".kept")
            target.rename(kept)
        target.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(target)], check=True)
        if kept is not None:
            shutil.copytree(kept, target, dirs_exist_ok=True)

    return inject


def _grown(place: str) -> Callable[[int], None]:
    """Room is made when the first command has ended."""

    def watch(child: int) -> None:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        folder = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if f"/{place}" in line)
        subprocess.run(["mount", "-o", "remount,size=200m", folder], check=True)

    return watch


def disk() -> Iterator[Fault]:
    """The disk is full while a study runs; then there is room. Needs root, to mount a small disk."""
    if os.geteuid() != 0:
        return
    for place, sizes in (
        ("W", ("200k", "600k", "1m", "1500k", "2m", "2500k", "3m")),
        ("W/studies", ("32k", "64k", "76k", "88k", "96k", "104k", "112k", "120k")),
        ("W/store", ("40k", "200k", "400k")),
        ("W/mlartifacts", ("40k", "120k", "300k", "600k")),
    ):
        for size in sizes:
            yield Fault(
                "disk full", f"{place} of {size}", _tmpfs(place, size), (AGAIN, AGAIN), fresh=True, watch=_grown(place)
            )
    yield Fault("disk full", "export", _tmpfs("out", "4k"), ("export {n} -w {w} --no-log -o {d}/out/x",))
    yield Fault("disk full", "report", _tmpfs("out", "40k"), ("report {n} -w {w} -o {d}/out/x",))
    for what in ("W", "W/studies", "W/mlartifacts", "W/store"):
        yield Fault(
            "read-only", what, _read_only(what), ("sweep {s} replicates=3 -w {w} -q", "report {n} -w {w} -o {d}/r")
        )
    yield Fault("read-only", "export", _read_only("W"), ("export {n} -w {w} -o {d}/x",))


def _read_only(place: str) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        target = str(folder / place)
        subprocess.run(["mount", "--bind", target, target], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)

    return inject


def places() -> Iterator[Fault]:
    """Odd paths, names and surroundings; workspaces that were moved or copied."""
    for odd in (
        "a b",
        "ü",
        "q?x=1",
        "pct%20",
        "#a",
        "a@b",
        "[/x]",
        "a'b",
        'a"b',
        "a\\b",
        "-x",
        "a:b",
        "a;b",
        "日本",
        "$HOME",
    ):
        yield Fault("paths", odd, _to(odd), ("report {n} -w " + _quoted(odd), "sweep {s} -q -w " + _quoted(odd)))
    yield Fault("paths", "moved", _to("moved"), ("report {n} -w {d}/moved", "sweep {s} replicates=3 -w {d}/moved -q"))
    yield Fault(
        "paths", "copied", lambda f: _same_copy(f), ("sweep {s} replicates=3 -w {d}/copy -q", "report {n} -w {w}")
    )
    yield Fault(
        "paths",
        "name of 300 letters",
        commands=("sweep {s} name=" + "a" * 300 + " -w {w} -q", "sweep {s} --plan name=" + "a" * 300 + " -w {w} -q"),
        must_refuse=True,
    )
    yield Fault(
        "paths", "workspace is a file", lambda f: _file(f / "w2"), ("sweep {s} -w {d}/w2 -q",), must_refuse=True
    )
    yield Fault(
        "paths", "workspace in a file", lambda f: _file(f / "w2"), ("sweep {s} -w {d}/w2/x -q",), must_refuse=True
    )
    yield Fault("paths", "folder is gone", within=_leave_no_folder, commands=("report {n} -w {w}", AGAIN))
    for name, value in (
        ("HOME", None),
        ("HOME", "/none"),
        ("TMPDIR", "/none"),
        ("PATH", ""),
        ("LANG", "C"),
        ("PYTHONIOENCODING", "ascii"),
        ("COLUMNS", "1"),
        ("TERM", "dumb"),
    ):
        yield Fault("paths", f"{name}={value}", within=_environment(name, value))


def _quoted(name: str) -> str:
    import shlex

    return shlex.quote("./" + name).replace("{", "{{").replace("}", "}}")


def _to(name: str) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "W").rename(folder / name)

    return inject


def _same_copy(folder: Path) -> None:
    shutil.copytree(folder / "W", folder / "copy")


def _file(path: Path) -> None:
    path.write_text("a file")


def _environment(name: str, value: str | None) -> Callable[[], None]:
    def within() -> None:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

    return within


def _leave_no_folder() -> None:
    place = Path("gone").absolute()
    place.mkdir()
    os.chdir(place)
    place.rmdir()
