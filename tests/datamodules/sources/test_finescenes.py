"""FineScenes: exact labels, nothing shared between splits, the same bytes everywhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.sources.base import SPLITS
from fusion_workbench.datamodules.sources.finescenes import (
    CONTRAST,
    DIGIT_SIDE,
    GLYPH_HEIGHT,
    FineScenes,
    FineScenesOptions,
    PlacedGlyph,
)
from fusion_workbench.datamodules.sources.finescenes_parts import CLASSES, HANDWRITING_SHARE, PHOTOGRAPHS, TYPEFACES

# sha256 over the first 16 images of each split: another Pillow, or another machine, must draw the same.
PINNED = {
    "train": "fb9f040f5fddf40326ce3820bdb4fa951b19e1023eda3b32082535f8620ea8ac",
    "val": "a39a3f3c80cd7598f03650bbbd8fb87640ca8bcfd1ee8d3f5f786025d94848cc",
    "test": "bee2f59b9ace846ec35a8755c16c15cc1b1d909eb33f36ef744e8687131bbc0f",
}


@pytest.fixture(scope="module")
def scenes() -> FineScenes:
    return FineScenes(FineScenesOptions(train=200, val=60, test=60))


def fingerprint(source: FineScenes, split: str) -> str:
    sha = hashlib.sha256()
    for index in range(16):
        sha.update(source.image(split, index).tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_bytes_as_on_every_machine(scenes: FineScenes, split: str) -> None:
    assert fingerprint(scenes, split) == PINNED[split]


def test_the_same_in_another_process_and_whatever_the_size() -> None:
    program = (
        "import hashlib; from fusion_workbench.datamodules.build import build_source\n"
        "s = build_source('finescenes', {'train': 40})\n"
        "print(hashlib.sha256(s.image('train', 33).tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    here = build_source("finescenes", {"train": 1000}).image("train", 33)
    assert out.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


@settings(max_examples=30, deadline=None)
@given(split=st.sampled_from(SPLITS), index=st.integers(0, 59), seed=st.integers(0, 3))
def test_layouts_keep_their_promises(split: str, index: int, seed: int) -> None:
    source = FineScenes(FineScenesOptions(seed=seed))
    scene = source.layout(split, index)
    placed = [scene.digit, *scene.glyphs]
    assert DIGIT_SIDE[0] <= scene.digit.width == scene.digit.height <= DIGIT_SIDE[1]
    assert len(scene.glyphs) == 6
    assert all(GLYPH_HEIGHT[0] <= g.height <= GLYPH_HEIGHT[1] for g in scene.glyphs)
    for number, one in enumerate(placed):
        assert one.left > 0
        assert one.left + one.width < 112
        assert one.top > 0
        assert one.top + one.height < 112
        assert all(one.apart(other) for other in placed[number + 1 :])


def test_ink_stays_in_its_boxes_and_shows(scenes: FineScenes) -> None:
    for index in range(20):
        scene = scenes.layout("test", index)
        plain = scenes.parts.background(scene.photograph, scene.crop, scene.flip, 112)
        changed = (scenes.image("test", index) != plain).any(-1)
        inside = np.zeros((112, 112), bool)
        for box in (scene.digit, *scene.glyphs):
            area = (slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
            inside[area] = True
            assert changed[area].mean() > 0.1, "nothing to read in its box"
        assert not (changed & ~inside).any()


def test_nothing_is_shared_between_splits(scenes: FineScenes) -> None:
    for names in (PHOTOGRAPHS, TYPEFACES):
        members = [name for group in names.values() for name in group]
        assert len(members) == len(set(members))
    shares = sorted(HANDWRITING_SHARE.values())
    assert all(a[1] <= b[0] for a, b in pairwise(shares))
    frames = {split: scenes.identity(split) for split in SPLITS}
    for column in ("group", "handwriting"):
        assert not_shared([set(frames[split][column]) for split in SPLITS]), column
    assert not_shared([set(" ".join(frames[split]["typefaces"]).split()) for split in SPLITS])


def not_shared(sets: list[set[str]]) -> bool:
    return sum(map(len, sets)) == len(set.union(*sets))


def test_targets_are_the_layouts(scenes: FineScenes) -> None:
    targets = scenes.targets("val")
    scene = scenes.layout("val", 7)
    assert targets["read.label"].shape == (60, 6)
    assert targets["read.label"][7].tolist() == [g.label for g in scene.glyphs]
    assert targets["digit.label"][7] == scene.digit.label == scenes.parts.handwriting_label(scene.digit.which)
    first = scene.glyphs[0]
    corners = [first.left, first.top, first.left + first.width, first.top + first.height]
    np.testing.assert_allclose(targets["read.box"][7][0] * 112, corners, atol=1e-4)
    assert set(np.unique(targets["digit.label"])) == set(range(10))
    assert targets["read.label"].max() < len(CLASSES) == 34
    assert len(scenes.classes()["read"]) == 34


def test_fingerprints_tell_what_decides_the_bytes() -> None:
    base = FineScenes(FineScenesOptions())
    assert base.fingerprint("train") != base.fingerprint("test")
    assert FineScenes(FineScenesOptions(seed=1)).fingerprint("train") != base.fingerprint("train")
    assert FineScenes(FineScenesOptions(train=5)).fingerprint("train") == base.fingerprint("train")


def test_another_size_scales_everything() -> None:
    big = FineScenes(FineScenesOptions(train=4, size=224))
    assert big.image("train", 0).shape == (224, 224, 3)
    assert big.layout("train", 0).digit.width >= 2 * DIGIT_SIDE[0]


def test_apart_is_symmetric() -> None:
    one, other = PlacedGlyph(0, 0, 10, 10, 5, 5), PlacedGlyph(0, 0, 16, 10, 5, 5)
    assert one.apart(other)
    assert other.apart(one)
    assert not one.apart(PlacedGlyph(0, 0, 15, 10, 5, 5))
    assert CONTRAST > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("finescene", {}, "Did you mean 'finescenes'"),
        ("finescenes", {"trian": 1}, "Did you mean 'train'"),
        ("finescenes", {"train": "many"}, "must be of type int"),
        ("finescenes", {"train": True}, "must be of type int"),
        ("finescenes", {"val": 0}, "at least 1"),
        ("finescenes", {"size": 30}, "56 to 300 px"),
        ("finescenes", {"glyphs": 40}, "holds 1 to 12"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        build_source(name, options)


def test_missing_material_is_named(tmp_path: Path) -> None:
    source = build_source("finescenes", {}, {"photographs": tmp_path, "digits": tmp_path, "typefaces": tmp_path})
    with pytest.raises(WorkbenchError, match=r"astronaut\.png, which is missing"):
        source.targets("train")
