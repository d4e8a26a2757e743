"""The command line in the test's own process: quicker than a process of its own by all the imports."""

from __future__ import annotations

import sys

import pytest

from fusion_workbench.cli.main import main


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run ``workbench WORDS``; its exit status."""
    monkeypatch.setattr(sys, "argv", ["workbench", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def harmless(text: str) -> bool:
    """Whether a terminal obeys nothing in ``text`` but for line breaks."""
    return not any(c in text for c in "\x1b\x07\x9b\u202e\r")


def one_line(told: str) -> bool:
    """Whether standard error holds an error as it should be."""
    return told.startswith("error: ") and told.count("\n") == 1 and "Traceback" not in told and harmless(told)
