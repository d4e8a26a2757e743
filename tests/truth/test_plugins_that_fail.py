"""Strategies, tasks, sources and metrics of anybody that raise, return nonsense, or change what is everybody's."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Kind, case
from rich.console import Console
from torch import Tensor, nn

from fusion_workbench.config.study import StudyConfig, study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.fusion.base import STRATEGIES, Fusion, register_strategy
from fusion_workbench.modules.tasks import TASKS, register_task
from fusion_workbench.modules.tasks.digit import Digit
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.render.tables import health
from fusion_workbench.runner.experiment import Experiment, StudyResult
from fusion_workbench.schema.names import COST
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.prepare import Parts, prepare
from fusion_workbench.study.progress import Display

STUDY = """
name: moody
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 24, val: 8, test: 12}}}}
tasks: [digit]
strategies: [{strategies}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: {replicates}
plan: {{confirm: []}}
search: {{learning_rates: [0.01]}}
training: {{epochs: 2, batch_size: 8, head_hidden: 16, bank_size: 32}}
tracking: {{uri: "{uri}"}}
"""
# mode → status, and how what the report says of it begins
MODES = {
    "build": ("failed", "KeyError: 'weights' (while it was built)"),
    "runtime": ("failed", "RuntimeError: a bad day (epoch 1, step 3)"),
    "value": ("failed", "ValueError: a bad day (epoch 1, step 3)"),
    "later": ("failed", "ValueError: a bad day (epoch 2, step 1)"),
    "memory": ("out_of_memory", "MemoryError: a bad day (epoch 1, step 3)"),
    "device_memory": ("out_of_memory", "OutOfMemoryError: a bad day (epoch 1, step 3)"),
    "exit": ("failed", "sys.exit(0) (epoch 1, step 3)"),
    "backward": ("failed", "RuntimeError: a bad way back (epoch 1, step 3)"),
    "evaluation": ("failed", "ValueError: a bad day (evaluated on validation, epoch 1)"),
    "test": ("failed", "ValueError: a bad day (evaluated on test)"),
    "diagnosis": ("failed", "ValueError: a bad look (its diagnosis on test)"),
    "one_image": ("failed", "ValueError: a bad day (while its cost was measured)"),
    "shape": ("failed", "RuntimeError: "),
    "axes": ("failed", "RuntimeError: "),
    "none": ("failed", "TypeError: "),
    "nan": ("diverged", ""),
    "infinite": ("diverged", ""),
    "dtype": ("finished", ""),
    "seed": ("finished", ""),
    "gradients": ("failed", "RuntimeError: "),
    "threads": ("finished", ""),
    "exact": ("finished", ""),
}


@dataclass(frozen=True)
class MoodyOptions:
    mode: str = "runtime"


class _NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor) -> Tensor:
        return tokens.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("a bad way back")


class Moody(Fusion):
    """Adds the layers, until its mode comes over it."""

    def __init__(self, selection: Any, dim: int, options: Any) -> None:
        super().__init__(selection, dim, options)
        self.scale = nn.Parameter(torch.ones(dim))
        self.steps = self.tests = 0
        if options.mode == "build" and not self.scale.is_meta:
            raise KeyError("weights")

    def diagnose(self, features: Tensor, grid: Any) -> dict[str, float]:
        if self.options.mode == "diagnosis":
            raise ValueError("a bad look")
        return {}

    def forward(self, features: Tensor, grid: Any) -> Tensor:
        mode, tokens = self.options.mode, self.scale * features.sum(0)
        self.steps += self.training
        self.tests += not self.training
        if self.training and self.steps == (4 if mode == "later" else 3):
            self._in_training(mode)
        if mode == "evaluation" and not self.training:
            raise ValueError("a bad day")
        if mode == "test" and self.tests == 3:  # after two of validation
            raise ValueError("a bad day")
        if mode == "one_image" and features.shape[1] == 1:
            raise ValueError("a bad day")
        return self._shown(mode, tokens)

    def _in_training(self, mode: str) -> None:
        errors: dict[str, BaseException] = {
            "runtime": RuntimeError("a bad day\nwith a second line"),
            "value": ValueError("a bad day"),
            "later": ValueError("a bad day"),
            "memory": MemoryError("a bad day"),
            "device_memory": torch.OutOfMemoryError("a bad day"),
        }
        if mode in errors:
            raise errors[mode]
        if mode == "exit":
            sys.exit(0)
        if mode == "dtype":
            torch.set_default_dtype(torch.float64)
        if mode == "gradients":
            torch.set_grad_enabled(False)
        if mode == "threads":
            torch.set_num_threads(torch.get_num_threads() + 3)
        if mode == "exact":
            torch.use_deterministic_algorithms(True)

    def _shown(self, mode: str, tokens: Tensor) -> Tensor:
        if mode == "seed":
            torch.manual_seed(7)
            return tokens + 0 * torch.rand_like(tokens)
        if mode == "gradients" and not torch.is_grad_enabled() and self.training:
            return tokens.detach()
        if mode == "backward" and self.steps == 3:
            return _NoWayBack.apply(tokens)  # type: ignore[no-any-return]
        shown: dict[str, Any] = {
            "shape": torch.cat([tokens, tokens], -1),
            "axes": tokens.transpose(1, 2),
            "none": None,
            "nan": tokens * float("nan"),
            "infinite": tokens * float("inf"),
        }
        return shown.get(mode, tokens)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def moody() -> Iterator[None]:
    """The strategy is known for the time of a test, and torch is as it was after it."""
    register_strategy("moody", options=MoodyOptions, uses_levels=True)(Moody)
    yield
    del STRATEGIES._members["moody"]


def text(encoder: Path, uri: str, strategies: str, replicates: int = 1) -> str:
    return STUDY.format(encoder=encoder, uri=uri, strategies=strategies, replicates=replicates)


def run(config: StudyConfig, workspace: Path, **options: Any) -> tuple[StudyResult, Parts, str]:
    """What became of a study, and what it said."""
    out = io.StringIO()
    parts = prepare(config, workspace, progress=False)
    display = Display(Console(file=out, width=500), progress=False)
    return Experiment(parts, display, **options).run(), parts, out.getvalue()


def rows(parts: Parts) -> dict[str, tuple[str, dict[str, float]]]:
    """Cell → status and results, but for what a clock measured."""
    ledger = Ledger(parts.folder / "ledger.db")
    found = {entry.variant: entry for entry in ledger.entries()}
    ledger.close()
    named = {}
    for cell in parts.space.listed:
        from fusion_workbench.study.identity import variant

        entry = found[variant(parts.study, cell, 0.01).id]
        kept = {key: value for key, value in entry.result.items() if not key.startswith(COST)}
        named[cell.label] = (str(entry.status), kept)
    return named


def moody_label(mode: str) -> str:
    return f"moody(mode={mode}) [1,2]→3" if mode != "runtime" else "moody [1,2]→3"


@case(
    Kind.ENDINGS,
    "a strategy raises (in its construction, forward, backward, evaluation, diagnosis; RuntimeError, ValueError, "
    "MemoryError, sys.exit), returns another shape, None, nan, or sets torch's default dtype, seed, gradients, threads",
    "its own cell fails, with the error, epoch and step on the terminal, in MLflow and in the report; its neighbours "
    "in the bank train as without it, bitwise; the same command does not try it again, --retry-failed does",
)
def test_a_strategy_takes_its_own_cell_down(tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    _, parts, _ = run(study_from_yaml(text(tiny_dinov2, mlflow_uri, "{name: average}, {name: concat}"), "a"), tmp_path)
    expected = rows(parts)
    choices = "{name: average}, {name: moody, choices: {mode: [" + ", ".join(MODES) + "]}}, {name: concat}"
    config = study_from_yaml(text(tiny_dinov2, mlflow_uri, choices), "a", ["search.sampler=exhaustive"])
    result, parts, said = run(config, tmp_path)
    found = rows(parts)
    ledger = Ledger(parts.folder / "ledger.db")
    statuses = {entry.run_id: entry.status for entry in ledger.entries()}
    ledger.close()
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()) == before
    assert not torch.are_deterministic_algorithms_enabled()
    for label, row in expected.items():
        assert found[label] == row, label
    client = MlflowClient(tracking_uri=mlflow_uri)
    children = {
        run.info.run_name.removesuffix(" r0"): run
        for run in client.search_runs([client.get_run(result.run_id).info.experiment_id], max_results=100)
        if run.info.run_id in statuses
    }
    record = read_study(mlflow_uri, result.study_id)
    flags = {row["cell"].label: row["flags"] for row in health(record)}
    for mode, (status, words) in MODES.items():
        label = moody_label(mode)
        child = children[label]
        assert statuses[child.info.run_id] == status, (mode, child.data.tags)
        assert child.data.tags["workbench.outcome"] == status
        assert child.info.status == ("FINISHED" if status == "finished" else "FAILED")
        assert child.data.tags.get("workbench.error", "").startswith(words), mode
        if words:
            assert f"{label} broke off (replicate 0): {words}" in said
            assert any(flag.startswith(words) for flag in flags[label]), mode
    assert client.get_run(result.run_id).info.status == "FINISHED"
    assert result.failed == sum(status != "finished" for status, _ in MODES.values())

    again, _, said = run(config, tmp_path)
    assert (again.trained, again.kept, again.failed) == (0, result.trained, result.failed)
    retried, _, said = run(config, tmp_path, retry_failed=True)
    assert retried.trained == result.failed
    assert retried.failed == result.failed


@case(Kind.ENDINGS, "a strategy cannot be built at all", "refused before any work, with the cell and the error")
def test_a_strategy_that_cannot_be_built_is_refused(
    tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Moody, *args: Any) -> None:
        sys.exit(0)

    monkeypatch.setattr(Moody, "__init__", broken)
    config = study_from_yaml(text(tiny_dinov2, mlflow_uri, "{name: moody}"), "a")
    with pytest.raises(WorkbenchError, match=r"of moody \[1,2\]→3, while it was built, broke off: sys.exit\(0\)"):
        prepare(config, tmp_path, progress=False)


@case(
    Kind.ENDINGS,
    "every strategy of a study raises",
    "each cell fails by itself; the report says that nothing finished, and with which error",
)
def test_every_strategy_raises(tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path) -> None:
    from fusion_workbench.reports import write_report

    strategies = "{name: moody, options: {mode: build}}, {name: moody, options: {mode: value}}"
    result, _, _ = run(study_from_yaml(text(tiny_dinov2, mlflow_uri, strategies, 2), "a"), tmp_path)
    assert (result.trained, result.failed) == (4, 4)
    answer = write_report(mlflow_uri, result.study_id, tmp_path / "out").answer
    assert answer.startswith("No answer: none of 4 variant-replicates finished (4 failed). 2 broke off with ")


class _Sour(Digit):
    """A task of another package."""

    def __init__(self, classes: int, targets: Any = None) -> None:
        super().__init__(10, targets)

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        raise ValueError("sour")


@case(
    Kind.ENDINGS,
    "a task of another package raises in its loss",
    "the study ends in one line that names the task, since it would raise for every cell",
)
def test_a_task_that_raises_is_named(tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path) -> None:
    register_task("sour")(_Sour)
    try:
        config = study_from_yaml(text(tiny_dinov2, mlflow_uri, "{name: average}"), "a", ["tasks=[sour]"])
        with pytest.raises(WorkbenchError, match=r"task 'sour' \(.*\) broke off in its loss: ValueError: sour"):
            run(config, tmp_path)
    finally:
        del TASKS._members["sour"]


@case(
    Kind.ENDINGS,
    "features that are no numbers lie in a store already",
    "the study ends after an epoch in one line that names the layer; no cell is booked as diverged",
)
def test_features_of_an_old_store_that_are_no_numbers(
    tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusion_workbench.datamodules.store.tensors import StoredFeatures

    plain = StoredFeatures.rows

    def broken(self: StoredFeatures, index: Tensor) -> Tensor:
        states = plain(self, index).clone()
        states[1, :, 0, 0] = float("nan")
        return states

    monkeypatch.setattr(StoredFeatures, "rows", broken)
    config = study_from_yaml(text(tiny_dinov2, mlflow_uri, "{name: average}"), "a")
    with pytest.raises(WorkbenchError, match="the features of layer 2 hold values that are not finite"):
        run(config, tmp_path)
    (folder,) = (tmp_path / "studies").iterdir()
    ledger = Ledger(folder / "ledger.db")
    assert ledger.entries() == []
    ledger.close()
