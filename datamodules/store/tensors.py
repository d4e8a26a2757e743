"""The tensors of shards: written, and mapped into memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fusion_workbench.datamodules.store.shards import Shard, SplitIndex
from fusion_workbench.system.checksums import sha256_of
from fusion_workbench.system.files import atomic_file, sync

_WRITERS = 4  # shards written and hashed at once: the layers of a run of images


def write_shards(shards: Iterable[tuple[Shard, Tensor]], index: SplitIndex) -> int:
    """Write shards ``[images, tokens, dim]`` and then name them in the index. Returns the bytes written.

    Raises OSError, and then none of these shards is left behind.
    """
    todo, named = list(shards), dict(index.checksums)
    try:
        with ThreadPoolExecutor(_WRITERS, "shard") as pool:  # copying and hashing let go of the GIL
            checksums = pool.map(_write, todo)
            index.checksums |= {shard.name: sha256 for (shard, _), sha256 in zip(todo, checksums, strict=True)}
        for folder in {shard.path.parent for shard, _ in todo}:
            sync(folder)
        index.write()
        return sum(shard.path.stat().st_size for shard, _ in todo)
    except BaseException:
        index.checksums = named
        for shard, _ in todo:
            shard.path.unlink(missing_ok=True)
        raise


def _write(item: tuple[Shard, Tensor]) -> str:
    """Write one shard, whole or not at all. Returns the sha256 of its bytes. Raises OSError."""
    shard, states = item
    with atomic_file(shard.path) as part:
        try:
            save_file({shard.tensor: states}, part, metadata={"format": "pt"})
        except SafetensorError as error:  # Rust's words for what the operating system said
            if (number := re.search(r"os error (\d+)", str(error))) is None:
                raise OSError(str(error)) from None
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(part)) from None
        return sha256_of(part)


def map_shard(shard: Shard) -> Tensor:
    """The tensor ``[images, tokens, dim]``, memory-mapped: pages are read when they are first touched."""
    with safe_open(shard.path, framework="pt") as file:
        states = file.get_tensor(shard.tensor)
    assert isinstance(states, Tensor)
    return states


class StoredFeatures:
    """Some layers of one split, memory-mapped."""

    def __init__(self, layers: Sequence[Sequence[Tensor]], shard_size: int) -> None:
        self._layers = layers  # layer → shard → [images, tokens, dim]
        self._shard_size = shard_size
        self._images = sum(len(states) for states in layers[0])

    def __len__(self) -> int:
        return self._images

    def rows(self, index: Tensor) -> Tensor:
        """Images ``index`` (int64 ``[B]``) → ``[layers, B, tokens, dim]`` in the store's dtype, a copy."""
        images = index.tolist()
        if images and not 0 <= min(images) <= max(images) < self._images:
            raise IndexError(f"images {min(images)} to {max(images)} of a split of {self._images}")
        places = [divmod(image, self._shard_size) for image in images]
        if not images:  # of a batch of text alone
            return torch.stack([shards[0][:0] for shards in self._layers])
        # One stack over views of single images copies once, where index_select a shard copies twice.
        rows = torch.stack([shards[number][row] for shards in self._layers for number, row in places])
        return rows.view(len(self._layers), len(places), *rows.shape[1:])

    @property
    def bytes(self) -> int:
        """Of all images and layers."""
        return sum(states.nbytes for shards in self._layers for states in shards)

    def all_rows(self, device: torch.device) -> Tensor:
        """All images, ``[layers, images, tokens, dim]``, on ``device``; a shard at a time.

        Raises:
            torch.OutOfMemoryError: they do not fit.
        """
        like = self._layers[0][0]
        rows = torch.empty(len(self._layers), self._images, *like.shape[1:], dtype=like.dtype, device=device)
        for layer, shards in zip(rows, self._layers, strict=True):
            for place, states in zip(layer.split([len(states) for states in shards]), shards, strict=True):
                place.copy_(states)
        return rows
