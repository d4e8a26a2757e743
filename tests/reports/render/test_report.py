"""The written report: complete, self-contained, escaped, and the same whenever it is written."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic_study import Synthetic, copy_database, tiny

from fusion_workbench.config.study import study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports import ReportPaths, write_report
from fusion_workbench.reports.figures.scores import pareto
from fusion_workbench.reports.figures.svg import spread
from fusion_workbench.reports.render.templating import markdown
from fusion_workbench.reports.words.units import SHARE
from fusion_workbench.reports.words.wording import count, number

CONCAT, FUSER, L5 = ("concat", (3, 6), 12), ("mmfuser", (3, 6), 12), ("deep_only", (), 5)
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting while it reads; keeps ids, links to ids, loaded resources, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []  # out of the page
        self.scripts = 0
        self.sorts: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        if given.get("id"):
            self.ids.append(str(given["id"]))
        for key in ("href", "xlink:href", "src"):
            if given.get(key):
                to = self.targets if str(given[key]).startswith("#") else self.links if tag == "a" else self.loads
                to.append(str(given[key]))
        for key in ("aria-labelledby", "data-from"):
            self.targets += [f"#{word}" for word in str(given.get(key) or "").split()]
        self.targets += [f"#{name}" for value in given.values() for name in re.findall(r"url\(#([^)]+)\)", value or "")]
        if "aria-sort" in given:
            self.sorts.append(str(given["aria-sort"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def paths(small_uri: str, tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    return write_report(small_uri, "synthetic", tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(paths: ReportPaths) -> str:
    return paths.html.read_text(encoding="utf-8")


def test_the_page_stands_alone(html: str) -> None:
    page = Page(html)
    assert page.loads == []
    place = r"http://127\.0\.0\.1:5000/#/experiments/\d+/runs/[0-9a-f]{32}|data:text/csv;charset=utf-8,[^<>\"\s]+"
    place += r"|https://arxiv\.org/abs/\d{4}\.\d{5}|https://github\.com/[\w./-]+/blob/[0-9a-f]{7,40}/[\w./-]+(\?plain=1)?(#L\d+(-L\d+)?)?"
    assert [link for link in page.links if not re.fullmatch(place, link)] == []
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in page.targets} <= set(page.ids)
    assert "@import" not in html
    assert len(html.encode()) < 2_000_000


def test_only_its_own_script_may_run(html: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == 1
    allowed = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in html.replace("&#39;", "'")
    assert "default-src 'none'" in html


def test_the_answer_comes_first(html: str, paths: ReportPaths) -> None:
    text = Page(html).text
    assert text.index("at learning rate 0.003") < text.index("Strategies by selection")
    assert text.index("learning_rates: [0.003]") < text.index("Strategies by selection")
    assert "Conditional on these photographs" in text
    assert paths.answer.split(".")[0] in text
    for baseline in ("deepest layer", "penultimate layer", "best single layer", "middle concat"):
        assert f"against {baseline}" in text
    snippet = re.search(r'<pre id="snippet" tabindex="0">(.*?)</pre>', html, flags=re.DOTALL)
    assert snippet is not None
    study_from_yaml(snippet.group(1), "snippet")


def test_tables_sort_and_speak(html: str) -> None:
    page = Page(html)
    assert set(page.sorts) == {"none", "descending"}
    for word in ("better", "worse", "not distinguishable", "the baseline itself", "recommended", "query only"):
        assert word in page.text
    assert "seed 4" in page.text
    assert "gates stayed shut" not in page.text  # the small study's gates all opened
    assert "loss still falling in 1 of 5" in page.text


def test_figures_have_words_and_text(html: str, paths: ReportPaths) -> None:
    names = {path.stem for path in paths.figures}
    assert names == {
        "verdict",
        "curve-read",
        "curve-digit",
        "cost-read",
        "cost-digit",
        "gates",
        "attention",
        "training",
    }
    for path in paths.figures:
        root = ElementTree.parse(path).getroot()
        space = "{http://www.w3.org/2000/svg}"
        title, description = root.find(f"{space}title"), root.find(f"{space}desc")
        assert title is not None
        assert description is not None
        assert title.text
        assert len(description.text or "") > 40
        assert len(list(root.iter(f"{space}text"))) > 5  # text is text, not outlines
        drawn = path.read_text(encoding="utf-8")
        assert "mathdefault" not in drawn
        assert "prefers-color-scheme" in drawn
        assert f'aria-labelledby="{path.stem}-title' in html
    curve = (paths.html.parent / "figures" / "curve-read.svg").read_text(encoding="utf-8")
    for line in ("best single layer (5)", "deepest layer (12)", "penultimate layer (11)", "middle concat", "chance"):
        assert line in curve


def test_json(paths: ReportPaths) -> None:
    found = json.loads(paths.json.read_text(encoding="utf-8"))
    assert found["schema"] == 2
    assert found["counts"] == {"expected": 55, "finished": 55}
    assert len(found["cells"]) == 11
    assert found["answer"]["cell"]["lr"] == 0.003
    assert found["answer"]["text"] == paths.answer
    assert {c["measure"] for c in found["comparisons"]} == {"read", "digit", "overall"}
    assert len(found["comparisons"]) == 3 * 4 * 11
    cell = found["cells"][0]
    assert cell["test"]["read"]["low"] < cell["test"]["read"]["mean"] < cell["test"]["read"]["high"]


def test_csv_is_long_form(paths: ReportPaths) -> None:
    with paths.csv.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 * 2 * 5
    assert {row["replicate"] for row in rows} == set("01234")
    with paths.intervals.open(encoding="utf-8", newline="") as file:
        intervals = list(csv.DictReader(file))
    assert len(intervals) == 11 * 3
    one = next(r for r in intervals if (r["strategy"], r["query"], r["measure"]) == ("deep_only", "5", "read"))
    mean = sum(float(r["test"]) for r in rows if (r["cell"], r["task"]) == (one["cell"], "read")) / 5
    assert float(one["mean"]) == pytest.approx(mean)
    assert one["best_single_layer_verdict"] == "the baseline itself"


def test_markdown_tables_are_tables(paths: ReportPaths) -> None:
    lines = paths.markdown.read_text(encoding="utf-8").splitlines()
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("|"):
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    tables = [block for block in blocks if block]
    assert len(tables) == 1 + 2 + 3 + 1 + 2 + 2  # answer, grids, comparisons, costs, seeds, published
    for table in tables:
        assert re.fullmatch(r"\|(-+:?\|)+", table[1])
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1
        assert len(table) > 2
    assert lines[0].startswith("# Which layers")


def test_written_twice_it_is_the_same(small_uri: str, paths: ReportPaths, tmp_path: Path) -> None:
    again = write_report(small_uri, "synthetic", tmp_path / "deep" / "folder")
    for name in ("html", "markdown", "json", "csv", "intervals"):
        assert getattr(again, name).read_bytes() == getattr(paths, name).read_bytes()
    assert [p.read_bytes() for p in again.figures] == [p.read_bytes() for p in paths.figures]


def test_everything_from_outside_is_escaped(mlflow_template: Path, tmp_path: Path) -> None:
    uri = copy_database(mlflow_template, tmp_path / "evil")
    evil = "<script>alert(1)</script>"
    study = Synthetic(
        name=evil,
        question=f'{evil} "quoted" | piped | [link](javascript:alert(1)) $x^2$',
        classes=(evil, "</style>", "{{ 7 * 7 }}"),
        groups=(evil, "a & b"),
        singles=(5, 12),
        selections=(((3, 6), 12),),
        strategies=("concat",),
        examples=20,
        epochs=2,
        replicates=2,
        rates=(0.003,),
    )
    study.write(uri)
    paths = write_report(uri, evil, tmp_path / "out")
    html = paths.html.read_text(encoding="utf-8")
    page = Page(html)
    assert page.scripts == 1
    assert page.loads == []
    assert all(re.match(r"http://127\.0\.0\.1:5000/#/|data:text/csv;", link) for link in page.links)
    assert "alert(1)</script>" not in html
    assert evil in page.text
    assert "{{ 7 * 7 }}" in page.text
    markdown = paths.markdown.read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "](javascript" not in markdown
    assert json.loads(paths.json.read_text(encoding="utf-8"))["study"]["name"] == evil
    for path in paths.figures:
        ElementTree.parse(path)


def test_a_study_that_is_still_running(mlflow_template: Path, tmp_path: Path) -> None:
    uri = copy_database(mlflow_template, tmp_path / "running")
    fate = {(key, 2): "missing" for key in tiny().planned_keys()} | {(CONCAT, 1): "running", (FUSER, 0): "diverged"}
    tiny(status="RUNNING", fate=fate, question="").write(uri)
    paths = write_report(uri, "synthetic", tmp_path / "out")
    text = Page(paths.html.read_text(encoding="utf-8")).text
    assert (
        "Incomplete: the study is still running with 6 of 12 variant-replicates (1 diverged, 1 running, 4 missing)"
        in text
    )
    assert "no verdict" in text
    assert "1 of 3 replicates" in text
    assert "Incomplete" in paths.answer


def test_a_study_that_has_only_begun(mlflow_template: Path, tmp_path: Path) -> None:
    uri = copy_database(mlflow_template, tmp_path / "begun")
    tiny(status="RUNNING", singles=(), selections=(), planned=False).write(uri)
    paths = write_report(uri, "synthetic", tmp_path / "out")
    assert paths.answer.startswith("No answer yet: the study is still running")
    assert "the learning-rate search has 0 runs so far" in paths.answer
    assert paths.figures == ()
    Page(paths.html.read_text(encoding="utf-8"))
    assert json.loads(paths.json.read_text(encoding="utf-8"))["answer"]["cell"] == {}


def test_only_single_layers(mlflow_template: Path, tmp_path: Path) -> None:
    uri = copy_database(mlflow_template, tmp_path / "single")
    tiny(selections=(), fate={(L5, 1): "out_of_memory"}).write(uri)
    text = Page(write_report(uri, "synthetic", tmp_path / "out").html.read_text(encoding="utf-8")).text
    assert "The study holds no fused selection" in text
    assert "1 out of memory" in text


def test_a_file_in_the_way(small_uri: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(WorkbenchError, match="a file is in the way"):
        write_report(small_uri, "synthetic", tmp_path / "out")


def test_numbers_in_words() -> None:
    assert [SHARE.score(0.4567), *map(SHARE.signed, (0.0123, -0.0123, -0.0001))] == ["45.7", "+1.2", "−1.2", "0.0"]
    assert [count(1.8e7), count(999), count(None), count(5.19e6)] == ["18 M", "999", "–", "5.19 M"]
    assert [number(1795.2), number(0.1512), number(0), number(None)] == ["1,795", "0.151", "0", "–"]
    assert str(markdown("a|b *c* <i> deep_only [3,6]→12 _x_")) == r"a\|b \*c\* &lt;i&gt; deep_only [3,6]→12 \_x\_"


def test_pareto() -> None:
    assert pareto([(1, 0.3), (2, 0.2), (2, 0.4), (3, 0.4), (4, 0.5)]) == [0, 2, 4]
    assert pareto([]) == []


def test_labels_are_kept_apart() -> None:
    placed = spread([5.0, 5.1, 5.2, 9.9], gap=1, low=0, high=10)
    ordered = sorted(placed)
    assert all(b - a >= 1 - 1e-9 for a, b in pairwise(ordered))
    assert max(placed) <= 10
