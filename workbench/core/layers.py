"""Layer references: every notation in, one number out.

A layer is an index into transformers' ``hidden_states``: 0 is the embedding output, k the output of block k.
The field has other conventions (timm counts the first block 0, Dense Connector counts the stem 1); they are
accepted here, at the edge, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fusion_workbench.core.errors import WorkbenchError

LayerRef = int | str
MOST_LAYERS = 10_000  # of an encoder that somebody describes: far more than any has

NOTATIONS = (
    "8 or hs:8 (hidden_states), -2 (from the end), block:8 (block 8, counted from 1), timm:7 (blocks from 0), "
    "dc:9 (Dense Connector: the stem is 1) or 33% (of the depth)"
)


def parse_layer(ref: LayerRef, depth: int) -> int:
    """The index into ``hidden_states`` that ``ref`` names, in an encoder of ``depth`` blocks.

    A percentage is taken of the depth and rounded half up, so 50% of 23 blocks is 12.

    Raises:
        WorkbenchError: an unknown notation, or a layer that the encoder does not have.
    """
    layer = _read(ref, depth)
    if not 0 <= layer <= depth:
        raise WorkbenchError(
            f"layer {ref!r} is out of range: this encoder has {depth} blocks, so its layers are 0 (the embeddings) "
            f"to {depth}, or -1 to -{depth + 1} from the end."
        )
    return layer


def _read(ref: LayerRef, depth: int) -> int:
    if isinstance(ref, bool) or not isinstance(ref, int | str):
        raise WorkbenchError(f"layer {ref!r} is not a layer reference; write {NOTATIONS}.")
    text = str(ref).strip()
    if match := re.fullmatch(r"(?:hs:)?([+-]?\d+)", text):
        index = int(match[1])
        return index if index >= 0 else depth + 1 + index
    if match := re.fullmatch(r"block:(\d+)", text):
        if int(match[1]) == 0:
            raise WorkbenchError(f"layer {ref!r}: blocks are counted from 1; the embeddings are hs:0.")
        return int(match[1])
    if match := re.fullmatch(r"timm:(\d+)", text):
        return int(match[1]) + 1
    if match := re.fullmatch(r"dc:(\d+)", text):
        return int(match[1]) - 1
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        share = float(match[1])
        if share > 100:
            raise WorkbenchError(f"layer {ref!r}: a percentage of the depth lies between 0% and 100%.")
        return int(share * depth / 100 + 0.5)
    raise WorkbenchError(f"layer {ref!r} is not a layer reference; write {NOTATIONS}.")


def notations(layer: int, depth: int) -> dict[str, str]:
    """Every way of writing ``layer``; the inverse of :func:`parse_layer`, shown by ``workbench layers``."""
    return {
        "hs": f"hs:{layer}",
        "from the end": str(layer - depth - 1),
        "block": f"block:{layer}" if layer else "—",
        "timm": f"timm:{layer - 1}" if layer else "—",
        "dense connector": f"dc:{layer + 1}",
        "depth": f"{100 * layer / depth:.0f}%",
    }


@dataclass(frozen=True)
class Selection:
    """The layers that a variant reads: *levels* (shallow, ascending) and a *query* (deep, not among them)."""

    levels: tuple[int, ...]
    query: int

    @classmethod
    def parse(cls, levels: Sequence[LayerRef], query: LayerRef | None, depth: int) -> Selection:
        """Normalise references; the query defaults to the deepest layer.

        Raises:
            WorkbenchError: an unknown layer, or two references that meet in one layer.
        """
        deep = parse_layer(depth if query is None else query, depth)
        seen: dict[int, LayerRef] = {deep: depth if query is None else query}
        for ref in levels:
            layer = parse_layer(ref, depth)
            if layer in seen:
                raise WorkbenchError(
                    f"selection {list(levels)} with query {seen[deep]}: {ref!r} and {seen[layer]!r} are both layer "
                    f"{layer} of this encoder ({depth} blocks); name each layer once."
                )
            seen[layer] = ref
        return cls(tuple(sorted(layer for layer in seen if layer != deep)), deep)

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer of the selection, levels first, the query last: the order that strategies expect."""
        return (*self.levels, self.query)

    @property
    def label(self) -> str:
        return f"[{','.join(map(str, self.levels))}]→{self.query}" if self.levels else str(self.query)
