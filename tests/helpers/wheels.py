"""Wheels as an installer takes them, with neither pip nor network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

_BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def build_wheel(sources: Path, out: Path) -> Path:
    """The wheel of the project in ``sources``, which setuptools writes into too; it lies in ``out``."""
    built = subprocess.run(
        [sys.executable, "-c", _BUILD, str(out)], cwd=sources, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return out / built.stdout.splitlines()[-1]


def unpack_wheel(wheel: Path, site: Path) -> Path:
    """Install ``wheel`` into the folder ``site``: of pure Python that is to unpack it. Returns ``site``."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site
