"""The report of a study of language models: whether they look at the image, and whether probes foretell them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
from hostile_study import hostile, hostile_language
from hypothesis import given
from hypothesis import strategies as st
from synthetic_study import LANGUAGE_MODEL, cell_id, copy_database, planted, tiny, tried_again, truth
from test_latex import compiled, needs_tex
from test_report import Page
from typer.testing import CliRunner

import fusion_workbench.reports as reports
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports import ReportPaths, write_report
from fusion_workbench.reports.against.probes import compare_with_probes, trust_sentence
from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.image_dependence import (
    LEAST,
    LOOKS,
    NOT,
    SOME,
    UNKNOWN,
    blank_caveat,
    image_dependence,
)
from fusion_workbench.reports.reading.language import CellAnswer, choose, plain_text, read_answers, shown_questions
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.render.report import render
from fusion_workbench.reports.statistics.ranks import tau_b
from fusion_workbench.schema.language import LanguageModel

MODEL = LanguageModel("tiny", probes="cheap")
KEYS = [("deep_only", (), n) for n in (3, 6, 12)] + [("concat", (3, 6), 12), ("average", (3, 6), 12)]


def spoken(task: str, strategy: str, levels: Sequence[int], query: int) -> float:
    """The order of the probes, on another scale."""
    return 0.2 + 0.6 * truth(task, strategy, levels, query)


@pytest.fixture(scope="module")
def uri(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """``probes`` and two studies of language models: of the same cells, and of others."""
    made = copy_database(mlflow_template, tmp_path_factory.mktemp("language"))
    wide: dict[str, Any] = {"singles": (3, 5, 10, 12), "examples": 90}
    tiny(name="probes", **wide).write(made)
    tiny(name="spoken", language=LANGUAGE_MODEL, truth=spoken, **wide).write(made)
    tiny(name="unlike", language=LANGUAGE_MODEL, singles=(7,), selections=(((2, 4), 8),)).write(made)
    return made


@pytest.fixture(scope="module")
def paths(uri: str, tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    return write_report(uri, "spoken", tmp_path_factory.mktemp("spoken"))


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', html, re.DOTALL)
    assert found is not None, name
    return found.group()


def words(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_the_page_has_both_sections(paths: ReportPaths) -> None:
    html = paths.html.read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in page.targets} <= set(page.ids)
    image, probes = section(html, "image"), section(html, "probes")
    assert "SmolLM2-135M, 135 M parameters, 30 blocks of width 576; trained in connector, then instructions" in image
    assert image.count("looks at the image</span>") == 3 * 6  # two tasks and their mean, six cells
    assert "The cheap answer" in probes
    assert len(re.findall(r"<figure id", probes)) == 3
    assert "samples a second" in section(html, "cost")
    assert "MFU, %" in section(html, "cost")
    assert "parameters, projector" in section(html, "cost")
    assert "Does it look at the image?" in paths.answer


def test_every_file_has_it(paths: ReportPaths) -> None:
    text = paths.markdown.read_text(encoding="utf-8")
    assert "## Does it look at the image?" in text
    assert "## Do probes predict it?" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    plain = json.loads(paths.json.read_text(encoding="utf-8"))
    schema = json.loads((Path(reports.__file__).parent / "render" / "report.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(plain, schema, jsonschema.Draft202012Validator)
    said = plain["language"]
    assert (said["name"], said["parameters"], said["stages"]) == (
        "SmolLM2-135M",
        134_515_008,
        ["connector", "instructions"],
    )
    assert {c["word"] for c in said["controls"]} == {LOOKS}
    assert len(said["controls"]) == 3 * 6
    assert said["probes"]["name"] == "probes"
    assert [a["measure"] for a in said["probes"]["agreement"]] == ["overall", "read", "digit"]
    assert all(-1 <= a["low"] <= a["tau"] <= 1 for a in said["probes"]["agreement"])
    assert plain["cells"][0]["cost"]["mfu"] == pytest.approx(0.31, abs=0.03)
    tex = paths.tex.read_text(encoding="utf-8")
    assert r"\label{tab:spoken-image}" in tex
    assert r"\label{tab:spoken-probes}" in tex
    assert tex.isascii()
    folder = paths.html.parent / "figures"
    rows = list(csv.DictReader(io.StringIO((folder / "sight.csv").read_text(encoding="utf-8"))))
    assert {row["images"] for row in rows} == {"real", "blank", "shuffled", "constant answer"}
    scatter = list(csv.DictReader(io.StringIO((folder / "probes-read.csv").read_text(encoding="utf-8"))))
    assert len(scatter) == 6


def test_a_study_of_probes_shows_nothing_of_it(uri: str, tmp_path: Path) -> None:
    paths = write_report(uri, "probes", tmp_path)
    html = paths.html.read_text(encoding="utf-8")
    assert 'id="image"' not in html
    assert 'id="probes"' not in html
    assert "MFU" not in html
    assert json.loads(paths.json.read_text(encoding="utf-8"))["language"] is None
    assert "Does it look" not in paths.markdown.read_text(encoding="utf-8") + paths.answer
    with pytest.raises(WorkbenchError, match="has no language model"):
        write_report(uri, "probes", tmp_path, probes="spoken")


def test_a_blind_model_is_told_on_the_first_screen() -> None:
    analysis = controlled([0.9, 0.92, 0.9], [0.1, 0.1, 0.1])
    said = answer(analysis)
    html = render(analysis, said, None, compare_with_probes(analysis, None))["report.html"]
    caveats = html[html.index('class="caveats"') : html.index("</ul>", html.index('class="caveats"'))]
    assert "does worse with real images than with blank ones" in caveats
    assert f">{NOT}</span>" in section(html, "image").replace("</i>", ">")
    assert "Does it look at the image?" not in said.text


def test_without_probes_the_command_is_named(uri: str, tmp_path: Path) -> None:
    analysis = controlled([0.1] * 3, [0.1] * 3)
    files = [render(analysis, answer(analysis), None, compare_with_probes(analysis, None))]
    paths = write_report(uri, "unlike", tmp_path)
    files.append({name: (tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")})
    for found, told, why in zip(
        files,
        ["workbench sweep cheap", "workbench sweep probes"],
        ["'cheap' is not in this MLflow", "shares no cell with this one"],
        strict=True,
    ):
        said = words(section(found["report.html"], "probes"))
        assert told in said
        assert why in said
        assert told in found["report.md"]
    assert not any("probes" in figure.name for figure in paths.figures)
    nameless = Analysis(replace(analysis.record, language=LanguageModel("tiny")))
    html = render(nameless, answer(nameless), None, compare_with_probes(nameless, None))["report.html"]
    assert "workbench report planted --probes OTHER" in words(section(html, "probes"))


def test_another_study_of_probes_can_be_named(uri: str, tmp_path: Path) -> None:
    from fusion_workbench.cli.main import app

    done = CliRunner().invoke(
        app, ["report", "spoken", "--uri", uri, "--out", str(tmp_path), "--probes", "unlike"], catch_exceptions=False
    )
    assert done.exit_code == 0
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["language"]["probes"]
    assert found["name"] == "unlike"
    assert "shares no cell" in found["reason"]
    with pytest.raises(WorkbenchError, match="no study 'nobody'"):
        write_report(uri, "spoken", tmp_path, probes="nobody")
    with pytest.raises(WorkbenchError, match="this report itself"):
        write_report(uri, "spoken", tmp_path, probes="spoken")


# --- controls -------------------------------------------------------------------------------------------------------


def controlled(blank: Sequence[float], shuffled: Sequence[float], real: float = 0.6, noise: float = 0.02) -> Analysis:
    """One cell of ``len(blank)`` replicates on one task whose controls are given."""
    draw = np.random.default_rng(1)
    seeds = len(blank)
    scores = np.clip(real + draw.normal(0, noise, (seeds, 1)) + draw.normal(0, 0.05, (seeds, 200)), 0, 1)
    record = planted({("concat", (3, 6), 12): {"read": scores}})
    runs = tuple(
        replace(
            run,
            metrics={
                **run.metrics,
                "control/blank/read": blank[int(run.replicate)],
                "control/shuffled/read": shuffled[int(run.replicate)],
            },
        )
        for run in record.runs
    )
    return Analysis(replace(record, runs=runs, language=MODEL))


@pytest.mark.parametrize(
    ("blank", "shuffled", "word"),
    [
        ([0.1, 0.12, 0.11], [0.1, 0.09, 0.1], LOOKS),
        ([0.1, 0.12, 0.11], [0.6, 0.62, 0.57], SOME),
        ([0.61, 0.58, 0.62], [0.6, 0.62, 0.57], NOT),
        ([0.9, 0.92, 0.9], [0.1, 0.1, 0.1], NOT),
        ([0.1, 0.1], [0.1, 0.1], UNKNOWN),
    ],
)
def test_the_word_follows_the_controls(blank: list[float], shuffled: list[float], word: str) -> None:
    analysis = controlled(blank, shuffled)
    (dependence,) = image_dependence(analysis).values()
    assert dependence.word == word
    assert bool(blank_caveat(analysis, dependence.cell)) == (word != LOOKS)
    assert (len(blank) < LEAST) == (word == UNKNOWN)


def test_the_difference_is_paired_by_replicate() -> None:
    """A shift that real and control share is no noise of their difference."""
    shared = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    record = planted({("concat", (3, 6), 12): {"read": np.repeat(0.5 + shared[:, None], 400, 1)}})
    runs = tuple(
        replace(r, metrics={**r.metrics, "control/blank/read": 0.4 + float(shared[int(r.replicate)])})
        for r in record.runs
    )
    (dependence,) = image_dependence(Analysis(replace(record, runs=runs, language=MODEL))).values()
    gap = dependence.no_image_baselines["blank"].difference
    assert gap.mean == pytest.approx(0.1)
    assert gap.se_seeds == pytest.approx(0, abs=1e-12)
    assert gap.se_sampling == pytest.approx(math.sqrt(0.4 * 0.6 / 400))
    assert dependence.no_image_baselines["blank"].score.half > 0.15


def test_missing_controls_are_said() -> None:
    record = replace(planted({("concat", (3, 6), 12): {"read": np.full((3, 20), 0.5)}}), language=MODEL)
    analysis = Analysis(record)
    assert image_dependence(analysis) == {}
    assert "is not known" in blank_caveat(analysis, record.cells[0])
    html = render(analysis, answer(analysis), None, compare_with_probes(analysis, None))["report.html"]
    assert "so whether the models look at theirs is not known" in html


# --- probes ---------------------------------------------------------------------------------------------------------


def ordered(means: Sequence[float], seeds: int = 4, spread: float = 0.01, seed: int = 0) -> StudyRecord:
    draw = np.random.default_rng(seed)
    return planted(
        {
            key: {"read": mean + draw.normal(0, spread, (seeds, 1)) + draw.normal(0, 0.02, (seeds, 60))}
            for key, mean in zip(KEYS, means, strict=False)
        }
    )


def agreed(own: StudyRecord, cheap: StudyRecord) -> Any:
    found = compare_with_probes(Analysis(replace(own, language=MODEL)), replace(cheap, name="cheap"))
    assert found is not None
    return found


def test_the_same_order_can_be_trusted() -> None:
    rising = [0.3, 0.4, 0.5, 0.6, 0.7]
    (pair,) = agreed(ordered(rising), ordered([m / 2 for m in rising], seed=1)).pairs
    assert pair.tau == 1
    assert pair.p == pytest.approx(2 / 120)
    assert pair.pick.id == pair.best.id == cell_id(KEYS[4])
    assert pair.regret is None
    assert pair.within is True
    assert pair.random == pytest.approx(0.2, abs=0.02)
    assert pair.same_pick == 1
    assert "can be trusted here" in trust_sentence(pair)


def test_the_opposite_order_cannot() -> None:
    rising = [0.3, 0.4, 0.5, 0.6, 0.7]
    (pair,) = agreed(ordered(rising), ordered(rising[::-1], seed=1)).pairs
    assert pair.tau == -1
    assert pair.within is False
    assert pair.regret.mean == pytest.approx(0.4, abs=0.02)
    assert "opposite order" in trust_sentence(pair)


def test_a_right_order_with_the_wrong_winner_is_told_apart() -> None:
    own, cheap = [0.1, 0.2, 0.3, 0.40, 0.6], [0.1, 0.2, 0.3, 0.6, 0.55]
    keys = [("deep_only", (), n) for n in range(8)]
    draw = np.random.default_rng(0)

    def made(means: list[float]) -> StudyRecord:
        more = [*[0.02 * n for n in range(3)], *means]
        return planted({k: {"read": m + draw.normal(0, 0.002, (4, 40))} for k, m in zip(keys, more, strict=True)})

    (pair,) = agreed(made(own), made(cheap)).pairs
    assert pair.tau > 0.9
    assert "not for the winner" in trust_sentence(pair)


@pytest.mark.parametrize(("cells", "seeds"), [(3, 4), (4, 4), (5, 1)])
def test_few_cells_or_one_seed_tell_nothing(cells: int, seeds: int) -> None:
    means = [0.3, 0.4, 0.5, 0.6, 0.7][:cells]
    (pair,) = agreed(ordered(means, seeds), ordered(means, seeds, seed=1)).pairs
    assert pair.tau == 1
    assert "cannot be told" in trust_sentence(pair)
    assert math.isnan(pair.low) == (seeds == 1)


def test_the_interval_draws_both_studies() -> None:
    """Noise in the probes alone, or in the language models alone, widens it."""
    means = [0.50, 0.52, 0.54, 0.56, 0.58]
    exact, rough = 0.0, 0.06
    widths = {}
    for name, spreads in {"none": (exact, exact), "probes": (exact, rough), "own": (rough, exact)}.items():
        (pair,) = agreed(ordered(means, 4, spreads[0], 2), ordered(means, 4, spreads[1], 3)).pairs
        widths[name] = pair.high - pair.low
    assert widths["none"] < widths["probes"]
    assert widths["none"] < widths["own"]


def test_two_cells_are_no_order() -> None:
    found = agreed(ordered([0.3, 0.4]), ordered([0.3, 0.4]))
    assert found.pairs == ()
    assert "shares 2 cells" in found.reason


def test_less_is_better_counts_in_regret() -> None:
    means = [5.0, 4.0, 3.0, 2.0, 1.0]

    def errors(values: Sequence[float]) -> StudyRecord:
        record = ordered(values)
        return replace(record, tasks=tuple(replace(t, direction="minimize", unit="count") for t in record.tasks))

    (pair,) = agreed(errors(means), errors(means[::-1])).pairs
    assert pair.best.id == cell_id(KEYS[4])
    assert pair.regret.mean == pytest.approx(4.0, abs=0.05)
    assert pair.random == pytest.approx(2.0, abs=0.05)


@given(st.integers(2, 7), st.integers(0, 1000))
def test_tau_takes_rows_on_both_sides(n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y = draw.integers(0, 4, (3, n)).astype(float), draw.integers(0, 4, (3, n)).astype(float)
    assert tau_b(x, y) == pytest.approx([float(tau_b(a, b[None])[0]) for a, b in zip(x, y, strict=True)])


# --- questions ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.text(max_size=4), st.sampled_from("abc"), st.text(max_size=4)), max_size=30))
def test_questions_are_drawn_evenly_and_always_the_same(keys: list[tuple[str, str, str]]) -> None:
    found = choose(keys)
    assert found == choose(keys[::-1])
    assert len(found) == len(set(found)) == min(8, len(set(keys)))
    counts = {task: sum(k[1] == task for k in found) for task in {k[1] for k in keys}}
    there = {task: len({k for k in keys if k[1] == task}) for task in counts}
    for task, n in counts.items():
        assert n >= min(there[task], 8 // max(len(counts), 1))


@given(st.text(), st.integers(1, 40))
def test_answers_are_one_printable_line(text: str, most: int) -> None:
    line = plain_text(text, most)
    assert len(line) <= most
    assert line.isprintable()


def test_only_questions_that_all_answered_are_shown() -> None:
    first, second = ("e", "t", "first?"), ("e", "t", "second?")
    mine = {first: (CellAnswer("yes", 1.0), ("yes",)), second: (CellAnswer("no", 0.0), ("yes",))}
    found = shown_questions({"a": mine, "b": {second: (CellAnswer("yes", None), ("yes",))}}, {"a": "0", "b": "1"})
    assert found is not None
    assert [q.question for q in found.questions] == ["second?"]
    assert found.questions[0].answers_of == {"a": CellAnswer("no", 0.0), "b": CellAnswer("yes", None)}
    assert shown_questions({}, {}) is None


def test_answers_are_read_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    scored = {"example_id": "e", "task": "t", "question": "q", "prediction": None, "answers": ["a"], "score": 0.5}
    pd.DataFrame([scored]).to_parquet(path)
    assert read_answers(path) == {("e", "t", "q"): (CellAnswer("", 0.5), ("a",))}
    plain = {"example_id": "e", "task": "t", "prediction": "p"}
    rows = [plain | {"question": str(n), "answers": a} for n, a in enumerate(['["x", "y"]', "x", "[x"])]
    pd.DataFrame(rows).to_parquet(path)
    assert [answers for _, answers in read_answers(path).values()] == [("x", "y"), ("x",), ("[x",)]
    pd.DataFrame([plain | {"question": "0", "answers": ["x", "y"]}]).to_parquet(path)
    assert [answers for _, answers in read_answers(path).values()] == [("x", "y")]
    pd.DataFrame([plain]).to_parquet(path)
    with pytest.raises(WorkbenchError, match="lacks question, answers"):
        read_answers(path)
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(WorkbenchError, match="cannot be read"):
        read_answers(path)


def test_a_torn_description_is_a_note(mlflow_template: Path, tmp_path: Path) -> None:
    uri = copy_database(mlflow_template, tmp_path)
    tiny(language={"stages": []}).write(uri)
    text = write_report(uri, "synthetic", tmp_path / "out").markdown.read_text(encoding="utf-8")
    assert "language\\_model.json is left out" in text or "language_model.json is left out" in text
    with pytest.raises(TypeError):
        LanguageModel.read({"name": "x", "stages": 3})


def test_harm_in_answers_is_text() -> None:
    analysis = Analysis(hostile_language())
    files = render(analysis, answer(analysis), None, compare_with_probes(analysis, hostile()))
    html = files["report.html"]
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "<svg onload" not in html
    assert "{{ 7 * 7 }}" in unescape(section(html, "image"))
    text = files["report.md"]
    spoken = text[text.index("## Does it look at the image?") : text.index("## ", text.index("## Do probes") + 3)]
    assert "<" not in spoken
    assert "`" not in spoken.replace("\\`", "")
    assert all(not line.startswith("=") for line in files["figures/sight.csv"].splitlines())


@needs_tex
def test_the_tables_compile(tmp_path: Path) -> None:
    analysis = Analysis(hostile_language())
    tex = render(analysis, answer(analysis), None, compare_with_probes(analysis, hostile()))["tables.tex"]
    assert tex.count(r"\begin{table}") == 2 + 1 + 2
    compiled(tex, tmp_path)


def test_fresh_replicates_do_not_change_the_controls() -> None:
    analysis = controlled([0.1] * 5, [0.1] * 5)
    key = ("concat", (3, 6), 12)
    again = tried_again(analysis.record, {key: {"read": np.full((5, 200), 0.6)}}, key)
    assert {s.word for s in image_dependence(Analysis(again)).values()} == {LOOKS}
