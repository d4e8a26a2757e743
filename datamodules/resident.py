"""A split's stored features kept in a GPU's memory: batches are gathered there, and none is copied to it any more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusion_workbench.datamodules.loader import Batch
from fusion_workbench.datamodules.store.tensors import StoredFeatures

SHARE = 0.25
"""Of the memory that is free on a device, the most that a split takes; the rest is for training."""


class FetchResident:
    """Fetches rows that are gathered once the batch goes to its device: from there, where the split fits.

    The split is copied at the first batch. Where it does not fit, or memory runs out, every batch is read from the
    store as without this.

    Args:
        stored: the split; all its layers are kept.
    """

    def __init__(self, stored: StoredFeatures) -> None:
        self.stored = stored
        self._kept: Tensor | None = None
        self._asked = False

    def __call__(self, index: Tensor) -> Batch:
        """``{"features": …}`` of images ``index``, int64 ``[B]``: becomes ``[layers, B, tokens, dim]`` by ``.to``."""
        return {"features": _Rows(self, index)}  # type: ignore[dict-item]

    def rows(self, index: Tensor, device: torch.device) -> Tensor:
        """Images ``index`` as ``[layers, B, tokens, dim]`` on ``device``, in the store's dtype."""
        if not self._asked:
            self._asked, self._kept = True, self._copied(device)
        if self._kept is None or self._kept.device != device:
            return self.stored.rows(index).to(device)
        return self._kept[:, index.to(device, non_blocking=True)]

    def _copied(self, device: torch.device) -> Tensor | None:
        if self.stored.bytes > SHARE * free_memory(device):
            return None
        try:
            return self.stored.all_rows(device)
        except torch.OutOfMemoryError:
            return None


class _Rows:
    """What stands for a batch's features until Lightning moves the batch; a tensor afterwards."""

    def __init__(self, fetch: FetchResident, index: Tensor) -> None:
        self._fetch, self._index = fetch, index

    def to(self, device: torch.device | str, **_: Any) -> Tensor:
        return self._fetch.rows(self._index, torch.device(device))


def free_memory(device: torch.device) -> int:
    """Bytes that a tensor may take on ``device``; 0 on the CPU, whose stored features are mapped memory already."""
    if device.type != "cuda":
        return 0
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
