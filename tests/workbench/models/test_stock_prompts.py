"""Prompts of converted models are those of their stock processors, with SentencePiece tokenizers of either kind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import build_model, picture
from tiny_sentencepiece import by_sentencepiece
from transformers import LlamaConfig, LlamaForCausalLM, LlavaProcessor

from fusion_workbench.models.convert import from_llava, to_llava
from fusion_workbench.models.folder import save_model
from fusion_workbench.models.loaded import load_model

QUESTION = "what is in\n this picture, USER: 12?"


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "not legacy"])
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = by_sentencepiece(folder, request.param)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def stock_ids(folder: Path, image: Path) -> list[int]:
    """What the stock processor makes of a question, one id for the image."""
    processor: Any = LlavaProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ids = processor(images=Image.open(image), text=text, return_tensors="pt")["input_ids"][0].tolist()
    shown = processor.tokenizer.convert_tokens_to_ids("<image>")
    return [-1 if i == shown else i for place, i in enumerate(ids) if i != shown or ids[place - 1] != shown]


def our_ids(folder: Path, image: Path) -> list[int]:
    return [-1 if i < 0 else i for i in load_model(folder, "cpu")._prompt([image], QUESTION).ids]


@pytest.mark.parametrize("system", [None, "vicuna_v1", 'be "nice"'])
def test_prompts_there_and_back(system: str | None, language: Path, tiny_clip: Path, tmp_path: Path) -> None:
    image = picture(tmp_path)
    built, encoder, described = build_model(tiny_clip, language, projector_norm=False)
    save_model(built, tmp_path / "ours", encoder, replace(described, system=system))
    loaded = load_model(tmp_path / "ours", "cpu").model.decoder.tokenizer
    for text in ("</s>USER: what", "a</s> b</s>\nc"):
        assert loaded(text)["input_ids"] == built.decoder.tokenizer(text)["input_ids"]
    ours = our_ids(tmp_path / "ours", image)
    to_llava(tmp_path / "ours", tmp_path / "stock")
    assert stock_ids(tmp_path / "stock", image) == ours
    from_llava(tmp_path / "stock", tmp_path / "back")
    assert our_ids(tmp_path / "back", image) == ours
    to_llava(tmp_path / "back", tmp_path / "again")
    assert stock_ids(tmp_path / "again", image) == ours


def test_prompts_of_a_folder_whose_template_writes_no_space(language: Path, tiny_clip: Path, tmp_path: Path) -> None:
    """As llava-hf's: to its processor the words after an image are the middle of a text."""
    image = picture(tmp_path)
    built, encoder, described = build_model(tiny_clip, language, projector_norm=False)
    save_model(built, tmp_path / "ours", encoder, replace(described, system=None))
    to_llava(tmp_path / "ours", tmp_path / "stock")
    shutil.copytree(tmp_path / "stock", tmp_path / "other")
    template = (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] + ' ' }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    (tmp_path / "other" / "chat_template.jinja").write_text(template)
    theirs = stock_ids(tmp_path / "other", image)
    from_llava(tmp_path / "other", tmp_path / "back")
    assert our_ids(tmp_path / "back", image) == theirs
    to_llava(tmp_path / "back", tmp_path / "again")
    assert stock_ids(tmp_path / "again", image) == theirs
    legacy = json.loads((language / "tokenizer_config.json").read_text())["legacy"]
    assert (theirs == our_ids(tmp_path / "ours", image)) == legacy
