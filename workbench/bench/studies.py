"""The studies that benchmarks train: ``sweeps/bench_grid.yaml``, a part of it, and a tiny stand-in for smoke runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_workbench.bench.turns import Setting
from fusion_workbench.config.study import EncoderConfig, load_study
from fusion_workbench.modules.encoders.encoder import VisionEncoder, cpu_has_bf16
from fusion_workbench.study.encoder_store import load_encoder
from fusion_workbench.study.prepare import Parts, prepare

GRID = "bench_grid"
PART = ("single_layers=[]", "baselines=false", "replicates=1", "plan.confirm=[]", "search.learning_rates=[0.003]")
"""Overrides of the grid: one training of each strategy, and nothing else."""
SIZES: dict[str, dict[str, Any]] = {  # of CLIPVisionConfig
    "clip-l-336": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    | {"image_size": 336, "patch_size": 14, "projection_dim": 768},
    "clip-tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    | {"image_size": 112, "patch_size": 28, "projection_dim": 32},
}
_TINY = (
    "source.options.train=24",
    "source.options.val=8",
    "source.options.test=8",
    "selections=[{levels: [1, 2], query: 4}]",
    "training.epochs=2",
    "training.batch_size=8",
    "training.head_hidden=16",
)


def random_encoder(size: str, folder: Path) -> str:
    """A CLIP tower of a published or tiny size, weights as transformers initialises them, saved in ``folder``.

    Time does not depend on the values of weights. Returns the folder as an encoder's name.
    """
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**SIZES[size])).save_pretrained(folder)
    processor = {"image_processor_type": "CLIPImageProcessor", "do_rescale": True, "rescale_factor": 1 / 255}
    processor |= {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def encoder_of(setting: Setting) -> VisionEncoder:
    """The embedded encoder, or a tiny one for smoke runs, on the setting's device.

    Raises:
        WorkbenchError: the embedded encoder is not here and cannot be fetched.
    """
    config = EncoderConfig(precision=_precision(setting))
    if setting.tiny:
        config = EncoderConfig(_tiny_encoder(setting), image_size=0, precision="float32")
    return load_encoder(config, progress=False).to(setting.device)


def grid_parts(setting: Setting, workspace: Path, overrides: Sequence[str] = ()) -> Parts:
    """The grid, prepared in ``workspace``; with ``--tiny`` a stand-in of it.

    Args:
        overrides: such as :data:`PART`.

    Raises:
        WorkbenchError: as :func:`study.prepare.prepare`, such as for want of the embedded assets.
    """
    words = [f"training.accelerator={setting.device}", f"encoder.precision={_precision(setting)}"]
    if setting.tiny:
        words += [*_TINY, f"encoder={{name: '{_tiny_encoder(setting)}', image_size: 112, precision: float32}}"]
        words += [word for word in PART if not word.startswith("search.")]
    parts = prepare(load_study(GRID, [*words, *overrides]), workspace, progress=False)
    parts.encoder.to(setting.device)
    return parts


def _precision(setting: Setting) -> str:
    """``auto`` is decided by the GPU where there is one, also where it is not what is measured."""
    if setting.device == "cpu":
        return "bf16" if cpu_has_bf16() else "float32"
    return "auto"


def _tiny_encoder(setting: Setting) -> str:
    folder = setting.scratch / "tiny-encoder"
    return str(folder) if folder.exists() else random_encoder("clip-tiny", folder)
