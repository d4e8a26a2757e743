"""sha256 of artifacts: recorded with them, in as many tags as it takes, so that no kill makes a file a damaged one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fusion_workbench.schema.checksums import fits, from_tags, to_tags
from fusion_workbench.schema.names import Artifact, Tag
from fusion_workbench.study.tracking import Tracker
from fusion_workbench.system.checksums import sha256_of

PARENT_TAGS: dict[Tag, str] = {}


@pytest.fixture
def tracker(mlflow_uri: str, tmp_path: Path) -> Tracker:
    return Tracker(mlflow_uri, "fusion-workbench", tmp_path / "artifacts")


def sums_of(tracker: Tracker, run: str) -> dict[str, str]:
    return from_tags(tracker.client.get_run(run).data.tags)


def test_many_files_take_several_tags() -> None:
    sums = {f"model/language_model/model-{n:05d}-of-00200.safetensors": sha256_of(str(n)) for n in range(200)}
    tags = to_tags(sums)
    assert len(tags) > 5
    assert max(map(len, tags.values())) <= 4000
    assert {Tag.SHA256, f"{Tag.SHA256}.1"} <= tags.keys()
    assert from_tags(tags | {"workbench.sha": "{}", "mlflow.user": "me"}) == sums
    assert from_tags({}) == {}
    assert to_tags({}) == {Tag.SHA256: "{}"}


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "[" * 100_000])
def test_a_tag_that_cannot_be_read_vouches_for_nothing(text: str) -> None:
    sums = from_tags({Tag.SHA256: text})
    assert sums
    assert not any(fits(sha, sha256_of("a")) for sha in sums.values())


def test_files_are_recorded_as_they_are_logged(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.open_study("s", "0" * 16, None, "here", PARENT_TAGS)
    (tmp_path / "weights").write_bytes(b"\x00\xff")
    logged = tracker.log_files(run, {"a.json": "ä", "b/c.bin": b"\x00", "model/w": tmp_path / "weights"})
    assert logged == {"a.json": sha256_of("ä"), "b/c.bin": sha256_of(b"\x00"), "model/w": sha256_of(b"\x00\xff")}
    assert sums_of(tracker, run) == logged
    more = tracker.log_files(run, {"b/c.bin": b"\x01"})
    assert sums_of(tracker, run) == logged | more
    many = {f"look/{n:03d}.png": str(n) for n in range(100)}
    assert sums_of(tracker, run) | tracker.log_files(run, many) == sums_of(tracker, run)
    for path, sha in sums_of(tracker, run).items():
        (place,) = tmp_path.glob(f"artifacts/**/{run}/artifacts/{path}")
        assert sha256_of(place) == sha


def test_a_kill_while_a_file_is_replaced_leaves_both_sums(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracker.open_study("s", "0" * 16, None, "here", PARENT_TAGS)
    tracker.log_files(run, {Artifact.PLAN: "before"})
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(tracker.client, "log_artifacts", killed)
        with pytest.raises(KeyboardInterrupt):
            tracker.log_files(run, {Artifact.PLAN: "after"})
    for content in ("before", "after"):
        assert fits(sums_of(tracker, run)[Artifact.PLAN], sha256_of(content))
    tracker.log_files(run, {Artifact.PLAN: "after"})
    assert sums_of(tracker, run) == {Artifact.PLAN: sha256_of("after")}
