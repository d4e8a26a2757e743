"""The page of a run: self-contained, wide and narrow, with everything that was measured and what was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fusion_workbench.bench.page import PAGE, figure_words, write_page
from fusion_workbench.bench.record import Figure, Kind, Record
from fusion_workbench.bench.turns import Ratio, Setting

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONG = "a study of <b>4</b> trainings " + "and more words " * 8
FIGURES = (
    Figure("memory copy", kind=Kind.ABSOLUTE, ratio=Ratio(12.34, 12, 13, 5), unit="GB/s"),
    Figure(LONG, "naive sweep", ratio=Ratio(3.456, 3, 4, 5), note="a note"),
    Figure("help", "import torch", Kind.TIME, Ratio(0.25, 0.2, 0.3, 5)),
    Figure("concat, forward", "matrix product", Kind.LIMIT, Ratio(0.5, 0.4, 0.6, 5)),
    Figure("bank of 4", "its steps", Kind.SHARE, Ratio(0.05, 0.04, 0.06, 5)),
    Figure("metrics", "naive sweep", Kind.EQUAL, Ratio(0, -0.01, 0.01, 8)),
    Figure("time by tokens", "4, 8, 16, 32 tokens", Kind.EXPONENT, Ratio(1.8, 1.7, 1.9, 5), marked=True),
    Figure("generation", "transformers' generate", missing="the embedded language model is not here"),
)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    found = Record(tmp_path_factory.mktemp("page"), Setting("cpu", False, 5, Path("/nowhere")))
    found.facts["machine"]["load"] = [0.0, 0.0, 0.0]
    for group in ("first", "second"):
        found.begin(group, f"The {group} group")
        for figure in FIGURES:
            found.add(figure)
        found.end()
    write_page(found, found.out)
    return found


WORDS = (
    ("12.3 GB/s", "12.0 to 13.0"),
    ("3.46×", "3.00 to 4.00"),
    ("0.250 × the time", "0.200 to 0.300"),
    ("50.0 % of the limit", "40.0 to 60.0"),
    ("5.00 % of the time", "4.00 to 6.00"),
    ("0 apart", "−0.0100 to 0.0100"),
    ("1.80 as an exponent", "1.70 to 1.90"),
    ("not measured", "the embedded language model is not here"),
)


@pytest.mark.parametrize(("figure", "words"), zip(FIGURES, WORDS, strict=True))
def test_figures_in_words(figure: Figure, words: tuple[str, str]) -> None:
    assert figure_words(figure) == words


def test_the_page_says_everything_and_fetches_nothing(record: Record) -> None:
    page = (record.out / PAGE).read_text(encoding="utf-8")
    assert "14 figures in 2 groups, 2 not measured" in page
    assert "a study of &lt;b&gt;4&lt;/b&gt; trainings" in page
    assert "<b>4</b>" not in page
    assert "the embedded language model is not here" in page
    assert page.count('<svg xmlns="http://www.w3.org/2000/svg"') == 2
    for address in ("http://", "https://"):
        assert address not in page.replace("http://www.w3.org/", "")
    assert record.caveats() == []


def test_a_busy_machine_and_an_interruption_are_caveats(tmp_path: Path) -> None:
    found = Record(tmp_path, Setting("cpu", False, 5, tmp_path))
    found.facts["machine"] |= {"load": [3.0, 1.0, 1.0], "cores": 2}
    found.begin("bank", "Banks")
    write_page(found, tmp_path)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "load 3 on 2 cores" in page
    assert "Interrupted: bank did not come to its end." in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; Debian: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_a_window(record: Record, width: int) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is one of the dev dependencies")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        heard: list[str] = []
        page = browser.new_page(viewport={"width": width, "height": 900}, bypass_csp=True)
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.goto((record.out / PAGE).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")] == []
        page.get_by_role("button", name="figure").first.click()
        first = page.locator("#first tbody th, section#first tbody th").first.inner_text()
        assert first.startswith("memory copy"), "the largest number"
        assert heard == []
        browser.close()
