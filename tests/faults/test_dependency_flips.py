"""One bit of a file that a study depends on: the next start refuses, or sees a change, or nothing was changed by it.

Every dependency is taken by its name from the product's own list; one without an entry in ``FILES`` fails.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from llava_files import caption, picture, write

from fusion_workbench.config.study import study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.study.dependencies import dependencies, listed
from fusion_workbench.study.prepare import Parts, prepare

STUDY = """
name: flips
question: What if a bit rots?
encoder: {{name: "{0}/enc", image_size: 56, precision: float32}}
source: {{name: llava, options: {{train: "{0}/train.json", val: "{0}/val.json", test: "{0}/test.json", size: 56,
  images: "{0}/pics"}}}}
strategies: [{{name: concat}}]
selections: [{{levels: [1, 2]}}]
tasks: [answer]
baselines: false
training: {{batch_size: 2}}
language_model:
  name: "{0}/llm"
  weights: float32
  stages:
  - {{name: align, source: {{name: llava, options: {{train: "{0}/captions.json", images: "{0}/pics", size: 56,
      val_share: 0, test_share: 0}}}}}}
  - {{name: tune}}
"""
SPLITS = ("train", "val", "test")
PLACES = 20
# Dependency → the files whose bytes it stands for, as patterns below the study's folder; None: no file, see the test.
FILES: dict[str, tuple[str, ...] | None] = {
    "encoder.weights": ("enc/model.safetensors",),
    "encoder.config": ("enc/config.json", "enc/preprocessor_config.json"),
    **{f"images.{split}": (f"pics/{split}*",) for split in SPLITS},
    **{f"{part}.{split}": (f"{split}.json",) for part in ("targets", "conversations") for split in SPLITS},
    "stage.align.images.train": ("pics/captions*",),
    "stage.align.targets.train": ("captions.json",),
    "stage.align.conversations.train": ("captions.json",),
    "language_model.weights": ("llm/model.safetensors",),
    "language_model.config": ("llm/config.json", "llm/generation_config.json"),
    "language_model.tokenizer": ("llm/tokenizer.json", "llm/tokenizer_config.json"),
    "numerics": None,  # a number in the code
}


@pytest.fixture
def folder(tiny_dinov2: Path, tiny_language: Path, tmp_path: Path) -> Path:
    """A study's files: an encoder, a language model, rows of conversations, photographs."""
    shutil.copytree(tiny_dinov2, tmp_path / "enc")
    shutil.copytree(tiny_language, tmp_path / "llm")
    for number, name in enumerate((*SPLITS, "captions")):
        suffixes = (".png", ".jpg", ".png")
        for k, suffix in enumerate(suffixes):
            picture(tmp_path / "pics" / f"{name}{k}{suffix}", seed=10 * number + k)
        write(tmp_path / f"{name}.json", [caption(f"{name}{k}{suffix}") for k, suffix in enumerate(suffixes)])
    return tmp_path


def prepared(folder: Path) -> Parts:
    study = study_from_yaml(STUDY.format(folder), "flips", [], "flips")
    return prepare(study, folder / "W", progress=False)


def meaning(parts: Parts) -> str:
    """What a study makes of its files: tokens of the encoder, words, ids, what the language model says of them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sha = hashlib.sha256()
    language = parts.language
    assert language is not None
    model = AutoModelForCausalLM.from_pretrained(language.path)
    tokenizer = AutoTokenizer.from_pretrained(language.path)
    sources = {id(one): one for one in (parts.conversations, *language.sources.values())}.values()
    for source in sources:
        for split in SPLITS if source is parts.source else ("train",):
            images = [source.image(split, index) for index in range(source.size(split))]
            if images:
                sha.update(parts.encoder.encode(np.stack(images), [1, 2, 3]).numpy().tobytes())
            for conversation in source.conversations(split):
                sha.update(repr((conversation.turns, conversation.references)).encode())
                ids = tokenizer(" ".join(turn.text for turn in conversation.turns))["input_ids"]
                sha.update(repr(ids).encode())
    with torch.inference_mode():
        sha.update(model(torch.arange(20)[None]).logits.numpy().tobytes())
    return sha.hexdigest()


def places(files: list[Path], count: int) -> Iterator[tuple[Path, int, int]]:
    """First, last, in the header, and drawn: a file, a byte, a bit."""
    draw = random.Random(count)
    for number in range(count):
        file = files[number % len(files)]
        size = file.stat().st_size
        fixed = [0, size - 1, min(8, size - 1), size // 2]
        turn = number // len(files)
        yield file, fixed[turn] if turn < len(fixed) else draw.randrange(size), draw.randrange(8)


def test_every_dependency_has_files_here(folder: Path) -> None:
    assert {one.name for one in listed(prepared(folder))} == FILES.keys()


@pytest.mark.parametrize("name", [name for name, files in FILES.items() if files is not None])
def test_a_flipped_bit_is_refused_or_seen_or_means_nothing(name: str, folder: Path) -> None:
    sound = prepared(folder)
    before, meant = dependencies(sound), meaning(sound)
    files = [file for pattern in FILES[name] or () for file in sorted(folder.glob(pattern))]
    assert files
    seen = 0
    for file, place, bit in places(files, PLACES):
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        file.write_bytes(flipped)
        try:
            parts = prepared(folder)
            after = dependencies(parts)
        except WorkbenchError:
            seen += 1
        else:
            seen += after != before
            assert after != before or meaning(parts) == meant, f"{file.name}, byte {place}, bit {bit}"
        file.write_bytes(content)
    assert seen, "no flip was seen at all: the files are not those of this dependency"
    assert dependencies(prepared(folder)) == before
