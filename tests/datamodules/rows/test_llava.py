"""The source of LLaVA's files: rows, images once each, bad rows left out, nothing shared between splits."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_files import caption, picture, row, write

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.conversations.base import ConversationSource, Turn
from fusion_workbench.datamodules.rows.held_out import components, hold_out
from fusion_workbench.datamodules.rows.llava import Llava
from fusion_workbench.datamodules.sources.base import SPLITS
from fusion_workbench.datamodules.transforms import CLIP_MEAN, PADDINGS, load_image, squared


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images."""
    for i in range(20):
        picture(tmp_path / "images" / f"{i:02}.png", 20 + i, 12, seed=i)
    return tmp_path


def source(folder: Path, **options: Any) -> Llava:
    found = build_source("llava", {"images": str(folder / "images"), "size": 16, **options})
    assert isinstance(found, Llava)
    assert isinstance(found, ConversationSource)
    return found


def three(folder: Path, train: list[Any], suffix: str = "json", **options: Any) -> Llava:
    """A source with a question in val and test."""
    files = {
        "train": write(folder / f"train.{suffix}", train),
        "val": write(folder / f"val.{suffix}", [row("18.png", "Which?", "18", task="read")]),
        "test": write(folder / f"test.{suffix}", [row("19.png", "Which?", answers=["19", "nineteen"], task="read")]),
    }
    return source(folder, **{split: str(path) for split, path in files.items()}, **options)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_rows_become_conversations_about_samples(folder: Path, suffix: str) -> None:
    train = [
        caption("03.png"),
        row(None, "Hello", "Hi"),
        row(["03.png", "05.png"], "<image> <image> Alike?", "No", group="page 3"),
        caption("03.png"),
        row("./07.png", "<image>", "Seven", "Sure?", "Yes"),
    ]
    found = three(folder, train, suffix)
    lessons = found.conversations("train")
    assert found.size("train") == 3
    assert list(found.identity("train")["example_id"]) == ["03.png", "05.png", "07.png"]
    assert [c.images for c in lessons] == [(0,), (), (0, 1), (0,), (2,)]
    assert [c.group for c in lessons] == ["page 3", "id-None", "page 3", "page 3", "07.png"]
    assert list(found.identity("train")["group"]) == ["page 3", "page 3", "07.png"]
    assert [c.id for c in lessons] == ["id-03.png", "id-None", "id-['03.png', '05.png']", "id-03.png#2", "id-./07.png"]
    assert lessons[4].turns[2:] == (Turn("user", "Sure?"), Turn("assistant", "Yes"))
    (asked,) = found.conversations("test")
    assert (asked.task, asked.answers, asked.references) == ("read", ("19", "nineteen"), ("19", "nineteen"))
    assert asked.question == "Which?"
    assert found.metrics() == {"read": "exact_match"}


def _line(folder: Path, number: int) -> int:
    """The line of an element, counted another way: where its brace opens, one space in."""
    lines = (folder / "train.json").read_text().split("\n")
    return [i for i, line in enumerate(lines, 1) if line == " {"][number - 1]


def test_origins_are_file_and_line(folder: Path) -> None:
    train = [caption(f"{i:02}.png") for i in range(4)]
    assert three(folder, train, "jsonl").conversations("train")[2].origin == f"{folder / 'train.jsonl'}:3"
    found = three(folder, train, "json").conversations("train")[2]
    assert found.origin == f"{folder / 'train.json'}:{_line(folder, 3)}"


def test_images_are_squared_as_the_options_say(folder: Path) -> None:
    train = [caption("04.png")]
    kept = load_image(folder / "images" / "04.png")
    for padding in PADDINGS:
        found = three(folder, train, padding=padding, background=[9, 8, 7])
        assert np.array_equal(found.image("train", 0), squared(kept, 16, padding, [9, 8, 7]))
    with pytest.raises(IndexError):
        found.image("train", 1)


def test_a_fingerprint_changes_with_any_byte_and_any_option_that_moves_one(folder: Path) -> None:
    train = [caption("04.png"), caption("05.png")]
    base = three(folder, train).fingerprint("train")
    assert three(folder, train).fingerprint("train") == base
    assert three(folder, train, metric="anls", seed=3).fingerprint("train") == base
    words = [row("04.png", "Other", "words"), caption("05.png"), row(None, "Text", "alone")]
    assert three(folder, words).fingerprint("train") == base
    others: dict[str, Any] = {"size": 17, "padding": "crop", "background": [0, 0, 0]}
    for key, value in others.items():
        assert three(folder, train, **{key: value}).fingerprint("train") != base
    assert three(folder, train[::-1]).fingerprint("train") != base
    assert three(folder, train).fingerprint("val") != base
    path = folder / "images" / "05.png"
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert three(folder, train).fingerprint("train") != base
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert three(folder, train).fingerprint("train") == base


def test_features_of_another_crop_are_not_taken_for_these(folder: Path) -> None:
    """0.1 cropped first: what it encoded goes by its fingerprint of then, which is crop_then_resize's now."""
    train = [caption("04.png")]
    crop, before = (three(folder, train, padding=padding) for padding in ("crop", "crop_then_resize"))
    assert not np.array_equal(crop.image("train", 0), before.image("train", 0))
    of_then = f"llava/1|16|crop|{list(CLIP_MEAN)}\n{before.stamp('04.png')}"
    assert before.fingerprint("train") == hashlib.sha256(of_then.encode()).hexdigest() != crop.fingerprint("train")


# --- bad rows -----------------------------------------------------------------------------------------------------


def test_bad_rows_are_left_out_listed_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images" / "broken.jpg").write_bytes(b"<html>")
    train = [
        *(caption(f"{i:02}.png") for i in range(10)),
        "{broken",
        caption("none.png"),
        caption("../train.jsonl"),
        caption("broken.jpg"),
        row("01.png", "What?"),
        caption("none.png"),
    ]
    found = three(folder, train, "jsonl", bad_rows=0.5)
    assert len(found.conversations("train")) == 10
    listed = [json.loads(line) for line in (folder / "train.jsonl.quarantine.jsonl").read_text().splitlines()]
    assert [(bad["line"], bad["reason"]) for bad in listed] == [
        (11, "not JSON"), (12, "missing image"), (13, "image path"), (14, "undecodable image"), (15, "no answer"),
        (16, "missing image"),
    ]  # fmt: skip
    assert {bad["file"] for bad in listed} == {str(folder / "train.jsonl")}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "6 of 16 rows (37.50%) cannot be used: 2 missing image, 1 not JSON" in said
    assert f"the first is {folder / 'train.jsonl'}:11 (not JSON" in said
    assert str(folder / "train.jsonl.quarantine.jsonl") in said
    assert found.size("train") == 10


def test_too_many_bad_rows_are_fatal_and_nothing_is_lost(folder: Path) -> None:
    train = [*(caption(f"{i:02}.png") for i in range(9)), caption("none.png")]
    with pytest.raises(
        WorkbenchError, match=r"1 of 10 rows \(10\.00%\).*'none\.png' is not in .*bad_rows=0\.01"
    ) as caught:
        three(folder, train).size("train")
    assert "\n" not in str(caught.value)
    assert (folder / "train.json.quarantine.jsonl").is_file()
    assert three(folder, train, bad_rows=0.1).size("train") == 9
    three(folder, train[:9]).size("train")
    assert not (folder / "train.json.quarantine.jsonl").exists()  # of a file that was mended


def test_the_list_may_lie_elsewhere_and_a_place_that_cannot_be_written_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [*(caption(f"{i:02}.png") for i in range(9)), caption("none.png")]
    three(folder, train, bad_rows=0.5, quarantine=str(folder / "lists" / "here")).size("train")
    assert (folder / "lists" / "here" / "train.json.quarantine.jsonl").is_file()
    (folder / "file").touch()
    three(folder, train, bad_rows=0.5, quarantine=str(folder / "file")).size("train")
    assert "could not be written" in capsys.readouterr().err


def test_an_image_that_spoils_later_names_its_row(folder: Path) -> None:
    found = three(folder, [caption("00.png"), caption("01.png")], "jsonl")
    assert found.size("train") == 2
    path = folder / "images" / "01.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(WorkbenchError, match=r"train\.jsonl:2: image .*01\.png cannot be read.*verify=pixels"):
        found.image("train", 1)
    path.unlink()
    with pytest.raises(WorkbenchError, match=r"train\.jsonl:2: '01\.png' is not in .*it was when"):
        found.image("train", 1)


def test_verify_pixels_leaves_out_what_only_decoding_shows(folder: Path) -> None:
    path = folder / "images" / "01.png"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    train = [caption("00.png"), caption("01.png")]
    assert three(folder, train, bad_rows=0.6).size("train") == 2
    assert three(folder, train, bad_rows=0.6, verify="pixels").size("train") == 1


# --- held out -----------------------------------------------------------------------------------------------------


def test_what_is_held_out_shares_no_image(folder: Path) -> None:
    rows = [caption(f"{i:02}.png", n=k) for i in range(20) for k in range(3)]
    rows += [row(["00.png", "01.png"], "Alike?", "No"), row(None, "Hello", "Hi")]
    path = write(folder / "all.jsonl", rows)
    found = source(folder, train=str(path), val_share=0.1, test_share=0.2)
    images = {split: set(found.identity(split)["example_id"]) for split in SPLITS}
    assert sum(map(len, images.values())) == 20
    assert len(set.union(*images.values())) == 20
    assert len(found.conversations("val")) == 6
    assert len(found.conversations("test")) == 12
    assert any(not c.images for c in found.conversations("train"))
    assert all(c.images for split in ("val", "test") for c in found.conversations(split))
    again = source(folder, train=str(write(folder / "back.jsonl", rows[::-1])), val_share=0.1, test_share=0.2)
    assert set(again.identity("val")["example_id"]) == images["val"]
    other = source(folder, train=str(path), val_share=0.1, test_share=0.2, seed=1)
    assert set(other.identity("val")["example_id"]) != images["val"]
    few = source(folder, train=str(path), val_share=0.5, most=3)
    assert len(few.conversations("val")) == 3


def test_images_in_two_files_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert three(folder, [caption("18.png"), caption("01.png")]).size("train") == 2
    assert "1 of val are in train too, such as 18.png" in capsys.readouterr().err


LINKS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=3), max_size=12)


@settings(max_examples=200, deadline=None)
@given(LINKS)
def test_components_are_what_hangs_together(links: list[list[str]]) -> None:
    groups = components(links)
    reach = [set(names) for names in links]
    for _ in links:  # as often as a chain can be long
        reach = [set().union(here, *(there for there in reach if here & there)) for here in reach]
    assert groups == [min(names, default="") for names in reach]


@settings(max_examples=200, deadline=None)
@given(LINKS, st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_a_group_is_in_one_split_and_no_split_is_larger_than_asked(
    links: list[list[str]], val: int, test: int, seed: int
) -> None:
    groups = components(links)
    splits = hold_out(groups, {"val": val, "test": test}, seed)
    assert len(splits) == len(groups)
    for group in set(groups) - {""}:
        assert len({s for s, g in zip(splits, groups, strict=True) if g == group}) == 1
    assert all(s == "train" for s, g in zip(splits, groups, strict=True) if not g)
    smallest = min((groups.count(g) for g in groups if g), default=0)
    for split, wanted in (("val", val), ("test", test)):
        assert splits.count(split) <= max(wanted, smallest) or splits.count(split) in map(groups.count, groups)


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": ""}, "train is empty"),
        ({"train": "none.json"}, "no file none.json"),
        ({"images": "none"}, "image folder none does not exist"),
        ({"padding": "sqare"}, "unknown 'sqare'. Did you mean 'square'"),
        ({"verify": "headers"}, "Did you mean 'header'"),
        ({"background": [1, 2]}, "red, green and blue"),
        ({"background": [1, 2, 256]}, "red, green and blue"),
        ({"bad_rows": 1}, "share from 0 to below 1"),
        ({"bad_rows": "1%"}, "must be of type float"),
        ({"size": 0}, "size is 0"),
        ({"most": 0}, "most is 0"),
    ],
)
def test_options_that_cannot_be(folder: Path, options: dict[str, Any], message: str) -> None:
    path = write(folder / "train.json", [caption("00.png")])
    with pytest.raises(WorkbenchError, match=message):
        source(folder, **{"train": str(path), **options})


def test_splits_that_hold_nothing_and_tasks_with_two_metrics(folder: Path) -> None:
    only = write(folder / "one.json", [caption("00.png")])
    with pytest.raises(WorkbenchError, match="holds no conversation"):
        source(folder, train=str(only)).size("train")
    text = source(folder, train=str(write(folder / "t.json", [row(None, "a", "b")])))
    with pytest.raises(WorkbenchError, match="'val' holds no conversation"):
        text.size("val")
    assert text.size("train") == 0
    assert len(text.conversations("train")) == 1
    with pytest.raises(WorkbenchError, match="holds no rows"):
        source(folder, train=str(write(folder / "e.json", []))).size("train")
    two = write(folder / "two.jsonl", [caption("00.png", metric="anls"), caption("01.png", metric="vqa")])
    with pytest.raises(WorkbenchError, match=r"two\.jsonl:2: task 'answer' is judged by vqa here and by anls before"):
        source(folder, train=str(two), val=str(only), test=str(only)).size("train")
    anls = write(folder / "anls.json", [caption("00.png", metric="anls")])
    with pytest.raises(WorkbenchError, match="judged by anls in val and by exact_match in test"):
        source(folder, train=str(only), val=str(anls), test=str(only)).metrics()


def test_probes_and_language_models_share_stored_features(folder: Path, tiny_dinov2: Path) -> None:
    from fusion_workbench.datamodules.store.store import FeatureStore
    from fusion_workbench.modules.encoders.encoder import VisionEncoder

    encoder = VisionEncoder(str(tiny_dinov2), image_size=56, precision="float32", device="cpu")
    train = [caption("00.png"), caption("01.png"), row(None, "Hello", "Hi"), caption("00.png")]
    store = FeatureStore(folder / "store", encoder, three(folder, train, size=56))
    assert store.build([1], progress=False).images == 4
    assert len(store.features("train", [1])) == 2
    other = FeatureStore(folder / "store", encoder, three(folder, train[:2], "jsonl", size=56))
    assert other.build([1], progress=False).images == 0  # other words about the same images
