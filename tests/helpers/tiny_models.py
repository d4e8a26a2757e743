"""Small whole models on disk: a CLIP tower, a Llama and a connector, for the tests of what loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_language import tiny_decoder

from fusion_workbench.core.layers import Selection
from fusion_workbench.models.folder import ModelInfo
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.language.connector import ConnectorConfig, build_connector
from fusion_workbench.modules.language.decoder import Decoder
from fusion_workbench.modules.language.vlm import VisionLanguageModel

TEMPLATE = (
    "{% for message in messages %}{% if message['content'] %}{{ message['role'] + ':' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def save_language(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """A transformers folder of a tiny language model and its tokenizer."""
    decoder = tiny_decoder(family, seed)
    for block in decoder.layers:  # what went before outweighs the last word, so that answers are not all one letter
        for parameter in block.parameters():
            parameter.data *= 3
    decoder.model.save_pretrained(folder)
    decoder.tokenizer.chat_template = TEMPLATE
    decoder.tokenizer.save_pretrained(folder)
    return folder


def build_model(
    encoder: Path,
    language: Path,
    strategy: str = "deep_only",
    levels: tuple[int, ...] = (),
    query: int = 2,
    **settings: Any,
) -> tuple[VisionLanguageModel, VisionEncoder, ModelInfo]:
    """A model whose images matter, and what is saved beside it."""
    read = VisionEncoder(str(encoder), image_size=0, precision="float32")
    decoder = Decoder.load(str(language), precision="float32")
    config = ConnectorConfig(
        strategy=strategy,
        selection=Selection(levels, query),
        dim=read.dim,
        width=decoder.width,
        depth=decoder.depth,
        grid=read.grid(),
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        connector = build_connector(config)
        for parameter in connector.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    model = VisionLanguageModel(connector, decoder, read.grid()).eval()
    return model, read, ModelInfo(config, str(language), origin={"study": "tiny"})


def picture(folder: Path, name: str = "a.png", seed: int = 0, size: tuple[int, int] = (40, 64)) -> Path:
    """An image file, not square."""
    array = np.random.RandomState(seed).randint(0, 256, (*size, 3), dtype=np.uint8)
    path = folder / name
    Image.fromarray(array).save(path)
    return path
