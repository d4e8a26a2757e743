"""Two processes with half of every parameter train as one does with the whole, and leave whole checkpoints."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from quiet_trainer import trainer
from test_language_processes import Shared, halves, joined, model_of
from torch import Tensor

from fusion_workbench.modules.language.vlm import VisionLanguageModel
from fusion_workbench.modules.optim import Recipe

START = "spawn"  # of processes; a fork would inherit the threads of other tests
CLIP = 0.3  # below the norm of the gradients


def gentle(trains: str) -> VisionLanguageModel:
    model = model_of(trains)
    model.recipe = Recipe.of(1e-3, warmup=0.03)
    return model


def half(rank: int, port: int, trains: str, precision: str, folder: Path) -> None:
    """One of the two: two epochs, and the second of them once more from the checkpoint of the first."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    for name, start in (("whole", None), ("resumed", folder / "epoch=0.ckpt")):
        model = gentle(trains)
        if start is not None:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.zero_()
        training = trainer(
            max_epochs=2,
            devices=2,
            precision=precision,
            strategy=ModelParallelStrategy(2, 1, save_distributed_checkpoint=False, timeout=timedelta(minutes=3)),
            plugins=[LightningEnvironment()],
            gradient_clip_val=CLIP,
            enable_checkpointing=start is None,
            callbacks=[ModelCheckpoint(folder, "{epoch}", save_top_k=-1)] if start is None else [],
        )
        gathered: set[torch.dtype] = set()
        model.decoder.layers[0].register_forward_pre_hook(
            lambda block, _, gathered=gathered: gathered.update(p.dtype for p in block.parameters())
        )
        training.fit(model, Shared(halves()), ckpt_path=start, weights_only=True)
        assert (torch.bfloat16 in gathered) == (precision == "bf16-mixed")
        training.save_checkpoint(folder / f"{name}.ckpt")
    torch.distributed.destroy_process_group()


@pytest.mark.long  # the processes import torch, lightning and transformers
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("trains", ["frozen", "lora", "full"])
def test_shards_end_with_the_weights_of_one_process(trains: str, precision: str, tmp_path: Path) -> None:
    """With autocast the weights of a block are gathered in bf16, as autocast would round them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(half, (port, trains, precision, tmp_path), nprocs=2, start_method=START)
    alone, start = gentle(trains), gentle(trains).state_dict()
    trainer(max_epochs=2, gradient_clip_val=CLIP, precision=precision).fit(alone, Shared(joined()))
    for name in ("whole", "resumed"):
        found: dict[str, Tensor] = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"]
        assert set(found) == alone.trained_names()
        wanted, moved, apart = alone.state_dict(), 0.0, 0.0
        for key, value in found.items():
            if precision == "32-true":
                torch.testing.assert_close(value, wanted[key], rtol=0, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
            moved += float((wanted[key] - start[key]).square().sum())
            apart += float((value - wanted[key]).square().sum())
        assert moved > 1e-3
        # Rounded otherwise, AdamW's first steps turn a few gradients that are almost zero.
        assert (apart / moved) ** 0.5 < 0.1
