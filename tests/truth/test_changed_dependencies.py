"""What a study depends on has changed between two runs of it."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cases import Kind, case
from PIL import Image
from places import DATA
from rich.console import Console

from fusion_workbench.config.study import StudyConfig, study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.sources.base import SOURCES
from fusion_workbench.models.connector import load_connector
from fusion_workbench.models.export import export_run
from fusion_workbench.modules.answers import METRICS
from fusion_workbench.modules.encoders.families import FAMILIES
from fusion_workbench.modules.fusion import STRATEGIES
from fusion_workbench.modules.tasks import TASKS
from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.runner.experiment import Experiment, StudyResult
from fusion_workbench.schema.dependencies import NOT_RECORDED
from fusion_workbench.study import dependencies, provenance
from fusion_workbench.study.changes import FACT, NUMERICS_FACT, DependencyCheck
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.prepare import Parts, prepare
from fusion_workbench.study.progress import Display

PROBES = """
name: small
question: Which?
encoder: {{name: {encoder}, image_size: 28, precision: float32}}
source: {{name: folder, options: {{path: {pictures}}}}}
tasks: [side]
strategies: [{{name: average}}, {{name: deep_only}}]
selections: [{{levels: [1]}}]
baselines: false
replicates: 1
plan: {{confirm: []}}
search: {{learning_rates: [0.01]}}
training: {{epochs: 1, batch_size: 4, head_hidden: 8}}
tracking: {{uri: "{uri}"}}
"""

PLANTED = """
name: planted
question: Which?
encoder: {{name: "planted:depth=3", image_size: 8}}
source: {{name: planted, options: {{train: 8, val: 4, test: 4}}}}
tasks: [digit]
strategies: [{{name: largest}}, {{name: deep_only}}]
selections: [{{levels: [1]}}]
baselines: false
replicates: 1
plan: {{confirm: []}}
search: {{learning_rates: [0.001, 0.01]}}
training: {{epochs: 1, batch_size: 4, head_hidden: 8}}
tracking: {{uri: "{uri}"}}
"""
LANGUAGE = """
name: talk
question: Which?
encoder: {{name: {encoder}, image_size: 28, precision: float32}}
source:
  name: llava
  options: {{train: {rows}/train.json, val: {rows}/val.json, test: {rows}/test.json, images: {pictures}, size: 28,
            metric: first_word}}
tasks: [answer]
strategies: [{{name: average}}]
selections: [{{levels: [1]}}]
baselines: false
plan: {{confirm: []}}
search: {{learning_rates: [0.01]}}
training: {{batch_size: 4, projector: mlp2x_gelu}}
language_model:
  name: {language}
  weights: float32
  stages:
    - {{name: first, source: {{name: llava, options: {{train: {rows}/first.json, images: {pictures}, size: 28}}}}}}
    - {{name: then}}
"""

# A source of somebody's own that knows its pictures by their names alone.
FOLDER = """
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fusion_workbench.datamodules.sources.base import Source, register_source


@dataclass(frozen=True)
class FolderOptions:
    path: str = ""


@register_source("folder")
class Folder(Source):
    options = FolderOptions
    version = "folder/1"
    image_size = 28

    def __init__(self, options, folders=None):
        self.path = Path(options.path)

    def size(self, split):
        return {"train": 8, "val": 4, "test": 4}[split]

    def fingerprint(self, split):
        return hashlib.sha256(f"{self.version} {split}".encode()).hexdigest()

    def image(self, split, index):
        return np.asarray(Image.open(self.path / f"{split}-{index}.png").convert("RGB"))

    def targets(self, split):
        labels = (self.path / f"{split}.txt").read_text().split()
        return {"side": np.array([int(label) for label in labels], dtype=np.int64)}

    def identity(self, split):
        names = [f"{split}-{index}" for index in range(self.size(split))]
        return pd.DataFrame({"example_id": names, "group": names})

    def classes(self):
        return {"side": ["left", "right"]}
"""
THEIRS: list[tuple[Any, str]] = [(STRATEGIES, "largest"), (SOURCES, "halves"), (SOURCES, "folder"), (TASKS, "side")]
THEIRS += [(METRICS, "first_word"), (FAMILIES, "vit_msn")]
SIZES = {"train": 8, "val": 4, "test": 4}


@pytest.fixture(autouse=True)
def package(tmp_path: Path) -> Iterator[Path]:
    """A package of somebody's own, with one of each kind, found as an installed one would be; gone after the test."""
    folder = tmp_path / "site" / "my_package"
    shutil.copytree(DATA / "plugin" / "my_package", folder)
    (folder / "folder.py").write_text(FOLDER, encoding="utf-8")
    sys.path.insert(0, str(folder.parent))
    imported()
    yield folder
    sys.path.remove(str(folder.parent))
    forget()
    for registry, name in THEIRS:
        registry._members.pop(name, None)


def imported() -> ModuleType:
    """The package as a new process would have it."""
    forget()
    importlib.invalidate_caches()
    FAMILIES._members.pop("vit_msn", None)
    for kind in ("strategy", "source", "task", "metric", "family", "folder"):
        importlib.import_module(f"my_package.{kind}")
    return sys.modules["my_package"]


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]
    shutil.rmtree("__pycache__", ignore_errors=True)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw = np.random.RandomState(0)
    for split, size in SIZES.items():
        (folder / f"{split}.txt").write_text(" ".join(str(index % 2) for index in range(size)))
        for index in range(size):
            pixels = draw.randint(0, 255, (28, 28, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}-{index}.png", compress_level=0)
    return folder


@pytest.fixture
def encoder(tiny_dinov2: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dinov2, tmp_path / "enc"))


@pytest.fixture
def text(encoder: Path, pictures: Path, mlflow_uri: str) -> str:
    return PROBES.format(encoder=encoder, pictures=pictures, uri=mlflow_uri)


def study(text: str, *overrides: str) -> StudyConfig:
    return study_from_yaml(text, "small.yaml", list(overrides))


class Told(Display):
    """A display that keeps what it says."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()), progress=False)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def run(config: StudyConfig, tmp_path: Path, **options: Any) -> tuple[StudyResult, Parts, list[str]]:
    parts = prepare(config, tmp_path / "workspace", progress=False)
    told = Told()
    return Experiment(parts, told, **options).run(), parts, told.lines


def read(result: StudyResult) -> StudyRecord:
    return read_study(result.tracking_uri, result.run_id)


def caveats(result: StudyResult) -> str:
    return " ".join(answer(Analysis(read(result))).caveats)


def rows(parts: Parts) -> list[tuple[Any, ...]]:
    ledger = Ledger(parts.folder / "ledger.db")
    found = [(e.variant, e.replicate, e.run_id, tuple(sorted(e.result.items()))) for e in ledger.entries()]
    ledger.close()
    return found


def rot(path: Path, place: float = 0.9, bit: int = 6) -> None:
    """Flip one bit; size and time stay."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def other_picture(path: Path) -> None:
    """Put another picture in its place, of the same size and time."""
    stat = path.stat()
    with Image.open(path) as image:
        pixels = 255 - np.asarray(image)
    Image.fromarray(pixels).save(path, compress_level=0)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


# --- every dependency -----------------------------------------------------------------------------------------------


@pytest.fixture
def places(encoder: Path, pictures: Path, package: Path, tiny_language: Path, tmp_path: Path) -> dict[str, Path]:
    """Where everything lies that the two studies of this part depend on."""
    import torch
    from transformers import ViTMSNConfig, ViTMSNModel

    msn = tmp_path / "msn"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        ViTMSNModel(ViTMSNConfig(**shape, image_size=28, patch_size=14)).save_pretrained(msn)
    shutil.copy(encoder / "preprocessor_config.json", msn)
    lines = tmp_path / "rows"
    lines.mkdir()
    for file, split in (("train", "train"), ("val", "val"), ("test", "test"), ("first", "train")):
        talks = [
            {
                "id": f"{file}-{index}",
                "image": f"{split}-{index}.png",
                "group": f"{split}-{index}",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhich side?"},
                    {"from": "gpt", "value": ["left", "right"][index % 2]},
                ],
            }
            for index in range(SIZES[split])
        ]
        (lines / f"{file}.json").write_text(json.dumps(talks))
    language = Path(shutil.copytree(tiny_language, tmp_path / "language"))
    return {
        "encoder": encoder,
        "pictures": pictures,
        "package": package,
        "msn": msn,
        "rows": lines,
        "language": language,
    }


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def replace(path: Path, before: str, after: str) -> None:
    content = path.read_text()
    assert before in content
    path.write_text(content.replace(before, after, 1))


Change = Callable[[dict[str, Path]], object]


def code(kind: str) -> Change:
    return lambda at: (at["package"] / f"{kind}.py").open("a").write("# changed\n")


def picture(split: str) -> Change:
    return lambda at: other_picture(at["pictures"] / f"{split}-3.png")


def target(split: str) -> Change:
    return lambda at: replace(at["pictures"] / f"{split}.txt", "0 1", "1 0")


def word(file: str) -> Change:
    return lambda at: replace(at["rows"] / f"{file}.json", "Which side?", "Which half?")


def group(file: str, split: str) -> Change:
    return lambda at: replace(at["rows"] / f"{file}.json", f'"group": "{split}-0"', '"group": "another"')


OWN = "of source 'llava' of stage 'first'"
# Study and dependency → what changes it, and the words of the refusal. A new one without an entry fails a test.
CHANGES: dict[tuple[str, str], tuple[Change, str]] = {
    ("probes", "encoder.weights"): (lambda at: rot(at["encoder"] / "model.safetensors"), "the weights of encoder"),
    ("probes", "encoder.config"): (
        lambda at: edit(at["encoder"] / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]),
        "config or preprocessing of encoder",
    ),
    **{("probes", f"images.{s}"): (picture(s), f"the images in the {s} split of source 'folder'") for s in SIZES},
    **{("probes", f"targets.{s}"): (target(s), f"the targets or names in the {s} split") for s in SIZES},
    ("probes", "numerics"): (lambda at: None, "the numerics of the workbench"),
    ("probes", "code.source.folder"): (code("folder"), "the code of source 'folder'"),
    ("probes", "code.task.side"): (code("task"), "the code of task 'side'"),
    ("language", "encoder.weights"): (lambda at: rot(at["msn"] / "model.safetensors"), "the weights of encoder"),
    ("language", "encoder.config"): (
        lambda at: edit(at["msn"] / "config.json", layer_norm_eps=0.5),
        "config or preprocessing of encoder",
    ),
    **{("language", f"images.{s}"): (picture(s), f"the images in the {s} split of source 'llava'") for s in SIZES},
    **{("language", f"targets.{s}"): (group(s, s), f"the targets or names in the {s} split") for s in SIZES},
    **{("language", f"conversations.{s}"): (word(s), f"the conversations in the {s} split") for s in SIZES},
    ("language", "stage.first.images.train"): (picture("train"), f"the images in the train split {OWN}"),
    ("language", "stage.first.targets.train"): (group("first", "train"), f"or names in the train split {OWN}"),
    ("language", "stage.first.conversations.train"): (word("first"), f"the conversations in the train split {OWN}"),
    ("language", "language_model.weights"): (
        lambda at: rot(at["language"] / "model.safetensors"),
        "the weights of language model",
    ),
    ("language", "language_model.config"): (
        lambda at: edit(at["language"] / "config.json", rms_norm_eps=0.5),
        "the config of language model",
    ),
    ("language", "language_model.tokenizer"): (
        lambda at: edit(at["language"] / "tokenizer_config.json", chat_template="{{ eos_token }}"),
        "tokenizer or chat template of language model",
    ),
    ("language", "numerics"): (lambda at: None, "the numerics of the workbench"),
    ("language", "code.metric.first_word"): (code("metric"), "the code of metric 'first_word'"),
    ("language", "code.family.vit_msn"): (
        lambda at: replace(at["package"] / "family.py", '"layers"', '"layers", interpolate=True, positions="none"'),
        "the code of family 'vit_msn'",
    ),
}
# Pieces of one package, a picture in two sources, a group in the words about it change together.
TOGETHER = {"code.source.folder": {"code.task.side"}, "code.task.side": {"code.source.folder"}}
TOGETHER |= {"code.metric.first_word": {"code.family.vit_msn"}, "code.family.vit_msn": {"code.metric.first_word"}}
TOGETHER |= {f"{of}targets.{s}": {f"{of}conversations.{s}"} for of in ("", "stage.first.") for s in SIZES}
TOGETHER |= {"images.train": {"stage.first.images.train"}, "stage.first.images.train": {"images.train"}}


class Untracked:
    """MLflow without MLflow."""

    def set_tags(self, run_id: str, tags: object) -> None: ...

    def log_files(self, run_id: str, files: object) -> None: ...


def prepared(kind: str, at: dict[str, Path]) -> Parts:
    imported()
    shown = {"encoder": at["encoder"], "pictures": at["pictures"], "uri": ""}
    if kind == "language":
        shown |= {"encoder": at["msn"], "rows": at["rows"], "language": at["language"]}
    text = (PROBES if kind == "probes" else LANGUAGE).format(**shown)
    return prepare(study_from_yaml(text, "small.yaml"), at["package"].parent / "workspace", progress=False)


@pytest.mark.parametrize("kind", ["probes", "language"])
def test_every_dependency_has_a_change_that_is_tried(kind: str, places: dict[str, Path]) -> None:
    known = {name for of, name in CHANGES if of == kind}
    assert {one.name for one in dependencies.listed(prepared(kind, places))} == known


@case(
    Kind.DEPENDENCIES,
    "anything else that numbers depend on changes under its name: preprocessing, a picture's one bit with size and "
    "time kept, targets, groups, words, language model, tokenizer, chat template, code of a plug-in's source, task, "
    "metric or encoder family, the workbench's own numerics; of the study or of one stage",
    "refused before anything is encoded or trained, named; `--accept-change` goes on",
    "brain-score/vision#2503",
)
@pytest.mark.parametrize(("kind", "name"), list(CHANGES))
def test_what_changed_is_named(
    kind: str, name: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = CHANGES[kind, name]

    def checked(accept: bool = False) -> dict[str, str]:
        parts = prepared(kind, places)
        DependencyCheck(parts, ledger, Untracked(), "run", Told(), accept).check()  # type: ignore[arg-type]
        found: dict[str, str] = ledger.fact(FACT)["fingerprints"]
        return found

    ledger = Ledger(tmp_path / "ledger.db")
    before = checked()
    ledger.start("variant", "0", "child")
    ledger.finish("variant", "0", "finished", {})
    assert checked() == before  # what is not changed is the same in every process
    if name == "numerics":
        monkeypatch.setattr(dependencies, "NUMERICS", 99)
    change(places)
    with pytest.raises(WorkbenchError, match=words) as refused:
        checked()
    assert "--accept-change" in str(refused.value)
    assert ledger.fact(FACT)["fingerprints"] == before
    after = checked(accept=True)
    assert {key for key in before if before[key] != after[key]} - TOGETHER.get(name, set()) == {name}
    assert checked() == after
    ledger.close()


@case(
    Kind.DEPENDENCIES,
    "a training is killed half-way, its encoder is changed, and it is taken up again from its checkpoint",
    "refused; with `--accept-change` it begins anew",
)
def test_half_a_training_is_not_ended_under_another_half(places: dict[str, Path], tmp_path: Path) -> None:
    def check(accept: bool = False) -> None:
        parts = prepared("probes", places)
        DependencyCheck(parts, ledger, Untracked(), "run", Told(), accept).check()  # type: ignore[arg-type]

    ledger = Ledger(tmp_path / "ledger.db")
    check()
    half = prepared("probes", places).folder / "checkpoints" / "variant-0" / "last.ckpt"
    half.parent.mkdir(parents=True)
    half.touch()
    rot(places["encoder"] / "model.safetensors")
    with pytest.raises(
        WorkbenchError, match="changed since its interrupted trainings were trained: the weights of enc"
    ):
        check()
    check(accept=True)
    assert not half.exists()
    ledger.close()


# --- the study as a whole -------------------------------------------------------------------------------------------


@case(
    Kind.DEPENDENCIES,
    "one bit of an encoder's weights rots, or other weights take the place of the ones a study was trained on; size, "
    "time and name are the same; then more replicates",
    "refused in one line that names the weights and the ways out; nothing is trained; restored, the study goes on",
    "brain-score/vision#2503",
    "Blaizzy/mlx-vlm#1933",
)
def test_an_encoder_that_changed_in_place(text: str, encoder: Path, tmp_path: Path) -> None:
    result, parts, _ = run(study(text), tmp_path)
    record = read(result)
    before, weights = rows(parts), encoder / "model.safetensors"
    whole = weights.read_bytes()
    rot(weights)
    with pytest.raises(WorkbenchError) as refused:
        run(study(text, "replicates=2"), tmp_path)
    line = str(refused.value)
    assert f"the weights of encoder '{encoder}'" in line
    assert "changed since its 2 finished variant-replicates were trained" in line
    assert all(way in line for way in ("restore", "name=", "--accept-change"))
    assert "\n" not in line
    assert rows(parts) == before
    left = read(result)  # as if nobody had asked
    assert (left.complete, left.status, left.departures) == (True, "FINISHED", ())
    assert (left.study_yaml, left.tags) == (record.study_yaml, record.tags)
    again, _, told = run(study(text), tmp_path)  # a finished study trains nothing, and is never refused
    assert (again.trained, again.kept) == (0, 2)
    assert any("is left as it is" in words for words in told) or not told
    assert read(again).encoder_info["fingerprint"] == parts.encoder.fingerprint  # that of its rows
    weights.write_bytes(whole)
    more, _, _ = run(study(text, "replicates=2"), tmp_path)
    assert (more.trained, more.kept) == (2, 2)
    assert "hanged" not in caveats(more)


@case(
    Kind.DEPENDENCIES,
    "the same, with `--accept-change`, or as a new study under another name",
    "trained; terminal, dependencies.json, tags and report tell which rows are from before and after; a study of "
    "another name is its own, and the report of either is of it alone",
    "brain-score/vision#2503",
)
def test_a_change_that_is_accepted(text: str, encoder: Path, tmp_path: Path) -> None:
    run(study(text), tmp_path)
    rot(encoder / "model.safetensors")
    more, _, told = run(study(text, "replicates=2"), tmp_path, accept_change=True)
    assert (more.trained, more.kept) == (2, 2)
    assert any(words.startswith("accepted, and told in the report") for words in told)
    record = read(more)
    assert record.dependencies is not None
    (change,) = record.dependencies.changes
    assert (change.finished, [one.name for one in change.changed]) == (2, ["encoder.weights"])
    assert {run_.replicate: run_.dependencies for run_ in record.runs} == {"0": change.before, "1": change.after}
    said = caveats(more)
    assert f"Mixed: the weights of encoder '{encoder}'" in said
    assert "2 variant-replicates (replicate 0) were trained before it and 2 variant-replicates (replicate 1)" in said
    other, _, _ = run(study(text, "name=other"), tmp_path)
    assert (other.trained, other.kept) == (2, 0)
    assert "Mixed" not in caveats(other)
    last, _, _ = run(study(text, "replicates=2"), tmp_path)
    assert (last.run_id, read(last).name, last.trained) == (more.run_id, "small", 0)
    assert "Mixed" in caveats(last)


@case(
    Kind.DEPENDENCIES,
    "pictures are replaced under the same names, sizes and times, by a source that knows them by name alone",
    "refused for the study; a new study encodes them anew instead of reading the stored features of the old ones",
)
def test_pictures_that_were_replaced(text: str, pictures: Path, tmp_path: Path) -> None:
    run(study(text), tmp_path)
    other_picture(pictures / "test-2.png")
    with pytest.raises(WorkbenchError, match=r"the images in the test split of source 'folder' \(.{8} → .{8}\)"):
        run(study(text, "replicates=2"), tmp_path)
    whole = (pictures / "test-1.png").read_bytes()
    rot(pictures / "test-1.png", 0.5)  # no other picture, but none
    with pytest.raises(WorkbenchError, match="image 1 in the test split of source 'folder' cannot be read: OSError"):
        run(study(text, "replicates=2"), tmp_path)
    (pictures / "test-1.png").write_bytes(whole)
    _, _, told = run(study(text, "name=other"), tmp_path)
    assert any("the test split has other images than were encoded" in words for words in told)
    assert any(words.startswith("encoded 4 images") for words in told)


@case(
    Kind.DEPENDENCIES,
    "a study of 0.1, which recorded no such fingerprints, goes on",
    "they are taken at its first start and marked; what 0.1 kept (of encoder, pictures and words) is held against "
    "them, and new rows under other numerics are refused",
)
def test_a_study_of_before_fingerprints(text: str, encoder: Path, tmp_path: Path) -> None:
    _, parts, _ = run(study(text), tmp_path)

    def as_0_1() -> Ledger:
        ledger = Ledger(parts.folder / "ledger.db")
        for fact in (FACT, NUMERICS_FACT):
            ledger.remember(fact, None)
        return ledger

    ledger = as_0_1()
    again, _, _ = run(study(text), tmp_path)
    taken = ledger.fact(FACT)
    assert (again.trained, taken["recorded"], taken["fingerprints"]["numerics"]) == (0, NOT_RECORDED, "1")
    with pytest.raises(WorkbenchError, match=r"the numerics of the workbench \(1 → 2\)"):
        run(study(text, "replicates=2"), tmp_path)
    as_0_1().close()
    ledger.remember(NUMERICS_FACT, [2])
    whole = (encoder / "model.safetensors").read_bytes()
    rot(encoder / "model.safetensors")
    again, _, told = run(study(text), tmp_path)
    assert again.trained == 0
    assert [words for words in told if words.startswith("note: since study 'small' was trained have changed: the weig")]
    with pytest.raises(WorkbenchError, match="the weights of encoder"):
        run(study(text, "replicates=2"), tmp_path)
    (encoder / "model.safetensors").write_bytes(whole)
    more, _, _ = run(study(text, "replicates=2"), tmp_path)
    assert more.trained == 2
    assert read(more).dependencies.recorded == NOT_RECORDED  # type: ignore[union-attr]
    ledger.close()


@case(
    Kind.DEPENDENCIES,
    "the code of a strategy from a plug-in is changed, anywhere in its package, and the study runs again",
    "its cells alone are trained anew; rows of the old code are left out of the report, which says so; the old code "
    "put back, its rows count again; loading what was exported under the old code warns",
)
def test_a_plugins_code_belongs_to_its_cells(mlflow_uri: str, package: Path, tmp_path: Path) -> None:
    text = PLANTED.format(uri=mlflow_uri)
    first, parts, _ = run(study(text), tmp_path)
    before = rows(parts)
    (final,) = (r.run_id for r in read(first).runs if (r.params["strategy"], r.phase) == ("largest", "final"))
    export_run(mlflow_uri, final, tmp_path / "exported")
    with warnings.catch_warnings(action="error", category=UserWarning):
        load_connector(tmp_path / "exported", device="cpu")
    (package / "helper.py").write_text("SCALE = 2.0\n", encoding="utf-8")
    code = (package / "strategy.py").read_text()
    (package / "strategy.py").write_text(code.replace("self.options.scale *", "2 * self.options.scale *"))
    imported()
    more, parts, told = run(study(text), tmp_path)
    assert (more.trained, more.kept) == (3, 6)  # two learning rates and the replicate
    assert rows(parts)[:6] == before
    assert any("the code of strategy 'largest' has changed" in words for words in told)
    with pytest.warns(UserWarning, match="was trained with other code of the strategy 'largest'"):
        load_connector(tmp_path / "exported", device="cpu")
    record = read(more)
    largest = [run_ for run_ in record.runs if run_.params["strategy"] == "largest"]
    assert {run_.run_id for run_ in largest} == {run_id for _, _, run_id, _ in rows(parts)[6:]}
    assert "The code of strategy 'largest' has changed since: 3 runs of other code are left out." in record.notes
    (package / "helper.py").unlink()
    (package / "strategy.py").write_text(code)
    imported()
    last, parts, _ = run(study(text), tmp_path)
    assert (last.trained, len(rows(parts))) == (0, 9)
    assert {run_.run_id for run_ in read(last).runs} == {run_id for _, _, run_id, _ in before}


@case(
    Kind.DEPENDENCIES,
    "replicates of one study are trained under different versions of torch or pillow, on other hardware, or in "
    "another precision",
    "recorded with each; the report says how many were trained with which",
)
def test_other_versions_are_told(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(study(text), tmp_path)
    real = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: real | {"pillow": "99.1"})
    more, _, _ = run(study(text, "replicates=2"), tmp_path)
    assert more.trained == 2
    assert f"variant-replicates in brackets: pillow {real['pillow']} (2) and 99.1 (2)." in caveats(more)


# --- embedded assets ------------------------------------------------------------------------------------------------


@case(
    Kind.DEPENDENCIES,
    "one bit of an embedded asset rots, size and time kept: of the encoder, of what scenes are drawn from",
    "refused before anything is encoded or trained, with the command that mends it; `assets --list` and `doctor` "
    "read every file and say so",
)
def test_a_rotten_asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_workbench.assets import home
    from fusion_workbench.datamodules.build import build_source

    root = tmp_path / "assets"
    for name in ("photographs", "digits", "typefaces", "encoder"):
        shutil.copytree(home.home() / name, root / name)
    monkeypatch.setenv("WORKBENCH_ASSETS", str(root))
    source = build_source("finescenes", {"train": 2, "val": 2, "test": 2})
    whole = source.content("train")
    assert whole == source.content("train") != source.content("val")
    rot(root / "photographs" / "astronaut.png", 0.5)
    with pytest.raises(WorkbenchError, match=r"its sha256 is not the recorded one.*workbench assets --repair"):
        source.content("train")
    dependencies._check_asset("assets:encoder")
    rot(root / "encoder" / "model.safetensors")
    assert home.model_path("assets:encoder", "encoder", "encoder.name")  # by size and time all is well
    with pytest.raises(WorkbenchError, match=r"model\.safetensors was altered \(its sha256 is not the recorded one"):
        dependencies._check_asset("assets:encoder")
    states = {status.name: status.state for status in home.status(thorough=True)}
    assert {name: states[name] for name in ("photographs", "encoder", "digits")} == {
        "photographs": "altered",
        "encoder": "altered",
        "digits": "ready",
    }
