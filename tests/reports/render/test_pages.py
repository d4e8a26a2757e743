"""What every page that carries the script has to have for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_workbench.reports.render import templating

TEMPLATES = Path(templating.__file__).parent / "templates"
PAGES = [path for path in sorted(TEMPLATES.glob("*.html.j2")) if "{{ script }}" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_the_script_did(page: Path) -> None:
    """Sorting a table is told to a screen reader; without the place to say it, the script broke off."""
    assert 'id="said" class="hide" role="status"' in page.read_text(encoding="utf-8")


def test_there_are_pages() -> None:
    assert {page.name for page in PAGES} == {"bench.html.j2", "report.html.j2", "scores.html.j2"}
