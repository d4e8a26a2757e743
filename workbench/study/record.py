"""What is written down of a study and of each variant-replicate: params, metrics, artifacts."""

from __future__ import annotations

import io
import math
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import yaml

from fusion_workbench.config.study import StudyConfig, to_yaml
from fusion_workbench.schema.names import (
    CONVERGED,
    FALLING,
    GATE,
    GATES_OPENED,
    LOSS,
    Artifact,
    CostMetric,
    Phase,
    Status,
    on_test,
    scores_file,
    statistic_column,
)
from fusion_workbench.schema.study import Task as TrackedTask
from fusion_workbench.schema.study import TrackedSource
from fusion_workbench.study.identity import training_identity
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.tracking import to_json

if TYPE_CHECKING:
    from fusion_workbench.modules.answers.task import AnswerTask
    from fusion_workbench.modules.probes.bank import Evaluation, ProbeRun
    from fusion_workbench.modules.tasks import Task
    from fusion_workbench.sweeps.space import Variant

STILL_FALLING = 0.02  # relative drop of the training loss an epoch, above which a run does not count as converged
GATES_OPEN = 0.01  # root mean square of a gate that starts at zero, from which on it counts as opened
_TIMED_BATCH = 32
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
    return {"variant": variant.id} | core | {"lr": variant.lr, "training": dict(variant.training)}


def variant_params(variant: Variant, replicate: str) -> dict[str, Any]:
    """What the params of every child run begin with, whatever is trained."""
    return variant.cell.tracked(variant.lr).params() | {"replicate": replicate, "lr": variant.lr}


def child_params(study: StudyConfig, variant: Variant, replicate: str) -> dict[str, Any]:
    """Flat scalars of a child run."""
    training, lr = training_identity(study), variant.lr
    parts = ("fuser", "gates", "projector", "head")
    return (
        variant_params(variant, replicate)
        | {f"lr_{part}": lr * training[f"{part}_lr_scale"] for part in parts}
        | {key: value for key, value in training.items() if not key.endswith("_lr_scale")}
    )


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


def final_metrics(
    probe_run: ProbeRun, parts: Parts, grid: tuple[int, int], phase: str, device: torch.device
) -> dict[str, float]:
    """Cost, convergence, gates, attention and, for the final replicates, the test metrics.

    ``device`` is where the member was trained, and where its forward pass is timed: Lightning leaves what it has
    trained on the CPU.
    """
    from fusion_workbench.modules.cost import flops, parameters

    probe, dim = probe_run.probe.to(device), parts.encoder.dim
    dtype = next(probe.parameters()).dtype
    tokens = grid[0] * grid[1]
    example = torch.zeros(len(probe.fuser.uses), 1, tokens, dim, device=device, dtype=dtype)
    gates = {
        key: value
        for key, value in (probe_run.history[-1] if probe_run.history else {}).items()
        if key.startswith(GATE)
    }
    metrics = training_metrics(
        fuser=parameters(probe.fuser),
        projector=parameters(probe.projector),
        flops=flops(lambda x: probe.tokens(x, grid), example),
        samples=probe_run.images,
        seconds=probe_run.step_seconds,
        timed=probe_run.step_seconds,
        peak_memory_mb=peak_memory_mb(),
        history=probe_run.history,
        status=probe_run.status,
    )
    metrics |= {CostMetric.PARAMETERS_HEADS: parameters(probe.heads)} | probe_run.diagnostics | gates
    if phase != Phase.SEARCH:
        metrics[CostMetric.FORWARD_MS] = _forward_ms(probe_run, example, grid)
    if gates:
        metrics[GATES_OPENED] = float(all(value >= GATES_OPEN for value in gates.values()))
    if "test" in probe_run.evaluations:
        test = probe_run.evaluations["test"]
        metrics |= {on_test(key): value for key, value in test.metrics.items()} | {on_test(LOSS): test.loss}
    return finite(metrics)


def child_files(probe_run: ProbeRun, parts: Parts, variant: Variant, phase: str) -> dict[str, str | bytes]:
    """Resolved YAML always; per-example scores and the trained fuser for the final replicates."""
    import safetensors.torch

    cell = variant.cell
    described = describe_variant(variant)
    files: dict[str, str | bytes] = {Artifact.VARIANT: yaml.safe_dump(described, sort_keys=False)}
    if not keeps_results(phase, probe_run.status):
        return files
    for split, evaluation in probe_run.evaluations.items():
        files[scores_file(split)] = _outcomes(evaluation, parts, split)
    weights = {
        f"{part}.{key}": value.detach().cpu().contiguous()
        for part, module in (
            ("fuser", probe_run.probe.fuser),
            ("projector", probe_run.probe.projector),
            ("heads", probe_run.probe.heads),
        )
        for key, value in module.state_dict().items()
    }
    if inside := probe_run.inside | {
        f"{GATE}{name}": torch.stack(gates) for name, gates in probe_run.gates.items() if gates
    }:
        plain = {key: value.contiguous() for key, value in inside.items()}
        files[Artifact.INSIDE] = safetensors.torch.save(
            plain, metadata={"levels": ",".join(map(str, cell.selection.levels))}
        )
    files[Artifact.FUSER] = safetensors.torch.save(weights, metadata={"format": "pt"})
    config = described | {
        "encoder": parts.encoder.encoder_info(),
        "dim": parts.encoder.dim,
        "projector": probe_run.config.probe.projector,
        "width": probe_run.config.probe.width or parts.encoder.dim,
        "out_dim": probe_run.probe.fuser.out_dim,
    }
    files[Artifact.FUSER_CONFIG] = to_json(config)
    return files


def _outcomes(evaluation: Evaluation, parts: Parts, split: str) -> bytes:
    """Per-example scores as Parquet: example_id, group, task, score, items, and a column ``stat.…`` per statistic."""
    import pandas as pd

    identity = parts.source.identity(split).iloc[evaluation.index.numpy()]
    frames = [
        pd.DataFrame(
            {
                "example_id": identity["example_id"].to_numpy(),
                "group": identity["group"].to_numpy(),
                "task": task.name,
                "score": evaluation.scores[task.name].numpy(),
                "items": evaluation.items[task.name].numpy().astype("int32"),
            }
            | {statistic_column(key): values.numpy() for key, values in evaluation.statistics[task.name].items()}
        )
        for task in parts.tasks
    ]
    buffer = io.BytesIO()
    pd.concat(frames, ignore_index=True).to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def _forward_ms(probe_run: ProbeRun, example: torch.Tensor, grid: tuple[int, int]) -> float:
    """Milliseconds an image for fuser and projector in a batch of 32, the median of five."""
    batch = example.expand(-1, _TIMED_BATCH, -1, -1).contiguous()
    times = []
    with torch.inference_mode():
        for _ in range(6):
            if batch.is_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            probe_run.probe.tokens(batch, grid)
            if batch.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:]) / _TIMED_BATCH


def peak_memory_mb() -> float:
    """Of the whole probe bank: the device's allocator on CUDA, the process elsewhere."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
