"""The visual language model on CUDA: the losses of the CPU, and training in bf16."""

from __future__ import annotations

import pytest
import torch
from quiet_trainer import trainer
from tiny_language import LORA, tiny_decoder
from tiny_visual import Chat, Stateful, tiny_model

from fusion_workbench.modules.optim import Recipe

pytestmark = pytest.mark.gpu
TURNS = [("<image>what? ", "cat"), ("say a. ", "a"), ("<image><image>same? ", "no")]


@pytest.mark.parametrize("strategy", ["deep_only", "mmfuser"])
def test_losses_and_answers_are_those_of_the_cpu(strategy: str) -> None:
    batch, prompts = Chat().batch(TURNS), Chat().prompts(TURNS)
    here, there = tiny_model(strategy).eval(), tiny_model(strategy).eval().cuda()
    moved = {name: value.cuda() for name, value in batch.items()}
    assert torch.allclose(here.loss_per_example(batch), there.loss_per_example(moved).cpu(), atol=1e-4)
    assert here.generate(prompts, 8) == there.generate({name: value.cuda() for name, value in prompts.items()}, 8)


@pytest.mark.parametrize("trains", ["frozen", "lora", "full"])
def test_bf16_training_lowers_the_loss(trains: str) -> None:
    decoder = tiny_decoder(precision="bf16")
    {"frozen": decoder.freeze, "lora": lambda: decoder.add_lora(LORA), "full": decoder.train_fully}[trains]()
    model = tiny_model(decoder=decoder, recipe=Recipe.of(1e-2, warmup=0.03))
    batch = Chat().batch(TURNS)
    before = float(model.training_step(batch, 0).detach())
    epochs = 60 if trains == "frozen" else 20  # words that nothing changes are learned more slowly, on the CPU too
    trainer(max_epochs=epochs, accelerator="cuda", gradient_clip_val=1.0).fit(model, Stateful([batch]))
    moved = {name: value.cuda() for name, value in batch.items()}
    assert float(model.cuda().training_step(moved, 0).detach()) < 0.8 * before
