"""Layer references: every notation, back and forth, and every way to get one wrong."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import LayerRef, Selection, notations, parse_layer

depths = st.integers(min_value=1, max_value=64)


@st.composite
def layers(draw: st.DrawFn) -> tuple[int, int]:
    """A layer and the depth of its encoder."""
    depth = draw(depths)
    return draw(st.integers(0, depth)), depth


@pytest.mark.parametrize(
    ("ref", "depth", "layer"),
    [
        (0, 12, 0),
        (8, 12, 8),
        ("8", 12, 8),
        ("hs:8", 12, 8),
        (" hs:8 ", 12, 8),
        (-1, 12, 12),
        (-2, 12, 11),
        ("-2", 24, 23),  # LLaVA's layer in CLIP-L
        ("hs:-2", 24, 23),
        (-13, 12, 0),
        ("block:1", 12, 1),
        ("block:12", 12, 12),
        ("timm:0", 12, 1),
        ("timm:7", 12, 8),
        ("timm:11", 12, 12),
        ("dc:1", 24, 0),
        ("dc:8", 24, 7),  # Dense Connector's "8" is hidden_states[7]
        ("dc:25", 24, 24),
        ("0%", 12, 0),
        ("100%", 12, 12),
        ("33%", 12, 4),  # 3.96
        ("33%", 24, 8),  # 7.92
        ("50%", 23, 12),  # 11.5, half up
        ("50%", 21, 11),  # 10.5: half up, where half to even would say 10
        ("25%", 2, 1),
        ("12.5%", 4, 1),
        ("37.5%", 12, 5),
        ("33 %", 12, 4),
    ],
)
def test_examples(ref: LayerRef, depth: int, layer: int) -> None:
    assert parse_layer(ref, depth) == layer


def test_the_published_selections_of_mmfuser() -> None:
    """``hidden_states[-22, -17, -12, -7]`` and ``[-2]`` of CLIP-L are the paper's 3, 8, 13, 18 and 23."""
    selection = Selection.parse([-22, -17, -12, -7], -2, 24)
    assert selection == Selection((3, 8, 13, 18), 23)


@given(layers())
def test_every_notation_of_a_layer_reads_as_that_layer(pair: tuple[int, int]) -> None:
    layer, depth = pair
    written = notations(layer, depth)
    assert set(written) == {"hs", "from the end", "block", "timm", "dense connector", "depth"}
    for text in written.values():
        assert text == "—" if "—" in text else parse_layer(text, depth) == layer
    assert ("—" in written["block"]) == ("—" in written["timm"]) == (layer == 0)


@given(layers())
def test_text_and_number_agree(pair: tuple[int, int]) -> None:
    layer, depth = pair
    for number in (layer, layer - depth - 1):
        assert parse_layer(number, depth) == parse_layer(str(number), depth) == layer


@given(st.integers(1, 200), st.integers(0, 10000))
def test_percentages_round_half_up(depth: int, hundredths: int) -> None:
    exact = Fraction(hundredths, 10000) * depth
    assert parse_layer(f"{hundredths // 100}.{hundredths % 100:02d}%", depth) == floor(exact + Fraction(1, 2))


@given(depths, st.data())
def test_percentages_never_fall(depth: int, data: st.DataObject) -> None:
    low, high = sorted(data.draw(st.tuples(st.integers(0, 100), st.integers(0, 100))))
    assert parse_layer(f"{low}%", depth) <= parse_layer(f"{high}%", depth)


@given(depths, st.integers(1, 1000))
def test_out_of_range(depth: int, beyond: int) -> None:
    refs: list[LayerRef] = [
        depth + beyond,
        -(depth + 1 + beyond),
        f"hs:{depth + beyond}",
        f"block:{depth + beyond}",
        f"timm:{depth + beyond - 1}",
        f"dc:{depth + 1 + beyond}",
    ]
    for ref in refs:
        with pytest.raises(WorkbenchError, match=rf"is out of range: this encoder has {depth} blocks"):
            parse_layer(ref, depth)


@pytest.mark.parametrize("ref", ["block:0", "dc:0", "101%", "100.5%"])
def test_just_outside(ref: str) -> None:
    with pytest.raises(WorkbenchError):
        parse_layer(ref, 12)


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "deep",
        "hs:",
        "hs:1.5",
        "1.5",
        "block:-1",
        "timm:-1",
        "layer:3",
        "-5%",
        "3 4",
        "%",
        True,
        None,
        3.0,
        [3],
    ],
)
def test_no_layer_reference(ref: object) -> None:
    with pytest.raises(WorkbenchError, match="is not a layer reference; write 8 or hs:8"):
        parse_layer(ref, 12)  # type: ignore[arg-type]


def test_one_line_that_names_what_was_wrong() -> None:
    with pytest.raises(WorkbenchError) as caught:
        parse_layer("hs:13", 12)
    assert "'hs:13'" in str(caught.value)
    assert "0 (the embeddings) to 12, or -1 to -13" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(depths, st.data())
def test_a_selection_is_sorted_levels_and_a_query(depth: int, data: st.DataObject) -> None:
    query = data.draw(st.integers(0, depth))
    others = [layer for layer in range(depth + 1) if layer != query]
    levels = data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
    selection = Selection.parse(levels, query, depth)
    assert selection.levels == tuple(sorted(levels))
    assert selection.query == query
    assert selection.layers == (*sorted(levels), query)
    assert hash(selection) == hash(Selection.parse(list(reversed(levels)), query, depth))


@given(depths, st.data())
def test_two_references_that_meet_are_an_error(depth: int, data: st.DataObject) -> None:
    layer = data.draw(st.integers(0, depth))
    writings = [text for text in notations(layer, depth).values() if text != "—"]
    first, second = data.draw(st.permutations([*writings, str(layer)]))[:2]
    query = (layer + 1) % (depth + 1)
    with pytest.raises(WorkbenchError, match=f"are both layer {layer} of this encoder"):
        Selection.parse([first, second], query, depth)
    with pytest.raises(WorkbenchError, match=f"are both layer {layer} of this encoder"):
        Selection.parse([first], second, depth)


def test_the_query_defaults_to_the_deepest_layer() -> None:
    assert Selection.parse([3, 6, 9], None, 12) == Selection((3, 6, 9), 12)
    assert Selection.parse([3], 0, 12).query == 0  # 0 is a layer, not "none given"
    with pytest.raises(WorkbenchError, match="are both layer 12"):
        Selection.parse([-1], None, 12)


def test_labels() -> None:
    assert Selection((3, 6, 9), 12).label == "[3,6,9]→12"
    assert Selection((), 11).label == "11"
