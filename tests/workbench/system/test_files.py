"""A file or folder appears whole or not at all, and what was there before stays until then."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.system.files import atomic_file, atomic_folder, explain_writing, scratch_beside, write_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_file(path, "one\n")
    with atomic_file(path) as part:
        part.write_text("two\n")
        assert path.read_text() == "one\n"
    assert path.read_text() == "two\n"
    write_file(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert names(path.parent) == ["file.txt"]


def test_a_file_that_fails_leaves_what_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_file(path, "one")
    with pytest.raises(TypeError), atomic_file(path) as part:
        part.write_bytes("text")  # type: ignore[arg-type]  # opened, and nothing written
    with pytest.raises(UnicodeEncodeError):
        write_file(path, "half a pair: \ud800")
    assert path.read_text() == "one"
    assert names(tmp_path) == ["file.txt"]
    write_file(path, "half a pair: \ud800", errors="replace")
    assert path.read_text() == "half a pair: ?"


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_at_the_end(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "folder"
    if there:
        path.mkdir()
        (path / "old").write_text("old")
    with atomic_folder(path) as made:
        (made / "new").write_text("new")
        assert path.exists() == there
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_folder_that_fails_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(IsADirectoryError), atomic_folder(path) as made:
        made.write_text("half")
    assert (names(path), names(tmp_path)) == (["old"], ["folder"])

    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if source.name == "made":
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), atomic_folder(path):
        pass
    assert (names(path), names(tmp_path)) == (["old"], ["folder"])


def test_scratch_goes(tmp_path: Path) -> None:
    with scratch_beside(tmp_path / "out" / "folder") as scratch:
        assert scratch.parent == tmp_path / "out"
        (scratch / "file").write_text("")
    assert names(tmp_path / "out") == []


def test_what_is_refused_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "in it"
    refused = pytest.raises(WorkbenchError, match=r"in it cannot be written \(.+\); name another file\.$")
    with refused, explain_writing(path, "name another file"):
        write_file(path, "")
    refused = pytest.raises(WorkbenchError, match=r"in it cannot be written \(no room\); name another file\.$")
    with refused, explain_writing(path, "name another file", RuntimeError):
        raise RuntimeError("no room")
    with pytest.raises(KeyError), explain_writing(path, "name another file"):
        raise KeyError
