"""Shards: the files of hidden states on disk, and the index that vouches for them. What is in them is read and written
by :mod:`datamodules.store.tensors`.

    <root>/<key>/key.json                                             what the features depend on
    <root>/<key>/<split>-<12 hex>/index.json                          sha256 of every shard
    <root>/<key>/<split>-<12 hex>/layer_06/00768-01000.safetensors    "hidden_states.6", [images, tokens, dim]

A file is written beside its place, synced and moved there in one step; only then does the index name it. So a
shard counts when the index holds the checksum of its bytes, and a kill at any moment loses at most the shards
that are being written.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.parse import parse_json
from fusion_workbench.system.checksums import sha256_of
from fusion_workbench.system.files import PART, read_small, write_file

INDEX = "index.json"
_MOST_INDEX = 1_000_000_000  # bytes: a line for every shard of a store


@dataclass(frozen=True)
class Shard:
    """One layer of a run of images of one split."""

    folder: Path  # of the split
    layer: int
    start: int
    stop: int  # exclusive

    @property
    def images(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        return f"layer_{self.layer:02d}/{self.start:05d}-{self.stop:05d}"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def tensor(self) -> str:
        """The tensor's name in the file, as transformers names it."""
        return f"hidden_states.{self.layer}"


@dataclass
class SplitIndex:
    """The checksums of one split's shards. What it does not name does not exist."""

    folder: Path
    facts: Mapping[str, Any]  # split and fingerprint: must agree with what is on disk
    checksums: dict[str, str]  # Shard.name → sha256 of the file's bytes

    @classmethod
    def read(cls, folder: Path, facts: Mapping[str, Any]) -> SplitIndex:
        """The index on disk; an empty one when it is absent, torn, or of other facts."""
        stored = read_json(folder / INDEX)
        checksums = stored.pop("shards", None)
        if stored != dict(facts) or not isinstance(checksums, dict):
            checksums = {}
        return cls(folder, facts, checksums)

    def write(self) -> None:
        """Raises OSError."""
        shards = dict(sorted(self.checksums.items()))
        write_file(self.folder / INDEX, json.dumps(dict(self.facts) | {"shards": shards}, indent=1).encode())


# --- files --------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is none that can be read."""
    try:
        value = parse_json(read_small(path, _MOST_INDEX))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed writer left half done. Only under the store's lock. Raises OSError."""
    for pattern in (f"*{PART}", ".tmp*"):  # ours, and those of safetensors, which it renames to ours
        for part in folder.rglob(pattern):
            part.unlink(missing_ok=True)


def bytes_free(path: Path) -> int:
    """Free bytes on the disk that would hold ``path``, which need not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


@contextmanager
def as_workbench_error(where: Path) -> Iterator[None]:
    """Turns what the operating system refuses on ``where`` into one WorkbenchError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkbenchError(
                f"the disk filled up while features were written to {where} ({reason}; "
                f"{decimal(bytes_free(where))} free now). No half-written shard was left, and those that are "
                "whole are kept: free some space and run it again, or choose another place."
            ) from error
        raise WorkbenchError(
            f"the feature store {where} cannot be written ({reason}); make it writable, or choose another place."
        ) from error


# --- checksums ----------------------------------------------------------------------------------------------

Stamp = tuple[int, int, int]  # size, time of the last change, inode
_intact: dict[Path, tuple[Stamp, str]] = {}  # what this process has hashed: a checksum holds while the stamp does


def damaged(shards: Iterable[Shard], index: SplitIndex, *, rehash: bool = False) -> list[Shard]:
    """Those of ``shards`` whose bytes are not what the index says, or that are gone; it may not know others.

    Every file is hashed once per process; ``rehash`` hashes it again.
    """

    def wrong(shard: Shard) -> bool:
        return not _checksum_holds(shard.path, index.checksums[shard.name], rehash)

    named = [shard for shard in shards if shard.name in index.checksums]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "checksum") as pool:  # hashing lets go of the GIL
        return [shard for shard, bad in zip(named, pool.map(wrong, named), strict=True) if bad]


def _checksum_holds(path: Path, checksum: str, rehash: bool) -> bool:
    try:
        current = (stamp(path), checksum)
        if not rehash and _intact.get(path) == current:
            return True
        actual = sha256_of(path)
    except OSError:  # gone, or the disk cannot read it
        return False
    if actual == checksum:
        _intact[path] = current
        return True
    return False


def stamp(path: Path) -> Stamp:
    """Changes whenever the file does. Raises OSError."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
