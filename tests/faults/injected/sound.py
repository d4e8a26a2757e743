"""The sound study that faults are put into: four trainings of real probes on a tiny encoder, seconds in all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from injected.harness import Study, numbers_of, run, wait, words_of

STUDY = """
name: sound
question: Does it survive?
encoder: {name: enc, image_size: 56, precision: float32}
source: {name: finescenes, options: {train: 32, val: 16, test: 16, size: 56}}
strategies: [{name: average}, {name: concat}]
selections: [{levels: [1, 2]}]
baselines: false
replicates: 2
plan: {confirm: []}
search: {learning_rates: [0.003]}
training: {epochs: 1, batch_size: 8, head_hidden: 16}
"""


def make_sound(scratch: Path) -> Study:
    """Train it below ``scratch``, write its report, and keep a copy."""
    scratch.mkdir(parents=True, exist_ok=True)
    folder = scratch / "study"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tiny_encoder(folder / "enc")
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    workspace, log = folder / "W", scratch / "terminal.log"
    status = wait(run(["sweep", str(folder / "study.yaml"), "-w", str(workspace), "-q"], folder, log))
    assert status == 0, log.read_text(encoding="utf-8")
    report = workspace / "reports" / "sound" / "report.json"
    study = Study(folder, scratch / "pristine", "sound", numbers_of(report), words_of(report))
    shutil.rmtree(study.pristine, ignore_errors=True)
    shutil.copytree(folder, study.pristine, symlinks=True)
    return study


def tiny_encoder(folder: Path) -> None:
    """DINOv2 of 3 blocks, hidden size 32, patch 14, image 56, with weights that are stored."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 56},
        "do_center_crop": True,
        "crop_size": {"height": 56, "width": 56},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
