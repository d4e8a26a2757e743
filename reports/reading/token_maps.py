"""Test images to look at: token maps before and after fusion, as the study's last step logged them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.records import Look, LookColumn, LookExample, LookLevel, LookRegions, LookScore
from fusion_workbench.schema.names import LOOK_SCHEMA, Shown

KINDS: dict[str, str] = {
    Shown.RANDOM: "Drawn at random",
    Shown.HARDEST: "hardest: the worst mean over all cells",
    Shown.IMPROVED: "most improved",
    Shown.WORSENED: "most worsened",
}
_NAME = re.compile(r"[\w-][\w.-]*")  # a file beside look.json, nowhere else
_FORMATS = ("PNG", "WEBP", "JPEG")
_MOST_PIXELS = 4_000_000
_MORE, _LESS = (255, 140, 0), (0, 80, 230)  # laid over an image where a level is drawn on more, and less
_STRONGEST = 0.75  # how opaque at most


def read_look(plain: Any, file: Callable[[str], Path | None]) -> Look:
    """The look as ``look/look.json`` describes it; ``file`` finds what lies beside it.

    Raises:
        WorkbenchError: an unknown schema, or a picture that is missing or not what the description says.
        KeyError, TypeError, ValueError: the description lacks something or holds nonsense.
    """
    if plain["schema"] != LOOK_SCHEMA:
        raise WorkbenchError(f"schema {plain['schema']!r}; this version reads {LOOK_SCHEMA}")
    rows, columns = (int(n) for n in plain["grid"])
    examples = tuple(_example(entry, file) for entry in plain["examples"])
    read = [_column(entry, file, (rows, columns), len(examples)) for entry in plain["columns"]]
    return Look(
        baseline=_word(plain["baseline"]),
        featured=_word(plain["featured"]),
        columns=tuple(sorted(read, key=lambda c: c.layer is None)),  # layers first
        examples=examples,
        regions=tuple(_regions(entry, file, (rows, columns), len(examples)) for entry in plain.get("regions", ())),
    )


def look_groups(analysis: Analysis) -> list[dict[str, Any]]:
    """Examples by the reason they are shown for, with their scores in words; empty without a look."""
    look = analysis.record.look
    if look is None:
        return []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number, example in enumerate(look.examples):
        tasks = [example.task] if example.task else [t.name for t in analysis.record.tasks]
        scores = [_score(analysis, task, example.scores[task]) for task in tasks if task in example.scores]
        row = {"example": example, "scores": scores, "tiles": [c.tiles[number] for c in look.columns], "number": number}
        groups.setdefault((example.task, example.kind), []).append(row)
    return [
        {"title": f"{task}: {KINDS[kind]}" if task else KINDS[kind], "rows": rows}
        for (task, kind), rows in groups.items()
    ]


def look_page(analysis: Analysis) -> dict[str, Any]:
    """What the templates print of the look."""
    look, known = analysis.record.look, analysis.record.searched
    if look is None:
        return {"look": None}
    found = {"before": look.baseline or "", "after": look.featured or ""}
    parts = {
        "before fusion": [c for c in look.columns if c.layer is not None],
        "after fusion": [c for c in look.columns if c.layer is None],
    }
    groups = look_groups(analysis)
    heads = [(title, columns) for title, columns in parts.items() if columns]
    return {
        "look": look,
        "look_groups": groups,
        "look_names": {key: known[cell].name if cell in known else "" for key, cell in found.items()},
        "look_heads": heads,
        "look_starts": {0, len(heads[0][1])} if heads else set(),
        "look_drawn": _drawn(groups),
        "look_replicates": sorted({c.replicate for c in look.columns if c.replicate}),
    }


def _drawn(groups: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The images on which regions are shown, with why: all that were drawn at random, and of the others the first."""
    return [
        (group["title"], row)
        for group in groups
        for place, row in enumerate(group["rows"])
        if place == 0 or not row["example"].task
    ]


def look_json(look: Look | None) -> dict[str, Any] | None:
    """The look without its pictures."""
    if look is None:
        return None
    return {
        "baseline": look.baseline,
        "featured": look.featured,
        "columns": [
            {"layer": c.layer, "query": c.query, "cell": c.cell, "explained": list(c.explained)} for c in look.columns
        ],
        "regions": [
            {"cell": r.cell, "levels": [{k: getattr(v, k) for k in ("layer", "mean", "low", "high")} for v in r.levels]}
            for r in look.regions
        ],
        "examples": [
            {
                "example": e.example,
                "group": e.group,
                "kind": e.kind,
                "task": e.task,
                "scores": {
                    task: {"mean": s.mean, "before": list(s.before), "after": list(s.after)}
                    for task, s in e.scores.items()
                },
            }
            for e in look.examples
        ],
    }


def _score(analysis: Analysis, task: str, score: LookScore) -> dict[str, str]:
    """One task's scores of an example; before and after over the replicates that both have."""
    unit = analysis.measure(task).unit
    pairs = [(b, a) for b, a in zip(score.before, score.after, strict=False) if b is not None and a is not None]
    said = {"task": task, "symbol": unit.symbol, "mean": unit.score(score.mean), "before": "", "after": "", "gain": ""}
    if pairs:
        before, after = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        said |= {"before": unit.score(before), "after": unit.score(after), "gain": unit.signed(after - before)}
    return said


def _example(entry: Mapping[str, Any], file: Callable[[str], Path | None]) -> LookExample:
    kind = str(entry["why"]["kind"])
    if kind not in KINDS:
        raise WorkbenchError(f"an example is shown as '{kind}', which this version does not know")
    kind_of, content, _ = _picture(entry["file"], file)
    return LookExample(
        example=str(entry["example_id"]),
        group=str(entry["group"]),
        kind=kind,
        task=str(entry["why"]["task"]),
        picture=_uri(kind_of, content),
        scores={
            str(task): LookScore(float(s["mean"]), _numbers(s["before"]), _numbers(s["after"]))
            for task, s in entry["scores"].items()
        },
    )


def _column(
    entry: Mapping[str, Any], file: Callable[[str], Path | None], grid: tuple[int, int], examples: int
) -> LookColumn:
    """A strip cut into its examples."""
    tiles = [_uri("PNG", _encoded(tile)) for tile in _cut(entry["file"], file, grid, examples)]
    layer = entry.get("layer")
    return LookColumn(
        layer=None if layer is None else int(layer),
        query=bool(entry.get("query", False)),
        cell=str(entry.get("cell") or ""),
        replicate=str(entry.get("replicate") or ""),
        label=str(entry.get("label") or f"layer {layer}"),
        explained=tuple(float(share) for share in entry["explained"]),
        tiles=tuple(tiles),
    )


def _regions(
    entry: Mapping[str, Any], file: Callable[[str], Path | None], grid: tuple[int, int], examples: int
) -> LookRegions:
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
        LookLevel(
            layer=int(level["layer"]),
            mean=float(level["mean"]),
            low=float(level["low"]),
            high=float(level["high"]),
            tiles=tuple(_uri("PNG", _encoded(tint(tile))) for tile in _cut(level["file"], file, grid, examples)),
        )
        for level in entry["levels"]
    ]
    return LookRegions(str(entry["cell"]), str(entry["label"]), str(entry["replicate"]), tuple(levels))


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
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise WorkbenchError(f"the picture {name} is too large ({image.width}×{image.height})")
            return str(image.format), content, image.convert("RGB")
    except OSError as error:
        raise WorkbenchError(f"the picture {name} cannot be read ({type(error).__name__})") from None


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


def _numbers(values: Sequence[Any]) -> tuple[float | None, ...]:
    return tuple(None if value is None else float(value) for value in values)


def _word(value: Any) -> str | None:
    return None if value is None else str(value)
