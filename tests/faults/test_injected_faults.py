"""A sample of the faults of ``count_faults.py``, some of every part; the script tries them all."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import count_faults
import pytest
from injected.harness import Fault

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the processes that are hit")


def sample(each: int = 4) -> list[Fault]:
    parts: dict[str, list[Fault]] = {}
    for fault in count_faults.all_faults():
        parts.setdefault(fault.part, []).append(fault)
    draw = random.Random(13)
    return [fault for faults in parts.values() for fault in draw.sample(faults, min(each, len(faults)))]


def test_faults_have_names_of_their_own() -> None:
    names = [(fault.part, fault.name) for fault in count_faults.all_faults()]
    assert len(set(names)) == len(names)
    assert len(names) >= 300


@pytest.mark.long
def test_no_fault_is_silent_or_a_traceback_or_throws_results_away(tmp_path: Path) -> None:
    """In a process of its own, which forks: threads of other tests would not survive that."""
    script = Path(count_faults.__file__)
    patterns = "^(" + "|".join(re.escape(f"{fault.part}: {fault.name}") for fault in sample()) + ")$"
    command = [sys.executable, str(script), "--jobs", "1", "--out", str(tmp_path / "faults"), "--only", patterns]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
