"""Pictures that nobody reads: under other keys, for other readers, of shapes and kinds that cannot be encoded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from cases import Kind, case
from llava_files import caption, picture, row, write
from PIL import Image
from pyarrow import parquet
from rich.console import Console
from typer.testing import CliRunner

from fusion_workbench.cli.main import app
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.rows.llava import ReadRows, read_file
from fusion_workbench.datamodules.rows.row_images import VERIFY, ImageFolder
from fusion_workbench.datamodules.rows.source import RowSource
from fusion_workbench.datamodules.transforms import load_image
from fusion_workbench.models.predict import read_questions
from fusion_workbench.tools.data import check

TALK = [{"from": "human", "value": "What is this?"}, {"from": "gpt", "value": "A ramp."}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images."""
    for name in ("a.png", "b.png", "sub/c.jpg"):
        picture(tmp_path / "pics" / name, seed=len(name))
    return tmp_path


def read(folder: Path, *rows: Any, verify: str = "header", padding: str = "square") -> ReadRows:
    path = write(folder / "rows.jsonl", [caption("a.png"), *rows])
    return read_file(path, ImageFolder(folder / "pics"), True, verify, folder / "lists", padding)


def bad(found: ReadRows) -> list[tuple[int, str]]:
    return [(one.line, one.reason) for one in found.quarantine.rows]


# --- pictures under other keys ------------------------------------------------------------------------------------


@case(
    Kind.PICTURES,
    "LLaVA rows whose picture stands under images, image_path, image_file, img or another key",
    "bad rows that name the key and ask whether image was meant; so with any key that names an image that is there",
    "VITA-MLLM/Long-VITA#9",
    "zjysteven/lmms-finetune#5",
    "hiyouga/LlamaFactory#5329",
    "LLaVA-VL/LLaVA-NeXT#459",
)
@pytest.mark.parametrize(
    "keys",
    [
        {"images": ["b.png"]},
        {"image_path": "b.png"},
        {"image_file": "sub/c.jpg"},
        {"img": "b.png"},
        {"imageFile": {"path": "b.png"}},
        {"photo": "pics/b.png"},  # beside the rows, rather than in the folder
        {"images": ["missing.png"]},
        {"source": "b.png"},
        {"image": "a.png", "mask": "b.png"},
    ],
)
def test_a_picture_under_another_key(folder: Path, keys: dict[str, Any]) -> None:
    found = read(folder, {**keys, "conversations": TALK})
    assert bad(found) == [(2, "picture under another key")]
    key, value = list(keys.items())[-1]
    name = value[0] if isinstance(value, list) else value["path"] if isinstance(value, dict) else value
    assert found.quarantine.rows[0].detail == f"'{key}' names '{name}', which nobody reads; did you mean 'image'?"
    assert found.notices == (f"note: {folder / 'rows.jsonl'}: keys that are not read: '{key}' in 1 row",)


@case(
    Kind.PICTURES,
    "such rows whose words do hold <image>",
    "the same: the reason is the key, not that a picture is missing",
)
def test_the_key_is_the_reason(folder: Path) -> None:
    found = read(folder, {**caption("a.png"), "image": None, "images": ["b.png"]})
    assert bad(found) == [(2, "picture under another key")]


@case(
    Kind.PICTURES,
    "keys that nobody reads and that name no picture: system, model, image_id, a weight of a turn",
    "told in one line, with key and count; the rows are read",
)
def test_other_keys_are_told(folder: Path) -> None:
    turns = [TALK[0], {**TALK[1], "weight": 0}]
    rows = [{"image": "b.png", "conversations": turns, "system": "Be brief.", "model": "x", "image_id": 7}]
    rows += [{"image": "./b.png", "conversations": TALK, "model": "x", "file_name": "b.png", "images": []}] * 2
    found = read(folder, *rows)
    assert not found.quarantine.rows
    assert len(found.rows) == 4
    told = (
        "'image_id' in 1 row, 'model' in 3 rows, 'file_name' in 2 rows, 'system' in 1 row, 'weight of a turn' in 1 row"
    )
    assert found.notices == (f"note: {folder / 'rows.jsonl'}: keys that are not read: {told}",)
    many = read(folder, {"image": "a.png", "conversations": TALK, **{f"k{i:02}": 1 for i in range(20)}})
    assert many.notices[0].endswith("'k07' in 1 row and 12 more")


@case(Kind.PICTURES, "rows with every key of a question and no other", "nothing is said")
def test_nothing_is_said_of_keys_that_are_read(folder: Path) -> None:
    rows = [row("b.png", "What?", "B", answers=["B"], task="t", metric="anls", group="g"), row(None, "Hello", "Hi")]
    assert read(folder, *rows).notices == ()


@case(
    Kind.PICTURES,
    "<video> or <audio> in the user's words, or a key that names a film",
    "bad rows; talk about HTML's <video> is let pass",
    "LLaVA-VL/LLaVA-NeXT#459",
)
def test_films(folder: Path) -> None:
    html = "Why does it not play?\n<video>\n<source src='a.mp4'>\n</video>"
    found = read(
        folder,
        row(None, "<video>\nWhat happens?", "It rains."),
        row(None, "What happens? <video>", "It rains."),
        {"video": "a.mp4", "conversations": TALK},
        {"video": "a.mp4", **row(None, "<image>\nWhat happens?", "It rains.")},
        row(None, html, "A source is missing."),
        row(None, "What does <video> do in HTML?", "It plays a film."),
    )
    assert bad(found) == [(line, "video or sound") for line in (2, 3, 4, 5)]


@case(
    Kind.PICTURES,
    "<image> in the words and no image, more <image> than images, images and no <image>, a list of images",
    "bad rows; without any <image> all images are shown first; lists are read",
    "zjysteven/lmms-finetune#5",
)
def test_as_many_images_as_words_say(folder: Path) -> None:
    found = read(
        folder,
        row(None, "<image>\nWhat?", "B"),
        row("b.png", "<image> <image> Alike?", "B"),
        row(["a.png", "b.png"], "<image>\nAlike?", "B"),
        row(["a.png", "b.png"], "Alike?", "B"),
    )
    assert bad(found) == [(line, "images and <image> differ") for line in (2, 3, 4)]
    assert found.rows[-1].row.turns[0].text == "<image>\n<image>\nAlike?"
    assert found.rows[-1].keys == ("a.png", "b.png")


@case(
    Kind.PICTURES,
    "other words for a picture: <image 1>, <|image|>, <ImageHere>",
    "read as the words they are, which is told with their count",
)
def test_other_words_for_a_picture(folder: Path) -> None:
    words = ["Is <image 1> like <image_2>?", "<|image|>What?", "<ImageHere> Hm?", "<image>\nFine?", "<img> in HTML?"]
    found = read(folder, *(row("b.png", text, "Yes.") for text in words))
    (notice,) = found.notices
    for word in ("<image 1>", "<image_2>", "<|image|>", "<ImageHere>"):
        assert f"{word!r} is read as words in 1 row" in notice
    assert "<img>" not in notice


@case(Kind.PICTURES, "a turn of the system among the turns", "a bad row that names it")
def test_a_turn_of_the_system(folder: Path) -> None:
    found = read(folder, {"image": "b.png", "conversations": [{"from": "system", "value": "Be brief."}, *TALK]})
    assert bad(found) == [(2, "roles")]
    assert "'system'" in found.quarantine.rows[0].detail


@case(
    Kind.PICTURES,
    "`workbench data check` of such files, and a study's start on them",
    "bad rows with their keys, exit status 1; a study says the same before any work",
    "VITA-MLLM/Long-VITA#9",
)
def test_data_check_and_a_study_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        folder / "rows.json", [caption("a.png"), {"img": "b.png", "conversations": TALK}, caption("a.png", n=1)]
    )
    out = CliRunner().invoke(app, ["data", "check", str(path), "--images", str(folder / "pics")])
    assert out.exit_code == 1
    assert "did you mean 'image'?" in out.stdout
    assert "keys that are not read: 'img' in 1 row, 'n' in 1 row" in out.stdout
    options = {"train": str(path), "images": str(folder / "pics"), "val_share": 0.0, "test_share": 0.0}
    with pytest.raises(WorkbenchError, match=r"rows\.json:\d+ \(picture under another key: 'img' names 'b\.png'"):
        build_source("llava", options).size("train")
    assert build_source("llava", options | {"bad_rows": 0.5}).size("train") == 1
    assert "keys that are not read: 'img' in 1 row" in capsys.readouterr().err


@case(
    Kind.PICTURES,
    "a file of questions for `workbench predict` with the picture under another key",
    "refused, with line and key",
    "LLaVA-VL/LLaVA-NeXT#459",
)
def test_questions_of_predict(folder: Path) -> None:
    rows = [
        {"question_id": 1, "image": "a.png", "text": "What?"},
        {"question_id": 2, "image_path": "b.png", "text": "?"},
    ]
    with pytest.raises(WorkbenchError, match=r"q\.jsonl:2: .*'image_path' names 'b\.png'.*did you mean 'image'"):
        read_questions(write(folder / "q.jsonl", rows), folder / "pics")
    numbered = {**rows[0], "answer": 2}
    assert read_questions(write(folder / "q.jsonl", [numbered]), folder / "pics")[0].answers == ("2",)


@case(
    Kind.PICTURES,
    "a table of hf_dataset with pictures in columns that are not named, and rows without the named one",
    "the columns are told; a row that shows nothing and names a picture elsewhere is a bad row",
    "hiyouga/LlamaFactory#5329",
)
def test_columns_of_a_table(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    datasets.disable_progress_bars()
    how = {"size": 8, "val_share": 0.0, "test_share": 0.0, "bad_rows": 0.9, "quarantine": str(folder / "bad")}

    def source(path: Path) -> Any:
        return build_source("hf_dataset", {"path": str(path), "images": str(folder / "pics"), **how})

    rows = [
        {"image": "a.png", "question": "A?", "answers": "a", "image_path": "b.png", "source": "x"},
        {"images": ["b.png"], "question": "B?", "answers": "b"},
        {"question": "<video>\nC?", "answers": "c"},
    ]
    found = source(write(folder / "q.jsonl", rows))
    assert [c.references for c in found.conversations("train")] == [("a",)]
    said = capsys.readouterr().err
    assert "2 of 3 rows" in said
    assert "(picture under another key: 'images' names 'b.png', which nobody reads; did you mean 'image'?)" in said
    assert "keys that are not read: 'image_path' in 1 row, 'images' in 1 row, 'source' in 1 row" in said
    (folder / "q.csv").write_text("image,img,question,answers\n,b.png,B?,b\na.png,b.png,A?,a\n")
    assert [c.references for c in source(folder / "q.csv").conversations("train")] == [("a",)]
    kept = {"bytes": (folder / "pics" / "a.png").read_bytes(), "path": "a.png"}
    table = {"image": [kept, None], "image_2": [kept, kept], "image_path": ["b.png"] * 2, "question": ["?"] * 2}
    loaded = datasets.Dataset.from_dict({**table, "answers": ["a", "b"]})
    loaded.cast_column("image_2", datasets.Image()).save_to_disk(folder / "saved")
    capsys.readouterr()
    assert [c.references for c in source(folder / "saved").conversations("train")] == [("a",)]
    said = capsys.readouterr().err
    assert "columns of pictures, films or sounds that are not read: image_2" in said
    assert "'image_path' names 'b.png'" in said


# --- shapes and kinds of pictures ---------------------------------------------------------------------------------


@case(
    Kind.PICTURES,
    "an image of 10 × 25,000 px, which cannot be padded to a square",
    "a bad row at every level of `--verify`, found by its head; read with padding: crop",
    "open-edge-platform/geti_v2#1486",
)
@pytest.mark.parametrize("verify", VERIFY)
def test_a_long_picture(folder: Path, verify: str) -> None:
    Image.new("L", (25_000, 10)).save(folder / "pics" / "long.png")
    found = read(folder, caption("long.png"), caption("b.png"), verify=verify)
    assert bad(found) == [(2, "long image")]
    assert "10 × 25,000 px is too long to be padded to a square (at most 20,000); crop it" in str(
        found.quarantine.rows[0]
    )
    assert not read(folder, caption("long.png"), verify=verify, padding="crop").quarantine.rows
    options = {"train": str(folder / "rows.jsonl"), "images": str(folder / "pics"), "val_share": 0.0, "test_share": 0.0}
    source = build_source("llava", options | {"bad_rows": 0.9, "size": 14, "verify": verify})
    assert isinstance(source, RowSource)
    assert [source.image("train", i).shape for i in range(source.size("train"))] == [(14, 14, 3)]
    whole = build_source("llava", options | {"size": 14, "padding": "crop", "verify": verify})
    assert isinstance(whole, RowSource)
    assert whole.image("train", 1).shape == (14, 14, 3)


@case(Kind.PICTURES, "`workbench data check` of it", "told, exit status 1; passes with --padding crop")
def test_data_check_of_a_long_picture(folder: Path) -> None:
    Image.new("L", (25_000, 10)).save(folder / "pics" / "long.png")
    path = write(folder / "rows.json", [caption("a.png"), caption("long.png")])
    arguments = (path, folder / "pics", "exists", 0.01, folder / "lists")
    with Console(file=(folder / "out").open("w"), width=160) as console:
        assert not check(console, *arguments)
        assert check(console, *arguments, padding="crop")
        with pytest.raises(WorkbenchError, match=r"--padding: unknown 'squar'\. Did you mean 'square'"):
            check(console, *arguments, padding="squar")


@case(Kind.PICTURES, "the same in a table of hf_dataset", "a bad row")
def test_a_long_picture_in_a_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    Image.new("L", (25_000, 10)).save(folder / "pics" / "long.png")
    names = ["a.png", "long.png"]
    rows = [
        {"image": {"bytes": (folder / "pics" / n).read_bytes(), "path": n}, "question": "?", "answers": n}
        for n in names
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "q.parquet")
    how = {"size": 8, "val_share": 0.0, "test_share": 0.0, "bad_rows": 0.5, "quarantine": str(folder / "bad")}
    assert build_source("hf_dataset", {"path": str(folder / "q.parquet"), **how}).size("train") == 1
    listed = [json.loads(line) for line in next((folder / "bad").iterdir()).read_text().splitlines()]
    assert [(one["line"], one["reason"]) for one in listed] == [(2, "long image")]


@case(
    Kind.PICTURES,
    "images of floating-point or 32-bit greys that 8 and 16 bits do not hold (0 to 1, negative, above 65,535)",
    "bad rows with their range; they would be black or clipped",
)
def test_greys_that_would_be_clipped(folder: Path) -> None:
    ramp = np.linspace(0, 1, 12).reshape(3, 4)
    kinds = {"unit": ramp, "negative": ramp - 5, "large": ramp * 300, "nan": ramp * np.nan, "bytes": ramp * 255}
    for name, values in kinds.items():
        Image.fromarray(values.astype(np.float32)).save(folder / "pics" / f"{name}.tif")
    Image.fromarray((ramp * 100_000).astype(np.int32)).save(folder / "pics" / "deep.tif")
    found = read(folder, *(caption(f"{name}.tif") for name in (*kinds, "deep")))
    assert bad(found) == [(line, "undecodable image") for line in (2, 3, 4, 5, 7)]
    assert "unit.tif holds greys from 0 to 1; write them in 8 or 16 bits" in found.quarantine.rows[0].detail
    assert np.abs(load_image(folder / "pics" / "bytes.tif")[..., 0] - ramp * 255).max() <= 1


@case(Kind.PICTURES, "images without any pixel", "bad rows")
@pytest.mark.parametrize("verify", ["header", "pixels"])
def test_images_without_pixels(folder: Path, verify: str) -> None:
    (folder / "pics" / "none.gif").write_bytes(b"GIF89a\0\0\0\0\0\0\0;")
    whole = bytearray((folder / "pics" / "a.png").read_bytes())
    whole[16:20] = bytes(4)  # the width
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    (folder / "pics" / "none.png").write_bytes(whole)
    found = read(folder, caption("none.gif"), caption("none.png"), verify=verify)
    assert bad(found) == [(2, "undecodable image"), (3, "undecodable image")]


@case(
    Kind.PICTURES,
    "images of several frames: GIF, TIFF, animated WebP",
    "the first frame is read, which is told with their number",
)
def test_several_frames(folder: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for suffix in ("gif", "tif", "webp"):
        frames[0].save(folder / "pics" / f"m.{suffix}", save_all=True, append_images=frames[1:])
    found = read(folder, *(caption(f"m.{suffix}") for suffix in ("gif", "tif", "webp")))
    assert not found.quarantine.rows
    told = "3 images hold several frames, of which the first is read, such as m.gif"
    assert found.notices == (f"note: {folder / 'rows.jsonl'}: {told}",)
    assert load_image(folder / "pics" / "m.tif")[0, 0].tolist() == [255, 0, 0]


@case(
    Kind.PICTURES,
    "a name whose capitals or accents (NFC, NFD) are written otherwise than the file's",
    "a bad row that says so",
    "huggingface/datasets#4467",
)
def test_names_written_otherwise(folder: Path) -> None:
    name = unicodedata.normalize("NFC", "é.png")
    picture(folder / "pics" / "Sub2" / name)
    found = read(
        folder, caption(unicodedata.normalize("NFD", f"Sub2/{name}")), caption(f"sub2/{name}"), caption("A.PNG")
    )
    details = [one.detail for one in found.quarantine.rows]
    assert details[0].endswith(
        "is not in " + str(folder / "pics") + "; a file of this name is, its accents written otherwise (NFC, NFD)"
    )
    assert details[1].endswith(f"; 'Sub2/{name}' is")
    assert details[2].endswith("; 'a.png' is")


@case(
    Kind.PICTURES,
    "a picture that is written to between the reading of the rows and its encoding",
    "stopped, with its row",
)
def test_a_picture_that_changes_meanwhile(folder: Path) -> None:
    path = write(folder / "rows.jsonl", [caption("a.png"), caption("b.png")])
    options = {"train": str(path), "images": str(folder / "pics"), "val_share": 0.0, "test_share": 0.0, "size": 8}
    source = build_source("llava", options)
    assert isinstance(source, RowSource)
    assert source.size("train") == 2
    picture(folder / "pics" / "b.png", seed=99)
    os.utime(folder / "pics" / "b.png", ns=(1, 1))
    assert source.image("train", 0).shape == (8, 8, 3)
    with pytest.raises(WorkbenchError, match=r"rows\.jsonl:2: image b\.png was written to after the rows were read"):
        source.image("train", 1)


@case(
    Kind.PICTURES, "images near the limit of pixels, or with odd metadata", "read, without Pillow's own lines and paths"
)
def test_pillow_keeps_quiet(folder: Path) -> None:
    program = (
        "import sys; from PIL import Image; from pathlib import Path\n"
        "from fusion_workbench.datamodules.transforms import load_image\n"
        "Image.MAX_IMAGE_PIXELS = 200\n"
        "print(load_image(Path(sys.argv[1])).shape)"
    )
    path = folder / "pics" / "a.png"  # 240 pixels
    out = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert out.stdout == "(12, 20, 3)\n"
    assert out.stderr == ""
