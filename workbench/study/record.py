"""What is written down of a study, and of each variant-replicate whatever is trained: params, metrics, artifacts."""

from __future__ import annotations

import io
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import yaml

from fusion_workbench.config.study import to_yaml
from fusion_workbench.schema.names import (
    CONVERGED,
    FALLING,
    Artifact,
    CostMetric,
    Phase,
    Status,
)
from fusion_workbench.schema.records import Task as TrackedTask
from fusion_workbench.schema.records import TrackedSource
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.tracking import to_json

if TYPE_CHECKING:
    import pandas as pd

    from fusion_workbench.modules.answers.task import AnswerTask
    from fusion_workbench.modules.tasks import Task
    from fusion_workbench.sweeps.space import Variant

STILL_FALLING = 0.02  # relative drop of the training loss an epoch, above which a run does not count as converged
_MOST_GROUPS = 1000  # of a split, that are written down by name


def study_files(parts: Parts) -> dict[str, str | bytes]:
    """The artifacts of the parent run that are known before training."""
    tasks = {task.name: tracked_task(parts, task).plain() for task in parts.measured}
    return {
        Artifact.STUDY: to_yaml(parts.study),
        Artifact.ENCODER: to_json(parts.encoder.encoder_info()),
        Artifact.SOURCE: to_json(tracked_source(parts).plain()),
        Artifact.TASKS: to_json(tasks),
    }


def tracked_source(parts: Parts) -> TrackedSource:
    """The study's source as it is written down."""
    source = parts.source
    splits = ("train", "val", "test")
    groups = {split: tuple(sorted(source.identity(split)["group"].unique().tolist())) for split in splits}
    return TrackedSource(
        name=parts.study.source.name,
        version=source.version,
        fingerprints={split: source.fingerprint(split) for split in splits},
        sizes={split: source.size(split) for split in splits},
        classes={task: tuple(names) for task, names in source.classes().items()},
        groups={split: names if len(names) <= _MOST_GROUPS else () for split, names in groups.items()},
        group_counts={split: len(names) for split, names in groups.items()},
        group_name=source.group_name,
    )


def tracked_task(parts: Parts, task: Task | AnswerTask) -> TrackedTask:
    """A task of the study as it is written down."""
    return TrackedTask(
        name=task.name,
        metric=task.metric_name,
        direction=task.direction,
        unit=task.unit,
        chance=task.chance,
        chance_test=chance_on_test(parts, task),
        perfect=task.perfect,
        ratio=task.ratio,
        title=task.title,
    )


def chance_on_test(parts: Parts, task: Task | AnswerTask) -> float:
    """The chance baseline on test, of the best prediction that uses no image: fitted to the training targets, or, of a
    question in words, the constant answer that does best on validation."""
    from fusion_workbench.modules.tasks import Task

    source = parts.source
    if isinstance(task, Task):
        return task.chance_baseline(source.targets("train"), source.targets("test"))
    fitted_on, scored_on = (
        [c.references for c in parts.conversations.conversations(split) if c.task == task.name]
        for split in ("val", "test")
    )
    return task.chance_baseline(fitted_on, scored_on)


def describe_variant(variant: Variant) -> dict[str, Any]:
    """A variant as ``variant.yaml`` of its run tells it."""
    core = variant.cell.tracked(variant.lr).core()
    code = {"code": variant.code} if variant.code else {}
    return {"variant": variant.id} | core | {"lr": variant.lr, "training": dict(variant.training)} | code


def variant_file(variant: Variant) -> dict[str, str | bytes]:
    """``variant.yaml``, the artifact that every child run has, whatever became of it."""
    return {Artifact.VARIANT: yaml.safe_dump(describe_variant(variant), sort_keys=False)}


def variant_params(variant: Variant, replicate: str) -> dict[str, Any]:
    """What the params of every child run begin with, whatever is trained."""
    return variant.cell.tracked(variant.lr).params() | {"replicate": replicate, "lr": variant.lr}


def training_metrics(
    *,
    fuser: int,
    projector: int,
    flops: float,
    samples: int,
    seconds: float,
    timed: float,
    peak_memory_mb: float,
    history: Sequence[Mapping[str, float]],
    status: str | None,
) -> dict[str, float]:
    """What every training ends with, whatever is trained: its cost, and whether it had converged.

    Args:
        fuser, projector: parameters.
        flops: of an image, forward, through fuser and projector.
        samples: trained on in ``timed`` seconds.
        seconds: of training in all.
        peak_memory_mb: see :func:`peak_memory_mb`.
        history: a row of metrics an epoch.
        status: a :class:`~schema.names.Status`; None: it was not ended.
    """
    from fusion_workbench.modules.probes.bank import loss_still_falling

    falling = loss_still_falling(history)
    return {
        CostMetric.PARAMETERS: fuser + projector,
        CostMetric.PARAMETERS_FUSER: fuser,
        CostMetric.FLOPS: flops,
        CostMetric.SECONDS: seconds,
        CostMetric.THROUGHPUT: samples / timed if timed else math.nan,
        CostMetric.PEAK_MEMORY: peak_memory_mb,
        FALLING: falling,
        CONVERGED: float(status == Status.FINISHED and falling < STILL_FALLING),
    }


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that are finite numbers; MLflow's databases hold no others."""
    return {str(key): float(value) for key, value in metrics.items() if math.isfinite(value)}


def keeps_results(phase: str, status: str | None) -> bool:
    """Whether a run keeps its scores and weights: those of the search, and what was not trained to its end, do not."""
    return phase != Phase.SEARCH and status == Status.FINISHED


def parquet(frame: pd.DataFrame) -> bytes:
    """A table of results as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def peak_memory_mb() -> float:
    """Of the whole probe bank: the device's allocator on CUDA, the process elsewhere."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
