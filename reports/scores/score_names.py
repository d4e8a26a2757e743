"""Which name holds a score, and which number is none: an index, a length, a time, what a model answered.

The names are those that lmms-eval's and lm-eval's tasks give the score of a document inside a metric's object, and that
people give it in tables. Nothing is a score because it is the only number there is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LARGEST = 1e100  # of a score: squares and their sums stay finite

# Whether a document was answered right; some tasks say it in words.
CORRECT = (
    "correct",
    "is_correct",
    "true_false",
    "correctness",
    "hit",
    "acc",
    "accuracy",
    "exact_match",
    "em",
    "judge_result",
)
# How well it was answered. "overall" stands beside the same number under the document's category.
GRADED = ("score", "gpt_score", "rating", "total_score", "anls", "overall")
_WORDS = {"true": 1.0, "yes": 1.0, "correct": 1.0, "false": 0.0, "no": 0.0, "incorrect": 0.0}

# The last word of a name that says where a document stands, how large it is, or what was said of it.
_LAST = frozenset(
    [
        "index",
        "idx",
        "id",
        "ids",
        "qid",
        "uid",
        "number",
        "no",
        "num",
        "nr",
        "count",
        "counts",
        "total",
        "length",
        "len",
        "size",
        "width",
        "height",
        "duration",
        "fps",
        "frame",
        "frames",
        "token",
        "tokens",
        "time",
        "times",
        "timestamp",
        "seconds",
        "ms",
        "latency",
        "date",
        "year",
        "seed",
        "line",
        "row",
        "page",
        "hash",
        "submission",
        "passthrough",
        "pred",
        "prediction",
        "predictions",
        "answer",
        "answers",
        "response",
        "target",
        "gt",
        "label",
    ]
)
_FIRST = frozenset(("n", "num", "number", "index", "idx", "id"))

# Of these less is better, unless a task turned them round.
_LESS = frozenset(
    [
        "wer",
        "cer",
        "mer",
        "mae",
        "mse",
        "rmse",
        "ppl",
        "perplexity",
        "loss",
        "nll",
        "latency",
        "seconds",
        "failure_rate",
        "error_rate",
    ]
)

# Objects whose "score" is no score of the document.
_OTHERWISE = (
    (
        re.compile(r"(naturalbench|cambench)_.*"),
        "the answer that was given, right or wrong, of which groups of documents are scored",
    ),
    (re.compile(r"(.*_)?r_squared"), "0 for every document; R² is worked out from all documents"),
    (re.compile(r"mmlongbench_doc_f1"), "its accuracy; F1 is worked out from all documents"),
)


def plain(name: object) -> str:
    """A name as names are compared: small letters, one underscore for spaces and dashes."""
    return re.sub(r"[\s\-]+", "_", str(name).strip().lower())


def number_of(value: Any, words: bool = False) -> float | None:
    """A finite number, true or false; None for all else. ``words``: "yes" and "no" and the like count too."""
    if isinstance(value, str) and words:
        return _WORDS.get(value.strip().lower())
    if not isinstance(value, (bool, int, float)) or not abs(value) <= LARGEST:  # nor what is not a number
        return None
    return float(value)


def no_score(name: str) -> bool:
    """Whether a name is that of a place, a size, a time or an answer: ``index``, ``question number``, ``doc_id``."""
    words = plain(name).split("_")
    return words[-1] in _LAST or words[0] in _FIRST


def less_is_better(measure: str) -> bool:
    """Whether a measure's name says so: ``librispeech/wer``."""
    name = plain(measure.rpartition("/")[2].partition(",")[0])
    return any(name == word or name.endswith(f"_{word}") or name.startswith(f"{word}_") for word in _LESS)


def not_a_score(metric: str) -> str:
    """What the ``score`` of a metric's object is instead; empty: a score."""
    return next((what for name, what in _OTHERWISE if name.fullmatch(plain(metric))), "")


def own_key(metric: str, keys: Sequence[str]) -> str:
    """The key that is called as the metric is, or as its name ends (``table_teds`` of ``omnidocbench_table_teds``)."""
    name = plain(metric)
    usable = [k for k in keys if not no_score(k)]
    exact = [k for k in usable if plain(k) in (name, f"{name}_value")]
    return max(exact or [k for k in usable if name.endswith(f"_{plain(k)}")], key=len, default="")


def known_keys(metric: str, keys: Sequence[str], readable: Sequence[str]) -> list[str]:
    """The keys that are known to hold a score; several only where the metric's name does not choose among them.

    Args:
        keys: all of the metric's objects.
        readable: those that hold a number; an accuracy whose own key holds none is not read from a judge's grade.
    """
    right, graded = ([k for k in keys if plain(k) in known] for known in (CORRECT, GRADED))
    if right and graded:
        last = plain(metric).rpartition("_")[2]
        if last in CORRECT:
            graded = []
        elif last in ("score", "rating"):
            right = []
    return [k for k in (*right, *graded) if k in readable]


def score_in(value: Mapping[str, Any], key: str) -> float | None:
    """The score under a key of a metric's object."""
    return number_of(value.get(key), words=plain(key) in CORRECT)


def counts_up(scores: Sequence[float], name: str = "") -> bool:
    """Whether numbers rise or fall in equal steps, as an index does and no scores do.

    Six numbers are enough to tell, and three of a name that says so: scores of 0 and 1 have but two values.
    """
    x = np.asarray(scores, dtype=float)
    if len(x) < (3 if name and no_score(name) else 6):
        return False
    steps = np.diff(x)
    return bool(steps[0] != 0 and np.allclose(steps, steps[0], rtol=1e-9, atol=0.0))
