"""Answer metrics against worked examples of their definitions, and what holds for any text."""

from __future__ import annotations

import math
import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import BinaryF1Score

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.answers import METRICS, find_metric
from fusion_workbench.modules.answers.metrics.anls import similarity
from fusion_workbench.modules.answers.metrics.box import box_iou, parse_box, to_square
from fusion_workbench.modules.answers.metrics.text import normalise_text
from fusion_workbench.modules.answers.metrics.vqa import normalise
from fusion_workbench.modules.answers.metrics.yes_no import says_yes

texts = st.text(max_size=30)
answer_lists = st.lists(texts, min_size=1, max_size=10)
shares = st.floats(0, 1, width=32)
boxes = st.tuples(shares, shares, shares, shares)


def score(metric: str, prediction: str, *answers: str) -> float:
    return METRICS[metric].score(prediction, answers)


# --- any metric -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
@given(prediction=texts, answers=answer_lists)
def test_any_text_gets_a_share(name: str, prediction: str, answers: list[str]) -> None:
    metric = METRICS[name]
    found = metric.score(prediction, answers)
    assert 0 <= found <= 1
    statistics = metric.statistics(prediction, answers)
    assert all(math.isfinite(value) for value in statistics.values())
    assert 0 <= metric.value([found], {key: [value] for key, value in statistics.items()}) <= 1


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"box_iou50"}))
@given(answer=texts)
def test_the_one_right_answer_is_right(name: str, answer: str) -> None:
    assert score(name, answer, answer) == 1


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"yes_no_f1", "vqa_accuracy"}))
@given(prediction=texts, answers=answer_lists, more=texts)
def test_another_right_answer_never_harms(name: str, prediction: str, answers: list[str], more: str) -> None:
    assert score(name, prediction, *answers, more) >= score(name, prediction, *answers)


@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_right_where_nothing_is(name: str) -> None:
    assert METRICS[name].score("yes", ()) == 0
    assert math.isnan(METRICS[name].value([], {}))


def test_every_metric_says_where_it_is_from() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.source
        assert metric.title
        assert (metric.unit, metric.direction, metric.perfect) == ("share", "maximize", 1.0)


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    assert find_metric("anls") is METRICS["anls"]
    with pytest.raises(WorkbenchError, match="Did you mean 'exact_match'"):
        find_metric("exact_mach")


# --- exact match ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "right"),
    [("Seven", "seven"), ("  two\n words. ", "two words"), ('"K"', "k"), ("(left)", "left"), ("?", "?"), ("’K’!", "K")],
)
def test_case_space_and_outer_punctuation_do_not_matter(said: str, right: str) -> None:
    assert score("exact_match", said, "other", right) == 1


@pytest.mark.parametrize(
    ("said", "right"), [("-5", "5"), (".5", "5"), ("$5", "5"), ("a-b", "ab"), ("!", "?"), ("the cat", "cat"), ("", "a")]
)
def test_everything_else_does(said: str, right: str) -> None:
    assert score("exact_match", said, right) == 0


@given(texts)
def test_plain_text_stays(text: str) -> None:
    assert normalise_text(normalise_text(text)) == normalise_text(text)


@given(texts, texts)
def test_exact_match_is_symmetric(one: str, other: str) -> None:
    assert score("exact_match", one, other) == score("exact_match", other, one)


# --- VQA accuracy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_people(agreeing: int, expected: float) -> None:
    """The values that leaving one of ten out gives, as https://visualqa.org/evaluation.html has them: one person of
    ten is worth 9/10 · 1/3, two 8/10 · 2/3 + 2/10 · 1/3."""
    answers = ["red"] * agreeing + [f"other{number}" for number in range(10 - agreeing)]
    assert score("vqa_accuracy", "Red", *answers) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["a1", "b1", "c1"]), min_size=4, max_size=12))
def test_it_is_the_mean_over_those_left_out(answers: list[str]) -> None:
    by_hand = [
        min(sum(answer == "a1" for answer in answers[:out] + answers[out + 1 :]) / 3, 1) for out in range(len(answers))
    ]
    assert score("vqa_accuracy", "a1", *answers) == pytest.approx(sum(by_hand) / len(by_hand))


def test_of_few_people_one_is_enough() -> None:
    assert score("vqa_accuracy", "two", "2") == 1
    assert score("vqa_accuracy", "two", "3", "2", "4") == 1
    assert score("vqa_accuracy", "two", "3", "5", "4") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Two dogs", "2 dogs"),
        ("none", "0"),
        ("1,000", "1000"),
        ("2.5 m.", "2.5 m"),
        ("U.S.A.", "usa"),
        (".5", ".5"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("black- white-blue", "black whiteblue"),  # a mark that touches a space once goes everywhere
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("what's up?", "what 's up"),
        ("Yes!", "yes"),
        ("stop\tsign\n", "stop sign"),
        ("10:30", "10:30"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_answers_are_normalised_as_published(text: str, expected: str) -> None:
    """Worked through facebookresearch/mmf's EvalAIAnswerProcessor by hand and by running it."""
    assert normalise(text) == expected


# --- ANLS -------------------------------------------------------------------------------------------------------


def test_anls_on_the_examples_of_its_definition() -> None:
    """Of https://huggingface.co/spaces/evaluate-metric/anls, with equation 1 of arXiv 1905.13648."""
    assert score("anls", "Denver Broncos", "Denver Broncos", "Denver R. Broncos") == 1
    assert score("anls", "12/15/89", "12/15/88") == 1 - 1 / 8
    assert score("anls", "Dear dr. Lobo", "Dear Dr. Lobo", "Dr. Lobo") == 1
    assert score("anls", "rain", "shine") == 0  # three edits of five letters
    assert score("anls", "ab", "ax") == 0.5  # half is enough
    assert score("anls", "kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert score("anls", "ab  c", "A B C") == pytest.approx(1 - 1 / 5)  # how many spaces does not count, where does


@given(st.text(alphabet="abc ", max_size=8), st.text(alphabet="abc ", max_size=8))
def test_similarity_is_symmetric_and_only_equal_texts_are_alike(one: str, other: str) -> None:
    assert similarity(one, other) == similarity(other, one)
    assert similarity(one, other) == 0 or similarity(one, other) >= 0.5
    assert (similarity(one, other) == 1) == (one.split() == other.split())


# --- OCRBench ---------------------------------------------------------------------------------------------------


def test_the_answer_may_stand_anywhere() -> None:
    assert score("ocrbench", "The word is CENTRE.", "theatre", "Centre") == 1
    assert score("ocrbench", "new\nyork", "New York") == 1
    assert score("ocrbench", "newyork", "New York") == 0
    assert score("ocrbench", "cent", "centre") == 0
    assert score("ocrbench", "anything", "") == 0


def test_a_formula_keeps_case_and_loses_spaces() -> None:
    assert score("ocrbench_formula", "y = \\frac{a}{b} + X", "\\frac { a } { b }") == 1
    assert score("ocrbench_formula", "x ^ 2", "X^2") == 0


@given(texts, texts, texts)
def test_what_contains_the_answer_is_right(before: str, answer: str, after: str) -> None:
    if METRICS["ocrbench"].fold(answer):  # type: ignore[attr-defined]
        said = "x" + before + answer.strip() + after + "x"
        # lower-casing a final sigma depends on its neighbours
        if answer.strip().lower() in said.lower():
            assert score("ocrbench", said, answer) == 1


# --- POPE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("Yes, there is. It is not red", True),  # the first sentence counts
        ("There is not, I think", False),
        ("no, there is", False),
        ("nothing", True),  # as published: what does not say no says yes
        ("NO", True),
        ("", True),
    ],
)
def test_what_an_answer_means(text: str, yes: bool) -> None:
    assert says_yes(text) is yes


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_f1_is_that_of_torchmetrics(pairs: list[tuple[bool, bool]]) -> None:
    metric, words = METRICS["yes_no_f1"], {True: "yes", False: "no"}
    rows = [metric.statistics(words[said], [words[true]]) for said, true in pairs]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    scores = [metric.score(words[said], [words[true]]) for said, true in pairs]
    said, true = (torch.tensor([pair[place] for pair in pairs]).int() for place in (0, 1))
    assert metric.value(scores, columns) == pytest.approx(float(BinaryF1Score()(said, true)))
    details = metric.details(scores, columns)
    assert details["accuracy"] == pytest.approx(float((said == true).float().mean()))
    assert details["yes_share"] == pytest.approx(float(said.float().mean()))
    if details["precision"] + details["recall"]:
        harmonic = 2 * details["precision"] * details["recall"] / (details["precision"] + details["recall"])
        assert metric.value(scores, columns) == pytest.approx(harmonic)


# --- boxes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.25, 0.5, 0.75, 1.0]", (0.25, 0.5, 0.75, 1.0)),
        ("It is at [0,.5,1,1] or [0, 0, 1, 1].", (0.0, 0.5, 1.0, 1.0)),
        ("[0.1, 0.2, 0.3]", None),
        ("0.1, 0.2, 0.3, 0.4", None),
        ("[" + "9" * 400 + ", 0, 1, 1]", None),
        ("[²,0,1,1]", None),
        ("", None),
    ],
)
def test_a_box_is_found_in_words(text: str, box: tuple[float, ...] | None) -> None:
    assert parse_box(text) == box


def test_overlap_by_hand() -> None:
    assert box_iou((0, 0, 1, 1), (0, 0, 1, 0.5)) == 0.5
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert box_iou((1, 1, 0, 0), (0, 0, 1, 1)) == 0  # corners the wrong way round


def test_half_an_overlap_is_enough() -> None:
    assert score("box_iou50", "[0, 0, 1, 0.5]", "[0, 0, 1, 1]") == 1
    assert score("box_iou50", "[0, 0, 1, 0.49]", "[0, 0, 1, 1]") == 0
    assert score("box_iou50", "top left", "[0, 0, 1, 1]") == 0
    assert score("box_iou50", "[0, 0, 1, 1]", "the whole") == 0


@given(boxes, boxes)
def test_overlap_is_symmetric_and_a_share(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    assert box_iou(one, other) == box_iou(other, one)  # type: ignore[arg-type]
    assert 0 <= box_iou(one, other) <= 1 + 1e-9  # type: ignore[arg-type]
    assert box_iou(one, one) == 1  # type: ignore[arg-type]


@given(boxes, boxes, st.integers(1, 2000), st.integers(1, 2000))
def test_padding_changes_no_overlap(one: tuple[float, ...], other: tuple[float, ...], width: int, height: int) -> None:
    padded = [to_square(box, width, height) for box in (one, other)]  # type: ignore[arg-type]
    assert all(-1e-6 <= value <= 1 + 1e-6 for box in padded for value in box)
    large = all((box[2] - box[0]) > 1e-3 and (box[3] - box[1]) > 1e-3 for box in (one, other))
    if large and min(width, height) > max(width, height) / 50:
        assert box_iou(*padded) == pytest.approx(box_iou(one, other), abs=1e-4)  # type: ignore[arg-type]


def test_a_box_of_a_wide_image_moves_down() -> None:
    """640 × 480 becomes 640 × 640 with 80 rows above: (0, 0) lies at 80/640."""
    assert to_square((0, 0, 1, 1), 640, 480) == (0, 0.125, 1, 0.875)
    assert to_square((0, 0, 1, 1), 480, 640) == (0.125, 0, 0.875, 1)


# --- ChartQA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        ("104.9", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("-95", "-100", 1),
        ("0.26", "25%", 1),
        ("25", "25%", 0),
        ("0.01", "0", 0),
        ("0", "0", 1),
        ("Blue", "blue", 1),
        ("nan", "NaN", 1),
        ("about 100", "100", 0),
    ],
)
def test_five_per_cent(said: str, right: str, expected: float) -> None:
    """ChartQA, end of section 5.1."""
    assert score("relaxed_accuracy", said, right) == expected


@given(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6), st.floats(-0.04, 0.04))
def test_within_the_tolerance(right: float, off: float) -> None:
    assert score("relaxed_accuracy", f"{right * (1 + off)!r}", f"{right!r}") == 1


def test_the_alphabet_is_not_lost() -> None:
    for letter in string.ascii_uppercase + string.digits:  # what FineScenes' glyphs are read as
        assert [other for other in string.ascii_uppercase + string.digits if score("exact_match", letter, other)] == [
            letter
        ]
