"""The cases of ``tests/truth``: what was tried, what happens, where it was met. docs/reliability.md prints them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType

import pytest
from places import ROOT

TRUTH = ROOT / "tests" / "truth"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- cases -->", "<!-- /cases -->"


class Kind(StrEnum):
    """The kinds of faults, in the order of the page."""

    WEIGHTS = "Weights that are not there"
    DEPENDENCIES = "What a study depends on has changed"
    ARTIFACTS = "Damaged results and weights"
    KEPT = "Finished studies that could get lost"
    SCORES = "Numbers that are not the score"
    WORDS = "Words that change on the way in"
    PICTURES = "Pictures that nobody reads"
    REPLICATES = "Replicates that are none"
    SECRETS = "Secrets"
    FILES = "Files of strangers"
    INPUT = "Input that cannot work"
    ENDINGS = "Ways to end"
    GROWTH = "Memory and time that grow"


@dataclass(frozen=True)
class Case:
    """A row of the page."""

    kind: Kind
    tried: str
    happens: str
    threads: tuple[str, ...]
    test: str


def case(kind: Kind, tried: str, happens: str, *threads: str) -> pytest.MarkDecorator:
    """Marks a test as one case.

    Args:
        kind: its section on the page.
        tried: what a user did, or what went wrong: "a block's weights are missing from model.safetensors".
        happens: what the product does now: "refused; names the first missing weight".
        threads: public threads that tell of it, as ``owner/repo#number``; none where it was found by injected faults.
    """
    return pytest.mark.case(kind, tried, happens, *threads)


def cases() -> Iterator[Case]:
    """Every case of ``tests/truth``, in the order of kinds, files and lines."""
    found = []
    for path in sorted(TRUTH.glob("test_*.py")):
        spec = spec_from_file_location(f"truth_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look for their module there
        spec.loader.exec_module(module)
        for name, function in vars(module).items():
            if not isinstance(function, FunctionType):
                continue
            marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "case"]
            found += [
                Case(mark.args[0], *mark.args[1:3], mark.args[3:], f"{path.name}::{name}") for mark in marks[::-1]
            ]
    yield from sorted(found, key=lambda c: list(Kind).index(c.kind))


def tables() -> str:
    """The cases as Markdown: a heading and a table for each kind."""
    by_kind: dict[Kind, list[Case]] = {}
    for c in cases():
        by_kind.setdefault(c.kind, []).append(c)
    parts = []
    for kind, rows in by_kind.items():
        lines = [f"### {kind}", "", "| tried | what happens | met in |", "|---|---|---|"]
        for row in rows:
            threads = ", ".join(_link(thread) for thread in row.threads) or "injected fault"
            lines.append(f"| {_cell(row.tried)} | {_cell(row.happens)} | {threads} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _link(thread: str) -> str:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)#(\d+)", thread)
    assert match, f"a thread is owner/repo#number, and this is {thread!r}"
    return f"[{thread}](https://github.com/{match[1]}/issues/{match[2]})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write(page: Path = PAGE) -> None:
    """Put the tables between the markers of the page."""
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    page.write_text(f"{head}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    write()
