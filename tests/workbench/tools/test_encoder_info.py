"""What is said of encoders: the passport, and the table of families in the docs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from places import DOCS
from rich.console import Console

from fusion_workbench.modules.encoders.families import FAMILIES
from fusion_workbench.tools import encoders
from fusion_workbench.tools.encoders import families_markdown, show, show_families

DOCUMENT = DOCS / "encoders.md"


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_the_document_holds_the_table_of_the_code() -> None:
    assert families_markdown() in DOCUMENT.read_text(encoding="utf-8")


def test_every_family_is_listed() -> None:
    shown = console()
    show_families(shown)
    for name in FAMILIES:
        assert name in said(shown)


@pytest.mark.parametrize(("size", "grid"), [(56, "4 × 4 = 16"), (84, "6 × 6 = 36")])
def test_a_passport_names_grid_and_layers(tiny_clip: Path, size: int, grid: str) -> None:
    shown = console()
    show(shown, str(tiny_clip), size, None)
    for word in (grid, "clip_vision_model", "hs:3", "block:3", "timm:2", "dc:4", "penultimate", "learned table"):
        assert word in said(shown), word


def test_the_embedded_encoder_is_shown_as_it_would_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    quick, loaded = console(), console()
    show(quick, encoders.EMBEDDED, 112, None)
    monkeypatch.setattr(encoders, "_embedded", lambda image_size: None)
    show(loaded, encoders.EMBEDDED, 112, None)
    assert said(quick) == said(loaded)
