"""Where a result came from: versions, commit, machine."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.system.mlflow_uri import without_password
from fusion_workbench.version import __version__

if TYPE_CHECKING:
    from fusion_workbench.study.prepare import Parts

PACKAGES = ("torch", "lightning", "torchmetrics", "transformers", "optuna", "mlflow", "omegaconf", "numpy", "pillow")
NUMERICAL = ("torch", "lightning", "transformers", "numpy", "pillow")  # pillow: it draws and resizes images


def versions() -> dict[str, str]:
    """Of Python, ourselves and what results depend on."""
    versions_by_name = {"python": platform.python_version(), "fusion-workbench": __version__}
    for package in PACKAGES:
        try:
            versions_by_name[package] = version(package)
        except PackageNotFoundError:
            versions_by_name[package] = "not installed"
    return versions_by_name


def command() -> str:
    """What was typed, without passwords."""
    words = [without_password(word) for word in sys.argv[1:]]
    return " ".join(["workbench", *map(shlex.quote, words)])


def commit() -> str:
    """The commit of the workbench's checkout, ``+changes`` when files differ from it; empty without a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def environment(parts: Parts) -> dict[str, str]:
    """What moves numbers a little and is no reason to refuse them: libraries, hardware, precision, of one run."""
    import torch

    from fusion_workbench.modules.encoders.encoder import resolve_precision
    from fusion_workbench.system.hardware import default_device

    facts = {name: version for name, version in versions().items() if name in NUMERICAL}
    facts["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU {platform.machine()}"
    facts["encoder precision"] = parts.encoder.precision
    if parts.language is not None:
        facts["language model precision"] = resolve_precision(parts.language.config.weights, default_device())
    return facts


def device() -> str:
    """What trains here, in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"
