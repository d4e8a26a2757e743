"""How time and memory of a study's parts grow with images, layers, tokens and members: exponents, fitted in log-log.

1 is linear. Fixed costs make small sizes dearer and so the exponent smaller; one above :data:`LINEAR` is marked.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fusion_workbench.bench.bank import Shape, batch_of, member, train
from fusion_workbench.bench.encoder import Noise, store_meter
from fusion_workbench.bench.record import Figure, Kind
from fusion_workbench.bench.studies import encoder_of
from fusion_workbench.bench.turns import Meter, Ratio, Setting

LINEAR = 1.1  # the largest exponent that still counts as linear: noise has to go somewhere
NO_PEAK = "this system does not tell a process's peak memory anew (Linux does)"
BASE = Shape(8, 8, 128, 2, 4)
STORE = "encoding into the store"


@dataclass(frozen=True)
class Growth:
    """A part of a study, at several sizes of one kind, the smallest first.

    Attributes:
        of: what grows: images, layers, tokens, members.
        meter: seconds at a size.
    """

    part: str
    of: str
    sizes: tuple[int, ...]
    meter: Callable[[int], Meter]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of ``log value`` over ``log size``, by least squares."""
    slope, _ = np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-12)), 1)
    return float(slope)


def growths(setting: Setting) -> list[Growth]:
    """What is looked at."""
    encoder = encoder_of(setting)
    side = encoder.image_size
    assert isinstance(side, int)
    folder, batch = setting.scratch / "growth", 4 if setting.tiny else 16

    def encoding(images: int, layers: int) -> Meter:
        read = [round((number + 1) * encoder.depth / layers) for number in range(layers)]
        meter = store_meter(encoder, Noise(images, side), sorted(set(read)), batch, folder)
        return lambda: meter() * images

    def training(shape: Shape, members: int) -> Meter:
        configs, drawn = [member(number, shape) for number in range(members)], batch_of(shape)
        return lambda: train(configs, drawn, shape, setting.device).seconds

    base = replace(BASE, grid=2, dim=16, images=2, steps=2) if setting.tiny else BASE
    few = max(1, encoder.depth // 4)
    images = (4, 8, 12, 16) if setting.tiny else (32, 64, 128, 256)
    tokens = (4, 9, 16, 25) if setting.tiny else (64, 144, 256, 576)
    members = (1, 2, 3, 4) if setting.tiny else (4, 8, 16, 32)
    layers = tuple(few * number for number in (1, 2, 3, 4))
    bank = "steps of a bank of 4"
    return [
        Growth(STORE, "images", images, lambda n: encoding(n, few)),
        Growth(STORE, "layers", layers, lambda n: encoding(images[0], n)),
        Growth(bank, "images of a batch", (4, 8, 16, 32), lambda n: training(replace(base, images=n), 4)),
        Growth(bank, "layers", (1, 2, 4, 8), lambda n: training(replace(base, levels=n), 4)),
        Growth(bank, "tokens", tokens, lambda n: training(replace(base, grid=round(n**0.5)), 4)),
        Growth("steps of a bank", "members", members, lambda n: training(base, n)),
    ]


def measure(setting: Setting) -> Iterator[Figure]:
    """Of each growth the exponent of time and that of memory."""
    for growth in growths(setting):
        seconds: list[list[float]] = []
        memory: list[float | None] = []
        meters = [growth.meter(size) for size in growth.sizes]
        for meter in meters:  # the smallest first, to warm up and to weigh
            memory.append(peak(meter, setting.device))
        for _ in range(setting.repeats):
            seconds.append([meter() for meter in meters])
        slopes = Ratio.of([exponent(growth.sizes, row) for row in seconds])
        name = f"time of {growth.part}, by {growth.of}"
        facts = {"sizes": list(growth.sizes), "seconds": [list(row) for row in seconds]}
        yield _figure(name, growth, slopes, facts)
        name = f"memory of {growth.part}, by {growth.of}"
        weighed = [value for value in memory if value is not None]
        if len(weighed) < len(growth.sizes):
            yield Figure(name, _sizes(growth), Kind.EXPONENT, missing=NO_PEAK)
            continue
        facts = {"sizes": list(growth.sizes), "bytes": weighed}
        yield _figure(name, growth, Ratio.of([exponent(growth.sizes, [max(value, 2**16) for value in weighed])]), facts)


def _figure(name: str, growth: Growth, slopes: Ratio, facts: dict[str, object]) -> Figure:
    marked = slopes.median > LINEAR
    note = "worse than linear" if marked else ""
    return Figure(name, _sizes(growth), Kind.EXPONENT, slopes, note=note, facts=facts, marked=marked)


def _sizes(growth: Growth) -> str:
    return f"{', '.join(map(str, growth.sizes))} {growth.of}"


def peak(work: Callable[[], object], device: str) -> float | None:
    """The most bytes that ``work`` held beyond what was held before it; None where nobody tells.

    On CUDA the device's, as torch allocates them; else the process's resident memory, whose peak Linux counts anew when
    it is asked to (proc(5), ``clear_refs``).
    """
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return float(torch.cuda.max_memory_allocated() - before)
    with suppress(OSError, AttributeError):  # what is free goes back to the system, else it would hide what is taken
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
        work()
        return float(_resident("VmHWM") - before)
    except (OSError, StopIteration):
        work()
        return None


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))
