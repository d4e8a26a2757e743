"""The folders of the package and their levels, as a picture and as a table.

``python docs/images/draw_rooms.py`` writes both anew. What may import what comes from the contracts of import-linter in
pyproject.toml, what a folder holds from the first line of its ``__init__.py``. tests/test_architecture.py holds picture
and table against what this file would write.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
PAGE = ROOT / "docs" / "architecture.md"
WIDTH, LINE, GAP = 960, 34, 10


def layers(contract: str) -> list[list[str]]:
    """The levels of a contract, top first, each with its folders."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    found = next(c for c in contracts if c["id"] == contract)
    return [re.findall(r"\w+", level) for level in found["layers"]]


def folder(room: str) -> Path:
    """Where a part of the package stands: a folder of the repository, or a sub-folder of workbench/."""
    own = ROOT / room
    return own if own.is_dir() else ROOT / "workbench" / room


def purpose(room: Path) -> str:
    """The first line of a folder's docstring."""
    file = room / "__init__.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def inner(room: str) -> list[tuple[str, list[Path]]]:
    """The folders inside one of the repository's: of reports by level, with its number."""
    if room == "reports":
        levels = layers("reports")
        return [(str(len(levels) - n), [ROOT / "reports" / name for name in level]) for n, level in enumerate(levels)]
    return [("", [path]) for path in sorted((ROOT / room).iterdir()) if (path / "__init__.py").is_file()]


def levels_with_folders() -> list[list[str]]:
    """The levels of the package, top first, without those that are single files."""
    kept = ([room for room in level if folder(room).is_dir()] for level in layers("rooms"))
    return [level for level in kept if level]


def table() -> str:
    """The table of docs/architecture.md."""
    lines = ["| level | folder | holds |", "|---|---|---|"]
    levels = levels_with_folders()
    for number, level in enumerate(levels):
        for room in level:
            place, high = folder(room), len(levels) - number
            lines.append(f"| {high} | `{place.relative_to(ROOT)}/` | {purpose(place)} |")
            if place.parent != ROOT:
                continue
            for within, folders in inner(room):
                named = f"{high}.{within}" if within else ""
                lines += [f"| {named} | `{sub.relative_to(ROOT)}/` | {purpose(sub)} |" for sub in folders]
    return "\n".join(lines)


def box(room: str, wide: float) -> tuple[float, list[str]]:
    """One folder: how high it is drawn, and its lines of text, from the corner of its rectangle."""
    place = folder(room)
    name = f'<tspan class="name">{place.relative_to(ROOT)}/</tspan>'
    if wide > WIDTH / 2:
        return LINE, [f'<text x="12" y="22">{name}<tspan x="192">{escape(purpose(place))}</tspan></text>']
    lines, y = [f'<text x="12" y="22">{name}</text>'], 22
    for part in textwrap.wrap(purpose(place), int((wide - 24) / 7.1)):
        y += 17
        lines.append(f'<text class="sub" x="12" y="{y}">{escape(part)}</text>')
    if place.parent == ROOT and inner(room):
        y += 8
        for _, folders in inner(room):
            y += 17
            lines.append(f'<text class="sub" x="24" y="{y}">{" · ".join(f"{sub.name}/" for sub in folders)}</text>')
    return y + 12, lines


def picture() -> str:
    """An SVG: a row per level, imports run downwards; folders of the repository hold theirs, reports' by level."""
    rows: list[str] = []
    y = float(GAP)
    for level in levels_with_folders():
        wide = (WIDTH - GAP * (len(level) + 1)) / len(level)
        boxes = [box(room, wide) for room in level]
        height = max(tall for tall, _ in boxes)
        for number, (_, lines) in enumerate(boxes):
            x = GAP + number * (wide + GAP)
            rows.append(f'<g transform="translate({x:.0f} {y:.0f})">')
            rows.append(f'<rect width="{wide:.0f}" height="{height:.0f}" rx="6"/>')
            rows += [*lines, "</g>"]
        y += height + GAP
    style = (
        "rect{fill:#f4f6f8;stroke:#8a99a8}text{font:14px system-ui,sans-serif;fill:#24303b}"
        ".name{font-weight:600}text.sub{font-size:12.5px}"
        "@media(prefers-color-scheme:dark){rect{fill:#1d242b;stroke:#64727f}text{fill:#dde5ec}}"
    )
    title = "The folders of the package, a row per level; imports run downwards only"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n" + "\n".join(rows) + "\n</svg>\n"
    )


def page(text: str) -> str:
    """docs/architecture.md with its table written anew."""
    return re.sub(
        r"(<!-- rooms[^>]*-->\n).*?(<!-- /rooms -->)", lambda m: f"{m[1]}{table()}\n{m[2]}", text, flags=re.DOTALL
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
