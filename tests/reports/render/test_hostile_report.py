"""Whatever a class, task, label, group, alias or option is called, in every file it is text and nothing else."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hostile_study import ALL, FORMULA, IMAGE, SCRIPT, hostile
from hypothesis import given
from hypothesis import strategies as st

from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.render.links import anchor, server
from fusion_workbench.reports.render.report import render
from fusion_workbench.reports.render.saving import save_files
from fusion_workbench.reports.words.csv_text import csv_text

ALLOWED = {"class", "id", "href", "download", "data-k", "data-v", "data-from", "src", "alt", "title", "style"}
Attributes = list[tuple[str, str | None]]


class Elements(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Attributes) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    analysis = Analysis(hostile())
    return render(analysis, answer(analysis))


def test_the_page_has_no_foreign_element(files: dict[str, str]) -> None:
    page = Elements(files["report.html"])
    tags = [tag for tag, _ in page.found]
    assert tags.count("script") == 1
    assert {given["src"] for tag, given in page.found if tag == "img"} == {"data:image/png;base64,iVBORw0KGgo="}
    assert not [name for _, given in page.found for name in given if name.startswith("on")]
    links = [given["href"] or "" for tag, given in page.found if tag == "a"]
    places = r"#[\w-]+|http://127\.0\.0\.1:5000/#/experiments/[\w%.-]+/runs/[\w%.-]+|data:text/csv;charset=utf-8,\S+"
    assert [link for link in links if not re.fullmatch(places, link)] == []
    for word in ALL[:5]:
        assert re.sub(r"\s+", " ", word) in re.sub(r"\s+", " ", page.text)


def test_figures_are_well_formed_and_inert(files: dict[str, str]) -> None:
    drawings = {name: text for name, text in files.items() if name.endswith(".svg")}
    assert len(drawings) > 5
    for text in drawings.values():
        root = ElementTree.fromstring(text)
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not names & {"script", "img", "image", "foreignObject", "a"}
        assert not [key for element in root.iter() for key in element.attrib if key.lower().startswith("on")]


def test_data_uris_hold_the_files_beside_the_page(files: dict[str, str]) -> None:
    links = {
        str(given["download"]): str(given["href"])
        for tag, given in Elements(files["report.html"]).found
        if tag == "a" and "download" in given
    }
    assert {f"figures/{name}" for name in links} == {name for name in files if re.fullmatch(r"figures/.*\.csv", name)}
    for name, uri in links.items():
        assert unquote(uri.partition(",")[2], errors="replace") == files[f"figures/{name}"].replace("\ud800", "?")


def test_no_field_of_a_table_is_a_formula(files: dict[str, str]) -> None:
    tables = {name: text for name, text in files.items() if name.endswith(".csv")}
    assert len(tables) > 5
    for text in tables.values():
        rows = list(csv.reader(io.StringIO(text)))
        assert len({len(row) for row in rows}) == 1
        for field in (field for row in rows for field in row):
            assert not re.match(r"[=@+\t\r]|-(?![\d.])", field), field
    assert f"'{FORMULA}" in {field for row in csv.reader(io.StringIO(tables["results.csv"])) for field in row}


def test_markdown_and_json_keep_it_as_text(files: dict[str, str]) -> None:
    prose = re.sub(r"```yaml\n.*?```", "", files["report.md"], flags=re.DOTALL)
    assert not re.search(r"<(script|img|svg|/)", prose)
    assert "](javascript" not in prose
    found = json.loads(files["report.json"])
    assert found["study"]["name"] == SCRIPT
    assert found["study"]["question"] == " ".join(ALL)
    assert any(cell["options"].get(SCRIPT) == IMAGE for cell in found["cells"])


def test_it_can_be_written(files: dict[str, str], tmp_path: Path) -> None:
    save_files(tmp_path, files)
    assert "half a pair ?" in (tmp_path / "report.html").read_text(encoding="utf-8")


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
def test_csv_reads_back_but_for_the_apostrophe(rows: list[list[str]]) -> None:
    back = list(csv.reader(io.StringIO(csv_text(["a", "b"], rows), newline="")))
    assert back[0] == ["a", "b"]
    for row, found in zip(rows, back[1:], strict=True):
        for word, field in zip(row, found, strict=True):
            plain = re.sub("\r\n?", "\n", word)
            assert field in (plain, f"'{plain}")
            assert not field.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_numbers_stay_numbers() -> None:
    assert csv_text(["n"], [[-1.5], [None], ["-x"]]) == "n\n-1.5\n\n'-x\n".replace("\n\n", '\n""\n')


@given(st.text(min_size=1))
def test_every_cell_has_a_place_that_a_link_can_name(cell: str) -> None:
    assert re.fullmatch(r"cell-[A-Za-z0-9_-]+", anchor(cell))


def test_the_address_of_a_server_and_of_nothing_else() -> None:
    assert server("https://me:secret@mlflow.example:8443/base/?token=1") == "https://mlflow.example:8443/base"
    assert server("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    for uri in (
        "sqlite:////x/mlflow.db",
        "javascript:alert(1)",
        "postgresql://me:secret@host/db",
        "http:",
        "databricks",
    ):
        assert server(uri) is None
