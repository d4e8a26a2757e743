"""A study in which nothing, or next to nothing, finished: a report that says so and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Kind, case
from mlflow.tracking import MlflowClient
from synthetic_study import LANGUAGE_MODEL, Key, Synthetic, tiny
from tiny_source import Counting, TinySource

from fusion_workbench.config.study import study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.features import LiveFeatures
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.models.export import export_run
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.reports import write_report

KEYS: tuple[Key, ...] = (("deep_only", (), 5), ("deep_only", (), 12), ("concat", (3, 6), 12), ("mmfuser", (3, 6), 12))
ERROR = "ValueError: no such mode (epoch 1, step 3)"


def written(study: Synthetic, uri: str, out: Path, error: str = "") -> tuple[str, dict[str, Any]]:
    """The answer and report.json; with ``error``, every run that failed broke off with it."""
    parent = study.write(uri)
    client = MlflowClient(tracking_uri=uri)
    if error:
        for run in client.search_runs([client.get_run(parent).info.experiment_id]):
            if run.info.status == "FAILED":
                client.set_tag(run.info.run_id, "workbench.error", error)
    paths = write_report(uri, study.name, out)
    assert {path.name for path in out.iterdir()} >= {"report.html", "report.md", "report.json", "tables.tex"}
    return paths.answer, json.loads(paths.json.read_text(encoding="utf-8"))


def all_but(kept: int, fate: str) -> dict[tuple[Key, int], str]:
    """The fate of every variant-replicate but of the first ``kept``."""
    return dict.fromkeys([(key, r) for key in KEYS for r in range(3)][kept:], fate)


@case(
    Kind.ENDINGS,
    "a study in which every cell diverges, at a rate of 1e9",
    "the report says that nothing finished and why, and which rate to lower",
)
def test_every_cell_diverged(mlflow_uri: str, tmp_path: Path) -> None:
    study = tiny(fate=all_but(0, "diverged"), rates=(1e9,))
    answer, plain = written(study, mlflow_uri, tmp_path / "out")
    assert answer.startswith(
        "No answer: none of 12 variant-replicates finished (12 diverged). The loss left the finite numbers, at 1e+09: "
        "lower search.learning_rates"
    )
    assert not plain["answer"]["cell"]
    assert plain["counts"] == {"expected": 12, "diverged": 12}
    for file in ("report.html", "report.md"):
        assert "none of 12 variant-replicates finished" in (tmp_path / "out" / file).read_text(encoding="utf-8")


@case(
    Kind.ENDINGS,
    "a study in which every cell breaks off with an error",
    "the report names the error, the cells and the way to train them again",
)
def test_every_cell_broke_off(mlflow_uri: str, tmp_path: Path) -> None:
    answer, plain = written(tiny(fate=all_but(0, "failed")), mlflow_uri, tmp_path / "out", ERROR)
    assert f"finished (12 failed). 12 broke off with {ERROR}; mend it, then --retry-failed" in answer
    assert [row["flags"] for row in plain["health"]] == [["3 failed", f"{ERROR}, replicate 0, 1, 2"]] * 4
    assert ERROR in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ERROR in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@case(
    Kind.ENDINGS,
    "a study in which every cell runs out of memory, or one in which all outcomes are unreadable",
    "a report that says which, and what to lower",
)
@pytest.mark.parametrize(
    ("fate", "said"), [("out_of_memory", "lower training.batch_size"), ("unreadable", "12 unreadable"),
                       ("missing", "12 missing"), ("running", "12 killed")]
)  # fmt: skip
def test_no_cell_has_scores(fate: str, said: str, mlflow_uri: str, tmp_path: Path) -> None:
    answer, _ = written(tiny(fate=all_but(0, fate)), mlflow_uri, tmp_path / "out")
    assert answer.startswith("No answer")
    assert said in answer


@case(
    Kind.ENDINGS,
    "one variant-replicate finished, all others failed; baselines are missing",
    "a report with the numbers that there are, and what is missing",
)
@pytest.mark.parametrize("kept", [1, 2, 4, 7])
@pytest.mark.parametrize("layers", [False, True])
def test_little_finished(kept: int, layers: bool, mlflow_uri: str, tmp_path: Path) -> None:
    study = tiny(fate=all_but(kept, "failed"), look=layers, layers=layers)
    answer, plain = written(study, mlflow_uri, tmp_path / "out", ERROR)
    assert f"Incomplete: the study ended with {kept} of 12 variant-replicates ({12 - kept} failed)." in answer
    assert plain["counts"] == {"expected": 12, "finished": kept, "failed": 12 - kept}


@case(Kind.ENDINGS, "a study with validation scores and no test scores", "its runs count as unreadable, and it is told")
def test_only_validation_can_be_read(mlflow_uri: str, tmp_path: Path) -> None:
    parent = (study := tiny()).write(mlflow_uri)
    client = MlflowClient(tracking_uri=mlflow_uri)
    for run in client.search_runs([client.get_run(parent).info.experiment_id], max_results=100):
        (Path(run.info.artifact_uri.removeprefix("file://")) / "outcomes" / "test.parquet").unlink(missing_ok=True)
    answer = write_report(mlflow_uri, study.name, tmp_path / "out").answer
    assert answer.startswith("No answer")
    assert "12 unreadable" in answer


@case(
    Kind.ENDINGS, "a study that did not finish is compared with one that did, and the other way round", "both are said"
)
def test_nothing_finished_against_a_finished_study(mlflow_uri: str, tmp_path: Path) -> None:
    tiny().write(mlflow_uri)
    tiny(name="empty", fate=all_but(0, "diverged")).write(mlflow_uri)
    for study, other in (("synthetic", "empty"), ("empty", "synthetic")):
        paths = write_report(mlflow_uri, study, tmp_path / study, against=other)
        assert paths.against


@case(
    Kind.ENDINGS,
    "the contenders' fresh replicates all fail",
    "the study's own replicates judge, and the report says what became of the others",
)
def test_no_fresh_replicate_finished(mlflow_uri: str, tmp_path: Path) -> None:
    study = tiny(confirm=(2,))
    parent = study.write(mlflow_uri)
    client = MlflowClient(tracking_uri=mlflow_uri)
    where = "tags.`workbench.phase` = 'confirm'"
    runs = client.search_runs([client.get_run(parent).info.experiment_id], where, max_results=100)
    assert runs
    for run in runs:
        client.set_tag(run.info.run_id, "workbench.outcome", "failed")
        client.set_tag(run.info.run_id, "workbench.error", ERROR)
        client.set_terminated(run.info.run_id, "FAILED")
    paths = write_report(mlflow_uri, study.name, tmp_path / "out")
    flags = [flag for row in json.loads(paths.json.read_text(encoding="utf-8"))["health"] for flag in row["flags"]]
    assert f"{ERROR}, replicate c0, c1" in flags


@case(
    Kind.ENDINGS,
    "a study of language models in which nothing finished; export of a study in which nothing finished",
    "a report as of probes; export is refused in one line",
)
def test_no_language_model_finished(mlflow_uri: str, tmp_path: Path) -> None:
    study = tiny(fate=all_but(0, "failed"), language=LANGUAGE_MODEL)
    answer, _ = written(study, mlflow_uri, tmp_path / "out", ERROR)
    assert answer.startswith("No answer: none of 12 variant-replicates finished (12 failed).")
    with pytest.raises(WorkbenchError, match="recommends nothing yet: no cell has been trained to its end"):
        export_run(mlflow_uri, study.name, tmp_path / "exported")


# --- numbers that cannot work -----------------------------------------------------------------------------------------

STUDY = "strategies: [{name: concat}]\nselections: [{levels: [3, 6]}]\n"


@case(
    Kind.INPUT,
    "learning rates, scales, weight decay, warm-up and clipping that are infinite, negative or no number",
    "refused before any work, with the key",
)
@pytest.mark.parametrize(
    "key",
    ["search.learning_rates", *(f"training.{name}" for name in (
        "weight_decay", "warmup", "gradient_clip", "head_lr_scale", "fuser_lr_scale", "gates_lr_scale",
        "projector_lr_scale",
    ))],
)  # fmt: skip
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "-1.0"])
def test_hyper_parameters_that_cannot_work_are_refused(key: str, value: str) -> None:
    given = f"[{value}]" if key == "search.learning_rates" else value
    with pytest.raises(WorkbenchError) as refused:
        study_from_yaml(STUDY, "a.yaml", [f"{key}={given}"])
    assert key in str(refused.value)
    assert "\n" not in str(refused.value)


@case(Kind.INPUT, "the same in a stage of a language model", "refused before any work, with the stage and the key")
@pytest.mark.parametrize("name", ["lr_scale", "fuser_lr_scale", "language_lr_scale", "weight_decay", "warmup"])
@pytest.mark.parametrize("value", [".inf", ".nan", "-1.0"])
def test_so_are_those_of_a_stage(name: str, value: str) -> None:
    text = f"{STUDY}language_model: {{stages: [{{name: align, {name}: {value}}}]}}\n"
    with pytest.raises(WorkbenchError, match=rf"stages\[0\]\.{name} is "):
        study_from_yaml(text, "a.yaml")


# --- features that are no numbers -------------------------------------------------------------------------------------


class Broken(Counting):
    """An encoder that gives ``value`` for one image, at one layer."""

    def __init__(self, encoder: VisionEncoder, value: float, image: int, layer: int) -> None:
        super().__init__(encoder)
        self.value, self.at, self.layer, self.seen = value, image, layer, 0

    def encode(self, images: Any, layers: Any) -> torch.Tensor:
        states = super().encode(images, layers).clone()
        if self.seen <= self.at < self.seen + len(images) and self.layer in layers:
            states[list(layers).index(self.layer), self.at - self.seen, 3, 1] = self.value
        self.seen += len(images)
        return states


@case(
    Kind.ENDINGS,
    "an encoder gives nan or infinity for one image at one layer",
    "refused while it is encoded, before any training: the image, its id and the layer are named",
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_no_numbers_are_named(value: float, tiny_dinov2: Path, tmp_path: Path) -> None:
    encoder = VisionEncoder(str(tiny_dinov2), image_size=0, precision="float32")
    store = FeatureStore(tmp_path, Broken(encoder, value, image=17, layer=2), TinySource())
    with pytest.raises(WorkbenchError, match=r"not finite .* for image 17 of train \(train/17\) at layer 2") as refused:
        store.build([1, 2, 3], ("train",), batch_size=8, progress=False)
    assert "\n" not in str(refused.value)


@case(Kind.ENDINGS, "the same where every batch is encoded anew", "refused at the first batch that holds it")
def test_so_they_are_where_they_are_encoded_live(tiny_dinov2: Path) -> None:
    encoder = VisionEncoder(str(tiny_dinov2), image_size=0, precision="float32")
    features = LiveFeatures(Broken(encoder, float("nan"), image=1, layer=3), TinySource())
    split = features.split("train", (1, 3))
    with pytest.raises(WorkbenchError, match=r"not finite .* at layer 3"):
        split.rows(torch.arange(4))
    features = LiveFeatures(Broken(encoder, float("nan"), image=1, layer=3), TinySource())
    images = split.fetch(torch.arange(4))
    with pytest.raises(WorkbenchError, match=r"not finite .* at layer 3"):
        features.complete(images, (1, 3))
