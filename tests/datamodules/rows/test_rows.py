"""A row of a LLaVA file: what it becomes, and what is wrong with it. Lines of the files that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_files import row

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.conversations.base import ASSISTANT, IMAGE, USER, Turn
from fusion_workbench.datamodules.rows.files import read_entries
from fusion_workbench.datamodules.rows.rows import BadRow, parse_row, place_images


def said(found: Any, image_first: bool = True) -> list[str]:
    return [turn.text for turn in parse_row(found, image_first).turns]


@pytest.mark.parametrize(
    ("words", "image_first", "first"),
    [
        ("<image>\nWhat?", True, "<image>\nWhat?"),
        ("What?\n<image>", True, "<image>\nWhat?"),
        ("Look <image> here", True, "<image>\nLook  here"),
        ("What?\n<image>", False, "What?\n<image>"),
        ("What?", True, "<image>\nWhat?"),
        ("What?", False, "<image>\nWhat?"),
        ("<image>", True, "<image>"),
    ],
)
def test_where_the_image_stands(words: str, image_first: bool, first: str) -> None:
    assert said(row("a.jpg", words, "This."), image_first) == [first, "This."]


def test_several_images_stay_where_they_are_and_are_put_first_when_no_word_says_where() -> None:
    assert said(row(["a", "b"], "From <image> to <image>?", "Yes."))[0] == "From <image> to <image>?"
    assert said(row(["a", "b"], "Alike?", "Yes."))[0] == "<image>\n<image>\nAlike?"
    assert said(row(["a", "b"], "<image> One", "Yes.", "Two? <image>", "No."))[::2] == ["<image>\nOne", "<image>\nTwo?"]


def test_several_turns_text_alone_and_chat_messages() -> None:
    plain = parse_row(row(None, "Hello", "Hi", "Bye", "Bye"))
    assert plain.images == ()
    assert plain.turns == (Turn(USER, "Hello"), Turn(ASSISTANT, "Hi"), Turn(USER, "Bye"), Turn(ASSISTANT, "Bye"))
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert parse_row({"conversations": chat}).turns == plain.turns[:2]
    assert parse_row({"image": None, **row(None, "Hello", "Hi")}).images == ()


def test_what_a_question_says_besides() -> None:
    asked = parse_row(row("a", "How many?", answers=["3", 3, "three"], category="count", metric="vqa", group=7))
    assert asked.turns[-1] == Turn(ASSISTANT, "3")
    assert (asked.answers, asked.task, asked.metric, asked.group) == (("3", "3", "three"), "count", "vqa", "7")
    assert parse_row({"question_id": 12, **{k: v for k, v in row("a", "B", "C").items() if k != "id"}}).id == "12"


def test_a_first_turn_of_the_assistant_is_left_out() -> None:
    turns = [{"from": "gpt", "value": "Ahem."}, *row(None, "Hello", "Hi")["conversations"]]
    assert said({"conversations": turns}) == ["Hello", "Hi"]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([1], "not an object"),
        ({"id": 1}, "no conversations"),
        ({"conversations": []}, "no conversations"),
        ({"conversations": ["Hello"]}, "no conversations"),
        ({"conversations": [{"value": "Hello"}]}, "no conversations"),
        (row(None, "Hello"), "no answer"),
        (row(None, "Hello", "  "), "empty turn"),
        ({"conversations": [{"from": "human"}]}, "empty turn"),
        ({"conversations": [{"from": "human", "value": [3]}]}, "empty turn"),
        ({"conversations": [{"from": "system", "value": "Be good"}]}, "roles"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "roles"),
        ({"conversations": [{"from": "gpt", "value": "Hello"}]}, "roles"),
        ({"conversations": [{"from": "human", "value": x} for x in "ab"]}, "roles"),
        (row("a", "<image><image>", "x"), "images and <image> differ"),
        (row(["a", "b"], "<image>", "x"), "images and <image> differ"),
        (row(None, "<image>", "x"), "images and <image> differ"),
        (row("a", "b", "<image>"), "<image> in an answer"),
        (row("", "b", "c"), "image path"),
        (row([3], "b", "c"), "image path"),  # type: ignore[list-item]
        (row({"bytes": 1}, "b", "c"), "image path"),  # type: ignore[arg-type]
        (row("a", "b", "c", answers="three"), "answers"),
        (row("a", "b", "c", answers=[]), "answers"),
        (row("a", "b", "c", answers=[None]), "answers"),
        (row("a", "b", "c", answers=[float("nan")]), "answers"),
        (row(None, "<video>\nWhat?", "c"), "video or sound"),
        (row("a", "<image>What is this?\n<audio>", "c"), "video or sound"),
        (row("a", "b", "c", task=["x"]), "task"),
        (row("a", "b\ud800", "c"), "broken text"),
    ],
)
def test_rows_that_cannot_be_used(found: object, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_row(found)
    assert caught.value.reason == reason
    assert len(caught.value.detail) < 200


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["human", "gpt", IMAGE]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "image", "conversations", "from", "value", "answers", "task", "role", "content"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_whatever_the_json_it_is_a_row_or_a_bad_row(found: object) -> None:
    try:
        good = parse_row(found)
    except BadRow:
        return
    assert [t.role for t in good.turns] == [(USER, ASSISTANT)[i % 2] for i in range(len(good.turns))]
    assert len(good.turns) % 2 == 0
    assert sum(t.text.count(IMAGE) for t in good.turns if t.role == USER) == len(good.images)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["word", IMAGE, "\n", " "]), min_size=1, max_size=6), st.booleans())
def test_placing_images_twice_changes_nothing(pieces: list[str], image_first: bool) -> None:
    turns = [Turn(USER, "".join(pieces)), Turn(ASSISTANT, "yes")]
    images = pieces.count(IMAGE)
    once = place_images(turns, images, image_first)
    assert place_images(once, images, image_first) == once
    assert once[0].text.count(IMAGE) == images
    assert once[0].text.replace(IMAGE, "").split() == turns[0].text.replace(IMAGE, "").split()


# --- files --------------------------------------------------------------------------------------------------------

VALUES = st.lists(JSON, max_size=6)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_an_array_is_read_element_by_element_with_its_lines(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None, bom: bool
) -> None:
    text = json.dumps(values, indent=indent)
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(text, encoding="utf-8-sig" if bom else "utf-8")
    entries = list(read_entries(path))
    assert [json.dumps(e.value) for e in entries] == [json.dumps(v) for v in values]
    lines = text.split("\n")
    for entry in entries:  # its line begins with what it begins with
        assert indent is None or lines[entry.line - 1][1:2] == json.dumps(entry.value)[:1]


def test_lines_that_are_no_json_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n"\xff"\n[[' + b"[" * 100_000 + b'\n{"a": 2}')
    entries = list(read_entries(path))
    assert [(e.line, e.number) for e in entries] == [(1, 1), (3, 2), (4, 3), (5, 4), (6, 5)]
    assert [e.value.reason if isinstance(e.value, BadRow) else e.value for e in entries] == [
        {"a": 1}, "not JSON", "not UTF-8", "not JSON", {"a": 2},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a": }]', r"rows\.json:2: the JSON array breaks at element 2"),
        ('[{"a": 1}\n', r"rows\.json:2: the JSON array breaks at element 1 \(no comma"),
        ("[1 2]", "no comma or closing bracket"),
        ("[1,\n2] 3", r"rows\.json:2.*something follows"),
        ("[" * 100_000, "nested too deeply"),
        ("[1, ", "breaks at element 2"),
        ("[", "breaks at element 1"),
    ],
)
def test_an_array_that_breaks_off_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(WorkbenchError, match=message):
        list(read_entries(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="cannot be read: No such file"):
        list(read_entries(tmp_path / "none.json"))
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(WorkbenchError, match="not UTF-8 at byte 2"):
        list(read_entries(tmp_path / "latin.json"))
    (tmp_path / "empty.json").write_text("[ ]")
    assert list(read_entries(tmp_path / "empty.json")) == []
