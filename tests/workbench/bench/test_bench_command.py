"""The command: what it refuses, what it keeps when it is interrupted, and that smoke sizes give every figure."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import command, one_line

from fusion_workbench.bench import ceilings, language
from fusion_workbench.bench.record import Figure
from fusion_workbench.bench.run import GROUPS, check_groups
from fusion_workbench.bench.turns import Ratio, Setting
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.fusion import STRATEGIES


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    return found


def figures(out: Path) -> dict[str, dict[str, Any]]:
    return {f["name"]: f for group in read(out)["groups"] for f in group["figures"]}


def tiny(monkeypatch: pytest.MonkeyPatch, out: Path, *groups: str) -> dict[str, dict[str, Any]]:
    words = ["bench", *groups, "--tiny", "--repeats", "2", "--device", "cpu", "--out", str(out)]
    assert command(monkeypatch, *words) == 0
    assert [group["name"] for group in read(out)["groups"]] == [name for name in GROUPS if name in groups]
    found = figures(out)
    for figure in found.values():
        assert figure["ratio"] or figure["missing"]
        if figure["ratio"] and figure["kind"] != "difference" and figure["kind"] != "exponent":
            assert 0 < figure["ratio"]["low"] <= figure["ratio"]["median"] <= figure["ratio"]["high"]
    page = (out / "bench.html").read_text(encoding="utf-8")
    assert "Smoke sizes" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    return found


@pytest.mark.parametrize(("word", "nearest"), [("celings", "'ceilings'"), ("banks", "'bank'"), ("zzz", "Known: bank")])
def test_an_unknown_group_is_answered_with_the_nearest(
    word: str, nearest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "bench", "ceilings", word, "--out", str(tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert one_line(told)
    assert word in told
    assert nearest in told
    assert not (tmp_path / "out").exists(), "refused before any work"


def test_an_unknown_device_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "bench", "--device", "tpu", "--out", str(tmp_path)) == 2
    assert "auto, cpu or cuda" in capsys.readouterr().err


def test_groups_run_in_their_own_order() -> None:
    assert [group.name for group in check_groups(["startup", "ceilings"])] == ["ceilings", "startup"]
    assert [group.name for group in check_groups([])] == list(GROUPS)


def test_the_list_names_every_group(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "bench", "--list") == 0
    told = capsys.readouterr().out
    assert all(name in told for name in GROUPS)


def test_an_interrupted_run_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting: Setting) -> Iterator[Figure]:
        yield Figure("the first", "nothing", ratio=Ratio(2, 1, 3, 2))
        raise KeyboardInterrupt

    monkeypatch.setattr(ceilings, "measure", broken)
    assert command(monkeypatch, "bench", "ceilings", "--tiny", "--out", str(tmp_path)) != 0
    found = read(tmp_path)
    assert found["groups"][0]["state"] == "interrupted"
    assert found["groups"][0]["figures"][0]["ratio"]["median"] == 2
    assert any("Interrupted: ceilings" in caveat for caveat in found["caveats"])
    assert "the first" in (tmp_path / "bench.html").read_text(encoding="utf-8")


def test_who_stops_it_is_told_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(setting: Setting) -> Iterator[Figure]:
        yield Figure("the first", "nothing", ratio=Ratio(2, 1, 3, 2))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ceilings, "measure", stopped)
    assert command(monkeypatch, "bench", "ceilings", "--tiny", "--out", str(tmp_path)) == 143
    told = capsys.readouterr().err
    assert f"what was measured is in {tmp_path}" in told.replace("\n", "")
    assert "goes on where it was" not in told
    assert read(tmp_path)["groups"][0]["figures"][0]["ratio"]["median"] == 2


def test_what_cannot_be_measured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(setting: Setting) -> Iterator[Figure]:
        raise WorkbenchError("the photographs are not here.")
        yield

    monkeypatch.setattr(ceilings, "measure", refused)
    assert command(monkeypatch, "bench", "ceilings", "--tiny", "--out", str(tmp_path)) == 0
    assert read(tmp_path)["groups"][0]["figures"][0]["missing"] == "the photographs are not here."
    page = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert "not measured" in page
    assert "the photographs are not here." in page


def test_smoke_sizes_of_what_needs_no_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny(monkeypatch, tmp_path, "ceilings", "strategies", "bank")
    assert len([name for name in found if name.startswith("matrix product")]) == 4
    assert {"memory copy, bytes read and written", "disk read, one file from its beginning"} <= found.keys()
    for name in STRATEGIES:
        for part in ("forward", "forward + backward"):
            assert f"{name}, {part}, float32" in found
    assert len([name for name in found if name.startswith("MMFuser ")]) == 2
    for size in (1, 2, 4):
        assert f"bank of {size}, a member's step" in found
        assert f"bank of {size}, outside its members' steps" in found
    about = read(tmp_path)
    assert about["schema"] == 1
    assert about["machine"].keys() >= {"cpu", "flags", "cores", "load", "threads", "gpu", "versions"}


@pytest.mark.long
def test_smoke_sizes_of_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny(monkeypatch, tmp_path, "startup")
    for name in ("workbench --help", "workbench layers", "workbench sweep planted --plan"):
        assert f"{name}, CPU seconds" in found
        assert f"{name}, wall seconds" in found


@pytest.mark.long
def test_smoke_sizes_of_the_naive_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny(monkeypatch, tmp_path, "naive")
    assert [figure["kind"] for figure in found.values()] == ["times as fast", "difference", "times as fast"]
    apart = found["validation metrics of the same trainings"]["facts"]["differences"]
    assert len(apart) == 8, "four cells, two tasks"


@pytest.mark.long
def test_smoke_sizes_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny(monkeypatch, tmp_path, "encoder", "store")
    told = " ".join(found)
    for what in ("bare transformers forward", "hidden states of layers", "alone", "feature store, from images"):
        assert what in told
    for what in ("drawing a scene", "decoding it from PNG", "decoding it from JPEG"):
        assert f"{what}, 112 px" in found
    assert "batches from the feature store, cached" in found
    assert "batches from the feature store, not cached" in found


@pytest.mark.long
def test_smoke_sizes_of_language_models_and_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny(monkeypatch, tmp_path, "language", "growth")
    assert len([name for name in found if name.startswith("training a tiny Llama")]) == 2
    assert "generation, a tiny Llama" in found
    for what in ("time", "memory"):
        grown = [name.rpartition("by ")[2] for name in found if name.startswith(what)]
        assert grown == ["images", "layers", "images of a batch", "layers", "tokens", "members"]
    assert all(len(f["facts"].get("sizes", [1] * 4)) == 4 for f in found.values())


@pytest.mark.long
def test_smoke_sizes_of_cached_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny(monkeypatch, tmp_path, "cached")
    assert list(found) == ["a bank of 4 on the feature store", "validation metrics of the same trials"]
    assert len(read(tmp_path)["groups"][0]["figures"]) == 4


def test_a_language_model_that_is_not_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language.assets, "status", list)
    found = list(language.measure(Setting("cpu", False, 1, tmp_path)))
    assert [figure.ratio for figure in found] == [None, None]
    assert all("workbench assets language-model" in figure.missing for figure in found)
