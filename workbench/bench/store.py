"""Reading the feature store while a bank trains: against tensors in memory, the memory's own speed, and the disk's."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fusion_workbench.bench.cached import RATES, Trials
from fusion_workbench.bench.ceilings import COPIED, READ, copy, disk_read
from fusion_workbench.bench.record import Figure, Kind
from fusion_workbench.bench.turns import Ratio, Setting, clock, in_turn
from fusion_workbench.datamodules.features import Features, SplitFeatures
from fusion_workbench.datamodules.loader import Batch
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.system.files import sync

NO_DROP = "the system's cache cannot be emptied here, so what is read would come from memory"


class MemoryFeatures(Features):
    """Features that lie in memory as one tensor a split: what the store is measured against.

    Args:
        features: where they are taken from.
        layers: of the tensors.
    """

    def __init__(self, features: Features, layers: Sequence[int], splits: Sequence[str] = ("train", "val")) -> None:
        self.encoder, self.source = features.encoder, features.source
        self._held = {
            split: features.split(split, layers).rows(torch.arange(features.source.size(split))) for split in splits
        }

    def split(self, split: str, layers: Sequence[int]) -> SplitFeatures:
        return _Held(self._held[split])

    def complete(self, batch: Batch, layers: Sequence[int]) -> Batch:
        return batch


class _Held(SplitFeatures):
    def __init__(self, held: Tensor) -> None:
        self.held = held
        self.fetch = lambda index: {"features": self.rows(index)}

    def rows(self, index: Tensor) -> Tensor:
        return self.held[:, index]


def measure(setting: Setting) -> Iterator[Figure]:
    """Training from the store, then reading it alone, warm and cold."""
    trials = Trials(setting, RATES[:1])
    memory = MemoryFeatures(trials.parts.features, trials.protocol.layers)
    seconds = in_turn({"store": trials.bank, "memory": lambda: trials.bank(memory)}, setting.repeats)
    yield Figure(
        f"training a bank of {len(trials.members)} from the feature store",
        "the same on tensors in memory",
        Kind.TIME,
        Ratio.paired(seconds["store"], seconds["memory"]),
        note="mapped files that the system has cached; less is better",
        facts={"seconds": {who: Ratio.of(taken).median for who, taken in seconds.items()}},
    )
    yield from _reading(trials, setting)


def _reading(trials: Trials, setting: Setting) -> Iterator[Figure]:
    """Bytes a second of an epoch's batches, cached and not."""
    store, layers = trials.parts.store, trials.protocol.layers
    assert store is not None
    stored = store.features("train", layers)
    order = torch.randperm(len(stored), generator=torch.Generator().manual_seed(0))
    batches = torch.split(order, trials.protocol.batch_size)
    size = stored.rows(batches[0][:1]).nbytes * len(stored)
    note = f"{size / 1e6:.1f} MB in batches of {trials.protocol.batch_size}, in random order"

    def warm() -> None:
        for index in batches:
            stored.rows(index)

    work, copied = copy("cpu", 2**16 if setting.tiny else COPIED)
    meters = {"rows": clock(warm, "cpu", setting.least), "copy": clock(work, "cpu", setting.least)}
    seconds = in_turn(meters, setting.repeats)
    share = Ratio.paired(seconds["copy"], seconds["rows"], 2 * size / copied)
    told = f"{note}; a byte counts twice, as read and written"
    yield Figure("batches from the feature store, cached", "memory copy", Kind.LIMIT, share, note=told)
    read, on_disk, drops = disk_read(setting.scratch, 2**20 if setting.tiny else READ)
    if not drops:
        yield Figure("batches from the feature store, not cached", "disk read", Kind.LIMIT, missing=NO_DROP)
        return
    meters = {"rows": _cold_meter(store, setting, layers, batches), "disk": clock(read, "cpu")}
    seconds = in_turn(meters, setting.repeats)
    share = Ratio.paired(seconds["disk"], seconds["rows"], size / on_disk)
    yield Figure("batches from the feature store, not cached", "disk read", Kind.LIMIT, share, note=note)


def _cold_meter(
    store: FeatureStore, setting: Setting, layers: Sequence[int], batches: Sequence[Tensor]
) -> Callable[[], float]:
    """Seconds of an epoch's batches whose shards the system has to read from the disk.

    Of a copy of the store: what has been mapped and touched stays in memory as long as the mapping does.
    """
    copied = setting.scratch / "cold"
    shutil.copytree(store.root, copied)

    def turn() -> float:
        stored = FeatureStore(copied, store.encoder, store.source).features("train", layers)
        for path in copied.rglob("*.safetensors"):
            _drop(path)
        start = time.perf_counter()
        for index in batches:
            stored.rows(index)
        return time.perf_counter() - start

    return turn


def _drop(path: Path) -> None:
    """Out of the system's cache, once it is on the disk."""
    sync(path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
