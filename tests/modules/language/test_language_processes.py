"""Two processes train as one does with the same global batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from quiet_trainer import trainer
from tiny_language import LORA
from tiny_visual import Chat, tiny_model
from torch import Tensor

from fusion_workbench.modules.language.vlm import VisionLanguageModel
from fusion_workbench.modules.optim import Recipe

CHAT = Chat()
# Halves of four steps. Answers of the same length, so that the mean of two means is the mean; one half is text alone.
STEPS = [
    ([("<image>what? ", "cat"), ("say it. ", "dog")], [("<image>", "six"), ("<image> <image>", "two")]),
    ([("say it. ", "dog"), ("again: ", "one")], [("<image>", "red"), ("so? ", "yes")]),
    ([("<image>", "six"), ("<image>a", "two")], [("say it. ", "dog"), ("again: ", "one")]),
]


def halves() -> list[dict[str, Tensor]]:
    """For process 0 and 1 in turn."""
    return [CHAT.batch(half, first_image=4 * n) for n, half in enumerate(half for step in STEPS for half in step)]


def joined() -> list[dict[str, Tensor]]:
    """Both halves of each step in one batch, with the same images."""
    parts, whole = halves(), []
    for n, (first, second) in enumerate(STEPS):
        batch = CHAT.batch([*first, *second])
        batch["features"] = torch.cat([parts[2 * n]["features"], parts[2 * n + 1]["features"]], 1)
        whole.append(batch)
    return whole


def model_of(trains: str) -> VisionLanguageModel:
    model = tiny_model("mmfuser", recipe=Recipe.of(1e-2, warmup=0.03))
    torch.manual_seed(3)
    {"frozen": model.decoder.freeze, "lora": lambda: model.decoder.add_lora(LORA), "full": model.decoder.train_fully}[
        trains
    ]()
    return model


class Shared:
    """Batches that the processes take in turn."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(STEPS)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        many = torch.distributed.is_initialized()
        first, step = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if many else (0, 1)
        return iter(self.batches[first::step])


@pytest.mark.long  # three processes import torch, lightning and transformers
@pytest.mark.parametrize("trains", ["frozen", "lora"])
def test_two_processes_end_with_the_weights_of_one(trains: str) -> None:
    alone, together = model_of(trains), model_of(trains)
    trainer(max_epochs=1).fit(alone, Shared(joined()))
    trainer(max_epochs=1, devices=2, strategy="ddp_spawn").fit(together, Shared(halves()))
    start = model_of(trains).state_dict()
    found, moved = together.state_dict(), 0.0
    for name, value in alone.state_dict().items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-5), name
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-3
