"""Published tables: data with provenance, matched to the same cells, compared by rank alone."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy import stats
from synthetic_study import cell_id, planted

from fusion_workbench.config.study import bundled, load_study
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.reports.against.agreement import (
    compare_with_published,
    published_json,
    published_page,
)
from fusion_workbench.reports.against.published import FOLDER, Published, load, match, tables
from fusion_workbench.reports.against.sources import READ, Source
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.statistics.ranks import exact_p, tau_b
from fusion_workbench.schema.language import LanguageModel
from fusion_workbench.schema.records import Cell
from fusion_workbench.study.prepare import strategy_traits

BLOCK = {"attention": "deformable", "self_attention": True, "gate_init": 0.0}
TITLES = {table.title: table for table in tables()}
SIZES = ("7B", "13B")
TABLE1 = ("deep_only", "concat", "average", "weighted", "fpn", "mmfuser")


def cells_of(study: str, depth: int) -> list[Cell]:
    """A bundled study's cells on an encoder of ``depth`` blocks, as its variants.json lists them."""
    from fusion_workbench.sweeps.space import build_space

    space = build_space(load_study(study), depth, strategy_traits())
    return [
        Cell(c.id, c.strategy, c.selection.levels, c.selection.query, c.label, dict(c.options), c.alias)
        for c in space.listed
    ]


def test_every_table_says_where_it_is_from() -> None:
    assert len(tables()) == 8
    for table in tables():
        assert table.arxiv
        assert table.read in READ
        assert table.model
        assert all(metric.scale for metric in table.metrics)
    assert {t.title for t in tables() if t.read == "own"} == {
        "Dense Connector, main comparison",
        "MMFuser, headline, 7B",
        "MMFuser, headline, 13B",
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_value_names_its_source(path: Path) -> None:
    """Taken out of the file, the source of any one row is missed, whichever it is."""
    plain = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(plain, dict)
    places = [place for row in plain["rows"] for place in (row, *row.get("also", []))]
    assert places
    for place in places:
        assert place["values"]
        source = place.pop("source")
        with pytest.raises(WorkbenchError, match=r"source|who read"):
            _load(plain, path)
        place["source"] = source
    assert _load(plain, path) == load(path)


def _load(plain: dict[str, Any], beside: Path) -> Published:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / beside.name
        OmegaConf.save(OmegaConf.create(plain), path)
        return load(path)


REPOSITORY = {"repository": "a/b", "commit": "0" * 40, "file": "docs/zoo.md", "line": 3, "read": "own"}
PAPER = {"paper": "2410.11829", "table": "Table I", "read": "own"}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({}, "read is 'None'"),
        ({"read": "own"}, "lacks everything"),
        (REPOSITORY | PAPER, "either-or"),
        (REPOSITORY | {"repository": "github.com/a/b"}, "owner/name"),
        (REPOSITORY | {"commit": "main"}, "40 hex digits"),
        (REPOSITORY | {"commit": "2d296fc"}, "40 hex digits"),
        (REPOSITORY | {"file": None}, "lacks the file"),
        (REPOSITORY | {"line": None}, "line of the file"),
        (REPOSITORY | {"line": 0}, "line of the file"),
        (REPOSITORY | {"file": "images/table.png"}, "a picture has none"),
        (PAPER | {"paper": "MMFuser"}, "arXiv number"),
        (PAPER | {"table": None}, "the table of the paper"),
        (PAPER | {"read": "hearsay"}, "who read"),
    ],
)
def test_a_source_that_names_no_place(source: dict[str, Any], told: str) -> None:
    with pytest.raises(WorkbenchError, match=told) as raised:
        Source(**source).check("table.yaml: row 'concat'")
    assert str(raised.value).startswith("table.yaml: row 'concat': ")
    assert "\n" not in str(raised.value)


def test_a_source_is_said_and_linked() -> None:
    for fit in (REPOSITORY, PAPER, REPOSITORY | {"file": "images/table.png", "line": None}):
        Source(**fit).check("here")
    assert Source(**REPOSITORY).label == "a/b docs/zoo.md:3 at 0000000"
    assert Source(**REPOSITORY).url == f"https://github.com/a/b/blob/{'0' * 40}/docs/zoo.md?plain=1#L3"
    assert Source(**PAPER).label == "arXiv 2410.11829, Table I"


def test_one_thing_that_two_places_state_differently_is_kept_twice() -> None:
    """LLaVA-1.5's LLaVA-W and MM-Vet, as MMFuser prints them and as LLaVA's model zoo does; all else is the same."""
    expected = {"7B": ((63.4, 65.4), (30.5, 31.1)), "13B": ((70.7, 72.5), (35.4, 36.1))}
    for size, (bench, vet) in expected.items():
        table = TITLES[f"MMFuser, headline, {size}"]
        base, fused, lora = table.rows
        two = {m.name: base.stated_values(m.name) for m in table.metrics if len(base.stated_values(m.name)) > 1}
        assert two == {"LLaVA-W": bench, "MM-Vet": vet}
        assert {s.who for s in base.stated} == {"as MMFuser prints it", "LLaVA's model zoo"}
        assert all(len(fused.stated_values(m.name)) == 1 for m in table.metrics)
        assert lora.match is None  # another way of fine-tuning: no cell, and in no order
    lora = TITLES["MMFuser, headline, 13B"].rows[2].values
    assert (lora["VizWiz"], lora["MME"], lora["MM-Vet"]) == (58.9, 1541.7, 38.3)


def test_two_values_without_whose_they_are(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    text = (FOLDER / "mmfuser_headline_7b.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("    who: as MMFuser prints it\n", "", 1), encoding="utf-8")
    with pytest.raises(WorkbenchError, match="two values of LLaVA-W, MM-Vet"):
        load(path)


def test_numbers_as_printed() -> None:
    rows = {row.name: row.values for row in TITLES["MMFuser, Table I"].rows if row.match}
    assert rows["MMFuser"] == {"VizWiz": 57.4, "MME": 1585.2, "MMB": 69.9, "Avg": 64.9}
    assert {r.name: r.values["Avg"] for r in TITLES["MMFuser, Table VI"].rows}["3, 8, 13, 18"] == 65.4
    assert TITLES["MMFuser, headline, 7B"].rows[1].values["MME"] == 1479.7
    assert TITLES["Dense Connector, main comparison"].rows[2].values["MM-Vet"] == 32.2
    assert [r.values["average"] for r in TITLES["Layer_Select_Fuse"].rows] == [48.51, 49.85, 46.91]


@pytest.mark.parametrize("depth", [12, 24])
@pytest.mark.parametrize(
    ("study", "title", "rows"),
    [
        ("mmfuser_table1", "MMFuser, Table I", 6),
        ("mmfuser_table6", "MMFuser, Table VI", 5),
        ("mmfuser_table7", "MMFuser, Table VII", 3),
        ("dense_connector", "Dense Connector, main comparison", 4),
    ],
)
def test_the_bundled_studies_have_the_papers_cells(study: str, title: str, rows: int, depth: int) -> None:
    assert study in bundled()
    found = match(TITLES[title], cells_of(study, depth), depth)
    assert found is not None
    assert found.exact
    assert [row.name for row, _ in found.rows] == [row.name for row in TITLES[title].rows if row.match]
    assert len({cell.id for _, cell in found.rows}) == rows
    if title == "MMFuser, Table I" and depth == 24:
        assert found.selection == Selection((3, 8, 13, 18), 23)
    fused = [cell for _, cell in found.rows if not cell.single]
    assert len({cell.query for _, cell in found.rows}) == 1, fused


def test_two_rows_are_no_order() -> None:
    for title in ("MMFuser, Table VIII", "MMFuser, headline, 7B", "MMFuser, headline, 13B"):
        assert match(TITLES[title], cells_of("mmfuser_table8", 12), 12) is None


@pytest.mark.parametrize("title", ["MMFuser, headline, 7B", "MMFuser, headline, 13B"])
def test_a_difference_is_shown_beside_language_models(title: str) -> None:
    cells = cells_of("mmfuser_llava_7b", 24)
    assert match(TITLES[title], cells, 24) is None
    found = match(TITLES[title], cells, 24, language=True)
    assert found is not None
    assert found.exact
    assert [row.name for row, _ in found.rows] == ["LLaVA-1.5", "with MMFuser"]
    assert [cell.strategy for _, cell in found.rows] == ["deep_only", "mmfuser"]
    assert match(TITLES[title], cells_of("finescenes", 24), 24, language=True) is None  # other layers


def test_other_layers_are_the_study_s_own() -> None:
    cells = cells_of("finescenes", 12)
    found = match(TITLES["MMFuser, Table I"], cells, 12)
    assert found is not None
    assert not found.exact
    assert len({cell.query for _, cell in found.rows}) == 1
    assert match(TITLES["MMFuser, Table VI"], cells, 12) is None  # which layers is its whole question


def test_an_alias_or_another_option_is_another_cell() -> None:
    cells = cells_of("mmfuser_table1", 12)
    aliased = [replace(c, alias="twin") if c.strategy == "fpn" else c for c in cells]
    other = [
        replace(c, options=dict(c.options) | {"gate_init": 1.0}) if c.strategy == "mmfuser" else c for c in aliased
    ]
    found = match(TITLES["MMFuser, Table I"], other, 12)
    assert found is not None
    assert [row.name for row, _ in found.rows] == ["deep only", "concat", "average", "weighted average"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("read: third-party", "read: rumour"), "who read the values"),
        (("table: Table I", "tabel: Table I"), "tabel"),
        (("depth: 24", "depth: deep"), "deep"),
        (("title:", "titel:"), "titel"),
        (("Avg: 64.9}", "Average: 64.9}"), "row 'MMFuser'"),
        ((", Avg: 64.9}", "}"), "no value of Avg"),
    ],
)
def test_a_table_that_is_none(change: tuple[str, str], told: str, tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text((FOLDER / "mmfuser_table1.yaml").read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(WorkbenchError, match=told) as raised:
        load(path)
    assert "\n" not in str(raised.value)


# --- agreement --------------------------------------------------------------------------------------------------

RANKS = st.lists(st.integers(0, 4), min_size=3, max_size=6)


@settings(max_examples=80, deadline=None)
@given(RANKS, st.randoms(use_true_random=False))
def test_tau_is_scipy_s(x: list[int], random: object) -> None:
    one = np.asarray(x, dtype=float)
    other = np.asarray([random.randint(0, 4) for _ in x], dtype=float)  # type: ignore[attr-defined]
    expected = stats.kendalltau(one, other).statistic
    assert tau_b(one, other[None])[0] == pytest.approx(0.0 if np.isnan(expected) else expected)


def test_p_is_the_share_of_orders() -> None:
    x, y = np.asarray([1.0, 2.0, 3.0, 4.0]), np.asarray([1.0, 2.0, 4.0, 3.0])
    every = [abs(stats.kendalltau(x, order).statistic) for order in permutations(y)]
    assert exact_p(x, y) == pytest.approx(np.mean(np.asarray(every) >= abs(stats.kendalltau(x, y).statistic) - 1e-12))
    assert exact_p(x, x) == pytest.approx(2 / 24)
    assert exact_p(x, x) == pytest.approx(stats.kendalltau(x, x, method="exact").pvalue)
    ten = np.arange(10.0)
    assert exact_p(ten, ten) == pytest.approx(2 / 3628800)


def study(order: tuple[str, ...], noise: float, replicates: int = 5) -> StudyRecord:
    """Table I's cells on a depth of 12; each strategy a point above the one before it in ``order``."""
    rng = np.random.default_rng(3)
    drawn = {}
    for place, strategy in enumerate(order):
        key = (strategy, () if strategy == "deep_only" else (2, 4, 7, 9), 11)
        shift = rng.normal(0, noise, (replicates, 1))
        drawn[key] = {"read": 0.3 + 0.01 * place + shift + rng.normal(0, 0.01, (replicates, 40))}
    record = planted(drawn)
    fuser = cell_id(("mmfuser", (2, 4, 7, 9), 11))
    return replace(record, cells=tuple(replace(c, options=BLOCK) if c.id == fuser else c for c in record.cells))


def test_full_agreement_and_its_reverse() -> None:
    published = {row.match.strategy: row.values["MME"] for row in TITLES["MMFuser, Table I"].rows if row.match}
    order = tuple(sorted(published, key=lambda s: published[s]))
    for ranked, tau in ((order, 1.0), (order[::-1], -1.0)):
        (found,) = [
            b
            for b in compare_with_published(Analysis(study(ranked, 0.0005)))
            if b.matched.table.title == "MMFuser, Table I"
        ]
        agreed = {a.metric: a for a in found.agreements}
        assert agreed["MME"].tau == pytest.approx(tau)
        assert (agreed["MME"].low, agreed["MME"].high) == pytest.approx((tau, tau))
        assert agreed["MME"].p == pytest.approx(2 / 720)
        assert agreed["MME"].rows == 6
        assert abs(agreed["Avg"].tau) < 1


def test_noise_widens_the_interval() -> None:
    (found,) = [
        b for b in compare_with_published(Analysis(study(TABLE1, 0.03))) if b.matched.table.title == "MMFuser, Table I"
    ]
    agreed = found.agreements[0]
    assert agreed.low <= agreed.tau <= agreed.high
    assert agreed.high - agreed.low > 0.2
    (one,) = [
        b
        for b in compare_with_published(Analysis(study(TABLE1, 0.03, 1)))
        if b.matched.table.title == "MMFuser, Table I"
    ]
    assert np.isnan(one.agreements[0].low)
    shown = published_page(Analysis(study(TABLE1, 0.03, 1)))["published"][0]
    assert shown["agreements"][0]["taus"][0]["interval"] == ""


def test_what_is_shown_keeps_scales_apart() -> None:
    analysis = Analysis(study(TABLE1, 0.001))
    shown = next(p for p in published_page(analysis)["published"] if p["table"].title == "MMFuser, Table I")
    assert "third party" in shown["sources"][0]["read"]
    assert "the paper's layers" in shown["layers"]
    assert shown["missing"] == []
    assert [b["row"].name for b in shown["beside"]] == ["deep only by LoRA"]
    assert shown["beside"][0]["values"][-1] == []  # the zoo has no such average
    plain = next(p for p in published_json(analysis) if p["title"] == "MMFuser, Table I")
    assert plain["same_layers"]
    assert plain["rows"][0]["values"]["MME"] == 1531.3
    assert plain["beside"][0]["values"] == {"VizWiz": 58.9, "MME": 1541.7, "MMB": 68.5}
    assert plain["rows"][0]["stated"][2]["source"] == "haotian-liu/LLaVA docs/MODEL_ZOO.md:26 at c121f04"
    assert {a["measure"] for a in plain["agreement"]} == {"read"}


CONNECTORS = ("deep_only", "sti", "sci", "dci")


def connectors(noise: float) -> StudyRecord:
    """The bundled Dense Connector study's cells on a depth of 12, each a point above the one before it."""
    rng = np.random.default_rng(5)
    drawn = {}
    for place, strategy in enumerate(CONNECTORS):
        levels = {"deep_only": (), "dci": tuple(range(1, 12))}.get(strategy, (4, 8))
        drawn[strategy, levels, 12] = {"read": 0.3 + 0.01 * place + rng.normal(0, noise, (5, 40))}
    record = planted(drawn)
    return replace(record, cells=tuple(replace(c, options={"groups": 2}) for c in record.cells))


def test_tau_is_told_for_each_value_that_is_stated() -> None:
    """With the baseline's MM-Vet as MMFuser prints it (30.5) it is below STI's 30.9, with the zoo's (31.1) above."""
    analysis = Analysis(connectors(0.0005))
    (found,) = [
        b for b in compare_with_published(analysis) if b.matched.table.title == "Dense Connector, main comparison"
    ]
    vet = {a.given: a.tau for a in found.agreements if a.metric == "MM-Vet"}
    assert vet == {"": pytest.approx(4 / 6), "baseline at 30.5, as MMFuser prints it": pytest.approx(1.0)}
    assert {a.given for a in found.agreements if a.metric != "MM-Vet"} == {""}
    (shown,) = [p for p in published_page(analysis)["published"] if p["table"] is found.matched.table]
    assert [v["value"] for v in shown["rows"][0]["values"][-1]] == [31.1, 30.5]
    assert [a["given"] for a in shown["agreements"] if a["metric"] == "MM-Vet"] == list(vet)


def test_the_difference_of_two_rows_is_told_for_each_value_that_is_stated() -> None:
    fuser = ("mmfuser", (2, 4, 7, 9), 11)
    record = study(("deep_only", "mmfuser"), 0.001)
    assert any(c.id == cell_id(fuser) for c in record.cells)
    analysis = Analysis(replace(record, language=LanguageModel("tiny")))
    shown = {p["table"].title: p for p in published_page(analysis)["published"]}
    assert set(shown) == {"MMFuser, headline, 7B", "MMFuser, headline, 13B"}
    columns = [m.name for m in shown["MMFuser, headline, 7B"]["table"].metrics]
    told = {size: dict(zip(columns, shown[f"MMFuser, headline, {size}"]["difference"], strict=True)) for size in SIZES}
    assert (told["7B"]["LLaVA-W"], told["7B"]["MM-Vet"]) == (["+2.1", "+0.1"], ["+2.1", "+1.5"])
    assert (told["13B"]["LLaVA-W"], told["13B"]["MM-Vet"]) == (["+1.1", "−0.7"], ["+1.2", "+0.5"])
    assert told["7B"]["MME"] == ["−31.0"]
    assert all(p["agreements"] == [] for p in shown.values())
    assert [len(p["rows"][0]["own"]) for p in shown.values()] == [1, 1]


def test_fewer_than_three_rows_show_nothing() -> None:
    assert compare_with_published(Analysis(study(("deep_only", "concat"), 0.001))) == ()
    assert compare_with_published(Analysis(replace(study(TABLE1, 0.001), encoder_info={}))) == ()
