"""VQA accuracy: an answer is as right as people agree with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from fusion_workbench.modules.answers.metrics.base import AnswerMetric, register_metric

FULL = 3  # so many people who gave the answer make it fully right
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_MARKS = ';/[]"{}()=+\\_->@<`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")  # one that does not begin decimals

# The contractions of the published table, spelt as they should be; see `_without_apostrophe`.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_apostrophe(word: str) -> list[str]:
    """The spellings of a contraction that lack one of its apostrophes."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


_REPAIRED = {wrong: word for word in _CONTRACTIONS.split() for wrong in _without_apostrophe(word)}
_REPAIRED["somebody'd"] = "somebodyd"  # the published table has it the wrong way round, and so must we


@lru_cache(2**14)  # the same answers are judged again for every constant answer and every variant
def normalise(text: str) -> str:
    """An answer as LLaVA and the VQA challenge compare it.

    In this order: lower case; commas and question marks go, a genitive ``'s`` becomes a word; marks that touch a space
    go, others become a space; full stops go unless a digit follows; number words up to ten become digits; articles go;
    contractions get their apostrophe. Every full stop goes here, where the published program stops after 32.

    Source: ``EvalAIAnswerProcessor`` in mmf/utils/m4c_evaluators.py of facebookresearch/mmf, which LLaVA's
    llava/eval/m4c_evaluator.py and lmms-eval carry; after https://visualqa.org/evaluation.html.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    loose = {mark for mark in _MARKS if f"{mark} " in text or f" {mark}" in text}  # judged before any is replaced
    text = text.translate({ord(mark): "" if mark in loose else " " for mark in _MARKS})
    words = (_DIGITS.get(word, word) for word in _FULL_STOP.sub("", text).lower().split())
    return " ".join(_REPAIRED.get(word, word) for word in words if word not in _ARTICLES)


@register_metric("vqa_accuracy")
class VqaAccuracy(AnswerMetric):
    """min(people who gave this answer / 3, 1), averaged over the subsets that leave one person out.

    Ten people answer a question of VQA, TextVQA and VizWiz. Of fewer than four nobody could reach a full score: there
    the answers are taken as alternatives, and one of them is right.
    """

    title = "VQA accuracy"
    source = "VQA (Antol et al., ICCV 2015), as https://visualqa.org/evaluation.html computes it"

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        predicted = normalise(prediction)
        agreeing = sum(predicted == normalise(answer) for answer in answers)
        people = len(answers)
        if people <= FULL:
            return float(agreeing > 0)
        without_one = min((agreeing - 1) / FULL, 1.0) if agreeing else 0.0  # the person left out had agreed
        return (agreeing * without_one + (people - agreeing) * min(agreeing / FULL, 1.0)) / people
