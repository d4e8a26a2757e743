"""A tiny model of every family of vision encoders, built from its config: 3 blocks of 32, 56 px in patches of 14."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

DEPTH, DIM, SIDE, PATCH = 3, 32, 56, 14
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


@dataclass(frozen=True)
class Tiny:
    """How to build one, and how many prefix tokens it has."""

    config: str
    model: str
    prefix: int
    extra: dict[str, Any] = field(default_factory=dict)
    sized: bool = True  # its config names an image size


NARROW = {"intermediate_size": 64}
TINY = {
    "clip_vision_model": Tiny("CLIPVisionConfig", "CLIPVisionModel", 1, NARROW),
    "metaclip_2_vision_model": Tiny("MetaClip2VisionConfig", "MetaClip2VisionModel", 1, NARROW),
    "siglip_vision_model": Tiny("SiglipVisionConfig", "SiglipVisionModel", 0, NARROW),
    "siglip2_vision_model": Tiny("Siglip2VisionConfig", "Siglip2VisionModel", 0, NARROW | {"num_patches": 16}, False),
    "dinov2": Tiny("Dinov2Config", "Dinov2Model", 1, {"mlp_ratio": 2}),
    "dinov2_with_registers": Tiny(
        "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", 4, {"mlp_ratio": 2, "num_register_tokens": 3}
    ),
    "dinov3_vit": Tiny("DINOv3ViTConfig", "DINOv3ViTModel", 5, NARROW | {"num_register_tokens": 4}),
    "vit": Tiny("ViTConfig", "ViTModel", 1, NARROW),
    "deit": Tiny("DeiTConfig", "DeiTModel", 2, NARROW),
    "beit": Tiny("BeitConfig", "BeitModel", 1, NARROW | {"use_relative_position_bias": True}),
    "data2vec-vision": Tiny(
        "Data2VecVisionConfig", "Data2VecVisionModel", 1, NARROW | {"use_relative_position_bias": True}
    ),
    "blip_2_vision_model": Tiny("Blip2VisionConfig", "Blip2VisionModel", 1, NARROW),
    "internvl_vision": Tiny("InternVLVisionConfig", "InternVLVisionModel", 1, NARROW),
}


def build_tiny(name: str) -> transformers.PreTrainedModel:
    """The model with seeded weights; the caller's random state is left as it was."""
    row = TINY[name]
    sizes = {"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "patch_size": PATCH}
    config = getattr(transformers, row.config)(**sizes, **({"image_size": SIDE} if row.sized else {}), **row.extra)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: transformers.PreTrainedModel = getattr(transformers, row.model)(config).eval()
        for parameter in model.parameters():  # gates and biases that start at zero would hide what they do
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def save_tiny(name: str, folder: Path, **preprocessor: Any) -> Path:
    """A transformers folder of it."""
    build_tiny(name).save_pretrained(folder)
    facts = {"image_processor_type": "BitImageProcessor", "image_mean": MEAN, "image_std": STD} | preprocessor
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder
