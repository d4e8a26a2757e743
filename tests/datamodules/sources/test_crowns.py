"""Crowns: real photographs, whole ones in each split, boxes that follow the tile."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.sources.base import SPLITS
from fusion_workbench.datamodules.sources.crowns import PHOTOGRAPHS, SEEN, Crowns, CrownsOptions, Tile

# sha256 over the first 16 tiles of each split: another Pillow, or another machine, must cut the same.
PINNED = {
    "train": "0ddfb10e55e70382dc92363c29263960103223f54e023c6bce6690aea3fb32ac",
    "val": "ab8b4b30f11e183bf081b74a3d214936f009984a268cf9630f34b2e4b7ce412e",
    "test": "7398e5dfd1b6628816fb5d9348650c94d5b9b150aeedacc85e5e312070287c09",
}


@pytest.fixture(scope="module")
def crowns() -> Crowns:
    return Crowns(CrownsOptions(train=60, val=30, test=40))


def test_all_951_crowns_are_read(crowns: Crowns) -> None:
    numbers = {name: len(crowns.crowns(name)) for names in PHOTOGRAPHS.values() for name in names}
    assert sorted(numbers.values()) == [37, 61, 279, 574]
    for name in numbers:
        height, width = crowns.photograph(name).shape[:2]
        boxes = crowns.crowns(name)
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width
        assert boxes[:, 3].max() <= height


def test_no_photograph_is_in_two_splits(crowns: Crowns) -> None:
    groups = {split: set(crowns.identity(split)["group"]) for split in SPLITS}
    assert all(groups.values())
    assert not groups["train"] & groups["val"] | groups["train"] & groups["test"] | groups["val"] & groups["test"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_bytes_everywhere(crowns: Crowns, split: str) -> None:
    sha = hashlib.sha256()
    for index in range(16):
        sha.update(crowns.image(split, index).tobytes())
    assert sha.hexdigest() == PINNED[split]


def test_a_tile_does_not_depend_on_how_many_there_are(crowns: Crowns) -> None:
    more = Crowns(CrownsOptions(train=70))
    assert more.tile("train", 7) == crowns.tile("train", 7)
    assert np.array_equal(more.image("train", 7), crowns.image("train", 7))
    few, many = crowns.targets("train"), more.targets("train")
    assert few["count.number"][7] == many["count.number"][7]
    number = int(few["count.number"][7])
    for name in ("locate.box", "locate.point"):
        assert np.array_equal(few[name][7, :number], many[name][7, :number])


@pytest.mark.parametrize("split", SPLITS)
def test_targets_are_whole(crowns: Crowns, split: str) -> None:
    targets = crowns.targets(split)
    boxes, valid, points = (targets[f"locate.{name}"] for name in ("box", "valid", "point"))
    assert (targets["count.number"] >= 1).all(), "a tile is placed around a crown"
    assert (valid.sum(1) == targets["count.number"]).all()
    real, inside = boxes[valid], points[valid]
    assert real.min() >= 0
    assert real.max() <= 1
    assert (real[:, :2] < inside).all()
    assert (inside < real[:, 2:]).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), turns=st.integers(0, 3), flip=st.booleans())
def test_boxes_turn_with_the_picture(crowns: Crowns, data: st.DataObject, turns: int, flip: bool) -> None:
    """The pixels inside a turned box are the turned pixels of the box."""
    name = "OSBS_029"
    span = crowns.chosen.span
    left, top = (data.draw(st.integers(0, 400 - span)) for _ in range(2))
    plain, turned = Tile(name, left, top, 0, False), Tile(name, left, top, turns, flip)
    marks = [np.zeros((span, span), bool) for _ in range(2)]
    for mark, tile in zip(marks, (plain, turned), strict=True):
        for box in crowns.boxes(tile):
            x1, y1, x2, y2 = (round(value * span) for value in box)
            mark[y1:y2, x1:x2] = True
    expected = np.rot90(marks[0], turns)
    assert np.array_equal(expected[:, ::-1] if flip else expected, marks[1])


def test_a_crown_counts_when_half_of_it_is_seen() -> None:
    crowns = Crowns(CrownsOptions())
    x1, y1, x2, _ = (int(value) for value in crowns.crowns("OSBS_029")[0])
    width = x2 - x1
    for hidden, seen in ((width // 2 - 1, True), (width // 2 + 2, False)):
        tile = Tile("OSBS_029", x1 + hidden, max(0, y1 - 20), 0, False)
        held = [box for box in crowns.boxes(tile) if box[0] == 0 and abs(box[2] - (width - hidden) / 160) < 1e-9]
        assert bool(held) == seen, (SEEN, hidden)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "source.options.train is 0"),
        ({"size": 8}, "28 to 1024"),
        ({"span": 500}, "64 to 400"),
        ({"spam": 5}, "Did you mean 'span'"),
    ],
)
def test_wrong_options_are_answered(options: dict[str, int], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        build_source("crowns", options)
