"""Conversations out and back: what is exported reads as it was, and a file is checked as it would be read."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from places import DOCS
from typer.testing import CliRunner

from fusion_workbench.cli.main import app
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.conversations.base import Conversation, ConversationSource
from fusion_workbench.datamodules.rows.hub import HubDataset
from fusion_workbench.datamodules.rows.llava import Llava
from fusion_workbench.datamodules.sources.base import SPLITS
from fusion_workbench.tools.data import conversation_source, export

SMALL = {"train": 6, "val": 3, "test": 4, "size": 56, "glyphs": 3}


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def told(source: ConversationSource, split: str) -> list[Any]:
    """All of a split's conversations but where they stand in a file, images by their pixels."""

    def plain(c: Conversation) -> Any:
        pixels = [source.image(split, row).tobytes() for row in c.images]
        return c.id, c.turns, pixels, c.group, c.task, c.answers

    return [plain(c) for c in source.conversations(split)]


@pytest.mark.parametrize("jsonl", [False, True])
def test_questions_come_back_word_for_word_and_pixel_for_pixel(tmp_path: Path, jsonl: bool) -> None:
    options = [f"{key}={value}" for key, value in SMALL.items()]
    code, out = run(
        "export", "finescenes_questions", *options, "-o", str(tmp_path / "q"), *(["--jsonl"] if jsonl else [])
    )
    assert code == 0
    assert "34 conversations" in out
    assert "13 images" in out
    suffix = "jsonl" if jsonl else "json"
    files = {split: str(tmp_path / "q" / f"{split}.{suffix}") for split in SPLITS}
    back = conversation_source("llava", {**files, "images": str(tmp_path / "q" / "images"), "size": 56})
    made = conversation_source("finescenes_questions", SMALL)
    for split in SPLITS:
        assert told(back, split) == told(made, split)
        assert back.size(split) == made.size(split)
        assert list(back.identity(split)["group"]) == list(made.identity(split)["group"])
    assert back.metrics() == made.metrics()
    code, out = run("check", files["test"], "--images", str(tmp_path / "q" / "images"), "--verify", "pixels")
    assert code == 0
    assert "task position" in out
    assert "no row is bad" in out


def odd_file(folder: Path) -> dict[str, Any]:
    """Rows of every kind, as options of `llava`."""
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (9 + i, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")

    def row(image: Any, *words: str, **more: Any) -> dict[str, Any]:
        turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(words)]
        return {"id": 3, **({} if image is None else {"image": image}), "conversations": turns, **more}

    rows = [
        row("0.png", "Wo ist <image> – was?", "Straße 日本"),
        row(None, "Only words\n", " yes "),
        row(["1.png", "0.png"], "Alike: <image>, <image>?", "No", "Sure?", "Yes"),
    ]
    asked = [row("2.png", "Read.", answers=["a", "A"], task="read", metric="anls"), row(None, "2+2?", "4", task="sum")]
    files = {"train": rows, "val": asked, "test": [row("3.png", "Read.", "b", task="read", metric="anls")]}
    for split, listed in files.items():
        (folder / f"{split}.json").write_text(json.dumps(listed))
    return {split: str(folder / f"{split}.json") for split in files} | {"images": str(folder), "size": 12}


@pytest.mark.parametrize("image_first", [True, False])
def test_rows_of_every_kind_come_back(tmp_path: Path, image_first: bool) -> None:
    made = conversation_source("llava", {**odd_file(tmp_path), "image_first": image_first})
    written = export(made, SPLITS, tmp_path / "out")
    assert written.image_first is image_first
    files = {split: str(path) for split, path in written.files.items()}
    options = {**files, "images": str(written.images), "size": 12, "image_first": written.image_first}
    back = conversation_source("llava", options)
    for split in SPLITS:
        assert told(back, split) == told(made, split)
    assert back.metrics() == made.metrics() == {"read": "anls", "sum": "exact_match"}


def test_one_split_and_a_folder_that_is_there(tmp_path: Path) -> None:
    words = ["finescenes_questions", "train=2", "size=56", "glyphs=2", "kinds=[read]", "--out", str(tmp_path)]
    assert run("export", *words, "--split", "train")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "train.json"]
    with pytest.raises(WorkbenchError, match=r"train\.json is there already.*--overwrite"):
        run("export", *words)
    assert run("export", *words, "--split", "train", "--overwrite")[0] == 0
    with pytest.raises(WorkbenchError, match=r"images/train is there already"):  # other pictures under the same names
        run("export", *words, "seed=1", "--split", "train", "--jsonl")
    (tmp_path / "file").touch()
    source = conversation_source("finescenes_questions", SMALL)
    with pytest.raises(WorkbenchError, match="cannot be written"):
        export(source, ["val"], tmp_path / "file" / "below")


def test_sources_without_conversations() -> None:
    with pytest.raises(
        WorkbenchError, match=r"'finescenes' has no conversations; those that have: .*finescenes_questions"
    ):
        conversation_source("finescenes", {})
    assert isinstance(build_source("finescenes_questions", {}), ConversationSource)


def test_check_counts_and_names_the_first_of_each_fault(tmp_path: Path) -> None:
    odd_file(tmp_path)
    rows = json.loads((tmp_path / "train.json").read_text())
    bad = [{**rows[0], "image": name} for name in ("x.png", "../a.png", "y.png")]
    lines = [json.dumps(row) for row in [*rows, *bad]] + ["{"]
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    code, out = run("check", str(tmp_path / "mixed.jsonl"), "--images", str(tmp_path))
    assert code == 1
    for words in ("rows │ 7", "conversations │ 3", "turns │ 8", "text alone │ 1", "several images │ 1", "bad rows │ 4"):
        assert words in " ".join(out.split()), words
    assert f"2 missing image: {tmp_path / 'mixed.jsonl'}:4: 'x.png' is not in" in out
    assert f"1 image path: {tmp_path / 'mixed.jsonl'}:5: '../a.png' leaves its folder through .." in out
    assert f"1 not JSON: {tmp_path / 'mixed.jsonl'}:7" in out
    assert f"all are listed in {tmp_path / 'mixed.jsonl.quarantine.jsonl'}" in out
    assert "57.14% of the rows are bad, more than bad_rows=0.01 allows" in out
    listed = (tmp_path / "mixed.jsonl.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in listed] == [4, 5, 6, 7]
    elsewhere = ["--bad-rows", "0.6", "--quarantine", str(tmp_path / "lists")]
    assert run("check", str(tmp_path / "mixed.jsonl"), *elsewhere)[0] == 0
    assert (tmp_path / "lists" / "mixed.jsonl.quarantine.jsonl").is_file()


def test_the_help_keeps_its_brackets() -> None:
    assert "kinds=[read]" in " ".join(run("export", "--help")[1].replace("│", " ").split())


def test_check_shows_a_file_s_words_as_they_are(tmp_path: Path) -> None:
    """Markup is no markup, and nothing reaches the terminal that would steer it."""
    file = tmp_path / "[b]rows.jsonl"
    row = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}
    tasks = ("[/red]", "\x1b[2J\u202eabc")
    file.write_text("".join(json.dumps(row | {"task": task}) + "\n" for task in tasks))
    code, out = run("check", str(file))
    assert code == 0
    assert "task [/red]" in out
    assert "[b]rows.jsonl" in out
    assert "task \N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}abc" in out


def test_check_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match=r"image folder .*none does not exist"):
        run("check", str(tmp_path / "a.json"), "--images", str(tmp_path / "none"))
    with pytest.raises(WorkbenchError, match=r"a\.json cannot be read"):
        run("check", str(tmp_path / "a.json"))
    with pytest.raises(WorkbenchError, match="Did you mean 'pixels'"):
        run("check", str(tmp_path / "a.json"), "--verify", "pixel")


def test_the_example_of_the_docs_is_what_export_writes(tmp_path: Path) -> None:
    page = (DOCS / "data.md").read_text(encoding="utf-8")
    shown = json.loads(page.partition("```json\n")[2].partition("```")[0])
    written = export(conversation_source("finescenes_questions", {"test": 1}), ["test"], tmp_path)
    first, *others = json.loads(written.files["test"].read_text())
    assert first == shown
    for row in others:
        question = row["conversations"][0]["value"].split("\n")[1]
        assert f"*{question}* {row['answers'][0]}." in " ".join(page.split())


def test_every_option_is_in_the_docs() -> None:
    page = (DOCS / "data.md").read_text(encoding="utf-8")
    for source in (Llava, HubDataset):
        assert [f.name for f in fields(source.options) if f"`{f.name}`" not in page] == []
