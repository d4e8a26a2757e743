"""Damaged results and weights: what was written is what is read, or it is refused."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from cases import Kind, case
from mlflow.tracking import MlflowClient
from rich.console import Console
from tiny_models import build_model, save_language

from fusion_workbench.config.study import StudyConfig, study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.sources.finescenes_parts import Parts as SceneParts
from fusion_workbench.datamodules.store.listing import list_stores, verify_store
from fusion_workbench.models.connector import CONFIG, HEADS, WEIGHTS, load_connector
from fusion_workbench.models.export import export_run
from fusion_workbench.models.folder import CONNECTOR, save_model
from fusion_workbench.models.loaded import load_model
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.render.tables import provenance
from fusion_workbench.runner.experiment import Experiment, StudyResult
from fusion_workbench.schema.names import Artifact, Status, is_own_metric, scores_file
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.prepare import prepare
from fusion_workbench.study.progress import Display

STUDY = """
name: whole
question: Is it what was written?
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 24, val: 8, test: 16}}}}
strategies: [{{name: concat}}]
selections: [{{levels: [1, 2]}}]
baselines: false
single_layers: [3]
replicates: 2
plan: {{confirm: []}}
search: {{learning_rates: [0.003]}}
training: {{epochs: 1, batch_size: 8, head_hidden: 16}}
tracking: {{uri: "{uri}"}}
"""
TEST = scores_file("test")


@dataclass(frozen=True)
class Done:
    """A finished study: 2 cells, 2 replicates."""

    config: StudyConfig
    workspace: Path
    result: StudyResult
    record: StudyRecord

    @property
    def uri(self) -> str:
        return self.result.tracking_uri

    @property
    def run(self) -> str:
        """Of the first replicate of the fusion."""
        return self.record.finals(self.fused)[0].run_id

    @property
    def fused(self) -> str:
        return next(cell.id for cell in self.record.cells if not cell.single)

    def artifact(self, run_id: str, path: str) -> Path:
        (found,) = (self.workspace / "artifacts").glob(f"*/{run_id}/artifacts/{path}")
        return found

    def sweep(self) -> tuple[StudyResult, str]:
        """The same command again; what it printed."""
        out = io.StringIO()
        parts = prepare(self.config, self.workspace, progress=False)
        return Experiment(parts, Display(Console(file=out, width=500), progress=False)).run(), out.getvalue()

    def read(self) -> StudyRecord:
        return read_study(self.uri, "whole")


@pytest.fixture(scope="module")
def template(mlflow_template: Path, tiny_dinov2: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        place = (folder / "artifacts").as_uri()
        database.execute("UPDATE experiments SET artifact_location = ? || '/' || experiment_id", [place])
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    config = study_from_yaml(STUDY.format(encoder=tiny_dinov2, uri=uri), "whole.yaml")
    parts = prepare(config, folder, progress=False)
    result = Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()
    return Done(config, folder, result, read_study(uri, "whole"))


@contextmanager
def kept(*files: Path) -> Iterator[None]:
    """Puts the files back afterwards."""
    before = {file: file.read_bytes() for file in files}
    try:
        yield
    finally:
        for file, content in before.items():
            file.write_bytes(content)


@contextmanager
def of_0_1_0(uri: str) -> Iterator[None]:
    """As if a version had written the study that records no sha256."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        rows = database.execute("SELECT key, value, run_uuid FROM tags WHERE key LIKE 'workbench.sha256%'").fetchall()
        database.execute("DELETE FROM tags WHERE key LIKE 'workbench.sha256%'")
    try:
        yield
    finally:
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
            database.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", rows)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def rewrite(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        change(pd.read_parquet(file)).to_parquet(file, index=False)

    return spoil


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "half of the rows": (rewrite(lambda t: t.iloc[::2]), r"for 8 of 16 examples"),
    "no rows": (rewrite(lambda t: t.iloc[:0]), "holds no scores of 'read'"),
    "one task gone": (rewrite(lambda t: t[t["task"] != "digit"]), "holds no scores of 'digit'"),
    "scores + 0.3": (rewrite(lambda t: t.assign(score=t["score"] + 0.3)), "for the run's test/"),
    "scores of 1e300": (rewrite(lambda t: t.assign(score=1e300)), "for the run's test/"),
    "scores in words": (rewrite(lambda t: t.assign(score="much")), r"cannot be read \(ValueError\)"),
    "another task's name": (rewrite(lambda t: t.assign(task="count")), "'count', which is no task of the study"),
    "cut in half": (lambda f: os.truncate(f, f.stat().st_size // 2), "cannot be read"),
    "gone": (Path.unlink, "is missing"),
}


@case(
    Kind.ARTIFACTS,
    "a run's file of scores is altered: half of its rows, other scores, another task's name, a bit, cut, gone",
    "the report counts the run as unreadable and says why; its other replicates are reported",
)
@pytest.mark.parametrize("way", SPOILT)
def test_altered_scores_are_not_reported(template: Done, way: str) -> None:
    spoil, _ = SPOILT[way]
    file = template.artifact(template.run, TEST)
    with kept(file):
        spoil(file)
        record = template.read()
    assert record.counts() == {Status.FINISHED: 3, Status.UNREADABLE: 1}
    said = "is missing" if way == "gone" else "does not have the sha256 that was recorded when it was written"
    assert f"{TEST} of run {template.run} {said}." in record.notes
    scores = record.example_scores[template.fused, "digit", "test"]
    assert scores.replicates == ("1",)
    assert len(scores.examples) == 16


def test_one_bit_of_the_scores_is_enough(template: Done) -> None:
    file = template.artifact(template.run, TEST)
    for place in (4, 474, file.stat().st_size // 2, file.stat().st_size - 1):
        with kept(file):
            flip(file, place)
            assert template.read().counts() == {Status.FINISHED: 3, Status.UNREADABLE: 1}


@case(
    Kind.ARTIFACTS,
    "the same in a study of 0.1.0, which recorded no sha256",
    "found by rows and tasks that are missing, and by the metrics that MLflow has of the same run",
)
@pytest.mark.parametrize("way", SPOILT)
def test_altered_scores_of_0_1_0_are_found_by_the_metrics(template: Done, way: str) -> None:
    spoil, says = SPOILT[way]
    file = template.artifact(template.run, TEST)
    with kept(file), of_0_1_0(template.uri):
        spoil(file)
        record = template.read()
    assert record.counts() == {Status.FINISHED: 3, Status.UNREADABLE: 1}
    (note,) = record.notes
    assert note.startswith(f"{TEST} of run {template.run} ")
    assert re.search(says, note), note


@contextmanager
def metric_moved(uri: str, metric: str, runs: Sequence[str]) -> Iterator[None]:
    """As MLflow would say it after a fault in its database, or of a metric of somebody's own."""
    names = ", ".join(f"'{run}'" for run in runs)
    where = f"WHERE key = '{metric}' AND run_uuid IN ({names})"
    for step in (0.2, -0.2):
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
            for table in ("metrics", "latest_metrics"):
                assert database.execute(f"UPDATE {table} SET value = value + {step} {where}").rowcount == len(runs)
        if step > 0:
            yield


@case(
    Kind.ARTIFACTS,
    "a metric in MLflow is not what the scores of the same run give",
    "that run is unreadable; where it is so in every run (somebody's own task, whose metric is no mean), it is told",
)
def test_metrics_that_the_scores_do_not_give(template: Done) -> None:
    runs = [run.run_id for run in template.record.runs]
    with metric_moved(template.uri, "test/digit/accuracy", runs[:1]):
        record = template.read()
    assert record.counts() == {Status.FINISHED: 3, Status.UNREADABLE: 1}
    altered, note = record.notes
    assert altered.startswith(f"The metrics of run {runs[0]} in MLflow are not those that the study wrote there")
    assert re.fullmatch(rf"{TEST} of run {runs[0]} gives .* for the run's test/digit/accuracy, which .*", note)
    with metric_moved(template.uri, "test/digit/accuracy", runs):
        record = template.read()
    assert record.counts() == {Status.FINISHED: 4}
    altered, note = record.notes
    assert altered.startswith(f"The metrics of 4 runs, such as {runs[0]}, in MLflow are not those")
    assert note.startswith("The metric of task 'digit' on test is not the mean of its examples' scores")


def change_metrics(uri: str, statement: str) -> None:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        for table in ("metrics", "latest_metrics"):
            assert database.execute(statement.format(table=table)).rowcount


@case(
    Kind.ARTIFACTS,
    "MLflow's metrics of a study's runs are deleted, or one on validation, of cost or of convergence is another",
    "the report tells it, export asks for a cell; the same sweep writes them again from the ledger and trains nothing",
)
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM {table}",
        "DELETE FROM {table} WHERE key = 'val/digit/accuracy'",
        "UPDATE {table} SET value = value + 0.01 WHERE key = 'val/objective'",
        "UPDATE {table} SET value = 2 * value WHERE key = 'cost/flops_per_image'",
        "UPDATE {table} SET value = 1 - value WHERE key = 'converged'",
    ],
)
def test_metrics_that_the_study_did_not_write(template: Done, tmp_path: Path, statement: str) -> None:
    with kept(Path(template.uri.removeprefix("sqlite:///"))):
        change_metrics(template.uri, statement)
        record = template.read()
        assert record.notes[0].startswith("The metrics of 4 runs, such as "), record.notes
        with pytest.raises(WorkbenchError, match="The recommended cell is chosen by them; name one with whole:CELL"):
            export_run(template.uri, "whole", tmp_path / "out")
        result, said = template.sweep()
        assert (result.trained, result.kept) == (0, 4)
        assert "the metrics of 4 runs were not in MLflow as the study wrote them; written there again\n" in said
        again = template.read()
        assert again.notes == ()
        assert {run.run_id: run.metrics for run in again.runs} == {r.run_id: r.metrics for r in template.record.runs}
        assert "metrics" not in template.sweep()[1]


def test_metrics_that_somebody_adds_are_no_matter(template: Done) -> None:
    assert {name for run in template.record.runs for name in run.metrics if not is_own_metric(name)} == set()
    with kept(Path(template.uri.removeprefix("sqlite:///"))):
        MlflowClient(template.uri).log_metric(template.run, "human/score", 0.5)
        assert template.read().notes == ()
        assert "metrics" not in template.sweep()[1]


@case(
    Kind.ARTIFACTS,
    "a study of 0.1.0 is reported, whose files have no sha256",
    "its numbers are reported as before, and how many runs have no checksums",
)
def test_a_study_without_checksums_is_read_and_told(template: Done) -> None:
    assert template.record.notes == ()
    assert template.record.unchecked == 0
    with of_0_1_0(template.uri):
        record = template.read()
    assert record.counts() == {Status.FINISHED: 4}
    assert record.notes == ()
    assert ("Checksums", "4 runs of before 0.2 have none") in provenance(record, {}, "")
    assert "Checksums" not in dict(provenance(template.record, {}, ""))


@case(
    Kind.ARTIFACTS,
    "a file of the study's own run is damaged: tasks, cells, the plan, the source",
    "the report is refused in one line, and the same sweep writes the file again; a passport is left out and told",
)
def test_damaged_descriptions_are_refused_or_left_out(template: Done) -> None:
    run = template.result.run_id
    for name in (Artifact.TASKS, Artifact.CELLS, Artifact.PLAN, Artifact.SOURCE, Artifact.STUDY):
        file = template.artifact(run, name)
        with kept(file):
            flip(file, file.stat().st_size // 2)
            with pytest.raises(
                WorkbenchError, match=rf"^{name} of the study's run {run} does not have the sha256.*"
            ) as e:
                template.read()
        assert "\n" not in str(e.value)
        with kept(file):
            file.unlink()
            with pytest.raises(WorkbenchError, match=rf"^{re.escape(name)} of the study's run {run} is missing"):
                template.read()
    for name in (Artifact.ENCODER, Artifact.SIMILARITY, Artifact.TOKEN_MAPS):
        file = template.artifact(run, name)
        with kept(file):
            flip(file, file.stat().st_size // 2)
            assert any(f"{name} is left out: it does not have" in note for note in template.read().notes)


@case(
    Kind.ARTIFACTS,
    "a bit of a trained connector's weights in MLflow is flipped, or they are not finite, and it is exported",
    "refused in one line",
)
def test_damaged_weights_are_not_exported(template: Done, tmp_path: Path) -> None:
    for name in (Artifact.FUSER, Artifact.FUSER_CONFIG):
        file = template.artifact(template.run, name)
        with kept(file):
            flip(file, file.stat().st_size - 2)
            with pytest.raises(WorkbenchError, match=rf"{name} of run {template.run} does not have the sha256"):
                export_run(template.uri, template.run, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    weights, config = (template.artifact(template.run, name) for name in (Artifact.FUSER, Artifact.FUSER_CONFIG))
    with kept(weights, config), of_0_1_0(template.uri):
        tensors = safetensors.torch.load_file(weights)
        safetensors.torch.save_file({k: torch.full_like(v, torch.nan) for k, v in tensors.items()}, weights)
        with pytest.raises(WorkbenchError, match="NaN or infinite"):
            export_run(template.uri, template.run, tmp_path / "out")
        for torn in (b"{}", b"[]", b'{"levels": '):
            config.write_bytes(torn)
            with pytest.raises(WorkbenchError, match=r"fuser/config\.json of run"):
                export_run(template.uri, template.run, tmp_path / "out")


@case(
    Kind.ARTIFACTS,
    "a bit of an exported connector or whole model is flipped, or a number in its config.json is another",
    "loading it is refused in one line; folders of 0.1.0, which have no sha256, load as before",
)
def test_a_damaged_export_is_not_loaded(template: Done, tiny_clip: Path, tmp_path: Path) -> None:
    folder = export_run(template.uri, template.run, tmp_path / "connector").folder
    load_connector(folder)
    for name in (WEIGHTS, HEADS):
        with kept(folder / name):
            flip(folder / name, (folder / name).stat().st_size - 2)
            with pytest.raises(WorkbenchError, match=f"{name} is damaged or was changed"):
                load_connector(folder)
    with kept(folder / CONFIG):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {"levels": [0, 2]}))
        with pytest.raises(WorkbenchError, match=r"config\.json is damaged or was changed"):
            load_connector(folder)
        (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if key != "sha256"}))
        load_connector(folder)

    model, encoder, described = build_model(tiny_clip, save_language(tmp_path / "llama"))
    whole = tmp_path / "model"
    save_model(model, whole, encoder, described)
    load_model(whole, "cpu")
    for name in (CONNECTOR, "tokenizer/tokenizer_config.json"):
        with kept(whole / name):
            content = (whole / name).read_bytes()
            (whole / name).write_bytes(content.rstrip() + b" " if name.endswith("json") else content)
            if name == CONNECTOR:
                flip(whole / name, len(content) - 2)
            with pytest.raises(WorkbenchError, match=f"{name} is damaged or was changed"):
                load_model(whole, "cpu")
    with kept(whole / "tokenizer" / "tokenizer.json"):
        (whole / "tokenizer" / "extra.txt").write_text("what is added does no harm")
        load_model(whole, "cpu")


@case(
    Kind.ARTIFACTS,
    "outcomes, weights or a row of the ledger of a finished study are damaged, and the same sweep is run again",
    "told in one line; what is damaged is trained again, the other results are kept, the numbers are those of before",
)
def test_what_is_damaged_is_trained_again(template: Done, tmp_path: Path) -> None:
    first, second, third = template.record.runs[:3]
    flip(template.artifact(first.run_id, TEST), 200)
    template.artifact(second.run_id, Artifact.FUSER).unlink()
    for path in template.workspace.glob("studies/*/ledger.db"):
        with closing(sqlite3.connect(path)) as database, database:
            spoil = "UPDATE entries SET result = replace(result, '0.', '1.') WHERE run_id = ?"
            assert database.execute(spoil, (third.run_id,)).rowcount == 1
    similarity, plan = (template.artifact(template.result.run_id, n) for n in (Artifact.SIMILARITY, Artifact.PLAN))
    before = similarity.read_bytes()
    flip(similarity, 100)
    plan.unlink()
    plan.mkdir()
    result, said = template.sweep()
    assert (result.trained, result.kept) == (3, 1)
    assert "the ledger has 1 damaged row, which is trained again\n" in said
    assert "damaged files; 2 finished variant-replicates are trained again: " in said
    assert f"({TEST} does not have its sha256)" in said
    assert f"({Artifact.FUSER} is missing)" in said
    assert f"{Artifact.SIMILARITY} of the study's run is damaged and is made again\n" in said
    assert similarity.read_bytes() == before
    assert plan.is_file()
    record = template.read()
    assert record.notes == ()
    assert record.counts() == {Status.FINISHED: 4}
    for key, one in template.record.example_scores.items():
        assert (one.scores == record.example_scores[key].scores).all()
    result, said = template.sweep()
    assert (result.trained, result.kept) == (0, 4)
    assert "damaged" not in said


@case(
    Kind.ARTIFACTS,
    "a page of the ledger is zeroed, a remembered fact is garbage, or the file is another program's database",
    "refused in one line that says what to do",
)
def test_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.remember("plan", {"first": {}})
    for number in range(100):
        ledger.start(f"{number:016x}", "0", "run")
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + bytes(4096) + whole[12288:])
    zeroed = refusal(path)
    path.write_bytes(whole)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE facts SET value = 'garbage'")
    fact = refusal(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE songs (name TEXT)")
    for said in (zeroed, fact, refusal(path)):
        assert said.startswith(f"the study's ledger {path} ")
        assert "restore a copy of the file, or move it away: then all is trained again" in said
        assert "\n" not in said


def refusal(path: Path) -> str:
    with pytest.raises(WorkbenchError) as error:
        Ledger(path)
    return str(error.value)


@case(
    Kind.ARTIFACTS,
    "the index of a feature store is torn or names no shard, and the store is verified",
    "the index is named as bad; it used to pass for whole",
)
@pytest.mark.parametrize(
    "content", ['{"shards": {}}', "", '{"shards": {"../elsewhere": "00"}}', '{"shards": {"a": 1}}']
)
def test_a_store_whose_index_names_nothing_is_not_whole(template: Done, content: str, tmp_path: Path) -> None:
    root = Path(shutil.copytree(template.workspace / "store", tmp_path / "store"))
    (store,) = list_stores(root)
    assert verify_store(root, store.key) == []
    index = next(root.glob(f"{store.key}/*/index.json"))
    index.write_text(content)
    assert verify_store(root, store.key) == [index]
    index.unlink()
    assert verify_store(root, store.key) == [index]


@case(
    Kind.ARTIFACTS, "a bit of the embedded handwriting, digits.npz, has rotted", "refused in one line, with the remedy"
)
def test_rotten_handwriting(tmp_path: Path) -> None:
    from fusion_workbench.assets.home import ensure

    photographs, digits, typefaces = ensure("photographs", "digits", "typefaces", progress=False).values()
    whole = (digits / "digits.npz").read_bytes()
    for place in (100, len(whole) // 2):
        (tmp_path / "digits.npz").write_bytes(whole)
        flip(tmp_path / "digits.npz", place)
        with pytest.raises(WorkbenchError, match=r"digits\.npz cannot be read .*workbench assets --repair") as error:
            SceneParts(photographs, tmp_path, typefaces)
        assert "\n" not in str(error.value)


@case(
    Kind.ARTIFACTS,
    "a bit of a weight in the checkpoint of an interrupted training is flipped; torch.load reads it all the same",
    "the checkpoint is not taken up, and its stage is trained from where the one before it ended",
)
def test_a_rotten_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    from fusion_workbench.training.language_training import _readable

    path = tmp_path / "stage.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(1000.0)}}, path)
    whole = path.read_bytes()
    assert _readable(path)
    weight = whole.index(torch.arange(1000.0).numpy().tobytes())
    for place in (weight, weight + 2001, weight + 3999):
        path.write_bytes(whole)
        flip(path, place)
        assert not _readable(path)
        assert not path.exists()
