"""Places of work in batches of about one length, for whatever then puts its results back by place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator


def by_length(places: Iterable[int], length: Callable[[int], int], size: int) -> Iterator[list[int]]:
    """Each of ``places`` once, ``size`` at most together: alike lengths, so that little is padding, the longest first.

    The longest first, so that what does not fit into memory fails at once. Of one length the order is kept.

    Args:
        length: of a place, in whatever unit.
    """
    ordered = sorted(places, key=lambda place: -length(place))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))
