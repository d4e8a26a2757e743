"""A training that is killed in an epoch goes on with the batches that were left; so do two processes together.

The file is its own script: ``python test_epoch_kill.py FOLDER CHECKPOINT`` trains in two processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from fusion_workbench.datamodules.datamodule import AblationDataModule
from fusion_workbench.datamodules.features import LiveFeatures

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the process that is killed"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:You passed in a `val_dataloader`"),
]

EXAMPLES, BATCHES = 30, 7  # an epoch of batches of four
ACCUMULATED = 2


class Source:
    image_size = 2

    def size(self, split: str) -> int:
        return EXAMPLES

    def image(self, split: str, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.full((2, 2, 3), index, dtype=np.uint8)

    def targets(self, split: str) -> dict[str, np.ndarray[Any, Any]]:
        return {}


class Encoder:
    depth, dim, image_size, fingerprint = 1, 3, 2, "toy"

    def grid(self, size: int | None = None) -> tuple[int, int]:
        return 2, 2

    def encode(self, images: Tensor, layers: Sequence[int]) -> Tensor:
        return images.flatten(1, 2).float()[None]


class Listener(L.LightningModule):
    """Writes down what it is given, a line a step, and dies where it should."""

    def __init__(self, folder: Path, dies: int) -> None:
        super().__init__()
        self.folder, self.dies = folder, dies
        self.weight = nn.Parameter(torch.zeros(1))
        self.steps = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with (self.folder / f"{self.global_rank}.jsonl").open("a") as log:
            log.write(json.dumps(batch["index"].tolist()) + "\n")
        self.steps += 1
        if self.steps == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return ((self.weight - batch["features"].mean((0, 2, 3))) ** 2).mean()


def train(folder: Path, processes: int, batch_size: int, dies: int = 0, checkpoint: str | None = None) -> None:
    source, encoder = Source(), Encoder()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=processes,
        strategy="ddp_spawn" if processes > 1 else "auto",
        use_distributed_sampler=False,
        accumulate_grad_batches=ACCUMULATED,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    data = AblationDataModule(LiveFeatures(encoder, source), (1,), batch_size, order_seed=3)  # type: ignore[arg-type]
    trainer.fit(Listener(folder, dies), data, ckpt_path=checkpoint, weights_only=True)


def heard(folder: Path, rank: int = 0) -> list[list[int]]:
    return [json.loads(line) for line in (folder / f"{rank}.jsonl").read_text().splitlines()]


def weight(folder: Path, step: int) -> float:
    return float(torch.load(folder / f"step={step}.ckpt", weights_only=True)["state_dict"]["weight"])


def killed(folder: Path, dies: int) -> int:
    """Train in a process of its own, which ends by this signal."""
    folder.mkdir()
    child = os.fork()
    if child == 0:
        try:
            train(folder, 1, 4, dies)
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def pair(folder: Path, checkpoint: Path | str = "") -> None:
    """Train in two processes."""
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, folder, checkpoint], timeout=3600, env=environment, check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, 1, 4)
    return folder


LAST = 2 * -(-BATCHES // ACCUMULATED)  # optimizer steps of the two epochs


def test_a_killed_training_goes_on_with_what_was_left(whole: Path, tmp_path: Path) -> None:
    dies = BATCHES + 4  # in the second epoch, with half of an optimizer step taken
    assert killed(tmp_path / "killed", dies) == signal.SIGKILL
    step = max(int(path.stem.removeprefix("step=")) for path in (tmp_path / "killed").glob("*.ckpt"))
    assert step == LAST // 2 + 1
    (tmp_path / "resumed").mkdir()
    train(tmp_path / "resumed", 1, 4, checkpoint=str(tmp_path / "killed" / f"step={step}.ckpt"))
    assert heard(tmp_path / "killed") == heard(whole)[:dies]
    assert heard(tmp_path / "resumed") == heard(whole)[BATCHES + ACCUMULATED :]
    assert weight(tmp_path / "resumed", LAST) == weight(whole, LAST)


@pytest.mark.long
def test_two_processes_are_one_of_twice_the_batch(whole: Path, tmp_path: Path) -> None:
    pair(tmp_path / "pair")
    pairs = list(zip(heard(tmp_path / "pair", 0), heard(tmp_path / "pair", 1), strict=True))
    assert [sorted(one + other) for one, other in pairs] == [sorted(together) for together in heard(whole)]
    assert weight(tmp_path / "pair", LAST) == pytest.approx(weight(whole, LAST), rel=1e-5)
    pair(tmp_path / "resumed", tmp_path / "pair" / "step=5.ckpt")
    for rank in (0, 1):
        assert heard(tmp_path / "resumed", rank) == heard(tmp_path / "pair", rank)[BATCHES + ACCUMULATED :]


if __name__ == "__main__":
    train(Path(sys.argv[1]), 2, 2, checkpoint=sys.argv[2] or None)
