"""What a study of language models tells of single steps, and what it keeps of weights that were trained in full."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_language_study import STUDY, children, run, study

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.locate import model_folder
from fusion_workbench.schema.names import StepMetric
from fusion_workbench.study.identity import variant
from fusion_workbench.study.jobs import Job
from fusion_workbench.study.prepare import prepare
from fusion_workbench.training.language_callbacks import gradient_norm
from fusion_workbench.training.language_training import LanguageRun

STAGES = "language_model.stages=[{name: align, epochs: 2}, {name: tune, language_model: full, lr_scale: 0.1}]"
ONE = "strategies=[{name: concat}]"


@pytest.fixture
def text(tiny_dinov2: Path, tiny_language: Path, mlflow_uri: str) -> str:
    return STUDY.format(encoder=tiny_dinov2, language=tiny_language, uri=mlflow_uri)


def job_of(text: str, folder: Path, *overrides: str, lr: float = 1e-3, **told: Any) -> LanguageRun:
    config = study(text, ONE, *overrides)
    parts = prepare(config, folder, progress=False)
    assert parts.store is not None
    parts.store.build([1, 2, 3], batch_size=8, progress=False)
    return LanguageRun(parts, Job(variant(config, parts.space.listed[0], lr), "0"), folder / "run", **told)


def test_metrics_of_steps_are_in_mlflow(text: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    result, _ = run(study(text, ONE, STAGES, "language_model.log_every=3"), tmp_path)
    client = MlflowClient(tracking_uri=result.tracking_uri)
    (child,) = children(result)
    for name in StepMetric:
        rows = client.get_metric_history(child.info.run_id, name)
        assert [row.step for row in rows] == [3, 6, 8, 11, 12], "8 steps, then 4 of the second stage"
        assert all(math.isfinite(row.value) and (row.value > 0 or name == StepMetric.LR) for row in rows)


def test_the_loss_of_steps_is_that_of_the_curve(text: str, tmp_path: Path) -> None:
    """Eight steps a stage are eight sections of its curve; accumulated batches are one step."""
    rows: dict[int, dict[str, float]] = {}
    told = job_of(
        text,
        tmp_path,
        "language_model.stages=[{name: align, epochs: 4, accumulate: 2}]",
        "language_model.log_every=1",
        log=lambda step, row: rows.update({step: row}),
    )
    told.train()
    assert list(rows) == list(range(1, 9))
    assert [row[StepMetric.LOSS] for row in rows.values()] == pytest.approx([row["train/loss"] for row in told.history])
    assert [row[StepMetric.LR] for row in rows.values()] == [row["lr"] for row in told.history]
    done = torch.load(tmp_path / "run" / "align.done.ckpt", weights_only=True)
    assert done["optimizer_states"] == [], "nothing goes on from it"


def test_the_norm_of_gradients_is_that_before_they_are_clipped(text: str, tmp_path: Path) -> None:
    norms: list[float] = []
    job_of(
        text,
        tmp_path,
        "training.gradient_clip=0.000001",
        "language_model.log_every=1",
        log=lambda step, row: norms.append(row[StepMetric.GRADIENT_NORM]),
    ).train()
    assert len(norms) == 8
    assert min(norms) > 1e-3
    model = torch.nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[1.0, 2.0]]), torch.tensor([2.0])
    assert gradient_norm(model) == 3


def test_a_loss_that_is_no_number_ends_a_training_within_the_steps_that_are_told(text: str, tmp_path: Path) -> None:
    epochs = "language_model.stages=[{name: align, epochs: 50}]"
    run = job_of(text, tmp_path, epochs, "language_model.log_every=5", lr=1e30)
    run.train()
    assert run.status == "diverged"
    assert run.samples <= 10 * 4, "of 800"
    assert not math.isfinite(run.history[-1]["train/loss"])


@pytest.mark.parametrize("every", [0, 51])
def test_steps_are_told_every_fifty_at_least(text: str, every: int) -> None:
    with pytest.raises(WorkbenchError, match=rf"language_model\.log_every is {every}"):
        study(text, f"language_model.log_every={every}")


def test_how_weights_that_were_trained_in_full_are_kept(text: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    kept: dict[str, dict[str, torch.Tensor]] = {}
    for how in ("float32", "bf16", "none"):
        config = study(text, ONE, STAGES, f"language_model.keep_weights={how}", f"name={how}")
        result, _ = run(config, tmp_path / how)
        (child,) = children(result)
        assert child.data.params["weights"] == how
        if how == "none":
            with (
                pytest.raises(WorkbenchError, match=r"keeps no model, as its study said .*keep_weights: none"),
                model_folder(child.info.run_id, result.tracking_uri, tmp_path, None),
            ):
                pass
            continue
        with model_folder(child.info.run_id, result.tracking_uri, tmp_path, None) as folder:
            kept[how] = load_file(folder / "language_model" / "model.safetensors")
            connector = load_file(folder / "adapter.safetensors")
        assert {value.dtype for value in connector.values()} == {torch.float32}
    assert kept["bf16"].keys() == kept["float32"].keys()
    for name, value in kept["float32"].items():
        assert value.dtype == torch.float32
        assert torch.equal(value.bfloat16(), kept["bf16"][name]), name
