"""Names and words of others on the terminal and on pages: shown as the characters that they are."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cases import Kind, case
from commands import command, harmless
from synthetic_study import Synthetic

from fusion_workbench.system.bars import progress_bar
from fusion_workbench.system.console import WordsConsole

COMMANDS = "\x1b[31m\x07\u202e\x9b2J"  # a colour, the bell, right to left, another way to begin a command
WORD = f"m[/x] [bold]b[/bold] :100: :smile: {COMMANDS}end"
SHOWN = "m[/x] [bold]b[/bold] :100: :smile: "  # what a terminal shows of it, up to the first command


@case(
    Kind.FILES,
    "markup ([/x]), emoji codes (:100:), escape sequences and right-to-left marks in what is printed: sentences, "
    "tables, titles, bars, with and without a terminal",
    "printed as the characters that they are; what a terminal would obey is a replacement character",
)
@pytest.mark.parametrize("terminal", [True, False])
def test_the_console(terminal: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    def drawn(*things: Any, bar: bool = False) -> str:
        out = io.StringIO()
        console = WordsConsole(file=out, force_terminal=terminal, color_system=None, width=300)
        for thing in things:
            console.print(thing, highlight=False)
        if bar:
            with progress_bar(console, WORD, 3, unit=WORD) as advance:
                advance(1)
        return out.getvalue()

    table = Table(WORD, title=WORD, caption=WORD)
    table.add_row(WORD)
    table.add_row(Text(WORD))
    for text in (drawn(WORD), drawn(table), drawn(Text(WORD))):
        assert SHOWN in text
        assert not set("\x07\x9b\u202e") & set(text)
        assert "\x1b[31m" not in text
        assert "end" in text  # no column is narrower than what it shows
    if terminal:  # its own commands alone: the cursor, and no others
        text = drawn(bar=True)
        assert SHOWN.strip() in text
        assert not set("\x07\x9b\u202e") & set(text)
        assert "\x1b[31m" not in text
    assert "\ud800" not in drawn("half a pair \ud800")
    out = io.StringIO()
    WordsConsole(file=out, force_terminal=True).print("[bold]ours[/]", markup=True)
    assert out.getvalue() == "\x1b[1mours\x1b[0m\n"


def test_there_is_one_console() -> None:
    """Whatever prints takes the console that prints words; a new Console() would let a stranger's commands through."""
    from places import ROOT

    parts = ("workbench", "modules", "datamodules", "sweeps", "reports")
    found = [p for part in parts for p in (ROOT / part).rglob("*.py") if " Console(" in p.read_text(encoding="utf-8")]
    assert found == []


@case(
    Kind.FILES,
    "an encoder folder called m[/x]: workbench layers, workbench store list, and a workspace called no[/x]",
    "shown as it is called, where rich took it for a closing tag",
)
def test_names_of_folders(
    tiny_dinov2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"m[/x]:100:{COMMANDS}"  # the folder m[ with a folder in it
    shutil.copytree(tiny_dinov2, tmp_path / name)
    assert command(monkeypatch, "layers", name, "--image-size", "56") == 0
    told = capfd.readouterr().out
    assert "m[/x]:100:" in told
    assert harmless(told)
    assert command(monkeypatch, "store", "list", "-w", f"no[/x]{COMMANDS}") == 0
    told = capfd.readouterr().out
    assert "no[/x]" in told
    assert harmless(told)


@case(
    Kind.FILES,
    "line 100 of a file of conversations is bad, and workbench data check prints file:100:",
    "the number is printed; rich made an emoji of it",
)
def test_a_line_number_stays_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}]
    rows = [{"id": str(n), "image": "a.png", "conversations": turns} for n in range(99)]
    rows.append({"id": "99", "image": "gone.png", "conversations": turns})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command(monkeypatch, "data", "check", str(tmp_path / "rows.jsonl"))
    assert "rows.jsonl:100:" in capfd.readouterr().out


@case(Kind.FILES, "escape sequences in an argument that a command does not know", "repeated without them")
@pytest.mark.parametrize(
    "words",
    [["report"], ["sweep", "--no" + COMMANDS], ["ui", "--port", COMMANDS], ["cmd" + COMMANDS], ["layers", "a", WORD]],
)
def test_wrong_arguments(words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, *words) == 2
    told = capfd.readouterr().err
    assert "Usage" in told
    assert harmless(told)


@case(
    Kind.FILES,
    "a tracked study whose question, cells and classes hold escape sequences and right-to-left marks",
    "the answer on the terminal and the pages in HTML and Markdown have none",
)
def test_what_a_tracked_study_says(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    small = {
        "singles": (5, 12),
        "selections": (((3, 6), 12),),
        "strategies": ("concat",),
        "examples": 20,
        "replicates": 2,
    }
    Synthetic(question=WORD, group_name=WORD, **small).write(mlflow_uri)
    for file in tmp_path.rglob("variants.json"):
        cells = json.loads(file.read_text())
        file.write_text(json.dumps([cell | {"label": cell["label"] + WORD} for cell in cells]))
    assert command(monkeypatch, "report", "synthetic", "--uri", mlflow_uri, "--out", str(tmp_path / "out")) == 0
    told = capfd.readouterr().out
    assert "concat" in told
    assert harmless(told)
    for name in ("report.html", "report.md", "tables.tex"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert harmless(text)
    assert ":100:" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
