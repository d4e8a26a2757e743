"""What the device can do at most. The only absolute figures; elsewhere the same work stands as the limit, in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from fusion_workbench.bench.record import Figure, Kind
from fusion_workbench.bench.turns import Meter, Ratio, Setting, clock, in_turn

Work = Callable[[], object]
PRODUCT = (1024, 1536, 384)  # what concat's projector multiplies: 16 images of 64 tokens, four layers of 384 channels
SQUARE = {"cpu": 1024, "cuda": 8192}
COPIED = 2**26  # float32 elements, 256 MiB: far more than a cache holds
READ = 2**28  # bytes
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def product(device: str, dtype: torch.dtype, shape: tuple[int, int, int] = PRODUCT) -> tuple[Work, int]:
    """A matrix product ``[m, k] · [k, n]`` of ``shape`` (m, k, n), and its FLOPs."""
    m, k, n = shape
    left, right = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)
    return (lambda: torch.mm(left, right, out=out)), 2 * m * k * n


def copy(device: str, elements: int = COPIED) -> tuple[Work, int]:
    """A copy of float32 elements within the device's memory, and the bytes that it reads and writes."""
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    return (lambda: target.copy_(source)), 8 * elements


def disk_read(folder: Path, size: int) -> tuple[Work, int, bool]:
    """A read of a file in ``folder`` from its beginning, its bytes, and whether the disk itself is read.

    The file is dropped from the system's cache before each read, where the system can do that (Linux); elsewhere it is
    memory that is read. Raises OSError where there is no room for the file.
    """
    path, piece = folder / "read.bin", os.urandom(2**20)
    with path.open("wb") as file:
        for _ in range(max(1, size // len(piece))):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    buffer = bytearray(2**22)
    drops = hasattr(os, "posix_fadvise")

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            if drops:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.readinto(buffer):
                pass

    return read, path.stat().st_size, drops


def measure(setting: Setting) -> Iterator[Figure]:
    """Products in float32 and bf16, a copy, a read."""
    device, tiny = setting.device, setting.tiny
    side = 64 if tiny else SQUARE[device]
    shapes = [(64, 96, 24) if tiny else PRODUCT, (side, side, side)]
    meters: dict[str, Meter] = {}
    amounts: dict[str, int] = {}
    for shape in shapes:
        for name, dtype in DTYPES.items():
            work, flops = product(device, dtype, shape)
            label = f"matrix product {'×'.join(map(str, shape))}, {name}"
            meters[label], amounts[label] = clock(work, device, setting.least), flops
    yield from _absolute(meters, amounts, setting, "GFLOP/s")
    work, copied = copy(device, 2**16 if tiny else COPIED)
    label = "memory copy, bytes read and written"
    yield from _absolute({label: clock(work, device, setting.least)}, {label: copied}, setting, "GB/s")
    read, size, drops = disk_read(setting.scratch, 2**20 if tiny else READ)
    label = "disk read, one file from its beginning"
    note = "" if drops else "from the system's cache, which cannot be emptied here"
    yield from _absolute({label: clock(read, "cpu")}, {label: size}, setting, "GB/s", note)


def _absolute(
    meters: dict[str, Meter], amounts: dict[str, int], setting: Setting, unit: str, note: str = ""
) -> Iterator[Figure]:
    for name, seconds in in_turn(meters, setting.repeats).items():
        rates = Ratio.of([amounts[name] / s / 1e9 for s in seconds])
        yield Figure(name, "", Kind.ABSOLUTE, rates, unit, note, facts={"amount": amounts[name]})
