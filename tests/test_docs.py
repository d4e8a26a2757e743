"""What the pages name exists: files of the repository, modules in examples, pages that they link to."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
OURS = re.compile(r"(?:workbench|modules|datamodules|sweeps|reports|tests|docs)/[\w./-]*")
KINDS = ("strategies", "injections", "tasks", "sources", "families", "metrics", "encoders")
GROUPS = {f"fusion_workbench.{kind}" for kind in KINDS}  # of entry points
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def paths(text: str) -> list[str]:
    """The paths of the repository that stand in backticks."""
    return [word for quoted in re.findall(r"`([^`\n]+)`", text) for word in quoted.split() if OURS.fullmatch(word)]


@pages
def test_files_that_a_page_names_exist(page: Path) -> None:
    missing = [path for path in paths(page.read_text(encoding="utf-8")) if not (ROOT / path).exists()]
    assert not missing


@pages
def test_pages_that_a_page_links_to_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pages
def test_what_an_example_imports_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(?:from|import) (?:workbench|modules|datamodules|sweeps|reports)\b", text, re.MULTILINE)
    for module, names in re.findall(r"^from (fusion_workbench[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        missing = [name for name in names.replace(" ", "").split(",") if not hasattr(import_module(module), name)]
        assert not missing, module


@pages
def test_dotted_names_of_the_package_exist(page: Path) -> None:
    """``fusion_workbench.a.b``, with ``.c`` after it for its neighbour ``fusion_workbench.a.c``."""
    for line in page.read_text(encoding="utf-8").splitlines():
        full = ""
        for word in re.findall(r"`([\w.]+)`", line):
            if word.startswith("fusion_workbench.") and word not in GROUPS:
                full = word
            elif full and re.fullmatch(r"\.[a-z_]+", word) and f"fusion_workbench{word}" not in GROUPS:
                full = full.rpartition(".")[0] + word
            else:
                continue
            assert resolve_name(full), f"{page.name}: {full}"


def test_where_to_change_something_is_a_file() -> None:
    """CONTRIBUTING's table: every row names one file first, which is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where do I change …\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    for change, place in rows:
        assert (ROOT / paths(place)[0]).is_file(), change
    assert len({place for _, place in rows}) == len(rows), "one file per change"
