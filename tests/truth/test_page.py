"""docs/reliability.md prints the cases of this folder."""

from __future__ import annotations

import cases


def test_the_page_prints_every_case() -> None:
    """After a change: ``python tests/helpers/cases.py``."""
    printed = cases.PAGE.read_text(encoding="utf-8").split(cases.BEGIN)[1].split(cases.END)[0]
    assert printed.strip() == cases.tables().strip()
