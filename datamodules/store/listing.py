"""The stores in a folder: what they hold, whether it is whole, how to be rid of them. Needs no encoder."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.datamodules.store.shards import INDEX, Shard, SplitIndex, as_workbench_error, damaged, read_json

KEY_FILE = "key.json"
_KEY = re.compile(r"[0-9a-f]{16}")
_SHARD = re.compile(r"layer_(\d+)/(\d+)-(\d+)")


@dataclass(frozen=True)
class SplitUsage:
    """One split of a source in a store. A source whose options changed has another split of the same name."""

    split: str
    folder: str
    images: int  # that any layer holds
    layers: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class StoreUsage:
    """One store: one encoder on one source."""

    key: str
    encoder: str
    source: str
    dtype: str
    image_size: str  # 112, or 112 × 224: height and width
    splits: tuple[SplitUsage, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({layer for split in self.splits for layer in split.layers}))

    @property
    def images(self) -> int:
        return sum(split.images for split in self.splits)

    @property
    def bytes(self) -> int:
        return sum(split.bytes for split in self.splits)


def list_stores(root: Path) -> list[StoreUsage]:
    """Every store below ``root``, the largest first; none where there is no such folder."""
    if not root.is_dir():
        return []
    stores = [usage(folder) for folder in root.iterdir() if _KEY.fullmatch(folder.name) and folder.is_dir()]
    return sorted(stores, key=lambda store: (-store.bytes, store.key))


def usage(folder: Path) -> StoreUsage:
    """What the store in ``folder`` holds, by its indexes."""
    facts = read_json(folder / KEY_FILE)
    size = facts.get("image_size", "?")
    splits = [_split_usage(path.parent) for path in sorted(folder.glob(f"*/{INDEX}"))]
    return StoreUsage(
        key=folder.name,
        encoder=str(facts.get("encoder", "unknown")),
        source=str(facts.get("source", "unknown")),
        dtype=str(facts.get("dtype", "unknown")),
        image_size=" × ".join(map(str, size if isinstance(size, list) else [size])),
        splits=tuple(splits),
    )


def verify_store(root: Path, key: str) -> list[Path]:
    """Hash every shard of a store anew. Returns the files that are torn, truncated, altered or gone.

    An index is among them that cannot be read, or that names no shard in a folder that holds some: what it does not
    name does not exist, and would pass for whole.

    Raises:
        WorkbenchError: no such store.
    """
    store = _existing(root, key)
    bad: list[Path] = []
    for folder in sorted(path for path in store.iterdir() if path.is_dir()):
        index, shards = _read(folder)
        held = any(folder.glob("layer_*/*.safetensors"))
        named = [shard for shard in shards if shard.name in index.checksums]
        if len(named) < len(index.checksums) or (not named and (held or (folder / INDEX).exists())):
            bad.append(folder / INDEX)
        bad += [shard.path for shard in damaged(named, index, rehash=True)]
    return bad


def remove_store(root: Path, key: str) -> None:
    """Delete a store.

    Raises:
        WorkbenchError: no such store, another process is building it, or it cannot be deleted.
    """
    folder = _existing(root, key)
    held = lock(root, key)
    with as_workbench_error(folder):
        try:
            with held.acquire(timeout=0):
                shutil.rmtree(folder)
        except Timeout:
            raise WorkbenchError(f"the store {key} is being built by another process; wait for it.") from None


def lock(root: Path, key: str) -> FileLock:
    """Held by the process that writes to the store ``key``."""
    return FileLock(root / f"{key}.lock")


def _existing(root: Path, key: str) -> Path:
    keys = [store.key for store in list_stores(root)]
    if key not in keys:
        raise WorkbenchError(f"there is no store '{key}' in {root}.{nearest(key, keys)}")
    return root / key


def _split_usage(folder: Path) -> SplitUsage:
    index, shards = _read(folder)
    starts = {shard.start: 0 for shard in shards}  # a split that grew has its last shard twice, short and long
    for shard in shards:
        starts[shard.start] = max(starts[shard.start], shard.images)
    return SplitUsage(
        split=str(index.facts.get("split", folder.name)),
        folder=folder.name,
        images=sum(starts.values()),
        layers=tuple(sorted({shard.layer for shard in shards})),
        bytes=sum(shard.path.stat().st_size for shard in shards if shard.path.exists()),
    )


def _read(folder: Path) -> tuple[SplitIndex, list[Shard]]:
    """The index of a split as it stands, and the shards that it names."""
    facts = {key: value for key, value in read_json(folder / INDEX).items() if key != "shards"}
    index = SplitIndex.read(folder, facts)
    named = [match for name in index.checksums if (match := _SHARD.fullmatch(name))]
    return index, [Shard(folder, int(match[1]), int(match[2]), int(match[3])) for match in named]
