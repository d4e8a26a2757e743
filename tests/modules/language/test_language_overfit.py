"""A visual language model can learn by heart: tiny ones in seconds, the embedded pair in the long tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quiet_trainer import trainer
from tiny_language import LORA, tiny_decoder
from tiny_visual import Chat, Stateful, tiny_model

from fusion_workbench.modules.language.vlm import VisionLanguageModel
from fusion_workbench.modules.optim import Recipe

CHAT = Chat()
WORDS = ["cat", "dog", "7", "no", "yes", "six", "two dogs", "Red"]


@pytest.mark.parametrize("strategy", ["deep_only", "mmfuser"])
def test_a_tiny_one_learns_eight_images_by_heart(strategy: str) -> None:
    """The question is the same for all, so that the images alone can tell."""
    decoder = tiny_decoder(width=48, depth=2)
    decoder.train_fully()
    rate = 5e-3
    model = tiny_model(strategy, decoder=decoder, recipe=Recipe.of(rate, {"gates": 10.0}, warmup=0.03))
    batch = CHAT.batch([("<image>what? ", word) for word in WORDS])
    trainer(max_epochs=60, gradient_clip_val=1.0).fit(model, Stateful([batch]))
    prompts = CHAT.prompts([("<image>what? ", "")] * len(WORDS))
    assert model.generate(prompts, max_new_tokens=12) == WORDS
    shifted = prompts | {"features": prompts["features"].roll(1, dims=1)}
    assert model.generate(shifted, max_new_tokens=12) == [WORDS[-1], *WORDS[:-1]]


# --- the embedded pair -------------------------------------------------------------------------------------------


def questions(source: Any, tokenizer: Any, answers: bool) -> dict[str, torch.Tensor]:
    """Sixteen questions about four scenes: the digit, its corner, how many glyphs, and the topmost glyph."""
    from fusion_workbench.core.tokens import IGNORE, IMAGE_ID

    targets, classes = source.targets("train"), source.classes()["read"]
    rows, taught = [], []
    for scene in range(4):
        left, top, right, bottom = targets["digit.box"][scene].tolist()
        across, down = "left" if left + right < 1 else "right", "top" if top + bottom < 1 else "bottom"
        valid = targets["read.valid"][scene]
        highest = min(range(int(valid.sum())), key=lambda n: targets["read.box"][scene][n][1])
        for question, answer in {
            "Which digit is it?": str(targets["digit.label"][scene]),
            "Where is the digit?": f"{down} {across}",
            "How many small characters are there?": str(int(valid.sum())),
            "Which small character is highest?": classes[targets["read.label"][scene][highest]],
        }.items():
            before = tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
            asked = tokenizer(f"{question}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
            said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            prompt = [*before, IMAGE_ID, *asked]
            rows.append(prompt + said * answers)
            taught.append([IGNORE] * len(prompt) + said * answers)
    length = max(map(len, rows))
    filled = [[row + [fill] * (length - len(row)) for row in which] for which, fill in ((rows, 0), (taught, IGNORE))]
    mask = [[n < len(row) for n in range(length)] for row in rows]
    return {
        "input_ids": torch.tensor(filled[0]),
        "labels": torch.tensor(filled[1]),
        "attention_mask": torch.tensor(mask),
    }


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["deep_only", "mmfuser"])
def test_the_embedded_pair_learns_sixteen_questions_by_heart(strategy: str) -> None:
    pytest.importorskip("peft")
    import numpy as np

    from fusion_workbench.assets import home as assets
    from fusion_workbench.core.layers import Selection
    from fusion_workbench.datamodules.sources.finescenes import FineScenes, FineScenesOptions
    from fusion_workbench.modules.encoders.encoder import VisionEncoder
    from fusion_workbench.modules.language.connector import ConnectorConfig, match_scale, seeded_connector
    from fusion_workbench.modules.language.decoder import Decoder

    folders = assets.ensure("encoder", "language-model")
    encoder = VisionEncoder(str(folders["encoder"]), image_size=56)
    source = FineScenes(FineScenesOptions(train=4, glyphs=2, fewest=1, size=56))
    decoder = Decoder.load(str(folders["language-model"]))
    torch.manual_seed(0)
    decoder.add_lora(LORA)
    config = ConnectorConfig(strategy, Selection((3, 6), 9), encoder.dim, decoder.width, decoder.depth)
    connector = seeded_connector(config, 0)
    scenes = encoder.encode(np.stack([source.image("train", n) for n in range(4)]), connector.uses)
    match_scale(connector, scenes, encoder.grid(), decoder.embedding_rms())
    features = scenes.clone().repeat_interleave(4, dim=1)  # a scene a question
    model = VisionLanguageModel(connector, decoder, encoder.grid(), Recipe.of(1e-3, {"gates": 10.0}, warmup=0.03))
    batch = questions(source, decoder.tokenizer, answers=True) | {"features": features}
    halves = [{name: half(name, value, n) for name, value in batch.items()} for n in range(2)]
    trainer(max_epochs=20, gradient_clip_val=1.0).fit(model, Stateful(halves))
    prompts = questions(source, decoder.tokenizer, answers=False)
    wanted = [decoder.tokenizer.decode(row[row >= 0], skip_special_tokens=True).strip() for row in batch["labels"]]
    assert model.generate(prompts | {"features": features}, max_new_tokens=8) == wanted


def half(name: str, value: torch.Tensor, which: int) -> torch.Tensor:
    """Every other question."""
    return value[:, which::2] if name == "features" else value[which::2]
