"""Random models for ``run.sh``: ``python tests/gpu/tiny_parts.py FOLDER`` writes ``encoder`` and ``language``.

The encoder is a DINOv2 of 12 blocks and 64 channels for images of 56 px, the language model a Llama of three blocks
over single characters: enough to see that a study runs, and nothing that its scores could mean.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))


def encoder(folder: Path) -> None:
    from tiny_families import MEAN, STD
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 2, "mlp_ratio": 1}
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14)).save_pretrained(folder)
    facts = {"image_processor_type": "BitImageProcessor", "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts), encoding="utf-8")


def language(folder: Path) -> None:
    from tiny_models import save_language

    save_language(folder)


if __name__ == "__main__":
    encoder(Path(sys.argv[1]) / "encoder")
    language(Path(sys.argv[1]) / "language")
