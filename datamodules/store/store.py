"""The feature store: a frozen encoder's hidden states, encoded once and read from disk ever after.

A store is keyed by what the features depend on: the encoder's fingerprint (weights, config, precision,
preprocessing), the size of the images, the source's version and the dtype; each split by the fingerprint of
its images. A study's further layers or images are added to what is there. See :mod:`datamodules.store.shards` for the
files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import Timeout
from rich.console import Console
from rich.filesize import decimal
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.sources.base import SPLITS
from fusion_workbench.datamodules.store import listing as stores
from fusion_workbench.datamodules.store import shards as disk
from fusion_workbench.datamodules.store.encoding import EncoderLike, EncodingPass, encode_passes, progress_bar
from fusion_workbench.datamodules.store.shards import Shard, SplitIndex, as_workbench_error
from fusion_workbench.datamodules.store.tensors import StoredFeatures, map_shard, write_shards
from fusion_workbench.system.console import error_console
from fusion_workbench.system.files import write_file

if TYPE_CHECKING:
    from fusion_workbench.datamodules.sources.base import Source

DTYPES = (torch.bfloat16, torch.float32)
FORMAT = 1  # of the files; another number is another key
_SHARD_BYTES = 64 * 2**20  # a shard is no larger, so that a pass over many layers fits into memory
_SPARE_BYTES = 200 * 10**6  # left free on the disk, or 5 % of what is written if that is more
_CONTENT = "content.json"  # beside a split's index: what its images are
_HEADER_BYTES = 1024  # of a shard, generously


@dataclass(frozen=True)
class StorePlan:
    """What a study needs that the store does not hold."""

    where: Path
    passes: tuple[EncodingPass, ...]
    reused: int  # shards that are there and whole
    damaged: tuple[Shard, ...]  # there, but torn, truncated or altered; among the passes
    bytes_needed: int
    bytes_free: int

    @property
    def images(self) -> int:
        """Images to encode."""
        return sum(len(todo.images) for todo in self.passes)

    @property
    def spare(self) -> int:
        """Bytes that stay free."""
        return max(_SPARE_BYTES, self.bytes_needed // 20) if self.passes else 0

    @property
    def fits(self) -> bool:
        return self.bytes_needed + self.spare <= self.bytes_free

    def __str__(self) -> str:
        layers = sorted({layer for todo in self.passes for layer in todo.layers})
        return (
            f"feature store: {self.images:,} images to encode, layers {', '.join(map(str, layers))}: "
            f"{decimal(self.bytes_needed)} to {self.where}, {decimal(self.bytes_free)} free"
        )


@dataclass(frozen=True)
class StoreStats:
    """What a build did."""

    images: int  # encoded; 0 when everything was there
    seconds: float  # of the encoding pass, its writing included
    bytes: int  # written
    reused: int  # shards that were there
    rebuilt: int  # shards that were there and damaged


class FeatureStore:
    """Features of one encoder on one source.

    Args:
        root: folder of all stores; made when something is built.
        encoder: frozen; run only for what is missing.
        source: where the images come from.
        dtype: ``torch.bfloat16`` or ``torch.float32``.
        shard_size: images per shard, at most; fewer where that would pass 64 MiB.
        console: for notices and the progress bar; stderr by default.

    Raises:
        WorkbenchError: another dtype.
    """

    def __init__(
        self,
        root: Path,
        encoder: EncoderLike,
        source: Source,
        dtype: torch.dtype = torch.bfloat16,
        shard_size: int = 256,
        console: Console | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise WorkbenchError(f"the feature store keeps bfloat16 or float32, not {_name(dtype)}.")
        self.root = Path(root)
        self.encoder = encoder
        self.source = source
        self.dtype = dtype
        self.console = console or error_console()
        rows, columns = encoder.grid(encoder.image_size)
        self._image_bytes = rows * columns * encoder.dim * dtype.itemsize  # of one layer
        largest = max(1, _SHARD_BYTES // self._image_bytes)
        self.shard_size = min(shard_size, 1 << (largest.bit_length() - 1))
        facts = {
            "format": FORMAT,
            "fingerprint": encoder.fingerprint,
            "image_size": encoder.image_size,
            "grid": [rows, columns],
            "dim": encoder.dim,
            "source": source.version,
            "dtype": _name(dtype),
            "shard_size": self.shard_size,
        }
        self.key = _digest(facts)[:16]
        self.folder = self.root / self.key
        self._facts = facts | {"encoder": str(getattr(encoder, "name", type(encoder).__name__))}
        self._mapped: dict[Shard, tuple[disk.Stamp, Tensor]] = {}

    # --- planning -------------------------------------------------------------------------------------------

    def plan(self, layers: Sequence[int], splits: Sequence[str] = SPLITS) -> StorePlan:
        """What would have to be encoded, and whether the disk holds it. Hashes what is there, once per process.

        Raises:
            WorkbenchError: a layer that the encoder does not have.
        """
        for layer in layers:
            if not 0 <= layer <= self.encoder.depth:
                raise WorkbenchError(f"layer {layer} does not exist; the encoder has 0 to {self.encoder.depth}.")
        passes: list[EncodingPass] = []
        damaged: list[Shard] = []
        requested = 0
        for split in splits:
            index = self._index(split)
            ranges = self._shards(split, layers)
            bad = disk.damaged([shard for shards in ranges for shard in shards], index)
            damaged += bad
            for shards in ranges:
                requested += len(shards)
                lacking = tuple(s for s in shards if s.name not in index.checksums or s in bad)
                if lacking:
                    passes.append(EncodingPass(split, lacking))
        missing = [shard for todo in passes for shard in todo.shards]
        needed = sum(shard.images * self._image_bytes + _HEADER_BYTES for shard in missing)
        free = disk.bytes_free(self.folder)
        return StorePlan(self.folder, tuple(passes), requested - len(missing), tuple(damaged), needed, free)

    def _shards(self, split: str, layers: Sequence[int]) -> list[list[Shard]]:
        """Run of images → a shard for each of ``layers``."""
        folder, size = self._split_folder(split), self.source.size(split)
        return [
            [Shard(folder, layer, start, min(start + self.shard_size, size)) for layer in sorted(set(layers))]
            for start in range(0, size, self.shard_size)
        ]

    def _split_facts(self, split: str) -> dict[str, Any]:
        return {"split": split, "fingerprint": self.source.fingerprint(split)}

    def _split_folder(self, split: str) -> Path:
        return self.folder / f"{split}-{_digest(self._split_facts(split))[:12]}"

    def _index(self, split: str) -> SplitIndex:
        return SplitIndex.read(self._split_folder(split), self._split_facts(split))

    def hold_against(self, split: str, content: str) -> bool:
        """Keep with a split's features what its images are, or give the features up where they are of other images.

        A fingerprint may go by sizes and times, which a picture that was replaced can share; its content cannot.

        Args:
            content: :meth:`Source.content` of the split.

        Returns:
            Whether features were given up; the next build encodes them again.
        """
        folder = self._split_folder(split)
        mark = folder / _CONTENT
        known = disk.read_json(mark).get("content")
        if known == content:
            return False
        with self._locked(), as_workbench_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if known is not None:
                (folder / disk.INDEX).unlink(missing_ok=True)
            write_file(mark, json.dumps({"content": content}))
        return known is not None

    # --- building -------------------------------------------------------------------------------------------

    def build(
        self,
        layers: Sequence[int],
        splits: Sequence[str] = SPLITS,
        batch_size: int = 64,
        progress: bool = True,
    ) -> StoreStats:
        """Encode what is missing of ``layers``, and anew what is damaged; the rest stays as it is.

        Safe to kill at any moment and to run twice at once: the second process waits, and says so.

        Args:
            batch_size: images a forward pass.
            progress: say what is planned, and show a bar with the time left where there is a terminal.

        Raises:
            WorkbenchError: it would not fit on the disk, the disk fills up, or the folder cannot be written.
        """
        plan = self.plan(layers, splits)
        if not plan.passes:
            return StoreStats(0, 0.0, 0, plan.reused, 0)
        with self._locked():
            plan = self.plan(layers, splits)  # another process may have built it while this one waited
            self._refuse_or_say(plan, progress)
            start = time.perf_counter()
            written = self._encode(plan, batch_size, progress) if plan.passes else 0
            return StoreStats(plan.images, time.perf_counter() - start, written, plan.reused, len(plan.damaged))

    def _refuse_or_say(self, plan: StorePlan, progress: bool) -> None:
        if not plan.fits:
            raise WorkbenchError(
                f"the features would not fit: {decimal(plan.bytes_needed)} ({plan.bytes_needed:,} bytes) "
                f"needed and {decimal(plan.spare)} to spare, {decimal(plan.bytes_free)} ({plan.bytes_free:,} "
                f"bytes) free at {plan.where}. Free some space, choose another place, or ask for fewer "
                "layers or images."
            )
        if plan.damaged:
            first = plan.damaged[0].path
            self._say(f"feature store: {len(plan.damaged)} damaged shards are encoded again, the first {first}")
        if progress and plan.passes:
            self._say(str(plan))

    def _encode(self, plan: StorePlan, batch_size: int, progress: bool) -> int:
        with as_workbench_error(self.folder):
            disk.remove_partial_files(self.folder)
            write_file(self.folder / stores.KEY_FILE, json.dumps(self._facts, indent=1).encode())
        with progress_bar(self.console, progress) as bar:
            task = bar.add_task("encoding", total=plan.images)
            return encode_passes(
                self.encoder,
                self.source,
                plan.passes,
                self._write,
                self.dtype,
                batch_size,
                lambda images: bar.advance(task, images),
            )

    def _write(self, todo: EncodingPass, states: Tensor) -> int:
        with as_workbench_error(self.folder):
            shards = zip(todo.shards, states.unbind(), strict=True)
            return write_shards(shards, self._index(todo.split))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with as_workbench_error(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = stores.lock(self.root, self.key)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self._say(f"another process is building the feature store {self.folder}; waiting for it")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    # --- reading --------------------------------------------------------------------------------------------

    def features(self, split: str, layers: Sequence[int]) -> StoredFeatures:
        """The features of ``layers``, in that order. What is missing or damaged is encoded first.

        Raises:
            WorkbenchError: as :meth:`build`.
        """
        self.build(layers, (split,))
        by_range = [{s.layer: self._map(s) for s in shards} for shards in self._shards(split, layers)]
        return StoredFeatures([[states[layer] for states in by_range] for layer in layers], self.shard_size)

    def _map(self, shard: Shard) -> Tensor:
        """Mapped once for as long as the file is the same one."""
        stamp = disk.stamp(shard.path)
        checksum, states = self._mapped.get(shard, (None, None))
        if states is None or checksum != stamp:
            states = map_shard(shard)
            self._mapped[shard] = (stamp, states)
        return states

    # --- looking after --------------------------------------------------------------------------------------

    def usage(self) -> stores.StoreUsage | None:
        """What this store holds; None when nothing has been built."""
        return stores.usage(self.folder) if self.folder.is_dir() else None

    def verify(self) -> list[Path]:
        """Hash every shard anew. Returns those that are damaged; the next build encodes them again."""
        return stores.verify_store(self.root, self.key)

    def remove(self) -> None:
        """Delete this store. Raises WorkbenchError while another process builds it."""
        stores.remove_store(self.root, self.key)
        self._mapped.clear()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
