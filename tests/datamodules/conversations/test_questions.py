"""Questions about FineScenes: true, unambiguous, the same words everywhere, on the images that probes see."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.conversations.base import ASSISTANT, IMAGE, USER, Conversation, ConversationSource
from fusion_workbench.datamodules.conversations.finescenes import (
    KINDS,
    MARGIN,
    PLACES,
    SHORTLY,
    FineScenesQuestions,
    QuestionsOptions,
)
from fusion_workbench.datamodules.sources.base import SPLITS
from fusion_workbench.datamodules.sources.finescenes import FineScenes, FineScenesOptions, Layout, PlacedGlyph
from fusion_workbench.datamodules.sources.finescenes_parts import CLASSES

# sha256 over the conversations about the first 16 scenes of each split: every machine must say the same words.
PINNED = {
    "train": "36952c974d5768142195e2f36e19ef910466608b2be0a2806197eb2f0b71614f",
    "val": "cd496442f1585b5defdf982815e805a3af59256190e94fa5f7d8eaa9a57b4a65",
    "test": "bcbdd55a726a8e2ddbb8c7587904640b6e716d3937a0c0ea6300305beb5daf45",
}


@pytest.fixture(scope="module")
def asked() -> FineScenesQuestions:
    return FineScenesQuestions(QuestionsOptions(train=60, val=40, test=60))


def of_scene(source: ConversationSource, split: str, row: int) -> list[Conversation]:
    return [c for c in source.conversations(split) if c.images == (row,)]


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_words_as_on_every_machine(asked: FineScenesQuestions, split: str) -> None:
    spoken = [c for row in range(16) for c in of_scene(asked, split, row)]
    said = [(c.id, c.group, c.task, c.answers, [(t.role, t.text) for t in c.turns]) for c in spoken]
    assert hashlib.sha256(json.dumps(said).encode()).hexdigest() == PINNED[split]


def test_a_lesson_asks_every_kind_once_and_shows_the_image_first(asked: FineScenesQuestions) -> None:
    lessons = asked.conversations("train")
    assert [c.images for c in lessons] == [(row,) for row in range(60)]
    firsts = set()
    for lesson in lessons:
        assert [t.role for t in lesson.turns] == [USER, ASSISTANT] * 4
        assert [t.text.count(IMAGE) for t in lesson.turns] == [1] + [0] * 7
        assert lesson.turns[0].text.startswith(f"{IMAGE}\n")
        assert all(t.text.endswith(SHORTLY) for t in lesson.turns[::2])
        pairs = zip(lesson.turns[::2], lesson.turns[1::2], strict=True)
        said = {(t.text.removeprefix(f"{IMAGE}\n"), a.text) for t, a in pairs}
        assert said == {asked.question_and_answer("train", lesson.images[0], kind) for kind in KINDS}
        firsts.add(
            next(k for k in KINDS if asked.question_and_answer("train", lesson.images[0], k)[0] in lesson.turns[0].text)
        )
    assert firsts == set(KINDS)


def test_a_question_stands_alone_and_is_named_by_its_scene_and_kind(asked: FineScenesQuestions) -> None:
    questions = asked.conversations("test")
    rows = asked.identity("test")
    assert [(c.id, c.task) for c in questions] == [(id_, kind) for id_ in rows["example_id"] for kind in KINDS]
    for question in questions:
        assert question.group == rows["group"][question.images[0]]
        assert question.references == (question.turns[1].text,)
        assert question.question.endswith(SHORTLY)
        assert IMAGE not in question.question
    assert asked.metrics() == dict.fromkeys(KINDS, "exact_match")


def test_answers_are_what_the_layout_says(asked: FineScenesQuestions) -> None:
    targets = asked.scenes.targets("test")
    for question in asked.conversations("test"):
        row, (answer,) = question.images[0], question.answers
        if question.task == "count":
            assert int(answer) == targets["count.number"][row]
        elif question.task == "digit":
            assert int(answer) == targets["digit.label"][row]
        elif question.task == "position":
            x1, y1, x2, y2 = targets["digit.box"][row]
            assert answer == f"{'bottom' if y1 + y2 >= 1 else 'top'} {'right' if x1 + x2 >= 1 else 'left'}"
        else:
            place = next(place for place in PLACES if place.words in question.question)
            assert answer == _named(place.words, asked.scenes.layouts("test")[row])


def _named(place: str, scene: Layout) -> str:
    """An own reading of a place: the glyphs' centres in order, and the first well ahead of the second."""
    across = [(g.left + g.width / 2, g.top + g.height / 2) for g in scene.glyphs]
    digit = np.array([scene.digit.left + scene.digit.width / 2, scene.digit.top + scene.digit.height / 2])
    distances = {
        "furthest to the left": [x for x, _ in across],
        "furthest to the right": [-x for x, _ in across],
        "nearest to the top edge": [y for _, y in across],
        "nearest to the bottom edge": [-y for _, y in across],
        "closest to the handwritten digit": [float(np.linalg.norm(np.array(c) - digit)) for c in across],
        "furthest from the handwritten digit": [-float(np.linalg.norm(np.array(c) - digit)) for c in across],
    }[place]
    order = np.argsort(distances)
    assert distances[order[1]] - distances[order[0]] >= MARGIN * 112 - 1e-9
    return CLASSES[scene.glyphs[order[0]].label]


def test_every_wording_place_count_and_quarter_is_met() -> None:
    source = FineScenesQuestions(QuestionsOptions(train=1, val=1, test=300))
    questions = source.conversations("test")
    for kind, of in KINDS.items():
        texts = [c.question for c in questions if c.task == kind]
        heads = [w.split("{place}")[0] for w in of.wordings]
        assert all(any(text.startswith(head) for text in texts) for head in heads), kind
    assert all(any(place.words in c.question for c in questions) for place in PLACES)
    answers = {kind: {c.answers[0] for c in questions if c.task == kind} for kind in KINDS}
    assert answers["count"] == {"2", "3", "4", "5", "6"}
    assert len(answers["position"]) == 4
    assert len(answers["digit"]) == 10
    assert len(answers["read"]) > 30


@settings(max_examples=10, deadline=None)
@given(kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, unique=True), seed=st.integers(0, 5))
def test_a_question_does_not_depend_on_what_else_is_asked(kinds: list[str], seed: int) -> None:
    some = FineScenesQuestions(QuestionsOptions(train=3, val=2, test=2, seed=seed, kinds=kinds))
    every = FineScenesQuestions(QuestionsOptions(train=2, val=2, test=3, seed=seed))
    for kind in kinds:
        assert some.question_and_answer("test", 1, kind) == every.question_and_answer("test", 1, kind)
    assert [c.task for c in of_scene(some, "val", 1)] == [kind for kind in KINDS if kind in kinds]
    long, short = every.conversations("train")[1], some.conversations("train")[1]
    kept = [t.text.replace(IMAGE, "").strip() for t in short.turns]
    assert [t for t in (u.text.replace(IMAGE, "").strip() for u in long.turns) if t in kept] == kept


def test_images_are_those_of_finescenes_so_that_stored_features_serve_both(asked: FineScenesQuestions) -> None:
    probes = FineScenes(FineScenesOptions(train=60, val=40, test=60, fewest=2))
    assert asked.version == probes.version
    assert asked.image_size == probes.image_size
    for split in SPLITS:
        assert asked.fingerprint(split) == probes.fingerprint(split)
        assert np.array_equal(asked.image(split, 3), probes.image(split, 3))
        assert asked.identity(split).equals(probes.identity(split))


def test_one_glyph_is_named_by_any_place() -> None:
    lone = FineScenesQuestions(QuestionsOptions(train=1, val=1, test=8, glyphs=1, fewest=1, kinds=["read", "count"]))
    for question in lone.conversations("test"):
        assert question.answers[0] in (*CLASSES, "1")
    assert isinstance(lone.scenes.layouts("test")[0].glyphs[0], PlacedGlyph)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["raed"]}, "unknown kind 'raed'. Did you mean 'read'"),
        ({"kinds": []}, "name each kind once"),
        ({"kinds": ["read", "read"]}, "name each kind once"),
        ({"kinds": "read"}, "must be of type list"),
        ({"fewest": 9}, "fewest is 9"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        build_source("finescenes_questions", options)


def test_the_words_of_a_split_have_a_fingerprint_of_their_own(asked: FineScenesQuestions) -> None:
    longer = FineScenesQuestions(QuestionsOptions(train=60, val=41, test=60))
    some = FineScenesQuestions(QuestionsOptions(train=60, val=40, test=60, kinds=["read", "digit"]))
    assert longer.text_fingerprint("train") == asked.text_fingerprint("train")
    assert longer.text_fingerprint("val") != asked.text_fingerprint("val")
    assert some.text_fingerprint("test") != asked.text_fingerprint("test")
    assert some.fingerprint("test") == asked.fingerprint("test")
