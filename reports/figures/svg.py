"""matplotlib → SVG that lives in a page: text stays text, colours follow the page's theme, ids are its own."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MplFigure

# Drawn in these colours, then replaced by the page's variables, so that one drawing serves light and dark.
INK, MUTED, RULE, ACCENT, PAPER = "#1b1f24", "#6b7177", "#d9d7d2", "#0b5f80", "#fdfcfa"
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", PAPER: "--paper"}
_DARK = {INK: "#e8e6e1", MUTED: "#9aa0a6", RULE: "#3a3f45", ACCENT: "#6cb8d6", PAPER: "#16191d"}
WIDTH = 9.2  # inches
FONT = 9.5
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML forbids, even escaped
MARKERS = "os^DvPX*<>hp"
CHARACTER = 0.56 * FONT  # points: how wide a letter is, near enough to keep labels apart

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a '$' in a name is a '$'
    "axes.unicode_minus": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Figure:
    """A drawing with its words. ``inline`` goes into a page, ``standalone`` is a file of its own.

    ``data`` is what is drawn, as CSV; empty where a drawing has none to offer.
    """

    name: str
    title: str
    caption: str
    inline: str
    standalone: str
    data: str = ""


@contextmanager
def canvas(width: float, height: float) -> Iterator[MplFigure]:
    """A figure in our style, in inches, without pyplot's global state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as MplFigure

    with mpl.rc_context(_STYLE):
        yield MplFigure(figsize=(width, height))


def finish(figure: MplFigure, name: str, title: str, caption: str, description: str, data: str = "") -> Figure:
    """Render; ``description`` is the text alternative: what the drawing shows, in words and numbers.

    ``data`` is the same as CSV (:func:`reports.words.csv_text.csv_text`).
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    body = _UNPRINTABLE.sub("", buffer.getvalue())
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"\n\s*", "\n", body)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in _VARIABLES.items():
        body = re.sub(re.escape(colour), f"var({variable})", body, flags=re.IGNORECASE)
    body = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", body)
    head, rest = body.split(">", 1)
    view = re.search(r'viewBox="[^"]+"', head)
    assert view is not None
    said, description_text = (_UNPRINTABLE.sub("", escape(text)) for text in (title, description))
    words = f'<title id="{name}-title">{said}</title><desc id="{name}-desc">{description_text}</desc>'
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    aria = f'role="img" aria-labelledby="{name}-title {name}-desc"'
    inline = f"<svg {space} {view.group()} {aria}>{words}{rest}"
    standalone = f"<svg {space} {view.group()} {aria}>{words}<style>{_theme()}</style>{rest}"
    return Figure(name, title, caption, printable(inline.strip()), printable(standalone.strip()) + "\n", data)


def _theme() -> str:
    light = ";".join(f"{variable}:{colour}" for colour, variable in _VARIABLES.items())
    dark = ";".join(f"{variable}:{_DARK[colour]}" for colour, variable in _VARIABLES.items())
    return (
        f"svg{{{light};background:var(--paper);font-family:system-ui,sans-serif}}"
        f"@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"
    )


def short(text: str, most: int = 30) -> str:
    """Cut to what has room in a drawing."""
    return text if len(text) <= most else text[: most - 1] + "…"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, at least ``gap`` apart, within the bounds as far as there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(wanted[i], placed[-1] + gap) if placed else max(wanted[i], low))
    limit = high
    for k in range(len(placed) - 1, -1, -1):
        placed[k] = min(placed[k], limit)
        limit = placed[k] - gap
    out = [0.0] * len(wanted)
    for i, position in zip(order, placed, strict=True):
        out[i] = position
    return out


def line_labels(axes: Axes, lines: Sequence[tuple[float, str, str]]) -> None:
    """Labels (height, text, colour) at the right edge, kept apart, each tied to its line."""
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    points = axes.get_position().height * figure.get_figheight() * 72
    places = spread([y for y, _, _ in lines], 1.35 * FONT * (high - low) / points, low, high)
    across = axes.get_yaxis_transform()
    for (y, text, colour), place in zip(lines, places, strict=True):
        axes.plot([1.0, 1.015, 1.025], [y, place, place], transform=across, color=colour, lw=0.7, clip_on=False)
        axes.text(1.032, place, text, transform=across, color=colour, va="center", ha="left")
