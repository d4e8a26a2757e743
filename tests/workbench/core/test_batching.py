"""Work in batches of like length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusion_workbench.core.batching import by_length


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 9))
def test_every_place_is_in_one_batch_the_longest_first(lengths: list[int], size: int) -> None:
    found = list(by_length(range(len(lengths)), lengths.__getitem__, size))
    listed = [place for batch in found for place in batch]
    assert listed == sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    assert all(len(batch) == size for batch in found[:-1])
    assert all(1 <= len(batch) <= size for batch in found)


def test_places_are_read_before_the_first_batch_is_worked_on() -> None:
    """So that what the work writes down does not decide what is worked on."""
    done: set[int] = set()
    for batch in by_length((n for n in range(5) if n not in done), lambda place: place, 2):
        done |= {*batch, 0}
    assert done == {0, 1, 2, 3, 4}
