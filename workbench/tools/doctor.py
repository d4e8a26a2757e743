"""Is this machine fit for a study? Findings, each with its remedy.

Nothing is changed or fetched. Versions come from the installed metadata, without importing what they belong
to, and what cannot be looked at is said to be so.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.system.hardware import BF16_FLAGS, bf16_flags, cpu_flags
from fusion_workbench.system.mlflow_uri import check_uri, without_password

if TYPE_CHECKING:
    from rich.console import Console

DISTRIBUTION = "fusion-workbench"
PYTHON = ">=3.11"
SHOWN = ("torch", "lightning", "torchmetrics", "transformers", "optuna", "mlflow", "omegaconf")
MALICIOUS = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
GB = 10**9

FindingState = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. ``remedy`` is empty when there is nothing to fix."""

    name: str
    state: FindingState
    what: str
    remedy: str = ""


def examine(workspace: Path, tracking_uri: str | None = None) -> list[Finding]:
    """Everything a study depends on; without a ``tracking_uri``, the workspace's own database."""
    return [
        _python(),
        *_packages(),
        *_accelerator(),
        *_backend(),
        _cores(),
        _memory(),
        *_folder("workspace", workspace),
        _tracking(tracking_uri, workspace),
        *_assets(),
    ]


def show(findings: list[Finding], console: Console) -> None:
    """A table of the findings, then the remedies in full, one a line."""
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "bad": "red"}
    table = Table("what", "state", "found", title="doctor", title_justify="left")
    for finding in findings:
        table.add_row(finding.name, Text(finding.state, style=colours[finding.state]), Text(finding.what))
    console.print(table)
    for finding in findings:
        if finding.remedy:
            style = colours[finding.state]
            console.print(Text.assemble((f"{finding.name}: ", style), finding.remedy), soft_wrap=True)
    if all(finding.state == "ok" for finding in findings):
        console.print("all is well")


def _python() -> Finding:
    interpreter = f"{platform.python_implementation()} {platform.python_version()} at {sys.prefix}"
    if SpecifierSet(PYTHON).contains(platform.python_version(), prereleases=True):
        return Finding("Python", "ok", interpreter)
    return Finding("Python", "bad", interpreter, f"needed: {PYTHON}; make clean env PYTHON=python3.11")


def _packages() -> Iterator[Finding]:
    """A row for each of the main packages, and one for any other that is missing or out of range."""
    try:
        declared = [Requirement(text) for text in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:
        remedy = "install it, so that versions can be checked: pip install -e . in the checkout"
        yield Finding("packages", "warn", f"{DISTRIBUTION} is not installed, only on the import path", remedy)
        declared = [Requirement(name) for name in SHOWN]
    for need in declared:
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            finding = _package(need)
            if need.name in SHOWN or finding.state != "ok":
                yield finding
    if "pytorch-lightning" not in (need.name for need in declared):
        alias = _package(Requirement("pytorch-lightning"))
        if "malicious" in alias.what:
            yield alias


def _package(need: Requirement) -> Finding:
    install = f"pip install '{need.name}{need.specifier}'"
    try:
        installed = version(need.name)
    except PackageNotFoundError:
        return Finding(need.name, "bad", "not installed", install)
    if installed in MALICIOUS.get(need.name, ()):
        remedy = (
            "import nothing more here: remove this environment, change every credential that this machine "
            f"held, and in a new one {install}"
        )
        return Finding(need.name, "bad", f"{installed} is a malicious release", remedy)
    if not need.specifier.contains(installed, prereleases=True):
        return Finding(need.name, "bad", f"{installed}; needed: {need.specifier}", install)
    return Finding(need.name, "ok", f"{installed} ({need.specifier})" if need.specifier else installed)


def _accelerator() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken build raises whatever its loader does
        remedy = "install torch anew: https://pytorch.org/get-started"
        yield Finding("accelerator", "bad", f"torch cannot be imported: {error}", remedy)
        return
    if not torch.cuda.is_available():
        yield Finding("accelerator", "ok", "none: training on the CPU")
        yield _cpu()
        return
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        free, total = torch.cuda.mem_get_info(index)
        device = torch.cuda.get_device_name(index)
        what = f"{device}, capability {major}.{minor}, {_gb(free)} of {_gb(total)} free"
        name = f"accelerator {index}"
        if (major, minor) >= (8, 0):
            yield Finding(name, "ok", f"{what}, bf16")
        else:
            remedy = "it has no bf16 of its own: keep training.precision=32-true and encoder.precision=float32"
            yield Finding(name, "warn", what, remedy)


def _backend() -> Iterator[Finding]:
    """The optional kernels of deformable attention, on a machine that could use them or has them."""
    try:
        import torch

        usable = torch.cuda.is_available()
    except Exception:  # told of above
        return
    if not usable and find_spec("deformops") is None:
        return
    from fusion_workbench.modules.fusion.deformable_backends import unavailable

    if (reason := unavailable()) is not None:
        if usable:
            yield Finding("deformable attention", "ok", f"this package's operator; optional: {reason}")
        return
    where = "timed against this package's operator, the faster is taken" if usable else "not used without CUDA"
    try:
        yield Finding("deformable attention", "ok", f"deformops {version('deformops')}: {where}")
    except PackageNotFoundError:
        yield Finding("deformable attention", "ok", f"deformops, of unknown version: {where}")


def _cpu() -> Finding:
    flags = cpu_flags()
    if flags is None:
        return Finding("CPU", "ok", f"{platform.machine()}; its features cannot be read here")
    if gains := bf16_flags(flags):
        return Finding("CPU", "ok", f"{' and '.join(gains)}: bf16 autocast gains here")
    return Finding("CPU", "ok", f"no {' or '.join(BF16_FLAGS)}: float32 is the faster precision here")


def _cores() -> Finding:
    there = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    quota = _cgroup("cpu.max")
    if len(quota) == 2 and quota[0].isdigit():
        usable = max(1, min(usable, round(int(quota[0]) / int(quota[1]))))
    limit = os.environ.get("OMP_NUM_THREADS")
    what = f"{usable} of {there} usable" + (f", OMP_NUM_THREADS={limit}" if limit else "")
    if usable < 2:
        return Finding("cores", "warn", what, "expect about twice the time that two cores take")
    return Finding("cores", "ok", what)


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    limit = _cgroup("memory.max")
    if limit and limit[0].isdigit() and int(limit[0]) < total:
        used = _cgroup("memory.current")
        total = int(limit[0])
        free = min(free, total - int(used[0]) if used else total)
    what = f"{_gb(free)} of {_gb(total)} free"
    remedy = "close other programs, or lower training.bank_size and encoder.batch_size"
    if free < 1.5 * GB:
        return Finding("memory", "bad", what, remedy)
    return Finding("memory", "warn", what, remedy) if free < 4 * GB else Finding("memory", "ok", what)


def _cgroup(file: str) -> list[str]:
    """The words of a container's limit; empty outside of one."""
    try:
        return Path("/sys/fs/cgroup", file).read_text(encoding="ascii").split()
    except OSError:
        return []


def _folder(name: str, folder: Path) -> Iterator[Finding]:
    """Can ``folder`` be written, and is there room? It need not exist yet."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    option = "--workspace" if name == "workspace" else "WORKBENCH_ASSETS"
    if not there.is_dir():
        yield Finding(name, "bad", f"{there} is not a folder", f"choose another place with {option}")
        return
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        remedy = f"make it writable, or choose another place with {option}"
        yield Finding(name, "bad", f"{there} cannot be written: {error.strerror}", remedy)
        return
    yield Finding(name, "ok", f"{folder}, writable" + ("" if there == folder else " (made when needed)"))
    usage = shutil.disk_usage(there)
    what = f"{_gb(usage.free)} of {_gb(usage.total)} free"
    remedy = f"free some space, or choose another place with {option}"
    state: FindingState = "bad" if usage.free < 0.5 * GB else "warn" if usage.free < 5 * GB else "ok"
    yield Finding(f"{name} disk", state, what, "" if state == "ok" else remedy)


def _tracking(uri: str | None, workspace: Path) -> Finding:
    from fusion_workbench.study.tracking import default_uri
    from fusion_workbench.system.mlflow_database import sqlite_path

    try:
        default = default_uri(workspace)
    except WorkbenchError as error:
        return Finding("tracking", "bad", str(error), "choose another folder with --workspace")
    uri = uri or default
    try:
        check_uri(uri)
    except WorkbenchError as error:
        remedy = f"name a database or a server, such as {default}"
        return Finding("tracking", "bad", without_password(str(error)), remedy)
    if (database := sqlite_path(uri)) is not None:
        return _sqlite(database)
    if uri.startswith("http"):
        return _server(uri)
    return Finding("tracking", "ok", f"{without_password(uri)} (not connected to)")


def _sqlite(database: Path) -> Finding:
    folder = next(_folder("tracking", database.absolute().parent))
    if folder.state == "bad":
        return Finding("tracking", "bad", folder.what, "choose another place for the database with --uri")
    if not database.exists():
        return Finding("tracking", "ok", f"{database} (made when needed)")
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=2)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Finding("tracking", "bad", f"{database}: {error}", "restore it from a copy, or move it away")
    if tables and "experiments" not in tables:
        return Finding("tracking", "bad", f"{database} is a database, but not MLflow's", "name another with --uri")
    return Finding("tracking", "ok", str(database))


def _server(uri: str) -> Finding:
    plain = without_password(uri)
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5):
            return Finding("tracking", "ok", f"{plain} answers")
    except (OSError, ValueError) as error:
        remedy = "start the server, or mend the address; a proxy or a login may also stand between"
        return Finding("tracking", "bad", f"{plain} does not answer: {without_password(str(error))}", remedy)


def _assets() -> Iterator[Finding]:
    try:
        from fusion_workbench.assets import home as assets

        home, statuses = assets.home(), assets.status(thorough=True)
    except Exception as error:  # whatever it is, the other findings matter too
        yield Finding("assets", "bad", f"cannot be looked at: {error}", "install the workbench anew")
        return
    yield from _folder("assets home", home)
    for status in statuses:
        remedy = "" if status.state == "ready" else f"workbench assets {status.name} --repair"
        if status.state == "missing":
            optional = status.name == "language-model"
            remedy = "" if optional else "workbench assets"
            what = "not here; fetched when asked for" if optional else "not here yet; a first run fetches it"
            yield Finding(status.name, "ok" if optional else "warn", what, remedy)
        else:
            state: FindingState = "ok" if status.state == "ready" else "bad"
            yield Finding(status.name, state, f"{status.state}: {status.what}", remedy)


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB"
