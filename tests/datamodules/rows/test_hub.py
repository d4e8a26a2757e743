"""Hugging Face datasets as conversations: real ones, built and saved here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from llava_files import picture
from PIL import Image
from pyarrow import parquet

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.conversations.base import IMAGE
from fusion_workbench.datamodules.rows.hub import HubDataset
from fusion_workbench.datamodules.sources.base import SPLITS
from fusion_workbench.datamodules.transforms import load_image, squared

Columns = dict[str, list[Any]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow files that datasets writes stay in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def noise(seed: int, width: int = 12, height: int = 9) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def columns(start: int, n: int) -> Columns:
    """Two questions about each image."""
    return {
        "image": [noise(start + i // 2) for i in range(n)],
        "question": [f"What is number {i}?" for i in range(n)],
        "answers": [[f"{i}", f"number {i}"] for i in range(n)],
        "kind": ["even" if i % 2 == 0 else "odd" for i in range(n)],
        "page": [f"page {i // 4}" for i in range(n)],
    }


def source(path: Path | str, folder: Path, **options: Any) -> HubDataset:
    found = build_source("hf_dataset", {"path": str(path), "size": 8, "quarantine": str(folder / "bad"), **options})
    assert isinstance(found, HubDataset)
    return found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    parts = {"train": columns(0, 8), "validation": columns(100, 4), "test": columns(200, 4)}
    found = datasets.DatasetDict({split: datasets.Dataset.from_dict(c) for split, c in parts.items()})
    found.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_dataset_is_read_column_by_column(saved: Path, tmp_path: Path) -> None:
    found = source(saved, tmp_path, val="validation", test="test", task="kind", group="page", metric="vqa")
    assert [found.size(split) for split in SPLITS] == [4, 2, 2]
    asked = found.conversations("test")
    assert [c.turns[0].text for c in asked] == [f"{IMAGE}\nWhat is number {i}?" for i in range(4)]
    assert [c.references for c in asked] == [(f"{i}", f"number {i}") for i in range(4)]
    assert [c.images for c in asked] == [(0,), (0,), (1,), (1,)]
    assert [c.task for c in asked] == ["even", "odd", "even", "odd"]
    assert {c.group for c in asked} == {"page 0"}
    assert asked[2].origin == f"{saved}[test]:3"
    assert found.metrics() == {"even": "vqa", "odd": "vqa"}
    for row in range(4):
        kept = np.asarray(noise(row))
        assert np.array_equal(found.image("train", row), squared(kept, 8, "square", [122, 116, 104]))
    again = source(saved, tmp_path, val="validation", test="test", metric="anls", question="question")
    assert again.fingerprint("train") == found.fingerprint("train")
    assert again.fingerprint("train") != found.fingerprint("test")
    assert not (tmp_path / "bad").exists() or not list((tmp_path / "bad").iterdir())


def test_one_split_is_held_out_by_image(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(columns(0, 40)).save_to_disk(tmp_path / "one")
    found = source(tmp_path / "one", tmp_path, val_share=0.1, test_share=0.1)
    images = [set(found.identity(split)["example_id"]) for split in SPLITS]
    assert [len(found.conversations(split)) for split in SPLITS] == [32, 4, 4]
    assert sum(map(len, images)) == len(set.union(*images)) == 20


def test_parquet_and_json_folders(tmp_path: Path) -> None:
    for split, start in (("train", 0), ("test", 50)):
        (tmp_path / "parquet").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns(start, 4)).to_parquet(tmp_path / "parquet" / f"{split}-0.parquet")
    found = source(tmp_path / "parquet", tmp_path, val="test", test="test")
    assert [len(found.conversations(split)) for split in SPLITS] == [4, 4, 4]
    lone = source(tmp_path / "parquet" / "train-0.parquet", tmp_path, val="train", test="train")
    assert np.array_equal(lone.image("train", 1), found.image("train", 1))
    picture(tmp_path / "json" / "pictures" / "a.png")
    rows = [{"image": "pictures/a.png", "question": "What?", "answers": "This"}] * 3
    (tmp_path / "json" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = source(tmp_path / "json", tmp_path, val="train", test="train")
    wanted = squared(load_image(tmp_path / "json" / "pictures" / "a.png"), 8, "square", [122, 116, 104])
    assert np.array_equal(named.image("train", 0), wanted)
    assert named.size("train") == 1
    assert named.conversations("train")[0].references == ("This",)


def test_an_image_folder_with_its_metadata(tmp_path: Path) -> None:
    picture(tmp_path / "folder" / "a.png", seed=1)
    picture(tmp_path / "folder" / "b.png", seed=2)
    rows = [{"file_name": f"{name}.png", "question": "Which?", "answers": name} for name in "ab"]
    (tmp_path / "folder" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = source(tmp_path / "folder", tmp_path, val="train", test="train")
    assert [c.references for c in found.conversations("train")] == [("a",), ("b",)]
    kept = load_image(tmp_path / "folder" / "b.png")
    assert np.array_equal(found.image("train", 1), squared(kept, 8, "square", [122, 116, 104]))


def test_several_images_conversations_and_answers_of_every_shape(tmp_path: Path) -> None:
    paired = [
        {"user": "Alike?", "assistant": "No", "source": "x"},
        {"user": "Sure?", "assistant": "Yes", "source": "x"},
    ]
    turns = {"images": [[noise(0), noise(1)], [noise(1)], []], "texts": [paired] * 3}
    datasets.Dataset.from_dict(turns).save_to_disk(tmp_path / "cauldron")
    whole = {"train": "train", "val": "train", "test": "train"}
    found = source(tmp_path / "cauldron", tmp_path, image=["images"], conversations="texts", **whole)
    assert found.size("train") == 2
    assert [c.images for c in found.conversations("train")] == [(0, 1), (1,), ()]
    assert [t.text for t in found.conversations("train")[0].turns] == [
        f"{IMAGE}\n{IMAGE}\nAlike?",
        "No",
        "Sure?",
        "Yes",
    ]
    said = [[{"from": "human", "value": f"{IMAGE}\nWhat?"}, {"from": "gpt", "value": "That"}]]
    two = {"one": [noise(0)], "two": [noise(3)], "said": said}
    datasets.Dataset.from_dict({**two, "one": [None]}).cast_column("one", datasets.Image()).save_to_disk(
        tmp_path / "two"
    )
    found = source(tmp_path / "two", tmp_path, image=["one", "two"], conversations="said", **whole)
    assert found.conversations("train")[0].images == (0,)
    assert np.array_equal(found.image("train", 0), squared(np.asarray(noise(3)), 8, "square", [122, 116, 104]))
    vqa = [[{"answer": "yes", "answer_confidence": "high"}, {"answer": "yep", "answer_confidence": "low"}]]
    asked = {"image": [noise(0)], "question": ["Is it?"], "answers": vqa}
    datasets.Dataset.from_dict(asked).save_to_disk(tmp_path / "vqa")
    assert source(tmp_path / "vqa", tmp_path, **whole).conversations("train")[0].references == ("yes", "yep")
    datasets.Dataset.from_dict({**asked, "answers": [3]}).save_to_disk(tmp_path / "numbers")
    assert source(tmp_path / "numbers", tmp_path, **whole).conversations("train")[0].references == ("3",)


def test_bad_rows_are_listed_and_no_path_leaves_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = picture(tmp_path / "secret.png")
    inside = picture(tmp_path / "data" / "in.png", seed=5)
    (tmp_path / "data" / "out.png").symlink_to(secret)
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": inside.read_bytes(), "path": None}, "question": "A?", "answers": "a"},
        {"image": {"bytes": None, "path": str(inside)}, "question": "B?", "answers": "b"},
        {"image": {"bytes": None, "path": str(secret)}, "question": "C?", "answers": "c"},
        {"image": {"bytes": None, "path": "../secret.png"}, "question": "D?", "answers": "d"},
        {"image": {"bytes": None, "path": str(tmp_path / "data" / "out.png")}, "question": "E?", "answers": "e"},
        {"image": {"bytes": None, "path": "https://host/a.png"}, "question": "F?", "answers": "f"},
        {"image": {"bytes": b"<html>", "path": "g.png"}, "question": "G?", "answers": "g"},
        {"image": {"bytes": inside.read_bytes()[:150], "path": "h.png"}, "question": "H?", "answers": "h"},
        {"image": {"bytes": inside.read_bytes(), "path": None}, "question": "", "answers": "i"},
        {"image": {"bytes": inside.read_bytes(), "path": None}, "question": "J?", "answers": None},
    ]
    path = tmp_path / "data" / "saved.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    whole = {"train": "train", "val": "train", "test": "train"}
    found = source(path, tmp_path, bad_rows=0.9, **whole)
    assert [c.references for c in found.conversations("train")] == [("a",), ("b",)]
    assert found.size("train") == 1
    (lists,) = (tmp_path / "bad").iterdir()
    bad = [json.loads(line) for line in lists.read_text().splitlines()]
    assert [(b["line"], b["reason"]) for b in bad] == [
        (3, "image path"), (4, "image path"), (5, "image path"), (6, "image path"), (7, "undecodable image"),
        (8, "undecodable image"), (9, "empty turn"), (10, "answers"),
    ]  # fmt: skip
    assert "8 of 10 rows (80.00%) cannot be used" in capsys.readouterr().err
    with pytest.raises(WorkbenchError, match=r"saved\.parquet\[train\]:3 \(image path"):
        source(path, tmp_path, **whole).size("train")
    inside.unlink()
    assert found.image("train", 0).shape == (8, 8, 3)  # its bytes are in the first row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path is empty"),
        ({"train": ""}, "train is empty"),
        ({"image": []}, "image is empty"),
        ({"image": "image"}, "must be of type list"),
        ({"test": "tets"}, "has no split 'tets'. Did you mean 'test'"),
        ({"question": "qestion"}, "no column 'qestion'. Did you mean 'question'"),
        ({"image": ["picture"]}, "no column 'picture'"),
        ({"conversations": "texts"}, "no column 'texts'"),
        ({"path": "nobody/nothing-here"}, "datasets cannot load 'nobody/nothing-here'"),
        ({"padding": "no"}, "padding: unknown 'no'"),
    ],
)
def test_mistakes(saved: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message) as caught:
        source(**{"path": saved, "folder": tmp_path, **options}).size("train")
    assert "\n" not in str(caught.value)


def test_without_datasets_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['datasets'] = None\n"
        "from fusion_workbench.datamodules.build import build_source\n"
        "from fusion_workbench.core.errors import WorkbenchError\n"
        "build_source('finescenes_questions', {})\n"
        "try: build_source('hf_dataset', {'path': 'x'})\n"
        "except WorkbenchError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "needs datasets: pip install 'fusion-workbench[datasets]'" in out.stdout
