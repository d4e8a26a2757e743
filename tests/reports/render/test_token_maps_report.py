"""The look in the report, and scores that are no shares."""

from __future__ import annotations

import base64
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic_study import Synthetic, cell_id, copy_database, look_files, tiny
from test_report import Page

from fusion_workbench.reports import ReportPaths, write_report
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.units import COUNT, MIXED, SHARE, common, unit_of

CONCAT, L12 = ("concat", (3, 6), 12), ("deep_only", (), 12)


def artifacts(uri: str, run: str) -> Path:
    from mlflow.tracking import MlflowClient

    return Path(MlflowClient(tracking_uri=uri).get_run(run).info.artifact_uri.removeprefix("file://"))


def written(template: Path, folder: Path, study: Synthetic) -> tuple[ReportPaths, str]:
    """The report of a study, and the study's URI."""
    uri = copy_database(template, folder)
    study.write(uri)
    return write_report(uri, study.name, folder / "out"), uri


@pytest.fixture(scope="module")
def looked(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    return written(mlflow_template, tmp_path_factory.mktemp("looked"), tiny(look=True))[0]


def test_the_section_shows_every_example_in_every_column(looked: ReportPaths) -> None:
    html = looked.html.read_text(encoding="utf-8")
    page = Page(html)
    assert page.loads
    assert all(re.fullmatch(r"data:image/(png|webp);base64,[\w+/=]+", load) for load in page.loads)
    assert len(page.loads) == 5 * (1 + 3)
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in page.targets} <= set(page.ids)
    assert html.index('id="all"') < html.index('id="look"') < html.index('id="health"')
    assert "img-src data:;" in html
    section = html[html.index('<section id="look">') :]
    section = section[: section.index("</section>")]
    heads = [re.sub(r"<.*?>|\s+", " ", h).strip() for h in re.findall(r"<th scope=\"col.*?</th>", section, re.DOTALL)]
    assert [" ".join(h.split()) for h in heads] == [
        "image",
        "score layer 12 alone → concat [3,6]→12",
        "before fusion",
        "after fusion",
        "layer 3 level 44 %",
        "layer 12 query 44 %",
        "concat [3,6]→12 44 %",
    ]
    assert all(alt for alt in re.findall(r'<img[^>]* alt="([^"]*)"', section))
    assert section.count("<img") == section.count(" alt=")
    for words in ("regression to the mean", "not evidence", "nothing from one column to the next"):
        assert words in section
    text = " ".join(unescape(re.sub(r"<.*?>", " ", section)).split())
    assert "Drawn at random read 25.0 → 50.0 % digit 50.0 → 100.0 %" in text  # over the two replicates that both have
    assert "digit: most improved digit 50.0 → 100.0 % +50.0; all cells 12.5" in text


def test_tiles_are_the_strip_s(looked: ReportPaths) -> None:
    html = looked.html.read_text(encoding="utf-8")
    rows = re.findall(r"<tr><td><img class=\"picture\".*?</tr>", html, re.DOTALL)
    strip = np.asarray(Image.open(io.BytesIO(look_files(tiny())["look/b.png"])))
    for number, row in enumerate(rows):
        tile = re.findall(r'src="data:image/png;base64,([^"]+)"', row)[0]  # layer 3 comes first
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(tile)))), strip[8 * number :][:8])


def test_markdown_and_json_say_it_too(looked: ReportPaths) -> None:
    markdown = looked.markdown.read_text(encoding="utf-8")
    assert "## A look at test images" in markdown
    assert "| digit: most worsened | test-00004 | astronaut | digit 50.0 → 100.0 % |" in markdown
    look = json.loads(looked.json.read_text(encoding="utf-8"))["look"]
    assert (look["baseline"], look["featured"]) == (cell_id(L12), cell_id(CONCAT))
    assert [c["layer"] for c in look["columns"]] == [3, 12, None]
    assert look["examples"][2]["kind"] == "hardest"
    assert look["examples"][2]["scores"]["read"]["before"] == [0.0, 0.5, None]
    assert "base64" not in looked.json.read_text(encoding="utf-8")


def test_a_study_without_a_look_is_as_before(mlflow_template: Path, tmp_path: Path) -> None:
    paths, _ = written(mlflow_template, tmp_path, tiny(replicates=1))
    html = paths.html.read_text(encoding="utf-8")
    assert 'id="look"' not in html
    assert "#look" not in html
    assert "A look" not in paths.markdown.read_text(encoding="utf-8")
    assert json.loads(paths.json.read_text(encoding="utf-8"))["look"] is None


@pytest.fixture(scope="module")
def own(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A study with a look, to be spoiled: its URI and the folder of its artifacts."""
    uri = copy_database(mlflow_template, tmp_path_factory.mktemp("own"))
    return uri, artifacts(uri, tiny(look=True, replicates=1).write(uri))


def changed(**changes: Any) -> bytes:
    plain = json.loads(look_files(tiny())["look/look.json"])
    return json.dumps(plain | changes).encode()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("look.json", b"{", "holds nonsense"),
        ("look.json", b"\xff", "holds nonsense"),
        ("look.json", b"[]", "holds nonsense"),
        ("look.json", changed(schema=2), "schema 2; this version reads 1"),
        ("look.json", changed(grid=[8, 7]), "is 6×40, not 7×40"),
        ("look.json", changed(columns=[{"file": "../study.yaml", "explained": []}]), "study.yaml' is missing"),
        ("look.json", changed(columns=[{"kind": "layer"}]), "lacks something"),
        ("b.png", None, "the picture 'b.png' is missing"),
        ("b.png", b"<svg onload=alert(1)>", "the picture b.png cannot be read"),
    ],
)
def test_a_look_that_cannot_be_read_is_left_out_and_told(
    name: str, content: bytes | None, words: str, own: tuple[str, Path]
) -> None:
    uri, root = own
    file = root / "look" / name
    before = file.read_bytes()
    file.unlink() if content is None else file.write_bytes(content)
    record = read_study(uri, "synthetic")
    file.write_bytes(before)
    assert record.token_maps is None
    (note,) = record.notes
    assert note.startswith("The look at test images is left out: ")
    assert words in note


def test_what_a_look_says_is_escaped(own: tuple[str, Path], tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    plain = json.loads(look_files(tiny())["look/look.json"])
    for example in plain["examples"]:
        example |= {"example_id": evil, "group": evil}
    plain["columns"][0]["label"] = evil
    uri, root = own
    (root / "look" / "look.json").write_text(json.dumps(plain), encoding="utf-8")
    paths = write_report(uri, "synthetic", tmp_path)
    html = paths.html.read_text(encoding="utf-8")
    assert Page(html).scripts == 1
    assert 'id="look"' in html
    assert "<script" not in paths.markdown.read_text(encoding="utf-8")


# --- units ----------------------------------------------------------------------------------------------------------


def test_units_in_words() -> None:
    e = Estimate(-0.534, -0.8, -0.27, -0.75, -0.32, 0.1, 0.05, 0.09, 0.001, 5, 100)
    assert SHARE.size(e) == "−53.4 [−80.0, −27.0] points"
    assert COUNT.size(e) == "−0.53 [−0.80, −0.27]"
    assert [COUNT.score(1.234), COUNT.half(e), COUNT.signed(-0.001)] == ["1.23", "± 0.27", "0.00"]
    assert [SHARE.after("accuracy"), COUNT.after("mae")] == ["accuracy, %", "mae"]
    assert unit_of("metres").after("rmse") == "rmse, metres"
    assert (common([SHARE, SHARE]), common([SHARE, COUNT])) == (SHARE, MIXED)


@pytest.fixture(scope="module")
def counted(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportPaths, str]:
    """A study whose task 'digit' is a mean absolute error of 0.5 to 4.5."""
    study = tiny(
        errors=("digit",), look=True, replicates=5, examples=120, singles=(5, 10, 11, 12), group_name="category"
    )
    return written(mlflow_template, tmp_path_factory.mktemp("counted"), study)


def test_errors_are_not_shown_as_shares(counted: tuple[ReportPaths, str]) -> None:
    paths, uri = counted
    html, markdown = paths.html.read_text(encoding="utf-8"), paths.markdown.read_text(encoding="utf-8")
    text = Page(html).text
    analysis = Analysis(read_study(uri, "synthetic"))
    for cell in analysis.record.cells:
        error = analysis.means[cell.id, "digit"]
        assert 0.5 < error.mean < 4.5
        assert COUNT.score(error.mean) in text
        for wrong in (SHARE.score(error.mean), SHARE.effect(error), SHARE.score(error.low)):
            assert wrong not in text
            assert wrong not in markdown
        assert SHARE.score(analysis.means[cell.id, "read"].mean) in text
    assert "Test score (shares in per cent, others as they are)" in text
    assert "Less is better." in text
    assert "digit: test MAE, less is better" in text
    assert "shares in per cent, others as they are" in text
    assert "difference in the unit of each column" in text
    assert "digit 50.0" not in text  # in the look neither
    assert "digit 0.50 → 1.00" in text
    tasks = {t["name"]: t for t in json.loads(paths.json.read_text(encoding="utf-8"))["tasks"]}
    assert (tasks["digit"]["unit"], tasks["read"]["unit"]) == ("count", "share")


def test_less_is_better_where_it_is(counted: tuple[ReportPaths, str]) -> None:
    paths, uri = counted
    analysis = Analysis(read_study(uri, "synthetic"))
    assert analysis.baselines["digit", "best single layer"] == cell_id(("deep_only", (), 10))
    worst = analysis.comparisons["digit", "best single layer", cell_id(("deep_only", (), 5))]
    assert worst.difference is not None
    assert worst.difference.mean > 0
    assert worst.verdict == "worse"
    curve = (paths.html.parent / "figures" / "curve-digit.svg").read_text(encoding="utf-8")
    assert "Best at layer 10" in curve
    assert "digit: test MAE, less is better" in curve
    assert "mae, %" not in curve
    drawn = (paths.html.parent / "figures" / "verdict.svg").read_text(encoding="utf-8")
    assert "Difference on test, with 95 % intervals" in drawn
    html = paths.html.read_text(encoding="utf-8")
    assert "Where less is better the axis runs the other way" in html
    assert 'aria-sort="ascending"' in html


def test_groups_have_the_source_s_name(counted: tuple[ReportPaths, str], mlflow_template: Path, tmp_path: Path) -> None:
    text = Page(counted[0].html.read_text(encoding="utf-8")).text
    assert "Conditional on these categories: the test images come from 4 categories" in text
    assert "photograph" not in text
    one, _ = written(mlflow_template, tmp_path, tiny(group_name="", groups=("a",), replicates=1))
    assert "Conditional on this group: the test images come from 1 group;" in one.answer


# --- a plan that lacks something ------------------------------------------------------------------------------------


def test_an_entry_of_the_plan_that_lacks_something_is_told(mlflow_template: Path, tmp_path: Path) -> None:
    uri = copy_database(mlflow_template, tmp_path)
    plan = artifacts(uri, tiny(replicates=1).write(uri)) / "variants.json"
    entries = json.loads(plan.read_text())
    del entries[0]["query"]
    entries[1] = "nonsense"
    plan.write_text(json.dumps(entries))
    record = read_study(uri, "synthetic")
    assert len(record.cells) == 2
    assert record.notes == (
        "Entry 1 of variants.json is left out: it names no 'query'.",
        "Entry 2 of variants.json is left out: it describes no cell.",
    )
    assert "Entry 1 of variants.json" in write_report(uri, "synthetic", tmp_path / "out").html.read_text("utf-8")
