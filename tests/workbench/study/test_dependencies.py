"""The parts of what a study holds against its earlier runs: hashes of files, images and code, and the record."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_source import TinySource

from fusion_workbench.core.code import code_hash
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.sources.base import Source
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.fusion import STRATEGIES
from fusion_workbench.reports.analysis.mixtures import mixtures
from fusion_workbench.reports.reading.parsing import of_current_code
from fusion_workbench.reports.reading.records import Run
from fusion_workbench.schema.dependencies import AcceptedChange, Changed, TrackedDependencies, combined
from fusion_workbench.system.model_files import content_hash, model_files, weight_files

# --- code -----------------------------------------------------------------------------------------------------------


def test_our_own_code_has_no_hash() -> None:
    assert code_hash(STRATEGIES["concat"].cls) == code_hash(int) == ""


@pytest.mark.parametrize("packaged", [True, False])
def test_code_is_that_of_the_whole_package(packaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"theirs_{packaged}".lower()

    def loaded() -> str:
        for known in [known for known in sys.modules if known.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, known)
        importlib.invalidate_caches()
        return code_hash(importlib.import_module(f"{name}.mine" if packaged else name).Mine)

    home = tmp_path / name if packaged else tmp_path
    home.mkdir(exist_ok=True)
    if packaged:
        (home / "__init__.py").touch()
    (home / ("mine.py" if packaged else f"{name}.py")).write_text("class Mine: ...\n")
    first = loaded()
    assert first == loaded() != ""
    (home / "notes.txt").write_text("no code")
    (tmp_path / "elsewhere.py").write_text("OTHER = 1\n")
    assert loaded() == first
    (home / "helper.py").write_text("SCALE = 2\n")
    assert (loaded() != first) is packaged


def test_code_typed_into_a_session_is_known_by_its_name() -> None:
    scope: dict[str, type] = {}
    exec("class Typed: ...", {"__name__": "a_session"}, scope)
    assert code_hash(scope["Typed"])


# --- files of models ------------------------------------------------------------------------------------------------


def test_every_shard_of_an_index_is_read(tmp_path: Path) -> None:
    for shard in ("a", "b", "unused"):
        (tmp_path / f"{shard}.safetensors").write_bytes(shard.encode())
    weights = {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    files = weight_files(str(tmp_path), None)
    assert [path.name for path in files] == ["a.safetensors", "b.safetensors"]
    before = content_hash(files)
    (tmp_path / "b.safetensors").write_bytes(b"c")
    assert content_hash(files) != before
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(WorkbenchError, match=r"index\.json cannot be read"):
        weight_files(str(tmp_path), None)
    assert model_files(str(tmp_path), None, ["config.json"]) == []


def test_precision_and_weights_are_told_apart(tiny_dinov2: Path) -> None:
    one = VisionEncoder(str(tiny_dinov2), image_size=56, precision="float32")
    other = VisionEncoder(str(tiny_dinov2), image_size=56, precision="bf16")
    assert one.fingerprint != other.fingerprint == one.fingerprint_under("bf16")
    assert (one.weights_fingerprint, one.config_fingerprint) == (other.weights_fingerprint, other.config_fingerprint)


# --- images ---------------------------------------------------------------------------------------------------------


def test_a_source_that_says_nothing_of_its_files_is_read_image_by_image() -> None:
    class Torn(TinySource):
        name, torn = "torn", -1
        content = Source.content

        def image(self, split: str, index: int) -> np.ndarray:  # type: ignore[type-arg]
            if index == self.torn:
                raise OSError("broken data stream")
            return super().image(split, index)

    source = Torn()
    whole = source.content("val")
    assert len(source.drawn) == source.size("val")
    assert whole == Torn().content("val") != Torn(seed=1).content("val")
    source.torn = 3
    with pytest.raises(WorkbenchError, match="image 3 in the val split of source 'torn' cannot be read: OSError"):
        source.content("val")


# --- the record -----------------------------------------------------------------------------------------------------


def test_the_record_is_read_as_it_was_written() -> None:
    one = Changed("encoder.weights", "the weights of encoder 'e'", "a" * 64, "b" * 64)
    change = AcceptedChange("2026-01-01 00:00 UTC", 4, combined({"encoder.weights": "a"}), "after", (one,))
    record = TrackedDependencies(
        {"encoder.weights": "b"}, {"encoder.weights": one.what}, "", (change,), {"s": ("1", "2")}
    )
    assert TrackedDependencies.read(json.loads(json.dumps(record.plain()))) == record
    assert str(one) == "the weights of encoder 'e' (aaaaaaaa → bbbbbbbb)"
    for nonsense in ({"changes": [{}]}, {"code": {"s": 1}}, {"fingerprints": 3}):
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            TrackedDependencies.read(nonsense)


def trained(replicate: str, code: dict[str, str], strategy: str = "theirs", **params: str) -> Run:
    return Run(
        f"run {replicate} {code}", "cell", "final", replicate, "finished", 0.1, 0, {}, {"strategy": strategy, **params},
        code=code,
    )  # fmt: skip


def test_runs_of_other_code_are_left_out() -> None:
    old, new, ours = trained("0", {"theirs": "1"}), trained("0", {"theirs": "2"}), trained("0", {}, "concat")
    untagged = trained("1", {})
    like = trained("2", {}, "matched", **{"options.like": "theirs"})
    for first, now, kept in (("1", "2", [new, ours]), ("1", "1", [old, ours, untagged, like])):
        record = TrackedDependencies(code={"theirs": (first, now)})
        found, notes = of_current_code([old, new, ours, untagged, like], record)
        assert found == kept
        assert len(notes) == 1
    assert of_current_code([old, ours, new], None)[0] == [ours, new]  # the last that was started is current
    assert of_current_code([ours, untagged], None) == ([ours, untagged], [])


def test_a_record_that_is_lost_is_told() -> None:
    class Record:
        dependencies = None
        runs = (
            Run("a", "c", "final", "0", "finished", 0.1, 0, {}, {}, dependencies="1"),
            Run("b", "c", "final", "1", "finished", 0.1, 0, {}, {}, dependencies="2", environment={"torch": "2"}),
        )

    (said,) = mixtures(Record())  # type: ignore[arg-type]
    assert said.startswith("dependencies.json, which says what the rows depend on, is missing")
    assert "2 different sets" in said
