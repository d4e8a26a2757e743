"""The rooms of the repository, as a picture and as tables: `python docs/images/draw_rooms.py` writes both anew.

What may import what comes from the contracts of import-linter in pyproject.toml, what a room holds from the first line
of its ``__init__.py``. tests/test_architecture.py holds picture and tables against what this file would write.
"""

from __future__ import annotations

import ast
import re
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
PAGE = ROOT / "docs" / "architecture.md"
WIDTH, LINE, GAP = 960, 34, 10


def layers(contract: str) -> list[list[str]]:
    """The levels of a contract, top first, each with its rooms."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    found = next(c for c in contracts if c["id"] == contract)
    return [re.findall(r"\w+", level) for level in found["layers"]]


def folder(room: str) -> Path:
    """Where a room of the package stands: a folder of the repository, or a sub-folder of workbench/."""
    own = ROOT / room
    return own if own.is_dir() else ROOT / "workbench" / room


def purpose(room: Path) -> str:
    """The first line of a room's docstring, or of a file's."""
    file = room / "__init__.py" if room.is_dir() else room.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def inner(room: str) -> list[Path]:
    """The rooms inside a folder of its own; reports' have levels, the others' have not."""
    if room == "reports":
        return [ROOT / "reports" / name for level in layers("reports") for name in level]
    return sorted(path for path in (ROOT / room).iterdir() if (path / "__init__.py").is_file())


def tables() -> str:
    """The tables of docs/architecture.md."""
    lines = ["| level | folder | holds |", "|---|---|---|"]
    levels = [[room for room in level if folder(room).is_dir()] for level in layers("rooms")]
    levels = [level for level in levels if level]
    for number, level in enumerate(levels):
        for room in level:
            place = folder(room)
            lines.append(f"| {len(levels) - number} | `{place.relative_to(ROOT)}/` | {purpose(place)} |")
            if place.parent == ROOT:
                lines += [f"| | `{sub.relative_to(ROOT)}/` | {purpose(sub)} |" for sub in inner(room)]
    return "\n".join(lines)


def picture() -> str:
    """An SVG: a row a level, imports run downwards; rooms that are folders of their own hold theirs."""
    rows: list[str] = []
    y = GAP
    for level in layers("rooms"):
        rooms = [room for room in level if folder(room).is_dir()]
        if not rooms:
            continue
        tall = max(2 + (len(inner(room)) if folder(room).parent == ROOT else 0) * 0.62 for room in rooms)
        height = LINE * tall * 0.72 if tall > 2 else LINE
        wide = (WIDTH - GAP * (len(rooms) + 1)) / len(rooms)
        for number, room in enumerate(rooms):
            x = GAP + number * (wide + GAP)
            place = folder(room)
            rows.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{wide:.0f}" height="{height:.0f}" rx="6"/>')
            name = str(place.relative_to(ROOT))
            if place.parent != ROOT:
                shown = f'<tspan class="name">{name}</tspan>'
                if len(rooms) == 1:
                    shown += f'<tspan dx="12">{escape(purpose(place))}</tspan>'
                rows.append(f'<text x="{x + 12:.0f}" y="{y + 22:.0f}">{shown}</text>')
                continue
            rows.append(f'<text x="{x + 12:.0f}" y="{y + 22:.0f}"><tspan class="name">{name}</tspan></text>')
            for line, sub in enumerate(inner(room)):
                rows.append(f'<text class="sub" x="{x + 20:.0f}" y="{y + 42 + 16 * line:.0f}">{sub.name}</text>')
        y += height + GAP
    style = (
        "rect{fill:#f4f6f8;stroke:#8a99a8}text{font:14px system-ui,sans-serif;fill:#24303b}"
        ".name{font-weight:600}.sub{font-size:13px}"
        "@media(prefers-color-scheme:dark){rect{fill:#1d242b;stroke:#64727f}text{fill:#dde5ec}}"
    )
    title = "The rooms of the repository, a row a level; imports run downwards only"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n" + "\n".join(rows) + "\n</svg>\n"
    )


def page(text: str) -> str:
    """docs/architecture.md with its tables written anew."""
    return re.sub(
        r"(<!-- rooms[^>]*-->\n).*?(\n<!-- /rooms -->)", lambda m: m[1] + tables() + m[2], text, flags=re.DOTALL
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
