"""Boxes of a varying number of objects as arrays, and points inside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in [0, 1]


def padded(boxes: Sequence[Sequence[Box]]) -> tuple[Floats, NDArray[np.bool_]]:
    """Boxes of N images as ``float32 [N, G, 4]``, G the most that one holds, and ``bool [N, G]``: which are real."""
    most = max(1, *(len(own) for own in boxes))
    out = np.zeros((len(boxes), most, 4), np.float32)
    for row, own in zip(out, boxes, strict=True):
        row[: len(own)] = np.reshape(np.asarray(own, np.float32), (-1, 4))
    return out, np.array([[number < len(own) for number in range(most)] for own in boxes], bool)


def points_inside(boxes: Floats, draws: Sequence[np.random.RandomState]) -> Floats:
    """A point in the middle half of each box, ``float32 [N, G, 2]``: on the object, and not its exact centre.

    Args:
        boxes: ``[N, G, 4]``.
        draws: one random stream per image, so that a point depends on nothing but its image and its place in it.
    """
    shares = np.stack([draw.uniform(0.25, 0.75, (*boxes.shape[1:2], 2)) for draw in draws])
    points: Floats = (boxes[..., :2] + shares * (boxes[..., 2:] - boxes[..., :2])).astype(np.float32)
    return points
