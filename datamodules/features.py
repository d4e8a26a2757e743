"""The features of a source's images, from the store or from the encoder itself: here alone is it decided which.

A study holds one :class:`Features` for each source. Whoever reads features of known images asks its
:meth:`Features.split` for rows; the data module takes the two halves of the same, since the workers of a loader fetch
batches and cannot encode them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusion_workbench.datamodules.loader import Batch
from fusion_workbench.datamodules.resident import FetchResident
from fusion_workbench.datamodules.store.encoding import EncoderLike, check_finite, load_images

if TYPE_CHECKING:
    from fusion_workbench.datamodules.sources.base import Source
    from fusion_workbench.datamodules.store.store import FeatureStore
    from fusion_workbench.datamodules.store.tensors import StoredFeatures

# Row numbers, int64 [B] → {"features": [layers, B, tokens, dim]}, or {"images": uint8 [B, H, W, 3]} to be encoded.
Fetch = Callable[[Tensor], Batch]


class SplitFeatures(ABC):
    """Some layers' features of the images of one split.

    Attributes:
        fetch: the half that a loader's workers run: it holds no encoder. :meth:`Features.complete` is the other.
    """

    fetch: Fetch

    @abstractmethod
    def rows(self, index: Tensor) -> Tensor:
        """Images ``index`` (int64 ``[B]``) → ``[layers, B, tokens, dim]``, the layers in the order requested.

        In the store's dtype on the CPU, or as the encoder returns them.
        """

    def fetch_for(self, device: torch.device) -> Fetch:
        """``fetch`` for batches that one process fetches and that are then moved to ``device``."""
        return self.fetch


class Features(ABC):
    """One encoder's features of one source's images.

    Attributes:
        encoder: frozen.
        source: where the images come from.
        store: where the features lie; None where they are encoded anew whenever they are read.
    """

    encoder: EncoderLike
    source: Source
    store: FeatureStore | None = None

    @abstractmethod
    def split(self, split: str, layers: Sequence[int]) -> SplitFeatures:
        """The features of ``layers``, in that order. What the store lacks is encoded first.

        Raises:
            WorkbenchError: as :meth:`FeatureStore.build`.
        """

    @abstractmethod
    def complete(self, batch: Batch, layers: Sequence[int]) -> Batch:
        """A fetched ``batch`` with its features, encoded on the device where its images are if they are not there."""


class StoreFeatures(Features):
    """Features that are read from a store; the encoder runs only for what it lacks."""

    def __init__(self, store: FeatureStore) -> None:
        self.store: FeatureStore = store
        self.encoder, self.source = store.encoder, store.source

    def split(self, split: str, layers: Sequence[int]) -> SplitFeatures:
        return _StoredSplit(self.store.features(split, layers))

    def complete(self, batch: Batch, layers: Sequence[int]) -> Batch:
        return batch


class LiveFeatures(Features):
    """Features that the encoder makes anew whenever they are read."""

    def __init__(self, encoder: EncoderLike, source: Source) -> None:
        self.encoder, self.source = encoder, source

    def split(self, split: str, layers: Sequence[int]) -> SplitFeatures:
        return _LiveSplit(self, split, tuple(layers))

    def complete(self, batch: Batch, layers: Sequence[int]) -> Batch:
        images = batch.pop("images")
        if isinstance(self.encoder, nn.Module):
            self.encoder.to(images.device)
        if not len(images):  # a batch of text alone
            return {"features": self.none(layers).to(images.device), **batch}
        features = self.encoder.encode(images, layers)
        check_finite(features, layers, lambda place: f"{place + 1} of a batch")
        if features.is_inference() and not torch.is_inference_mode_enabled():
            features = features.clone()  # autograd may not keep a tensor that was made in inference mode
        return {"features": features, **batch}

    def none(self, layers: Sequence[int]) -> Tensor:
        """The features of no image, ``[layers, 0, tokens, dim]``."""
        rows, columns = self.encoder.grid(self.encoder.image_size)
        return torch.empty(len(layers), 0, rows * columns, self.encoder.dim)


class _StoredSplit(SplitFeatures):
    def __init__(self, stored: StoredFeatures) -> None:
        self.stored = stored
        self.fetch = _FetchFeatures(stored)

    def rows(self, index: Tensor) -> Tensor:
        return self.stored.rows(index)

    def fetch_for(self, device: torch.device) -> Fetch:
        return self.fetch if device.type == "cpu" else FetchResident(self.stored)


class _LiveSplit(SplitFeatures):
    def __init__(self, features: LiveFeatures, split: str, layers: Sequence[int]) -> None:
        self.features = features
        self.layers = layers
        self.fetch: _FetchImages = _FetchImages(features.source, split)

    def rows(self, index: Tensor) -> Tensor:
        if not len(index):
            return self.features.none(self.layers)
        images = load_images(self.features.source, self.fetch.split, index.tolist())
        states = self.features.encoder.encode(images, self.layers)
        check_finite(states, self.layers, lambda place: f"{int(index[place])} of {self.fetch.split}")
        return states


@dataclass(frozen=True)
class _FetchFeatures:
    stored: StoredFeatures

    def __call__(self, index: Tensor) -> Batch:
        return {"features": self.stored.rows(index)}


@dataclass(frozen=True)
class _FetchImages:
    source: Source
    split: str

    def __call__(self, index: Tensor) -> Batch:
        if len(index):
            return {"images": torch.from_numpy(load_images(self.source, self.split, index.tolist()))}
        size = self.source.image_size
        height, width = size if isinstance(size, tuple) else (size, size)
        return {"images": torch.empty(0, height, width, 3, dtype=torch.uint8)}
