"""Folders of llava-1.5's shape and ours: the same logits about images that are not square, preprocessing included."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_language import tiny_tokenizer
from tiny_models import picture
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import IMAGE, IMAGE_ID
from fusion_workbench.models.convert import from_llava, to_llava
from fusion_workbench.models.folder import read_model_config
from fusion_workbench.models.loaded import load_model

FAMILIES: dict[str, tuple[Any, int | list[int]]] = {
    "llama": (transformers.LlamaConfig, -2),
    "qwen2": (transformers.Qwen2Config, [-4, -2, -1]),
    "mistral": (transformers.MistralConfig, -2),
}
SIZES = ((40, 64), (97, 31), (5, 230), (56, 57))


def stock_folder(folder: Path, tiny_clip: Path, family: str = "llama", **processor: Any) -> Path:
    """As llava-hf writes it: the model, a tokenizer that knows ``<image>``, and CLIP's image processor."""
    kind, layers = FAMILIES[family]
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    text = kind(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=80,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    vision = transformers.CLIPVisionConfig(**json.loads((tiny_clip / "config.json").read_text()))
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=layers,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        stock: Any = transformers.LlavaForConditionalGeneration(config).eval()
        for parameter in stock.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    stock.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images = json.loads((tiny_clip / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(images | processor))
    facts = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    told = {"processor_class": "LlavaProcessor", "image_token": IMAGE, **facts}
    (folder / "processor_config.json").write_text(json.dumps(told))
    return folder


def stock_logits(folder: Path, image: Path, words: str) -> tuple[list[int], Tensor]:
    """Ids and logits of a stock folder, by transformers alone."""
    from PIL import Image

    stock = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor: Any = transformers.LlavaProcessor.from_pretrained(folder)
    with Image.open(image) as opened, torch.no_grad():
        inputs = processor(images=opened, text=words, return_tensors="pt")
        logits: Tensor = stock(**inputs).logits[0]
    return inputs["input_ids"][0].tolist(), logits


def our_logits(folder: Path, image: Path, ids: list[int], image_token: int) -> Tensor:
    """Logits of one of our folders at the same ids, the image's taken together."""
    model = load_model(folder, "cpu")
    together = [id_ for key, run in groupby(ids) for id_ in ([IMAGE_ID] if key == image_token else run)]
    batch = {
        "input_ids": torch.tensor([together]),
        "attention_mask": torch.ones(1, len(together), dtype=torch.bool),
        "features": model._features([image]),
    }
    with torch.no_grad():
        return model.model(batch)[0][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_images_that_are_not_square_both_ways(family: str, tiny_clip: Path, tmp_path: Path) -> None:
    stock = stock_folder(tmp_path / "stock", tiny_clip, family)
    from_llava(stock, tmp_path / "ours")
    to_llava(tmp_path / "ours", tmp_path / "back")
    assert read_model_config(tmp_path / "ours")["images"]["padding"] == "crop"
    for number, size in enumerate(SIZES):
        image = picture(tmp_path, f"{number}.png", number, size)
        ids, wanted = stock_logits(stock, image, f"ab{IMAGE}cd?")
        assert wanted.std() > 0.05
        token = max(ids)
        assert ids.count(token) == 16
        found = our_logits(tmp_path / "ours", image, ids, token)
        torch.testing.assert_close(found, wanted[:, : found.shape[-1]], rtol=0, atol=1e-4)
        again, back = stock_logits(tmp_path / "back", image, f"ab{IMAGE}cd?")
        assert again == ids
        torch.testing.assert_close(back, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("processor", "padding"),
    [
        ({"do_pad": True, "do_center_crop": False, "size": {"height": 56, "width": 56}}, "square"),
        ({"do_center_crop": False, "size": {"height": 56, "width": 56}}, "stretch"),
    ],
    ids=["padded", "stretched"],
)
def test_other_ways_of_a_processor(processor: dict[str, Any], padding: str, tiny_clip: Path, tmp_path: Path) -> None:
    stock = stock_folder(tmp_path / "stock", tiny_clip, **processor, image_processor_type="LlavaImageProcessor")
    from_llava(stock, tmp_path / "ours")
    assert read_model_config(tmp_path / "ours")["images"]["padding"] == padding
    image = picture(tmp_path, size=(40, 97))
    ids, wanted = stock_logits(stock, image, f"{IMAGE}what?")
    found = our_logits(tmp_path / "ours", image, ids, max(ids))
    torch.testing.assert_close(found, wanted[:, : found.shape[-1]], rtol=0, atol=1e-4)
    said = to_llava(tmp_path / "ours", tmp_path / "back")
    assert "borders" not in said
    torch.testing.assert_close(stock_logits(tmp_path / "back", image, f"{IMAGE}what?")[1], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "processor",
    [
        {"resample": 2},
        {"size": {"shortest_edge": 64}},
        {"crop_size": {"height": 48, "width": 48}},
        {"do_center_crop": False},
        {"do_resize": False},
    ],
    ids=str,
)
def test_a_processor_without_a_form_here_is_refused(processor: dict[str, Any], tiny_clip: Path, tmp_path: Path) -> None:
    stock = stock_folder(tmp_path / "stock", tiny_clip, **processor)
    with pytest.raises(WorkbenchError, match="makes squares of 56 px in a way that has no form here") as error:
        from_llava(stock, tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()
