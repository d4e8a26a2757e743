"""A record of benchmarks as a page in the report's look: self-contained, light and dark, wide and narrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusion_workbench.bench.record import Figure, GroupRecord, Kind, Record
from fusion_workbench.reports.figures import svg
from fusion_workbench.reports.render.saving import save_files
from fusion_workbench.reports.render.templating import frame, template
from fusion_workbench.reports.words.csv_text import csv_text
from fusion_workbench.reports.words.wording import number

PAGE = "bench.html"
_ROW = 0.3  # inches
_DRAWN = (Kind.SPEED, Kind.TIME, Kind.LIMIT)  # ratios with a place on one axis
_READ = {
    Kind.SPEED: "×",
    Kind.TIME: "× the time",
    Kind.LIMIT: "% of the limit",
    Kind.SHARE: "% of the time",
    Kind.EXPONENT: "as an exponent",
    Kind.EQUAL: "apart",
}


def figure_words(figure: Figure) -> tuple[str, str]:
    """The figure and its range as people read them; of what was not measured, why."""
    ratio = figure.ratio
    if ratio is None:
        return "not measured", figure.missing
    percent = figure.kind in (Kind.LIMIT, Kind.SHARE)
    values = [number(100 * value if percent else value) for value in (ratio.median, ratio.low, ratio.high)]
    unit = figure.unit if figure.kind == Kind.ABSOLUTE else _READ[figure.kind]
    space = "" if unit == "×" else " "
    return f"{values[0]}{space}{unit}", f"{values[1]} to {values[2]}"


def write_page(record: Record, out: Path) -> Path:
    """Write ``bench.html`` of what a record has so far.

    Raises:
        WorkbenchError: ``out`` cannot be written.
    """
    groups = [
        {"record": group, "drawing": _drawing(group), "rows": [_row(figure) for figure in group.figures]}
        for group in record.groups
    ]
    about = record.facts["machine"]
    context: dict[str, Any] = {
        "facts": record.facts,
        "machine": about,
        "versions": about["versions"],
        "caveats": record.caveats(),
        "groups": groups,
        "headline": _headline(record),
        **frame(),
    }
    save_files(out, {PAGE: template("bench.html.j2").render(context)})
    return out / PAGE


def _headline(record: Record) -> str:
    figures = [figure for group in record.groups for figure in group.figures]
    missing = sum(figure.ratio is None for figure in figures)
    told = f"{len(figures) - missing} figures in {len(record.groups)} group{'s' if len(record.groups) != 1 else ''}"
    return f"{told}, {missing} not measured" if missing else told


def _row(figure: Figure) -> dict[str, Any]:
    value, spread = figure_words(figure)
    return {"figure": figure, "value": value, "spread": spread, "repeats": figure.ratio.repeats if figure.ratio else 0}


def _drawing(group: GroupRecord) -> svg.Figure | None:
    """The group's ratios on one logarithmic axis, with their ranges; nothing where there is none."""
    drawn = [(f, f.ratio) for f in group.figures if f.ratio is not None and f.kind in _DRAWN and f.ratio.low > 0]
    if not drawn:
        return None
    tall = _ROW * len(drawn) + 0.1
    height = tall + 0.75
    with svg.canvas(svg.WIDTH, height) as figure:
        axes = figure.add_axes((0.55, 0.5 / height, 0.43, tall / height))
        axes.set_xscale("log")
        low, high = min(1.0, *(r.low for _, r in drawn)), max(1.0, *(r.high for _, r in drawn))
        axes.set_xlim(low / 1.15, high * 1.15)
        axes.set_ylim(len(drawn) - 0.5, -0.5)
        axes.axvline(1, color=svg.MUTED, lw=0.9, zorder=1)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_yticks(range(len(drawn)), [svg.short(f.name, 68) for f, _ in drawn], color=svg.INK)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("ratio, as the table reads it; the line is 1")
        for y, (f, r) in enumerate(drawn):
            axes.plot([r.low, r.high], [y, y], color=svg.ACCENT, lw=1.6)
            axes.plot(
                [r.median], [y], svg.MARKERS[0], color=svg.ACCENT, mfc=svg.PAPER if f.marked else svg.ACCENT, ms=5
            )
        said = "; ".join(f"{f.name} {' '.join(figure_words(f))}" for f, _ in drawn)
        rows = [[f.name, f.against, f.kind.value, r.median, r.low, r.high, r.repeats] for f, r in drawn]
        return svg.finish(
            figure,
            f"bench-{group.name}",
            group.title,
            "Medians of paired ratios, the line is their range over the repeats.",
            said,
            csv_text(["what", "against", "read as", "median", "low", "high", "repeats"], rows),
        )
