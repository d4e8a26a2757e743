"""Boxes written in words: RefCOCO's precision at an IoU of one half."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from fusion_workbench.modules.answers.metrics.base import AnswerMetric, register_metric

Box = tuple[float, float, float, float]  # left, top, right, bottom

THRESHOLD = 0.5
_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]", re.ASCII)


def parse_box(text: str) -> Box | None:
    """The first ``[left, top, right, bottom]`` in ``text``; None where there is none."""
    match = _BOX.search(text)
    if not match:
        return None
    left, top, right, bottom = map(float, match.groups())
    return (left, top, right, bottom) if all(map(math.isfinite, (left, top, right, bottom))) else None


def to_square(box: Box, width: float, height: float) -> Box:
    """A box in shares of an image of this size, in shares of the square that the image is padded to, centred.

    LLaVA-1.5 pads its images to squares and says boxes in shares of the square, whereas RefCOCO's are of the image
    (issue 606 of haotian-liu/LLaVA). A metric that compares one with the other measures the padding.
    """
    side = max(width, height)
    across, down = width / side, height / side
    x, y = (1 - across) / 2, (1 - down) / 2
    return (box[0] * across + x, box[1] * down + y, box[2] * across + x, box[3] * down + y)


def box_iou(one: Box, other: Box) -> float:
    """Intersection over union, 0 to 1; of equal boxes 1, also where they are empty.

    Ours, because torchmetrics' needs torchvision.
    """
    if one == other:
        return 1.0
    shared = _area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    union = _area(one) + _area(other) - shared
    return shared / union if union > 0 and math.isfinite(union) else 0.0


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


@register_metric("box_iou50")
class BoxIoU50(AnswerMetric):
    """Whether the predicted box covers a right one with an IoU of at least one half. No box is wrong.

    Boxes are written ``[x1, y1, x2, y2]``, top left and bottom right, as in LLaVA's instructions; answers and
    predictions in the same units, so pad the answers (:func:`to_square`) if the images are padded.
    """

    title = "box, IoU ≥ 0.5"
    source = "RefCOCO (Yu et al., ECCV 2016, arXiv 1608.00272); written as in LLaVA-1.5 (arXiv 2310.03744)"

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        predicted = parse_box(prediction)
        right = (parse_box(answer) for answer in answers)
        return float(
            predicted is not None and any(box_iou(predicted, box) >= THRESHOLD for box in right if box is not None)
        )
