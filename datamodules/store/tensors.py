"""The tensors of shards: written, and mapped into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fusion_workbench.datamodules.store.shards import Shard, SplitIndex
from fusion_workbench.system.files import sync, write_file


def write_shards(shards: Iterable[tuple[Shard, Tensor]], index: SplitIndex) -> int:
    """Write shards ``[images, tokens, dim]`` and then name them in the index. Returns the bytes written.

    Raises OSError, and then none of these shards is left behind.
    """
    done: list[Shard] = []
    written = 0
    named = dict(index.checksums)
    try:
        for shard, states in shards:
            data = save({shard.tensor: states}, metadata={"format": "pt"})
            done.append(shard)
            write_file(shard.path, data)
            index.checksums[shard.name] = hashlib.sha256(data).hexdigest()
            written += len(data)
        for folder in {shard.path.parent for shard in done}:
            sync(folder)
        index.write()
    except BaseException:
        index.checksums = named
        for shard in done:
            shard.path.unlink(missing_ok=True)
        raise
    return written


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
