"""A trained connector leaves the workbench: a folder that loads, a card that says what is known, a model in MLflow."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from rich.console import Console

from fusion_workbench.config.study import study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.connector import CARD, CONFIG, HEADS, WEIGHTS, load_connector, load_images
from fusion_workbench.models.export import export_run, show
from fusion_workbench.models.locate import locate
from fusion_workbench.runner.experiment import Experiment
from fusion_workbench.study.prepare import Parts, prepare
from fusion_workbench.study.progress import Display

STUDY = """
name: leaving
question: Does it load elsewhere?
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 16, val: 8, test: 12}}}}
strategies: [{{name: concat}}, {{name: mmfuser, options: {{heads: 2}}}}, {{name: matched, options: {{like: concat}}}}]
selections: [{{levels: [1, 2]}}]
replicates: 3
plan: {{confirm: []}}
search: {{learning_rates: [0.003]}}
training: {{epochs: 1, batch_size: 8, head_hidden: 16}}
tracking: {{uri: "{uri}"}}
"""


@pytest.fixture(scope="module")
def trained(
    tiny_dinov2: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Parts, dict[tuple[str, str], str]]:
    """A finished study: its MLflow, its parts, and the run of each (cell, replicate)."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.mktemp("leaving")
    database = folder / "mlflow.db"
    shutil.copy(mlflow_template, database)
    connection = sqlite3.connect(database)
    with connection:
        artifacts = (folder / "artifacts").as_uri()
        connection.execute("UPDATE experiments SET artifact_location = ? || '/' || experiment_id", [artifacts])
    connection.close()
    uri = f"sqlite:///{database}"
    parts = prepare(study_from_yaml(STUDY.format(encoder=tiny_dinov2, uri=uri), "x.yaml"), folder, progress=False)
    result = Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_run(result.run_id).info.experiment_id
    found = client.search_runs([experiment], "tags.`workbench.phase` = 'final'", max_results=1000)
    runs = {(r.data.params["strategy"], r.data.tags["workbench.replicate"]): r.info.run_id for r in found}
    return uri, parts, runs


@pytest.fixture(scope="module")
def folder(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    uri, _, runs = trained
    return export_run(uri, runs["mmfuser", "1"], tmp_path_factory.mktemp("out") / "mmfuser").folder


def pictures(count: int = 2) -> list[np.ndarray]:
    draw = np.random.RandomState(0)
    return [draw.randint(0, 256, (130, 112, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("strategy", ["concat", "mmfuser", "matched", "deep_only"])
def test_tokens_are_those_of_training(trained: Any, tmp_path: Path, strategy: str) -> None:
    from fusion_workbench.modules.probes.probe import Probe, ProbeConfig

    uri, parts, runs = trained
    exported = export_run(uri, runs[strategy, "0"], tmp_path / "it")
    device = parts.encoder.device
    connector = load_connector(exported.folder, device=str(device))
    weights = safetensors.torch.load_file(exported.folder / WEIGHTS)
    weights |= safetensors.torch.load_file(exported.folder / HEADS)
    config = json.loads((exported.folder / CONFIG).read_text())
    assert tuple(config["layers"]) == exported.layers == connector.layers
    from fusion_workbench.core.layers import Selection

    probe = Probe(
        ProbeConfig(
            strategy,
            Selection(tuple(config["levels"]), config["query"]),
            32,
            config["options"],
            head_hidden=16,
            grid=(8, 8),
        ),
        parts.tasks,
    )
    probe.to(device).load_state_dict(weights)  # the very names of the probe: nothing is lost, nothing added
    images = np.stack([parts.source.image("test", index) for index in range(4)])
    with torch.no_grad():
        expected = probe.tokens(parts.encoder.encode(images, connector.layers), (8, 8))
        assert torch.equal(connector(images), expected)
        assert torch.equal(connector.from_pixels(parts.encoder.normalise(images)), expected)
    assert len(connector.token_map) == expected.shape[1] == 64
    assert connector.width == expected.shape[2] == 32


def test_pictures_of_every_kind_are_taken(folder: Path, tmp_path: Path) -> None:
    connector = load_connector(folder)
    first, second = pictures()
    Image.fromarray(first).save(tmp_path / "a.png")
    with torch.no_grad():
        tokens = connector([first, second])
        for same in (str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(first), first, [first]):
            assert torch.equal(connector(same), tokens[:1])
        assert torch.equal(connector(np.stack([first, second])), tokens)
    with pytest.raises(WorkbenchError, match="a picture is a path, a PIL image or a uint8 array"):
        connector(np.zeros((112, 112, 3)))
    assert load_images(first, (56, 112)).shape == (1, 56, 112, 3)


def test_gradients_reach_fuser_and_projector_alone(folder: Path) -> None:
    connector = load_connector(folder).train()
    connector(pictures()).square().mean().backward()
    assert all(p.grad is not None for p in connector.projector.parameters())
    assert all(p.grad is not None for p in connector.fuser.gates())
    assert all(p.grad is None for p in connector.encoder.parameters())


def test_a_study_stands_for_its_recommended_cell_and_its_first_replicate(trained: Any, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    from fusion_workbench.reports.analysis.answer import answer
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.reading.query import read_study

    uri, _, runs = trained
    recommended = answer(Analysis(read_study(uri, "leaving"))).cell
    assert recommended is not None
    exported = export_run(uri, "leaving", None, folder=tmp_path)
    assert exported.cell == recommended.label
    tags = MlflowClient(tracking_uri=uri).get_run(exported.run_id).data.tags
    assert (tags["workbench.cell"], tags["workbench.replicate"]) == (recommended.id, "0")
    named = export_run(uri, "leaving:concat [1,2]→3", None, folder=tmp_path, overwrite=True)
    assert (named.folder.name, named.run_id) == ("leaving-concat-1-2-3", runs["concat", "0"])


def test_the_card_says_what_is_known_and_what_is_not(folder: Path) -> None:
    text = (folder / CARD).read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "fusion-workbench"
    assert "base_model" not in front, "a folder is no model of the hub"
    for word in (
        "Does it load elsewhere?", "hidden states 1, 2, 3", "replicate 1", "against deepest layer", "read (accuracy)",
        "3 of 3 replicates", "What is not known", "load_connector", "16 train, 8 val, 12 test images", "FLOPs an image",
        "keep the licences",
    ):  # fmt: skip
        assert word in text, word


def test_a_folder_is_replaced_only_when_told_and_only_if_it_is_one(trained: Any, tmp_path: Path) -> None:
    uri, _, runs = trained
    run = runs["concat", "0"]
    out = export_run(uri, run, tmp_path / "it").folder
    with pytest.raises(WorkbenchError, match="is there already; give --overwrite"):
        export_run(uri, run, out)
    (out / WEIGHTS).write_bytes(b"torn")
    export_run(uri, run, out, overwrite=True)
    load_connector(out)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    with pytest.raises(WorkbenchError, match="is not an exported connector, so it is not replaced"):
        export_run(uri, run, mine, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it", "mine"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("0" * 32, "MLflow has no run 0000"),
        ("nowhere", "no study 'nowhere'"),
        ("leaving:concat [1,2]→4", r"has no cell 'concat \[1,2\]→4'.*Did you mean 'concat"),
    ],
)
def test_what_cannot_be_exported_is_said(trained: Any, tmp_path: Path, target: str, message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        export_run(trained[0], target, None, folder=tmp_path)


def test_a_cell_goes_by_each_name_that_the_report_prints(trained: Any) -> None:
    uri, _, runs = trained
    query = locate(uri, runs["deep_only", "0"]).cell.query
    for name in (f"deep_only {query}", f"layer {query} alone"):
        assert locate(uri, f"leaving:{name}").run_id == runs["deep_only", "0"]
    with pytest.raises(
        WorkbenchError, match=rf"has no cell 'layer {query} along'.* Did you mean 'layer {query} alone'"
    ):
        locate(uri, f"leaving:layer {query} along")


def test_the_studys_own_run_has_no_weights(trained: Any, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, _, runs = trained
    parent = MlflowClient(tracking_uri=uri).get_run(runs["concat", "0"]).data.tags["mlflow.parentRunId"]
    with pytest.raises(WorkbenchError, match="not a variant's: only runs of the replicates"):
        export_run(uri, parent, None, folder=tmp_path)


def test_runs_without_weights_say_why(trained: Any, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, _, runs = trained
    client = MlflowClient(tracking_uri=uri)
    whole = client.get_run(runs["concat", "1"])
    tags = {key: value for key, value in whole.data.tags.items() if key.startswith("workbench.")}

    def left(status: str, **other: str) -> str:
        """A run beside the study's, as a kill or a search leaves one."""
        run = client.create_run(whole.info.experiment_id, tags=tags | {f"workbench.{k}": v for k, v in other.items()})
        client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)

    for run, message in (
        (left("KILLED"), r"was not trained to its end \(KILLED\), so it has no weights"),
        (left("FINISHED", phase="search"), "is a step of a learning-rate search"),
        (left("FINISHED"), "has no fuser/config.json, so there is nothing to export"),
    ):
        with pytest.raises(WorkbenchError, match=message) as caught:
            export_run(uri, run, tmp_path / "it")
        assert "\n" not in str(caught.value)
        client.delete_run(run)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_said(trained: Any, tmp_path: Path) -> None:
    uri, _, runs = trained
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match=r"cannot be written .*; name another folder with --out"):
        export_run(uri, runs["concat", "0"], tmp_path / "file" / "it")


def test_an_encoder_that_moved_is_found_again(folder: Path, tiny_dinov2: Path, tiny_clip: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / CONFIG).read_text())
    assert config["encoder"]["encoder"] == str(tiny_dinov2.resolve())
    config["encoder"]["encoder"] = str(tmp_path / "was")
    (copy / CONFIG).write_text(json.dumps(config))
    with pytest.raises(WorkbenchError, match=r"the encoder in the folder .*was, which is not here; say where it is"):
        load_connector(copy)
    shutil.copytree(tiny_dinov2, tmp_path / "is")
    with torch.no_grad():
        moved = load_connector(copy, encoder=str(tmp_path / "is"))(pictures())
        assert torch.equal(moved, load_connector(folder)(pictures()))
    with pytest.raises(WorkbenchError, match="was trained on another"):
        load_connector(copy, encoder=str(tiny_clip))


def test_a_planted_encoder_needs_no_folder(tmp_path: Path) -> None:
    from fusion_workbench.config.study import load_study

    few = ["source.options.train=32", "training.epochs=1", "replicates=1", "single_layers=[]", "plan.confirm=[]"]
    pair = ["space=null", "selections=[{levels: [1, 3]}]", "baselines=false"]
    parts = prepare(load_study("planted", [*few, *pair]), tmp_path, progress=False)
    result = Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()
    exported = export_run(result.tracking_uri, f"planted:{parts.space.listed[0].label}", tmp_path / "it")
    connector = load_connector(exported.folder)
    images = [parts.source.image("test", index) for index in range(2)]
    with torch.no_grad():
        assert connector(images).shape == (2, 4, 16)


def test_a_folder_that_cannot_be_loaded_says_why(folder: Path, tmp_path: Path) -> None:
    def spoilt(name: str, **changes: Any) -> Path:
        copy = shutil.copytree(folder, tmp_path / name)
        config = json.loads((copy / CONFIG).read_text())
        for key, value in changes.items():
            config[key] = {**config[key], **value} if isinstance(value, dict) else value
        (copy / CONFIG).write_text(json.dumps(config))
        return Path(copy)

    torn = spoilt("torn")
    (torn / WEIGHTS).write_bytes((torn / WEIGHTS).read_bytes()[:500])
    for path, message in (
        (tmp_path / "none", "is not an exported connector"),
        (torn, "cannot be read as safetensors"),
        (spoilt("newer", schema=9), "schema 9, and this workbench .* reads up to 1"),
        (spoilt("encoder", encoder={"fingerprint": "f" * 64}), "was trained on another"),
        (spoilt("strategy", strategy="theirs"), "unknown strategy 'theirs'"),
        (spoilt("wider", width=48), "does not fit"),
    ):
        with pytest.raises(WorkbenchError, match=message) as caught:
            load_connector(path)
        assert "\n" not in str(caught.value)


def test_mlflow_serves_it_from_another_folder(trained: Any, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, _, runs = trained
    before = MlflowClient(tracking_uri=uri).get_run(runs["concat", "2"])
    exported = export_run(uri, runs["concat", "2"], tmp_path / "it", log=True)
    shown = Console(file=io.StringIO(), width=300)
    show(shown, exported)
    assert exported.model_uri.startswith("models:/")
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(exported.run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", before.info.end_time)
    model = client.get_logged_model(exported.model_uri.removeprefix("models:/"))
    assert "What is not known" in model.tags["mlflow.note.content"]
    assert run.outputs.model_outputs, "the run's page shows its model"
    picture = tmp_path / "a.png"
    Image.fromarray(pictures()[0]).save(picture)
    data = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    program = (
        "import mlflow, numpy, pandas\n"
        "from PIL import Image\n"
        f"mlflow.set_tracking_uri({uri!r})\n"
        f"model = mlflow.pyfunc.load_model({exported.model_uri!r})\n"
        f"tokens = model.predict([{str(picture)!r}])\n"
        f"assert (model.predict([Image.open({str(picture)!r})]) == tokens).all()\n"
        f"assert (model.predict(numpy.asarray(Image.open({str(picture)!r}))[None]) == tokens).all()\n"
        f"assert (model.predict({data!r}) == tokens).all()\n"
        "whole = numpy.asarray(Image.open('a.png'), numpy.int64)\n"
        "assert (model.predict(whole[None]) == tokens).all()\n"
        f"assert (model.predict(numpy.asarray([{str(picture)!r}])) == tokens).all()\n"
        f"assert (model.predict(pandas.DataFrame({{'image': [{str(picture)!r}]}})) == tokens).all()\n"
        "numpy.save('tokens.npy', tokens)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=3600, check=False
    )
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = load_connector(exported.folder)(picture).cpu().numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "tokens.npy"), expected)
    assert not list(tmp_path.rglob("*.pkl"))
