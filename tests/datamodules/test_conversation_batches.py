"""Batches of conversations: ids beside the features of the images that they show, in an order that survives a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from tiny_talk import PER_IMAGE, TalkSource, tiny_chat
from torch import Tensor, nn

from datamodules.datamodule import AblationDataModule
from datamodules.feature_store import FeatureStore
from modules.encoder import VisionEncoder
from workbench.errors import WorkbenchError
from workbench.tokens import IGNORE, IMAGE_ID

LAYERS = (3, 1)

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
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
        return AblationDataModule(source, None if live else store, vision if live else None, **arguments)

    return make


class Listener(L.LightningModule):
    """Remembers which conversations each step of training was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.heard: list[list[int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

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
    data = make(live=live)
    batch = data.on_after_batch_transfer(data.prompts("val", [0, 3]), 0)
    assert batch["features"].shape == (2, 0, PER_IMAGE, 32)


def test_prompts(make: Make) -> None:
    data = make(eval_batch_size=4)
    conversations = data.source.conversations("test")
    batch = data.prompts("test", [4, 1, 5])
    assert batch["index"].tolist() == [4, 1, 5]
    assert (batch["input_ids"] == IMAGE_ID).sum(1).tolist() == [1, 1, 2]
    for row, number in enumerate([4, 1, 5]):
        prompt = data.chat.prompt(conversations[number])
        assert batch["input_ids"][row][batch["attention_mask"][row]].tolist() == prompt
        assert batch["input_ids"][row, -len(prompt) :].tolist() == prompt
    loader = list(data.prompt_dataloader("test"))
    assert torch.cat([batch["index"] for batch in loader]).tolist() == list(range(len(conversations)))


STEPS = 6  # an epoch of 27 conversations in batches of four


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize(
    ("stop", "accumulate"), [(1, 1), (4, 1), (6, 1), (7, 1), (12, 1), (1, 2), (2, 2), (3, 2), (4, 2), (2, 4)]
)
def test_a_run_stopped_in_an_epoch_goes_on_where_it_was(
    make: Make, tmp_path: Path, stop: int, accumulate: int, group: bool
) -> None:
    def run(ckpt_path: Path | None = None, **changed: Any) -> Listener:
        listener = Listener()
        keeping = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks = [] if ckpt_path else [keeping]
        fitted = trainer(tmp_path, accumulate_grad_batches=accumulate, callbacks=callbacks, **changed)
        fitted.fit(listener, make(group_by_length=group), ckpt_path=ckpt_path, weights_only=True)
        return listener

    whole = run()
    assert len(whole.heard) == 3 * STEPS
    resumed = run(tmp_path / "kept" / f"step={stop}.ckpt", enable_checkpointing=False)
    done, steps = divmod(stop, -(-STEPS // accumulate))
    taken = done * STEPS + steps * accumulate
    assert resumed.heard == whole.heard[taken:]
    assert resumed.weight.item() == whole.weight.item()


def test_a_checkpoint_of_another_order_is_refused(make: Make, tmp_path: Path) -> None:
    first = trainer(tmp_path, max_epochs=1, callbacks=[ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4)])
    first.fit(Listener(), make())
    for changed in ({"order_seed": 6}, {"batch_size": 3}):
        with pytest.raises(WorkbenchError, match="another order of training"):
            trainer(tmp_path).fit(Listener(), make(**changed), ckpt_path=next(tmp_path.glob("*=4.ckpt")))
