"""Token maps on the page: test images before and after fusion, as the study's last step logged them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.records import TokenMaps, TokenMapScore
from fusion_workbench.reports.reading.token_maps import KINDS


def token_map_groups(analysis: Analysis) -> list[dict[str, Any]]:
    """Examples by the reason they are shown for, with their scores in words; empty without a look."""
    token_maps = analysis.record.token_maps
    if token_maps is None:
        return []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number, example in enumerate(token_maps.examples):
        tasks = [example.task] if example.task else [t.name for t in analysis.record.tasks]
        scores = [_score(analysis, task, example.scores[task]) for task in tasks if task in example.scores]
        row = {
            "example": example,
            "scores": scores,
            "tiles": [c.tiles[number] for c in token_maps.columns],
            "number": number,
        }
        groups.setdefault((example.task, example.kind), []).append(row)
    return [
        {"title": f"{task}: {KINDS[kind]}" if task else KINDS[kind], "rows": rows}
        for (task, kind), rows in groups.items()
    ]


def token_maps_page(analysis: Analysis) -> dict[str, Any]:
    """What the templates print of the look."""
    token_maps, by_id = analysis.record.token_maps, analysis.record.searched
    if token_maps is None:
        return {"look": None}
    found = {"before": token_maps.baseline or "", "after": token_maps.featured or ""}
    parts = {
        "before fusion": [c for c in token_maps.columns if c.layer is not None],
        "after fusion": [c for c in token_maps.columns if c.layer is None],
    }
    groups = token_map_groups(analysis)
    heads = [(title, columns) for title, columns in parts.items() if columns]
    return {
        "look": token_maps,
        "look_groups": groups,
        "look_names": {key: by_id[cell].name if cell in by_id else "" for key, cell in found.items()},
        "look_heads": heads,
        "look_starts": {0, len(heads[0][1])} if heads else set(),
        "look_drawn": _drawn(groups),
        "look_replicates": sorted({c.replicate for c in token_maps.columns if c.replicate}),
    }


def _drawn(groups: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The images on which regions are shown, with why: all that were drawn at random, and of the others the first."""
    return [
        (group["title"], row)
        for group in groups
        for place, row in enumerate(group["rows"])
        if place == 0 or not row["example"].task
    ]


def token_maps_json(token_maps: TokenMaps | None) -> dict[str, Any] | None:
    """The look without its pictures."""
    if token_maps is None:
        return None
    return {
        "baseline": token_maps.baseline,
        "featured": token_maps.featured,
        "columns": [
            {"layer": c.layer, "query": c.query, "cell": c.cell, "explained": list(c.explained)}
            for c in token_maps.columns
        ],
        "regions": [
            {"cell": r.cell, "levels": [{k: getattr(v, k) for k in ("layer", "mean", "low", "high")} for v in r.levels]}
            for r in token_maps.regions
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
            for e in token_maps.examples
        ],
    }


def _score(analysis: Analysis, task: str, score: TokenMapScore) -> dict[str, str]:
    """One task's scores of an example; before and after over the replicates that both have."""
    unit = analysis.measure(task).unit
    pairs = [(b, a) for b, a in zip(score.before, score.after, strict=False) if b is not None and a is not None]
    said = {"task": task, "symbol": unit.symbol, "mean": unit.score(score.mean), "before": "", "after": "", "gain": ""}
    if pairs:
        before, after = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        said |= {"before": unit.score(before), "after": unit.score(after), "gain": unit.signed(after - before)}
    return said
