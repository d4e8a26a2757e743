"""The one console: what is printed is words, some of them of others, and never a terminal's or rich's own commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from fusion_workbench.core.text import printable


class WordsConsole(Console):
    """rich's console, for which square brackets and ``:100:`` are text, and which prints no control characters.

    Names of folders, files, cells, tasks and answers reach the terminal in tables, bars and sentences alike; here is
    where all of them pass. A sentence of our own that has markup is printed with ``markup=True``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(_shown(text), **settings)  # here too, so that columns are as wide as what they show

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_shown(segment.text), segment.style)


def _shown(text: str) -> str:
    return printable(text.encode("utf-8", "replace").decode())  # half a surrogate pair is no character


def error_console() -> Console:
    """Standard error, for what is told beside the work."""
    return WordsConsole(stderr=True)
