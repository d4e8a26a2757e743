"""Test images to look at: token maps before and after fusion, as the study's last step logged them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.reading.records import (
    TokenMapColumn,
    TokenMapExample,
    TokenMapLevel,
    TokenMapRegions,
    TokenMaps,
    TokenMapScore,
)
from fusion_workbench.schema.names import TOKEN_MAPS_SCHEMA, ExampleKind
from fusion_workbench.system.files import read_small

KINDS: dict[str, str] = {
    ExampleKind.RANDOM: "Drawn at random",
    ExampleKind.HARDEST: "hardest: the worst mean over all cells",
    ExampleKind.IMPROVED: "most improved",
    ExampleKind.WORSENED: "most worsened",
}
_NAME = re.compile(r"[\w-][\w.-]*")  # a file beside look.json, nowhere else
_FORMATS = ("PNG", "WEBP", "JPEG")
_MOST_PIXELS = 4_000_000
_LARGEST = 1e12  # of scores
_MORE, _LESS = (255, 140, 0), (0, 80, 230)  # laid over an image where a level is drawn on more, and less
_STRONGEST = 0.75  # how opaque at most


def read_token_maps(plain: Any, file: Callable[[str], Path | None]) -> TokenMaps:
    """The look as ``look/look.json`` describes it; ``file`` finds what lies beside it.

    Raises:
        WorkbenchError: an unknown schema, or a picture that is missing or not what the description says.
        KeyError, TypeError, ValueError: the description lacks something or holds nonsense.
    """
    if plain["schema"] != TOKEN_MAPS_SCHEMA:
        raise WorkbenchError(f"schema {plain['schema']!r}; this version reads {TOKEN_MAPS_SCHEMA}")
    rows, columns = (int(n) for n in plain["grid"])
    examples = tuple(_example(entry, file) for entry in plain["examples"])
    read = [_column(entry, file, (rows, columns), len(examples)) for entry in plain["columns"]]
    return TokenMaps(
        baseline=_word(plain["baseline"]),
        featured=_word(plain["featured"]),
        columns=tuple(sorted(read, key=lambda c: c.layer is None)),  # layers first
        examples=examples,
        regions=tuple(_regions(entry, file, (rows, columns), len(examples)) for entry in plain.get("regions", ())),
    )


def _example(entry: Mapping[str, Any], file: Callable[[str], Path | None]) -> TokenMapExample:
    kind = str(entry["why"]["kind"])
    if kind not in KINDS:
        raise WorkbenchError(f"an example is shown as '{kind}', which this version does not know")
    kind_of, content, _ = _picture(entry["file"], file)
    return TokenMapExample(
        example=str(entry["example_id"]),
        group=str(entry["group"]),
        kind=kind,
        task=str(entry["why"]["task"]),
        picture=_uri(kind_of, content),
        scores={
            str(task): TokenMapScore(_number(s["mean"]), _numbers(s["before"]), _numbers(s["after"]))
            for task, s in entry["scores"].items()
        },
    )


def _column(
    entry: Mapping[str, Any], file: Callable[[str], Path | None], grid: tuple[int, int], examples: int
) -> TokenMapColumn:
    """A strip cut into its examples."""
    tiles = [_uri("PNG", _encoded(tile)) for tile in _cut(entry["file"], file, grid, examples)]
    layer = entry.get("layer")
    return TokenMapColumn(
        layer=None if layer is None else int(layer),
        query=bool(entry.get("query", False)),
        cell=str(entry.get("cell") or ""),
        replicate=str(entry.get("replicate") or ""),
        label=str(entry.get("label") or f"layer {layer}"),
        explained=tuple(_number(share) for share in entry["explained"]),
        tiles=tuple(tiles),
    )


def _regions(
    entry: Mapping[str, Any], file: Callable[[str], Path | None], grid: tuple[int, int], examples: int
) -> TokenMapRegions:
    """Strips of shares as tints to lay over the images, clear at the level's mean."""
    from PIL import Image

    away = [abs(2 * value - 255) for value in range(256)]

    def tint(tile: Any) -> Any:
        share = tile.convert("L")
        more, less = (Image.new("RGB", tile.size, colour) for colour in (_MORE, _LESS))
        over = Image.composite(more, less, share.point([255 * (value > 127) for value in range(256)]))
        over.putalpha(share.point([round(_STRONGEST * value) for value in away]))
        return over

    levels = [
        TokenMapLevel(
            layer=int(level["layer"]),
            mean=_number(level["mean"]),
            low=_number(level["low"]),
            high=_number(level["high"]),
            tiles=tuple(_uri("PNG", _encoded(tint(tile))) for tile in _cut(level["file"], file, grid, examples)),
        )
        for level in entry["levels"]
    ]
    return TokenMapRegions(str(entry["cell"]), str(entry["label"]), str(entry["replicate"]), tuple(levels))


def _cut(name: Any, file: Callable[[str], Path | None], grid: tuple[int, int], examples: int) -> list[Any]:
    """The tiles of a strip, an example each."""
    rows, columns = grid
    _, _, strip = _picture(name, file)
    if strip.size != (columns, rows * examples):
        raise WorkbenchError(f"{name} is {strip.size[0]}×{strip.size[1]}, not {columns}×{rows * examples}")
    return [strip.crop((0, rows * number, columns, rows * (number + 1))) for number in range(examples)]


def _encoded(tile: Any) -> bytes:
    buffer = io.BytesIO()
    tile.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _picture(name: Any, file: Callable[[str], Path | None]) -> tuple[str, bytes, Any]:
    """Format, bytes and decoded pixels of a picture; nothing but pictures gets into the page."""
    from PIL import Image

    path = file(name) if isinstance(name, str) and _NAME.fullmatch(name) else None
    if path is None:
        raise WorkbenchError(f"the picture {name!r} is missing")
    try:
        content = read_small(path)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise WorkbenchError(f"the picture {name} is too large ({image.width}×{image.height})")
            return str(image.format), content, image.convert("RGB")
    except OSError as error:
        raise WorkbenchError(f"the picture {name} cannot be read ({type(error).__name__})") from None


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


def _numbers(values: Sequence[Any]) -> tuple[float | None, ...]:
    return tuple(None if value is None else _number(value) for value in values)


def _number(value: Any) -> float:
    """A score or a share. Raises ValueError for what none can be, TypeError for what is no number."""
    found = float(value)
    if abs(found) > _LARGEST:
        raise ValueError(f"{found:g} is no score")
    return found


def _word(value: Any) -> str | None:
    return None if value is None else str(value)
