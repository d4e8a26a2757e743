"""Faults put into a small study, the commands that follow, and a verdict on what they did.

A fault works on a copy of a workspace in which the study is finished (or on an empty one), then commands run as a user
would type them, each in a forked child of this process, which has imported the libraries already. What counts:

* *right*: the report is that of the sound study, or the command refuses in one line, or the report says what is
  missing;
* *traceback*, *silent* (other numbers without a word), *other* (a hang, several lines, a wrong exit status);
* *lost*: finished rows that the fault did not touch were trained again.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

PATIENCE = 240.0  # seconds until a command counts as hanging
MOST = 700  # characters of an error that is one line to read
MEMORY = 8 << 30  # bytes that a command may take: one that reads without end shall not take the machine with it


class Verdict(StrEnum):
    """What a fault came to."""

    RIGHT = "right"
    TRACEBACK = "traceback"
    SILENT = "silent"
    OTHER = "other"


@dataclass(frozen=True)
class Fault:
    """One fault and what is run after it.

    Attributes:
        part: row of the table.
        name: of the fault, unique in its part.
        inject: does it, to the workspace it is given.
        commands: run afterwards, one by one; ``{w}`` is the workspace, ``{s}`` the study's file, ``{d}`` the folder
            that holds both and the encoder ``enc``.
        retrained: how many finished rows may be trained again, as the fault took them.
        fresh: start from an empty workspace.
        within: called in the child before the command, such as to register a plug-in.
        must_refuse: every command has to fail.
        watch: instead of waiting, called with the child's process id: sends signals.
        statuses: exit statuses that are right besides 0 and 2.
    """

    part: str
    name: str
    inject: Callable[[Path], None] = lambda folder: None
    commands: Sequence[str] = ("report {n} -w {w}", "sweep {s} -w {w} -q")
    retrained: int = 0
    fresh: bool = False
    within: Callable[[], None] | None = None
    must_refuse: bool = False
    watch: Callable[[int], None] | None = None
    statuses: tuple[int, ...] = ()


@dataclass
class Outcome:
    """What came of a fault, with the words of every command."""

    fault: Fault
    verdict: Verdict = Verdict.RIGHT
    lost: int = 0
    why: str = ""
    log: list[str] = field(default_factory=list)

    def blame(self, verdict: Verdict, why: str) -> None:
        """Keep the worst."""
        if self.verdict in (Verdict.RIGHT, Verdict.OTHER):
            self.verdict, self.why = verdict, why


@dataclass(frozen=True)
class Study:
    """The sound study: ``folder`` with ``study.yaml``, the encoder ``enc``, the workspace ``W``; and its report."""

    folder: Path
    pristine: Path  # a copy of it
    name: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    words: Any = None


def run(argv: Sequence[str], cwd: Path, log: Path, within: Callable[[], None] | None = None) -> int:
    """Start the command line in a forked child. Returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this was started in the background
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
        os.chdir(cwd)
        sys.argv = ["workbench", *argv]
        if within is not None:
            within()
        from fusion_workbench.cli.main import main

        main()
        status = 0
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def wait(child: int) -> int | None:
    """Exit status, negative for a signal; None where it hangs and was killed."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def numbers_of(report: Path) -> dict[str, Any]:
    """Every score of a ``report.json`` by cell, split and measure."""
    content = json.loads(report.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for cell in content["cells"]:
        for split in ("test", "validation"):
            for measure, value in cell[split].items():
                found[f"{cell['label']} {split} {measure}"] = value
    return found


def words_of(report: Path) -> Any:
    """What a report says of missing runs, damage and mixtures; numbers in sentences do not count as words."""
    content = json.loads(report.read_text(encoding="utf-8"))
    return [
        content["counts"],
        sorted(re.sub(r"[\d.]+", "#", note) for note in content["notes"]),
        sorted(re.sub(r"[\d.]+", "#", str(caveat)) for caveat in content["answer"].get("caveats", [])),
        [cell["states"] for cell in content["cells"]],
        content["plan"]["departures"],
    ]


def judge(outcome: Outcome, study: Study, status: int | None, text: str, workspace: Path, command: str) -> None:
    """Hold one command's exit, words and report against what is right."""
    fault = outcome.fault
    outcome.log.append(f"$ workbench {command}\n{text}[exit {status}]")
    if status is None:
        return outcome.blame(Verdict.OTHER, f"hangs: {command}")
    if "Traceback (most recent call last)" in text:
        return outcome.blame(Verdict.TRACEBACK, f"{command}: {text.strip().splitlines()[-1][:200]}")
    if status in fault.statuses:
        return None
    if status == 2:
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        usage = "Usage:" in text
        if not usage and (len(errors) != 1 or len(errors[0]) > MOST):
            outcome.blame(Verdict.OTHER, f"{command}: {len(errors)} lines of error, {len(text)} characters")
        if any(ord(c) < 32 and c not in "\n\t" for c in text):
            outcome.blame(Verdict.OTHER, f"{command}: control characters on the terminal")
        return None
    if status != 0:
        return outcome.blame(Verdict.OTHER, f"{command}: exit {status}: {text.strip()[-200:]}")
    if fault.must_refuse:
        return outcome.blame(Verdict.SILENT, f"{command}: accepted")
    match = re.search(r"trained (\d+), kept (\d+)", text)
    if match and not fault.fresh:
        asked_for = 2 if "replicates=3" in command else 0  # another replicate of both cells
        outcome.lost = max(outcome.lost, int(match[1]) - asked_for - fault.retrained)
    report = workspace / "reports" / study.name / "report.json"
    if command.split()[0] not in ("report", "sweep") or "--no-report" in command or not report.is_file():
        return None
    if numbers_of(report) != study.numbers and words_of(report) == study.words:
        changed = [key for key, value in study.numbers.items() if numbers_of(report).get(key) != value]
        outcome.blame(Verdict.SILENT, f"{command}: other numbers without a word: {changed[:3]}")
    return None


def try_fault(fault: Fault, study: Study) -> Outcome:
    """Copy the study, put the fault in, run the commands, judge."""
    folder = study.folder  # always the same place, as artifacts' places are absolute in MLflow
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(study.pristine, folder, symlinks=True)
    workspace = folder / "W"
    if fault.fresh:
        shutil.rmtree(workspace)
    outcome, log = Outcome(fault), study.pristine.with_name("terminal.log")
    try:
        fault.inject(folder)
        for number, command in enumerate(fault.commands):
            words = command.format(w=workspace, s=folder / "study.yaml", d=folder, n=study.name)
            shutil.rmtree(workspace / "reports", ignore_errors=True)
            child = run(shlex.split(words), folder, log, fault.within)
            if fault.watch is not None and number == 0:
                fault.watch(child)
            status = wait(child)
            judge(outcome, study, status, log.read_text(encoding="utf-8", errors="replace"), workspace, words)
    except Exception:  # the fault itself could not be made, which is no verdict on the product
        outcome.blame(Verdict.OTHER, f"the fault failed: {traceback.format_exc()[-400:]}")
    finally:
        undo(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def undo(folder: Path) -> None:
    """Take away what a fault has mounted below the folder."""
    mounts = Path("/proc/mounts")
    if mounts.is_file():
        below = [line.split()[1] for line in mounts.read_text(encoding="utf-8").splitlines() if str(folder) in line]
        for place in reversed(below):
            subprocess.run(["umount", "-l", place], check=False)
