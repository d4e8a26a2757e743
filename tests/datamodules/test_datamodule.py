"""Contract 4, the batches' half: the same batches for every variant, from the store as from the encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from quiet_trainer import trainer
from rich.console import Console
from tiny_source import Counting, TinySource
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.datamodule import AblationDataModule
from fusion_workbench.datamodules.features import LiveFeatures, StoreFeatures
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.modules.encoders.encoder import VisionEncoder

LAYERS = (3, 1)
BATCH = 4

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


@pytest.fixture(scope="module")
def vision(tiny_dinov2: Path) -> VisionEncoder:
    return VisionEncoder(str(tiny_dinov2), image_size=56, precision="float32")


@pytest.fixture
def make(tmp_path: Path, vision: VisionEncoder) -> Callable[..., AblationDataModule]:
    def make(
        live: bool = False, dtype: torch.dtype = torch.float32, order_seed: int = 5, **changed: Any
    ) -> AblationDataModule:
        source = changed.pop("source", None) or TinySource()
        store = FeatureStore(tmp_path, vision, source, dtype, shard_size=8, console=Console(quiet=True))
        arguments = {"layers": LAYERS, "batch_size": BATCH} | changed
        features = LiveFeatures(vision, source) if live else StoreFeatures(store)
        return AblationDataModule(features, order_seed=order_seed, **arguments)

    return make


class Probe(L.LightningModule):
    """A linear probe on pooled tokens that remembers every batch it was given."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Linear(len(LAYERS) * 32, 5)
        self.orders: list[list[int]] = []
        self.seen: dict[str, list[dict[str, Tensor]]] = {"val": [], "test": []}
        self.losses: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        pooled = batch["features"].float().mean(2).transpose(0, 1).flatten(1)
        return nn.functional.cross_entropy(self.head(pooled), batch["digit.label"])

    def on_train_epoch_start(self) -> None:
        self.orders.append([])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.orders[-1] += batch["index"].tolist()
        loss = self.loss(batch)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen["test"].append(batch)


def train(data: AblationDataModule, tmp_path: Path, epochs: int = 3) -> Probe:
    training, probe = trainer(max_epochs=epochs, default_root_dir=tmp_path), Probe()
    training.fit(probe, data)
    training.test(probe, data, verbose=False)
    return probe


# --- order --------------------------------------------------------------------------------------------------


def test_order_is_of_seed_and_epoch_alone(make: Callable[..., AblationDataModule], tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = train(make(), tmp_path).orders
    torch.manual_seed(2)
    second = train(make(layers=(3, 1), eval_batch_size=7, dtype=torch.bfloat16), tmp_path).orders
    other = train(make(order_seed=6), tmp_path).orders
    assert first == second
    assert len({tuple(order) for order in first + other}) == 6  # no two epochs, no two seeds alike
    for order in first:
        assert len(order) == len(set(order)) == 20  # of 22, in five batches of four
        assert set(order) < set(range(22))


def test_order_is_pinned(make: Callable[..., AblationDataModule]) -> None:
    """A study goes on tomorrow, on another machine, in the order in which it began."""
    loader = make(order_seed=2**62 + 3).train_dataloader()
    assert [batch["index"].tolist() for batch in loader][:2] == [[18, 10, 14, 5], [15, 12, 6, 16]]


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True])
def test_evaluation_is_complete_and_in_order(
    make: Callable[..., AblationDataModule], tmp_path: Path, live: bool
) -> None:
    probe = train(make(live=live, eval_batch_size=4), tmp_path, epochs=1)
    source = TinySource()
    for split, count in (("val", 9), ("test", 10)):
        batches = probe.seen[split]
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(count))
        assert [batch["features"].shape[1] for batch in batches] == [4, 4, count - 8]
        for name, values in source.targets(split).items():
            joined = torch.cat([batch[name] for batch in batches])
            assert torch.equal(joined, torch.from_numpy(values))


def test_a_batch(make: Callable[..., AblationDataModule], vision: VisionEncoder) -> None:
    batch = next(iter(make(dtype=torch.bfloat16).train_dataloader()))
    assert set(batch) == {"features", "index", "digit.label", "digit.box"}
    assert batch["features"].shape == (2, BATCH, 16, 32)
    assert batch["features"].dtype == torch.bfloat16
    assert batch["index"].dtype == batch["digit.label"].dtype == torch.int64
    assert batch["digit.box"].dtype == torch.float32
    source = TinySource()
    targets = source.targets("train")
    for place, example in enumerate(batch["index"].tolist()):
        states = vision.encode(source.image("train", example)[None], LAYERS)[:, 0]
        torch.testing.assert_close(batch["features"][:, place].float(), states, rtol=2**-7, atol=1e-4)
        assert batch["digit.label"][place] == targets["digit.label"][example]


def test_workers_make_the_same_batches(make: Callable[..., AblationDataModule]) -> None:
    alone, helped = (list(make(num_workers=n).val_dataloader()) for n in (0, 1))
    assert len(alone) == len(helped) == 3
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


# --- store = live -------------------------------------------------------------------------------------------


def test_training_from_a_float32_store_is_training_live(
    make: Callable[..., AblationDataModule], tmp_path: Path
) -> None:
    stored, live = (train(make(live=live), tmp_path) for live in (False, True))
    assert stored.orders == live.orders
    for one, other in zip(stored.seen["val"] + stored.seen["test"], live.seen["val"] + live.seen["test"], strict=True):
        assert one.keys() == other.keys()
        # The encoder's own last bits depend on who shares the batch; nothing else may differ.
        torch.testing.assert_close(one["features"], other["features"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(stored.losses), torch.tensor(live.losses), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stored.head.weight, live.head.weight, rtol=1e-5, atol=1e-6)
    assert stored.losses[-5:] != stored.losses[:5]


def test_training_from_a_bf16_store_is_training_live_to_bf16(
    make: Callable[..., AblationDataModule], tmp_path: Path
) -> None:
    stored, live = train(make(dtype=torch.bfloat16), tmp_path), train(make(live=True), tmp_path)
    for one, other in zip(stored.seen["test"], live.seen["test"], strict=True):
        torch.testing.assert_close(one["features"].float(), other["features"], rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(torch.tensor(stored.losses), torch.tensor(live.losses), rtol=0.01, atol=0.01)


def test_live_batches_are_encoded_on_the_device_and_can_be_trained_on(
    make: Callable[..., AblationDataModule],
) -> None:
    data = make(live=True)
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape == (BATCH, 56, 56, 3)
    assert batch["images"].dtype == torch.uint8
    batch = data.on_after_batch_transfer(batch, 0)
    assert "images" not in batch
    assert not batch["features"].is_inference()
    weight = torch.ones(32, requires_grad=True)
    (batch["features"] @ weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.gpu
def test_live_batches_on_cuda(make: Callable[..., AblationDataModule], vision: VisionEncoder) -> None:
    data = make(live=True)
    batch = next(iter(data.val_dataloader()))
    try:
        moved = data.transfer_batch_to_device(dict(batch), torch.device("cuda"), 0)
        features = data.on_after_batch_transfer(moved, 0)["features"]
        assert features.is_cuda
    finally:
        vision.to("cpu")
    torch.testing.assert_close(features.cpu(), data.on_after_batch_transfer(batch, 0)["features"], rtol=1e-2, atol=1e-2)


def test_the_store_is_read_without_the_encoder(
    make: Callable[..., AblationDataModule], vision: VisionEncoder, tmp_path: Path
) -> None:
    train(make(), tmp_path, epochs=1)
    source, encoder = TinySource(), Counting(vision)
    store = FeatureStore(tmp_path, encoder, source, torch.float32, shard_size=8)
    train(AblationDataModule(StoreFeatures(store), LAYERS, BATCH, order_seed=5), tmp_path, epochs=2)
    assert encoder.calls == []
    assert source.drawn == []


# --- mistakes -----------------------------------------------------------------------------------------------


def test_mistakes(make: Callable[..., AblationDataModule]) -> None:
    with pytest.raises(WorkbenchError, match="batch_size is 64, and there are 22"):
        make(batch_size=64).train_dataloader()
