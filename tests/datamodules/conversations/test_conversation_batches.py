"""Batches of conversations: ids beside the features of the images that they show, in an order that survives a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from tiny_source import TinySource
from tiny_talk import PER_IMAGE, TalkSource, tiny_chat
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.datamodules.datamodule import AblationDataModule
from fusion_workbench.datamodules.features import LiveFeatures, StoreFeatures
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.modules.encoders.encoder import VisionEncoder

LAYERS = (3, 1)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:Be aware that"
)
Make = Callable[..., AblationDataModule]


@pytest.fixture(scope="module")
def vision(tiny_dinov2: Path) -> VisionEncoder:
    return VisionEncoder(str(tiny_dinov2), image_size=56, precision="float32")


@pytest.fixture
def make(tmp_path: Path, vision: VisionEncoder) -> Make:
    def make(live: bool = False, **changed: Any) -> AblationDataModule:
        source = changed.pop("source", None) or TalkSource()
        store = FeatureStore(tmp_path, vision, source, torch.float32, shard_size=8, console=Console(quiet=True))
        arguments = {"layers": LAYERS, "batch_size": 4, "order_seed": 5, "chat": tiny_chat()} | changed
        return AblationDataModule(LiveFeatures(vision, source) if live else StoreFeatures(store), **arguments)

    return make


class Listener(L.LightningModule):
    """Remembers which conversations each step of training was given."""

    def __init__(self, estimates: bool = False) -> None:
        super().__init__()
        self.estimates = estimates
        self.weight = nn.Parameter(torch.zeros(1))
        self.heard: list[list[int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.estimates:  # as a schedule does; Lightning opens the loaders for it, before it restores their state
            assert self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None: ...

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.heard.append(batch["index"].tolist())
        return ((self.weight - batch["index"].float()) ** 2).mean()


def trainer(folder: Path, **changed: Any) -> L.Trainer:
    arguments: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return L.Trainer(**(arguments | changed))


@pytest.mark.parametrize("live", [False, True])
def test_a_batch(make: Make, vision: VisionEncoder, live: bool) -> None:
    data = make(live=live, eval_batch_size=6)
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    conversations = data.source.conversations("val")
    shown = [image for conversation in conversations[:6] for image in conversation.images]
    assert set(batch) == {"input_ids", "labels", "attention_mask", "features", "index"}
    assert batch["index"].tolist() == list(range(6))
    assert batch["features"].shape == (2, len(shown), PER_IMAGE, 32)
    states = torch.cat([vision.encode(data.source.image("val", image)[None], LAYERS) for image in shown], dim=1)
    torch.testing.assert_close(batch["features"], states, rtol=1e-5, atol=1e-5)
    for row, conversation in enumerate(conversations[:6]):
        encoded = data.chat.encode(conversation)
        length = len(encoded.input_ids)
        assert batch["input_ids"][row, :length].tolist() == list(encoded.input_ids)
        assert batch["labels"][row, :length].tolist() == list(encoded.labels)
        assert batch["attention_mask"][row].tolist() == [place < length for place in range(batch["labels"].shape[1])]
        assert (batch["labels"][row, length:] == IGNORE).all()


@pytest.mark.parametrize("live", [False, True])
def test_a_batch_of_text_alone(make: Make, live: bool) -> None:
    data = make(live=live, eval_batch_size=1)
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch["features"].shape == (2, 0, PER_IMAGE, 32)


def test_workers_make_the_same_batches(make: Make) -> None:
    alone, helped = (list(make(num_workers=n).train_dataloader()) for n in (0, 1))
    assert len(alone) == len(helped) == STEPS
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_workers_load_the_same_live_images(make: Make) -> None:
    alone, helped = (list(make(live=True, num_workers=n).train_dataloader()) for n in (0, 2))
    assert [batch["index"].tolist() for batch in alone] == [batch["index"].tolist() for batch in helped]
    assert len(alone) == STEPS
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys() == {"input_ids", "labels", "attention_mask", "images", "index"}
        assert all(torch.equal(one[name], other[name]) for name in one)


class Broken(TalkSource):
    """Its images cannot be read."""

    def image(self, split: str, index: int) -> Any:
        raise WorkbenchError(f"image {index} of {split} is torn.")


def test_a_worker_says_what_it_cannot_read_in_one_line(make: Make) -> None:
    for workers in (0, 2):
        with pytest.raises(WorkbenchError, match=r"^image \d+ of train is torn\.$"):
            list(make(live=True, source=Broken(), num_workers=workers).train_dataloader())


def test_workers_by_default(make: Make, tmp_path: Path) -> None:
    """For live images that a GPU waits for."""
    assert make(live=True).train_dataloader()._num_workers == 0  # no trainer, so no GPU
    for live, device, cpus, processes, wanted in (
        (True, "cuda", 16, 1, 4),
        (True, "cuda", 16, 8, 1),
        (True, "cuda", 2, 2, 0),
        (True, "cpu", 16, 1, 0),
        (False, "cuda", 16, 1, 0),
    ):
        data = make(live=live)
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            strategy=SimpleNamespace(root_device=torch.device(device)), world_size=processes
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.cpu_count", lambda cpus=cpus: cpus)
            assert data._workers() == wanted
        data.num_workers = 3
        assert data._workers() == 3


@pytest.mark.parametrize("stop", [2, 8])
def test_workers_resume_within_an_epoch(make: Make, tmp_path: Path, stop: int) -> None:
    """Stopped with two workers, resumed with none and with two: what was left, and the same weights, bitwise."""

    def run(workers: int, ckpt_path: Path | None = None) -> Listener:
        listener, keep = Listener(), []
        if ckpt_path is None:
            keep = [ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=stop, save_top_k=-1)]
        fitted = trainer(tmp_path, callbacks=keep, enable_checkpointing=bool(keep), max_epochs=2)
        data = make(live=True, num_workers=workers)
        fitted.fit(listener, data, ckpt_path=ckpt_path, weights_only=True)
        return listener

    whole = run(2)
    assert whole.heard == run(0).heard
    for workers in (0, 2):
        resumed = run(workers, tmp_path / "kept" / f"step={stop}.ckpt")
        assert resumed.heard == whole.heard[stop:]
        assert resumed.weight.item() == whole.weight.item()


def test_what_is_left_out_is_counted(make: Make) -> None:
    """Every number is trained on or left out; validation and test stay whole."""
    data = make(chat=tiny_chat(max_length=58), batch_size=1)
    seen = [n for batch in data.train_dataloader() for n in batch["index"].tolist()]
    assert sorted(seen + data.left_out) == list(range(27))
    assert 0 < len(data.left_out) < 27
    assert data.truncated > 0
    for number, conversation in enumerate(data.source.conversations("train")):
        assert (data.chat.fit(data.chat.encode(conversation)) is None) == (number in data.left_out)
    for batch in data.train_dataloader():
        visible = (batch["input_ids"] == IMAGE_ID).sum()
        assert visible == batch["features"].shape[1]
        assert batch["attention_mask"].sum() + (PER_IMAGE - 1) * visible <= 58
        assert (batch["labels"] != IGNORE).any()
    assert len(torch.cat([batch["index"] for batch in data.val_dataloader()])) == 14
    with pytest.raises(WorkbenchError, match=r"batch_size is 4, and there are 0 training examples \(27 left out for"):
        make(chat=tiny_chat(max_length=5)).train_dataloader()


def test_mistakes(make: Make) -> None:
    with pytest.raises(ValueError, match="only conversations can be grouped"):
        make(chat=None, group_by="length")
    with pytest.raises(ValueError, match="without a chat"):
        _ = make(chat=None).left_out
    with pytest.raises(ValueError, match="needs a source of conversations"):
        make(source=TinySource()).train_dataloader()


# --- the order of training ------------------------------------------------------------------------------------


STEPS = 6  # an epoch of 27 conversations in batches of four


def test_grouped_by_length(make: Make) -> None:
    data = make(group_by="length")
    loader = data.train_dataloader()
    seen = [batch["index"].tolist() for batch in loader]
    assert len({n for batch in seen for n in batch}) == 4 * STEPS
    assert sum(len({n % 3 == 0 for n in batch}) == 2 for batch in seen) <= 1
    assert seen == [batch["index"].tolist() for batch in loader]
    loader.sampler.set_epoch(1)
    assert seen != [batch["index"].tolist() for batch in loader]


@pytest.mark.parametrize("estimates", [False, True])
@pytest.mark.parametrize(
    ("stops", "changed"),
    [
        ([1, 4, 6, 7, 12, 17], {}),
        ([5, 6, 8], {"max_epochs": -1, "max_steps": 15}),
        ([1, 2, 3, 4, 5], {"accumulate_grad_batches": 2}),
        ([1, 2, 3], {"accumulate_grad_batches": 4}),  # the second step of an epoch takes but two
        ([2, 3, 6, 8], {"val_check_interval": 2}),
        ([6, 7], {"reload_dataloaders_every_n_epochs": 1}),
    ],
)
def test_a_run_stopped_in_an_epoch_goes_on_where_it_was(
    make: Make, tmp_path: Path, stops: list[int], changed: dict[str, Any], estimates: bool
) -> None:
    def run(keep: list[Any], ckpt_path: Path | None = None) -> Listener:
        listener = Listener(estimates)
        fitted = trainer(tmp_path, callbacks=keep, enable_checkpointing=bool(keep), **changed)
        fitted.fit(listener, make(**grouped), ckpt_path=ckpt_path, weights_only=True)
        return listener

    grouped = {"group_by": "length"} if "max_steps" in changed else {}
    whole = run([ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)])
    assert len(whole.heard) == changed.get("max_steps", 3 * STEPS)
    together = changed.get("accumulate_grad_batches", 1)
    for stop in stops:
        resumed = run([], tmp_path / "kept" / f"step={stop}.ckpt")
        epochs, steps = divmod(stop, -(-STEPS // together))
        assert resumed.heard == whole.heard[epochs * STEPS + steps * together :], stop
        assert resumed.weight.item() == whole.weight.item()


def test_a_checkpoint_of_another_order_is_refused(make: Make, tmp_path: Path) -> None:
    first = trainer(tmp_path, max_epochs=1, callbacks=[ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4)])
    first.fit(Listener(), make())
    kept = next(tmp_path.glob("*=4.ckpt"))
    for changed, told in ({"order_seed": 6}, r"order_seed 5 \(now 6\)"), ({"batch_size": 3}, r"batch_size 4 \(now 3\)"):
        with pytest.raises(WorkbenchError, match=told):
            trainer(tmp_path).fit(Listener(), make(**changed), ckpt_path=kept, weights_only=True)
