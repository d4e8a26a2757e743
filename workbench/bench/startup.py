"""What typing a command costs before it does anything, against ``python -c "import torch"``: whole processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fusion_workbench.assets import home as assets
from fusion_workbench.bench.record import Figure, Kind
from fusion_workbench.bench.turns import Ratio, Setting, in_turn
from fusion_workbench.core.errors import WorkbenchError

AGAINST = 'python -c "import torch"'
ENCODER = "encoder"  # the asset that `workbench layers` reads


def commands(scratch: Path) -> dict[str, list[str]]:
    """What is typed → the process. The study planned is the planted one, which needs no assets."""
    workbench = [sys.executable, "-m", "fusion_workbench"]
    return {
        "workbench --help": [*workbench, "--help"],
        "workbench layers": [*workbench, "layers"],
        "workbench sweep planted --plan": [*workbench, "sweep", "planted", "--plan", "-w", str(scratch / "workspace")],
    }


def measure(setting: Setting) -> Iterator[Figure]:
    """CPU and wall seconds of each command, in turn with the import."""
    for name, words in commands(setting.scratch).items():
        if "layers" in words and not _there(ENCODER):
            yield Figure(name, AGAINST, Kind.TIME, missing="the embedded encoder is not here: workbench assets")
            continue
        walls: dict[str, list[float]] = {"ours": [], "torch": []}
        meters = {
            "ours": _process(words, setting.scratch, walls["ours"]),
            "torch": _process([sys.executable, "-c", "import torch"], setting.scratch, walls["torch"]),
        }
        cpu = in_turn(meters, setting.repeats)
        wall = {who: values[1:] for who, values in walls.items()}  # the first warmed up
        for what, seconds in (("CPU seconds", cpu), ("wall seconds", wall)):
            facts = {"seconds": {who: Ratio.of(values).median for who, values in seconds.items()}}
            ratio = Ratio.paired(seconds["ours"], seconds["torch"])
            yield Figure(f"{name}, {what}", AGAINST, Kind.TIME, ratio, note="less is better", facts=facts)


def _there(asset: str) -> bool:
    return any(status.name == asset and status.state == "ready" for status in assets.status())


def _process(words: list[str], folder: Path, walls: list[float]) -> Callable[[], float]:
    """A meter of a process's CPU seconds, user and system, its children's too; wall seconds go to ``walls``."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def turn() -> float:
        before, start = os.times(), time.perf_counter()
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        walls.append(time.perf_counter() - start)
        after = os.times()
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise WorkbenchError(f"{' '.join(words[1:])} ended with status {done.returncode}: {last}")
        return after.children_user - before.children_user + after.children_system - before.children_system

    return turn
