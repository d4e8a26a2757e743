"""The page in a real browser: it sorts, filters, leads somewhere, prints, can be read by all, and asks no network.

Needs Chromium (Debian: ``apt-get install chromium``); Playwright drives the one that is installed and downloads none.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_study import hostile, hostile_language
from synthetic_study import planted, truth

from fusion_workbench.reports import write_report
from fusion_workbench.reports.against.probes import compare_with_probes
from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.render.report import render
from fusion_workbench.reports.render.saving import save_files

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; Debian: apt-get install chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is one of the dev dependencies")
    with api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(small_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 cells, five replicates."""
    return write_report(small_uri, "synthetic", tmp_path_factory.mktemp("browser")).html


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study that means harm, with a look and with gates that stayed shut."""
    folder = tmp_path_factory.mktemp("hostile")
    analysis = Analysis(hostile())
    save_files(folder, render(analysis, answer(analysis)))
    return folder / "report.html"


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a study of language models, beside the other as its study of probes."""
    folder = tmp_path_factory.mktemp("spoken")
    analysis = Analysis(hostile_language())
    save_files(folder, render(analysis, answer(analysis), None, compare_with_probes(analysis, hostile())))
    return folder / "report.html"


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a file in a window of its own. Afterwards: nothing on the console, nothing asked of the network."""
    contexts, asked, heard = [], [], []

    def route(request: Any) -> None:
        if request.request.url.startswith("file:///"):
            request.continue_()
        else:
            asked.append(request.request.url)
            request.abort()

    def visit(file: Path, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        context.set_default_timeout(60_000)  # a machine that is busy is no failure
        contexts.append(context)
        context.route("**/*", route)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(file.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert asked == []
    assert heard == []


def shown(page: Any, table: str) -> list[str]:
    """The row heads of a table that can be seen."""
    return [row.inner_text() for row in page.locator(f"{table} tbody tr:not([hidden]) th").all()]


def test_a_table_sorts(report: Path, visit: Open) -> None:
    page = visit(report)
    head = page.locator("#cost th", has_text="parameters")
    numbers = lambda: [float(cell.get_attribute("data-v")) for cell in page.locator("#cost td:nth-child(2)").all()]  # noqa: E731
    button = head.get_by_role("button")
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(numbers(), reverse=True)
    button.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(numbers())
    assert page.locator("#said").inner_text() == "Sorted by parameters, ascending"
    page.locator("#cost th", has_text="cell").get_by_role("button").click()
    assert shown(page, "#cost")[:3] == ["average [3,4,5]→6", "average [3,6,9]→12", "concat [3,4,5]→6"]
    assert page.locator('#cost th[aria-sort="none"]').count() == 6


def test_a_table_filters(report: Path, visit: Open) -> None:
    page = visit(report)
    table = "#all details[open]"
    bar = page.locator(f"{table} .filter")
    everything = shown(page, table)
    assert bar.locator("output").inner_text() == f"{len(everything)} rows"
    page.get_by_role("group", name="Filter: Every comparison on overall").get_by_label("Filter").fill("Concat 3, 6")
    assert shown(page, table) == ["concat [3,6,9]→12"]
    assert bar.locator("output").inner_text() == f"1 of {len(everything)} rows"
    assert bar.get_by_role("status").count() == 1  # what a screen reader is told of
    bar.get_by_label("Filter").fill("")
    rows = [row.locator("td").all_inner_texts() for row in page.locator(f"{table} tbody tr").all()]
    bar.get_by_label("Verdict").select_option("not distinguishable")
    in_any = [any("not distinguishable" in cell for cell in row) for row in rows]
    assert shown(page, table) == [name for name, there in zip(everything, in_any, strict=True) if there]
    bar.get_by_label("in column").select_option(label="best single layer")
    in_one = ["not distinguishable" in row[4] for row in rows]  # after validation, test and two other baselines
    assert shown(page, table) == [name for name, there in zip(everything, in_one, strict=True) if there]
    assert sum(in_one) < sum(in_any) <= len(everything)
    bar.get_by_label("Filter").fill("no such cell")
    assert shown(page, table) == []
    assert page.locator("#cost tbody tr:not([hidden])").count() == len(everything)  # its own filter, its own rows


def test_a_cell_leads_to_its_runs(report: Path, visit: Open) -> None:
    page = visit(report)
    entry = page.locator("#runs details", has_text="deep_only 5")
    assert not entry.locator("table").is_visible()
    page.locator("#cost a", has_text="deep_only 5").click()
    assert entry.locator("table").is_visible()
    assert entry.locator("summary").evaluate(
        "e => { const at = e.getBoundingClientRect(); return 30 < at.top && at.bottom < innerHeight; }"
    )
    rows = [row.inner_text().split("\t") for row in entry.locator("tbody tr").all()]
    assert [row[:2] for row in rows] == [[f"seed {n}", "finished"] for n in range(5)]
    link = entry.get_by_role("link").first.get_attribute("href")
    assert re.fullmatch(r"http://127\.0\.0\.1:5000/#/experiments/\d+/runs/[0-9a-f]{32}", link)


def test_a_link_from_outside_opens_what_is_folded(report: Path, visit: Open, browser: Any) -> None:
    page = visit(report)
    place = page.locator("#runs details div").first.get_attribute("id")
    page.goto(f"{report.as_uri()}#{place}")
    assert page.locator(f"#{place}").is_visible()


def test_the_data_of_a_figure_is_a_file(report: Path, visit: Open) -> None:
    page = visit(report)
    with page.expect_download() as waiting:
        page.locator("#curve-read .data").click()
    assert waiting.value.suggested_filename == "curve-read.csv"
    saved = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert saved == (report.parent / "figures" / "curve-read.csv").read_text(encoding="utf-8")
    assert saved.splitlines()[0] == 'point or line,layer,"mean, %",low,high'


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [("report", "light", 1280), ("report", "dark", 1280), ("nasty", "light", 375), ("spoken", "dark", 1280)],
)
def test_axe_finds_nothing_serious(
    name: str, scheme: str, width: int, visit: Open, request: pytest.FixtureRequest
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    # What tests the page is a script that its policy would forbid; the page itself is the same.
    viewport = {"width": width, "height": 900}
    page = visit(request.getfixturevalue(name), color_scheme=scheme, viewport=viewport, bypass_csp=True)
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    told = [(v["id"], v["impact"], v["nodes"][0]["html"][:200]) for v in found]
    print(told)
    assert [violation for violation in told if violation[1] in ("serious", "critical")] == []


def test_the_keyboard_reaches_everything(report: Path, visit: Open) -> None:
    page = visit(report)
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the contents"
    assert page.locator(":focus").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Strategies"
    assert page.locator(":focus").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"


def test_wide_tables_scroll_in_their_own_box(report: Path, visit: Open) -> None:
    page = visit(report, viewport={"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    box = page.locator("#all details[open] .scroll")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth && e.tabIndex === 0")
    assert visit(report).locator("#cost .scroll").evaluate("e => e.tabIndex") == -1  # fits: no stop of the Tab key


def test_print_shows_what_is_folded(report: Path, visit: Open) -> None:
    page = visit(report, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.locator("#seeds td").first.is_visible()
    for gone in ("nav", ".filter", "#runs summary", ".data"):
        assert not page.locator(gone).first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_without_its_script_the_page_is_whole(report: Path, visit: Open) -> None:
    page = visit(report, java_script_enabled=False)
    assert page.locator(".filter").count() == 0
    assert page.locator("#cost tbody tr").count() == 11
    page.locator("#runs summary").first.click()
    assert page.locator("#runs table").first.is_visible()


def test_a_hostile_study_runs_nothing(nasty: Path, visit: Open) -> None:
    page = visit(nasty)
    for button in page.locator("thead button:visible").all():
        button.click()
    page.locator("#runs summary").first.click()
    page.wait_for_timeout(200)
    assert page.locator("img[src=x]").count() == 0
    for drawing in sorted((nasty.parent / "figures").glob("*.svg")):
        page.goto(drawing.as_uri())


def test_five_hundred_runs_open_at_once(visit: Open, tmp_path: Path) -> None:
    record = large()
    analysis = Analysis(record)
    files = render(analysis, answer(analysis))
    save_files(tmp_path, files)
    size = len(files["report.html"].encode())
    start = time.perf_counter()
    page = visit(tmp_path / "report.html")
    rows = page.locator("#cost tbody tr").count()
    print(f"{len(record.runs)} runs: {size / 1e6:.2f} MB, opened in {time.perf_counter() - start:.2f} s")
    assert rows == 100
    assert size < 5_000_000


def large() -> StudyRecord:
    """100 cells, five replicates, few examples: a page of full size without the hours."""
    draw = np.random.default_rng(0)
    singles = [("deep_only", (), layer) for layer in range(13)]
    levels = [(a, b, c) for a in range(4) for b in range(4, 7) for c in range(7, 11)]
    fused = [(strategy, some, 12) for some in levels[:29] for strategy in ("average", "concat", "mmfuser")]
    scores = {
        key: {
            task: truth(task, *key) + draw.normal(0, 0.01, (5, 1)) + draw.normal(0, 0.2, (5, 20))
            for task in ("read", "digit")
        }
        for key in [*singles, *fused]
    }
    return replace(planted(scores), experiment_id="1")
