"""Features kept on the device: the same batches as from the store, whether the split fits there or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from quiet_trainer import trainer
from rich.console import Console
from tiny_source import TinySource
from torch import Tensor

from fusion_workbench.datamodules import resident
from fusion_workbench.datamodules.datamodule import AblationDataModule
from fusion_workbench.datamodules.features import StoreFeatures, _StoredSplit
from fusion_workbench.datamodules.resident import FetchResident
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.modules.encoders.encoder import VisionEncoder

LAYERS, CPU = (3, 1), torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


@pytest.fixture
def features(tiny_dinov2: Path, tmp_path: Path) -> StoreFeatures:
    vision = VisionEncoder(str(tiny_dinov2), image_size=56, precision="float32")
    return StoreFeatures(FeatureStore(tmp_path, vision, TinySource(), torch.bfloat16, 3, Console(quiet=True)))


def kept_split(features: StoreFeatures, free: int, monkeypatch: pytest.MonkeyPatch) -> FetchResident:
    """The test split, read as if the CPU were a device with ``free`` bytes."""
    monkeypatch.setattr(resident, "free_memory", lambda device: free)
    part = features.split("test", LAYERS)
    assert isinstance(part, _StoredSplit)
    return FetchResident(part.stored)


def rows_of(fetch: FetchResident, index: Tensor) -> Tensor:
    return fetch(index)["features"].to(CPU)


@pytest.mark.parametrize("share", [0.5, 0.2], ids=["fits", "does not fit"])
def test_rows_are_those_of_the_store(features: StoreFeatures, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    size = features.split("test", LAYERS).rows(torch.arange(TinySource().size("test"))).nbytes
    fetch = kept_split(features, int(size / resident.SHARE * share * 2), monkeypatch)
    assert fetch.stored.bytes == size
    index = torch.tensor([7, 2, 7])
    for _ in range(2):
        assert torch.equal(rows_of(fetch, index), fetch.stored.rows(index))
    assert rows_of(fetch, index[:0]).shape == fetch.stored.rows(index[:0]).shape
    assert (fetch._kept is not None) == (share == 0.5)


def test_a_kept_split_is_read_once(features: StoreFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = kept_split(features, 2**40, monkeypatch)
    expected = fetch.stored.rows(torch.tensor([1, 4]))
    rows_of(fetch, torch.tensor([0]))
    monkeypatch.setattr(fetch.stored, "rows", lambda index: pytest.fail("read from the store again"))
    assert torch.equal(rows_of(fetch, torch.tensor([1, 4])), expected)


def test_a_device_that_runs_out_reads_from_the_store(features: StoreFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = kept_split(features, 2**40, monkeypatch)

    def full(device: torch.device) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(fetch.stored, "all_rows", full)
    index = torch.tensor([3, 1])
    assert torch.equal(rows_of(fetch, index), fetch.stored.rows(index))


def test_nothing_is_kept_on_a_cpu(features: StoreFeatures) -> None:
    part = features.split("test", LAYERS)
    assert part.fetch_for(CPU) is part.fetch
    assert isinstance(part.fetch_for(torch.device("cuda", 0)), FetchResident)
    assert resident.free_memory(CPU) == 0


class Seen(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, Tensor]] = []
        self.automatic_optimization = False

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.batches.append(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.batches.append(batch)


def test_training_sees_the_same_batches(features: StoreFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches_of() -> list[dict[str, Any]]:
        module = Seen()
        trainer(max_epochs=2).fit(module, AblationDataModule(features, LAYERS, 4, order_seed=5))
        return module.batches

    plain = batches_of()
    monkeypatch.setattr(resident, "free_memory", lambda device: 2**40)
    monkeypatch.setattr(_StoredSplit, "fetch_for", lambda self, device: FetchResident(self.stored))
    kept = batches_of()
    assert len(kept) == len(plain) > 4
    for ours, theirs in zip(kept, plain, strict=True):
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.gpu
def test_batches_are_gathered_on_cuda(features: StoreFeatures) -> None:
    cuda, index = torch.device("cuda", 0), torch.tensor([7, 2, 7])
    part = features.split("test", LAYERS)
    fetch = part.fetch_for(cuda)
    assert isinstance(fetch, FetchResident)
    rows = fetch(index)["features"].to(cuda)
    assert rows.device == cuda
    assert fetch._kept is not None
    assert torch.equal(rows.cpu(), part.rows(index))
