"""What this machine computes on: the device by default, and whether its CPU has bf16 products."""

from __future__ import annotations

from pathlib import Path

# With any of them bf16 autocast outruns float32: Intel's and AMD's by their names in /proc/cpuinfo, and Arm's.
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


def default_device() -> str:
    """``cuda`` where torch sees one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def cpu_flags() -> set[str] | None:
    """What the first processor can do, by the kernel's words; None where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    named = ("flags", "Features")  # on x86, on Arm
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith(named)), None)


def bf16_flags(flags: set[str] | None) -> list[str]:
    """Those of ``flags`` by which bf16 products are native."""
    return [flag for flag in BF16_FLAGS if flag in (flags or ())]
