"""What a run of benchmarks leaves: figures by group, and the machine that they are of.

``bench.json`` is written anew with every figure, whole or not at all, so an interrupted run keeps what it had.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from fusion_workbench.bench.turns import Ratio, Setting
from fusion_workbench.reports.render.saving import finite, json_text
from fusion_workbench.study import provenance
from fusion_workbench.system.files import write_file
from fusion_workbench.system.hardware import bf16_flags, cpu_flags
from fusion_workbench.version import __version__

SCHEMA = 1  # of bench.json; raised when what a key means changes
JSON = "bench.json"
BUSY = 0.5  # load a core, above which the machine did something else when the run began


class Kind(StrEnum):
    """How a figure is read."""

    SPEED = "times as fast"
    TIME = "times the time"
    LIMIT = "of the limit"
    SHARE = "of the time"
    EXPONENT = "exponent"
    EQUAL = "difference"
    ABSOLUTE = "absolute"


class State(StrEnum):
    """How far a group came."""

    RUNNING = "interrupted"  # and stays so where nobody writes another
    DONE = "done"


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        against: what it took turns with; of an absolute figure empty.
        kind: how the number is read.
        ratio: median and range; None where it was not measured.
        unit: of an absolute figure.
        note: what has to be known to read it: what was counted, what was extended.
        missing: why it was not measured.
        facts: what it was computed from, as plain values.
        marked: it is worth a look, such as growth that is worse than linear.
    """

    name: str
    against: str = ""
    kind: Kind = Kind.SPEED
    ratio: Ratio | None = None
    unit: str = ""
    note: str = ""
    missing: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    marked: bool = False


@dataclass
class GroupRecord:
    """The figures of one group."""

    name: str
    title: str
    state: State = State.RUNNING
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)


def machine(device: str) -> dict[str, Any]:
    """What the figures are of: CPU with what it can do, cores, load, memory, GPU, threads, versions."""
    import psutil
    import torch

    flags = cpu_flags()
    known = {"avx2", "avx512f", "fma", "amx_tile", "neon", "asimd"} | set(bf16_flags(flags))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts = {
        "cpu": _cpu_name(),
        "flags": sorted(known & (flags or set())),
        "bf16": bool(bf16_flags(flags)),
        "cores": cores,
        "load": [round(value, 2) for value in psutil.getloadavg()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": None,
        "versions": provenance.versions(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_memory_gib"] = round(torch.cuda.mem_get_info()[1] / 2**30, 1)
        facts["cuda"] = torch.version.cuda
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


class Record:
    """The figures of a run, as far as it came.

    Args:
        out: folder of ``bench.json``.
    """

    def __init__(self, out: Path, setting: Setting) -> None:
        self.out = out
        self.facts: dict[str, Any] = {
            "schema": SCHEMA,
            "command": provenance.command(),
            "version": __version__,
            "commit": provenance.commit(),
            "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": setting.device,
            "tiny": setting.tiny,
            "repeats": setting.repeats,
            "machine": machine(setting.device),
        }
        self.groups: list[GroupRecord] = []
        self._start = 0.0

    def begin(self, name: str, title: str) -> None:
        """A group begins; until :meth:`end` it counts as interrupted."""
        self.groups.append(GroupRecord(name, title))
        self._start = time.monotonic()
        self.write()

    def add(self, figure: Figure) -> None:
        """Keep a figure of the group that runs, on disk too."""
        self.groups[-1].figures.append(figure)
        self.groups[-1].seconds = round(time.monotonic() - self._start, 1)
        self.write()

    def end(self) -> None:
        """The group that runs has all its figures."""
        self.groups[-1].state = State.DONE
        self.groups[-1].seconds = round(time.monotonic() - self._start, 1)
        self.write()

    def write(self) -> None:
        """Write ``bench.json``. Raises OSError where the disk refuses."""
        write_file(self.out / JSON, json_text(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; what is no number is null."""
        found: dict[str, Any] = finite(
            self.facts | {"caveats": self.caveats(), "groups": [asdict(g) for g in self.groups]}
        )
        return found

    def caveats(self) -> list[str]:
        """What keeps the figures from being quoted."""
        found, about = [], self.facts["machine"]
        if self.facts["tiny"]:
            found.append(
                "Smoke sizes (--tiny): this shows that everything runs, and none of the figures means anything."
            )
        load, cores = about["load"][0], about["cores"]
        if load > BUSY * cores:
            found.append(
                f"The machine was busy when the run began (load {load:g} on {cores} cores). Ratios taken in turn bear "
                "some of it, absolute figures none: measure again on an idle machine before you quote any."
            )
        broken = [g.name for g in self.groups if g.state != State.DONE]
        if broken:
            found.append(f"Interrupted: {', '.join(broken)} did not come to its end.")
        return found
