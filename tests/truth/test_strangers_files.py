"""What a stranger's file, folder or tracked study can say: words, and never commands to a terminal or a page."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cases import Kind, case
from commands import command, one_line
from synthetic_study import Synthetic

from fusion_workbench.config.study import load_study
from fusion_workbench.core.errors import WorkbenchError, as_workbench_error
from fusion_workbench.core.parse import parse_json
from fusion_workbench.reports import write_report
from fusion_workbench.reports.against.sides import ComparedSource, find
from fusion_workbench.reports.calibration.table import load as load_calibration
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.scores.tables import read_scores
from fusion_workbench.schema.records import Cell
from fusion_workbench.study.identity import folder_of, study_id
from fusion_workbench.system.files import read_small

DEEP = "[" * 100_000


# --- tracked studies ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> tuple[str, Path]:
    """A small study with everything that one can log; its MLflow and the folder of its parent's artifacts."""
    folder = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    shutil.copy(mlflow_template, folder / "mlflow.db")
    from mlflow.tracking import MlflowClient

    MlflowClient(tracking_uri=uri).create_experiment("strangers", artifact_location=(folder / "a").as_uri())
    study = Synthetic(
        experiment="strangers", replicates=3, examples=20, singles=(5, 10, 12), selections=(((3, 6, 9), 12),),
        strategies=("average", "concat"), look=True, layers=True, confirm=(3,), epochs=2,
    )  # fmt: skip
    return uri, folder / "a" / study.write(uri) / "artifacts"


@pytest.fixture
def damaged(tracked: tuple[str, Path], tmp_path: Path) -> Iterator[Any]:
    """Puts other content into artifacts, and writes the report; afterwards they are as they were."""
    uri, folder = tracked
    before: dict[Path, bytes] = {}

    def report(changes: dict[str, Any]) -> str:
        """The report as JSON text."""
        for name, content in changes.items():
            file = folder / name
            before.setdefault(file, file.read_bytes())
            if callable(content):
                content = json.dumps(content(json.loads(file.read_bytes())))
            file.write_text(content)
        write_report(uri, "synthetic", tmp_path / "out", "strangers")
        return (tmp_path / "out" / "report.json").read_text(encoding="utf-8")

    yield report
    for file, content in before.items():
        file.write_bytes(content)


ARTIFACTS = (
    "passport.json", "source.json", "tasks.json", "plan.json", "variants.json", "contenders.json", "similarity.json",
    "importance.json", "look/look.json",
)  # fmt: skip


@case(
    Kind.FILES,
    "artifacts of a tracked study are nested 100,000 deep, empty of sense, of another kind, or numbers of 5,000 digits",
    "the report is written without them, and says for each that it is left out",
)
@pytest.mark.parametrize(
    "content", [DEEP, "\0\0\0", "[1, {}, []]", '"word"', "7", "9" * 5000, '{"a": [[[]]]}', "[]", "{}"]
)
def test_damaged_artifacts(content: str, damaged: Any) -> None:
    text = damaged(dict.fromkeys(ARTIFACTS, content))
    if content not in ("{}", "[]"):  # which one of the two may well be
        notes = " ".join(json.loads(text)["notes"])
        for name in ("variants.json", "contenders.json", "passport.json"):
            assert name in notes or "describes" in notes or content == '{"a": [[[]]]}'


@case(
    Kind.FILES,
    "an encoder's depth that is a word or 10⁹, classes that are no mapping, explained shares of −10³⁰⁸",
    "left out, and told",
)
@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("passport.json", lambda plain: plain | {"depth": "twelve"}, "depth"),
        ("passport.json", lambda plain: plain | {"depth": 10**9}, "depth"),
        ("source.json", lambda plain: plain | {"classes": 7, "groups": "x", "sizes": {"test": "many"}}, ""),
        ("source.json", lambda plain: plain | {"classes": {"read": "abc"}, "group_counts": {"test": [1]}}, ""),
        ("look/look.json", lambda plain: _explained(plain, -1e308), "look"),
        ("look/look.json", lambda plain: plain | {"grid": [10**9, 10**9]}, "look"),
        ("tasks.json", lambda plain: {name: {"chance": "x", "perfect": 1e308, "ratio": [1]} for name in plain}, ""),
        ("plan.json", lambda plain: plain | {"plan": {"looks": "x"}}, "plan"),
        ("similarity.json", lambda plain: plain | {"layers": [10**400]}, "similarity"),
        ("importance.json", lambda plain: plain | {"layers": {"x": 1}}, "importance"),
        ("contenders.json", lambda plain: [entry | {"controls": ["money"]} for entry in plain], "contenders"),
        ("contenders.json", lambda plain: [entry | {"without": -1e308} for entry in plain], "contenders"),
        ("plan.json", lambda plain: plain | {"plan": plain["plan"] | {"level": 1e308}}, "plan"),
        ("plan.json", lambda plain: plain | {"plan": plain["plan"] | {"looks": []}}, "plan"),
        ("variants.json", lambda plain: [*plain, plain[0] | {"levels": [float("inf")]}], "variants"),
        ("similarity.json", lambda plain: plain | {"images": float("inf")}, "similarity"),
    ],
)
def test_fields_that_are_something_else(name: str, change: Any, told: str, damaged: Any) -> None:
    assert told in " ".join(json.loads(damaged({name: change}))["notes"])


@case(Kind.FILES, "params of an MLflow run that name no layers", "the run's cell has none; a label says what is left")
def test_params_that_are_no_layers() -> None:
    cell = Cell.read_params("a", {"strategy": "concat", "levels": "3,x,inf," + "9" * 5000, "query": "1e999"}, None)
    assert (cell.levels, cell.query) == ((3,), 0)
    assert Cell.read_params("a", {"levels": "3,6", "query": "12"}, None).label == "? [3,6]→12"


def _explained(plain: dict[str, Any], share: float) -> dict[str, Any]:
    columns = [column | {"explained": [share] * 3} for column in plain["columns"]]
    return plain | {"columns": columns}


@case(
    Kind.FILES,
    "a tracked study.yaml, or plan, asks for 10⁹ replicates",
    "the report shows those that ran, and says so; no memory is taken for the others",
)
@pytest.mark.parametrize("asked", ["1000000000", "-1", ".inf", "[1]", "many", "9" * 3000])
def test_replicates_that_nobody_trained(asked: str, damaged: Any) -> None:
    found = json.loads(damaged({"study.yaml": f"replicates: {asked}\n"}))
    assert found["study"]["replicates"] == 3 or len(found["study"]["replicates"]) == 3
    if len(asked) < 100:
        assert "asks for a number of replicates that no study has" in " ".join(found["notes"])
    huge = damaged({"plan.json": lambda plain: _looks(plain, 10**9)})
    assert json.loads(huge)["study"]


def _looks(plain: dict[str, Any], most: int) -> dict[str, Any]:
    plan = plain["plan"] | {"confirm": [5, most], "looks": [most]}
    return plain | {"plan": plan, "stopped": most, "confirmed": most}


@case(Kind.FILES, "per-example scores that are words", "that run is told as unreadable, and counts for nothing")
def test_scores_that_are_words(tracked: tuple[str, Path]) -> None:
    uri, folder = tracked
    file = next(folder.parents[1].glob("*/artifacts/outcomes/test.parquet"))
    before = file.read_bytes()
    try:
        table = pd.read_parquet(file)
        for column, value in (("score", "good"), ("items", "many")):
            table.assign(**{column: value}).to_parquet(file)
            record = read_study(uri, "synthetic", "strangers")
            assert any("outcomes/test.parquet" in note and "cannot be read" in note for note in record.notes)
    finally:
        file.write_bytes(before)


# --- files that are named -------------------------------------------------------------------------------------------


@case(
    Kind.FILES,
    "a pipe, a device, a folder, 1 GB, a loop of links or nested brackets where a small file is read: report.json, "
    "tables of scores, calibration",
    "refused at once, in one line",
)
def test_small_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10**9)
    for name, told in {
        "pipe": "a pipe",
        ".": "a folder",
        "large": "larger than 16 MB",
        "loop": "symbolic links",
    }.items():
        with pytest.raises(OSError, match=told):
            read_small(tmp_path / name)
    with pytest.raises(OSError, match="a device"):
        read_small(Path("/dev/zero"))
    with pytest.raises(OSError, match="no file has such a name"):
        read_small(Path("a\0b"))
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
    for name, content in {"deep.json": DEEP, "digits.json": "9" * 5000, "no.json": "\xff\0"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(WorkbenchError, match="cannot be read as a report"):
            find(ComparedSource(str(tmp_path / name)), "", None, None)  # type: ignore[arg-type]
        with pytest.raises(WorkbenchError, match="is no calibration table"):
            load_calibration(tmp_path / name)
    os.mkfifo(tmp_path / "scores.csv")
    with pytest.raises(WorkbenchError, match="it is a pipe"):
        read_scores([str(tmp_path / "scores.csv")], [], [], [])


@case(
    Kind.INPUT,
    "study.yaml or lock of a study is a folder, a model's name has 5,000 letters, the folder one stands in is gone",
    "one line that names it; exit status 2",
)
@pytest.mark.parametrize("taken", ["study.yaml", "lock"])
def test_folders_in_the_way(
    taken: str, tiny_dinov2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        f"name: s\nencoder: {{name: {tiny_dinov2}, image_size: 56, precision: float32}}\n"
        "source: {options: {train: 16, val: 8, test: 8, size: 56}}\ntasks: [digit]\nstrategies: [{name: deep_only}]\n"
        "selections: [{levels: [1, 2]}]\nbaselines: false\ntraining: {batch_size: 8}\n"
    )
    study = load_study(str(file))
    (folder_of(tmp_path / "W", study.name, study_id(study)) / taken).mkdir(parents=True)
    assert command(monkeypatch, "sweep", str(file), "-w", str(tmp_path / "W"), "-q") == 2
    told = capfd.readouterr().err
    assert one_line(told), told
    assert taken in told


def test_a_name_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "ask", "what?", "--model", "a" * 5000, "-w", str(tmp_path)) == 2
    told = capfd.readouterr().err
    assert one_line(told)
    assert len(told) < 400


def test_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    assert command(monkeypatch, "studies") == 2
    assert "is gone" in capfd.readouterr().err


@case(
    Kind.INPUT,
    "the file system refuses: too many open files, a path through a file, a disk with errors, a library's words",
    "one line that says what to do",
)
@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "the disk is full (/a/b); free some space, then run the same command."),
        (errno.EDQUOT, "the disk is full (/a/b)"),
        (errno.EROFS, "no permission to write /a/b; choose another place with --workspace."),
        (errno.ENAMETOOLONG, "the name is too long"),
        (errno.ENOTDIR, "a part of the path is a file"),
        (errno.EISDIR, "is a folder, and must be a file"),
        (errno.ELOOP, "a link leads back to itself"),
        (errno.EMFILE, "too many files are open; raise the limit"),
        (errno.ENOENT, "/a/b does not exist"),
        (errno.EIO, "the disk reports an error"),
        (errno.ETXTBSY, "/a/b cannot be used: Text file busy."),
    ],
)
def test_what_the_system_refuses(number: int, told: str) -> None:
    assert told in str(as_workbench_error(OSError(number, os.strerror(number), "/a/b")))
    assert as_workbench_error(OSError(number, os.strerror(number))).args[0]  # without a name, too
    assert (
        str(as_workbench_error(OSError("We couldn't connect to the hub.\nmore"))) == "We couldn't connect to the hub."
    )
