"""The bundled studies of language models, run from end to end with a tiny encoder, decoder and data set."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fusion_workbench.config.study import load_study
from fusion_workbench.runner.experiment import Experiment
from fusion_workbench.study.prepare import prepare
from fusion_workbench.study.progress import Display

SMALL = ("replicates=1", "language_model.max_new_tokens=2", "training.batch_size=2", "training.precision=32-true")


def run(name: str, folder: Path, overrides: list[str]) -> None:
    study = load_study(name, [*SMALL, *overrides])
    parts = prepare(study, folder, progress=False)
    result = Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()
    assert (result.failed, result.trained) == (0, len(parts.space.listed))


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """A pretraining file and an instruction file of eight rows each, with their images."""
    (tmp_path / "images").mkdir()
    draw = np.random.default_rng(0)
    for number in range(8):
        pixels = draw.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    for file, turns in (("captions", 1), ("instructions", 2)):
        rows = [
            {
                "id": f"{file}{number}",
                "image": f"{number}.png",
                "conversations": [
                    {"from": who, "value": ("<image>\n" if not turn and who == "human" else "") + f"{who} {turn}"}
                    for turn in range(turns)
                    for who in ("human", "gpt")
                ],
            }
            for number in range(8)
        ]
        (tmp_path / f"{file}.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.mark.parametrize("name", ["mllm_quick", "mllm_finescenes"])
def test_a_study_of_finescenes_runs(
    name: str, tiny_dinov2_deep: Path, tiny_language: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    options = ["source.options.train=8", "source.options.val=2", "source.options.test=3"]
    run(
        name,
        tmp_path,
        [
            f"encoder.name={tiny_dinov2_deep}",
            "encoder.precision=float32",
            f"language_model.name={tiny_language}",
            f"tracking.uri={mlflow_uri}",
            *options,
        ],
    )


def test_the_papers_recipe_runs(
    tiny_clip: Path, tiny_language: Path, mlflow_uri: str, llava: Path, tmp_path: Path
) -> None:
    """Both stages, on data in LLaVA's formats; what is changed is its size."""
    shared = f"images: {llava}/images, size: 56"
    run(
        "mmfuser_llava_7b",
        tmp_path,
        [
            f"encoder={{name: {tiny_clip}, image_size: 56, precision: float32}}",
            f"source.options={{train: {llava}/instructions.json, {shared}, val_share: 0.2, test_share: 0.2}}",
            f"language_model.stages.0.source.options={{train: {llava}/captions.json, {shared}}}",
            f"language_model.name={tiny_language}",
            "selections=[{levels: [0, 1], query: -2}]",
            "strategies.3.options={heads: 2}",
            "language_model.stages.1.batch_size=2",
            "training.devices=1",
            "language_model.parallel=auto",
            f"tracking.uri={mlflow_uri}",
        ],
    )


def test_the_papers_recipe_says_what_its_scripts_say() -> None:
    """``scripts/mmfuser/pretrain_7b.sh`` and ``finetune_7b.sh`` of yuecao0119/MMFuser, and the defaults of LLaVA's code
    where they say nothing; their rates stand in tests/modules/test_optim.py.
    """
    study = load_study("mmfuser_llava_7b")
    language = study.language_model
    assert language is not None
    first, second = language.stages
    assert first.source is not None
    for stage, source, template, padding, group, batch in (
        (first, first.source, "plain", "crop", "none", 256),  # --version plain, image_aspect_ratio square
        (second, study.source, "chat", "square", "modality_length", 128),  # --version v1, image_aspect_ratio pad
    ):
        assert (source.name, source.options["size"]) == ("llava", 336)
        assert (stage.template, source.options.get("padding", "square")) == (template, padding)
        assert (stage.group_by or language.group_by) == group
        of_a_device = stage.batch_size or study.training.batch_size
        assert of_a_device * study.training.devices * stage.accumulate == batch
        assert (stage.epochs, stage.weight_decay, stage.warmup) == (1, 0.0, 0.03)
    assert [stage.language_model for stage in language.stages] == ["frozen", "full"]
    assert (language.system, language.max_length) == ("vicuna_v1", 2048)
    assert not language.projector_norm
    assert not language.match_scale
