"""Error messages end in the word that was meant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusion_workbench.core.errors import WorkbenchError, nearest

STRATEGIES = ["mmfuser", "concat", "average", "deep_only"]


def test_a_close_word_is_offered() -> None:
    assert nearest("conact", STRATEGIES) == " Did you mean 'concat'?"
    assert nearest("MMFuser", STRATEGIES) == " Did you mean 'mmfuser'?"


def test_several_close_words_are_offered() -> None:
    assert nearest("layer_1", ["layer_10", "layer_11", "gate"]) == " Did you mean 'layer_11' or 'layer_10'?"


def test_no_close_word_lists_what_is_known() -> None:
    assert nearest("zzz", STRATEGIES) == " Known: average, concat, deep_only, mmfuser."


def test_nothing_known() -> None:
    assert nearest("concat", []) == ""


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=12), max_size=6))
def test_any_words(word: str, known: list[str]) -> None:
    hint = nearest(word, iter(known))
    assert hint == "" if not known else hint.startswith((" Did you mean '", " Known: "))


def test_a_workbench_error_is_its_message() -> None:
    assert str(WorkbenchError("layer 'x' is unknown")) == "layer 'x' is unknown"
