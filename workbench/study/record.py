"""What is written down of a study and of each variant-replicate: params, metrics, artifacts."""

from __future__ import annotations

import io
import math
import resource
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
import yaml

from fusion_workbench.config.study import StudyConfig, to_yaml
from fusion_workbench.study.identity import training_identity
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.tracking import to_json

if TYPE_CHECKING:
    from fusion_workbench.modules.answers.task import AnswerTask
    from fusion_workbench.modules.probes.bank import Evaluation, Member
    from fusion_workbench.modules.tasks import Task
    from fusion_workbench.sweeps.space import Cell, Variant

STILL_FALLING = 0.02  # relative drop of the training loss an epoch, above which a run does not count as converged
GATES_OPEN = 0.01  # root mean square of a gate that starts at zero, from which on it counts as opened
_TIMED_BATCH = 32
_MOST_GROUPS = 1000  # of a split, that are written down by name


def study_files(parts: Parts) -> dict[str, str | bytes]:
    """The artifacts of the parent run that are known before training."""
    source = parts.source
    groups = {split: sorted(source.identity(split)["group"].unique().tolist()) for split in ("train", "val", "test")}
    named = {split: names if len(names) <= _MOST_GROUPS else [] for split, names in groups.items()}
    return {
        "study.yaml": to_yaml(parts.study),
        "passport.json": to_json(parts.encoder.passport()),
        "source.json": to_json(
            {
                "name": parts.study.source.name,
                "version": source.version,
                "fingerprints": {split: source.fingerprint(split) for split in groups},
                "sizes": {split: source.size(split) for split in groups},
                "classes": {task: list(names) for task, names in source.classes().items()},
                "groups": named,
                "group_counts": {split: len(names) for split, names in groups.items()},
                "group_name": source.group_name,
            }
        ),
        "tasks.json": to_json(
            {
                task.name: {
                    "metric": task.metric_name,
                    "direction": task.direction,
                    "unit": task.unit,
                    "chance": task.chance,
                    "chance_test": guess_on_test(parts, task),
                    "perfect": task.perfect,
                    "ratio": list(task.ratio) if task.ratio else None,
                    "title": task.title,
                }
                for task in parts.measured
            }
        ),
    }


def guess_on_test(parts: Parts, task: Task | AnswerTask) -> float:
    """The metric, on test, of the best guess that looks at no image: fitted to the training targets, or, of a question
    in words, the constant answer that does best on validation."""
    from fusion_workbench.modules.tasks import Task

    source = parts.source
    if isinstance(task, Task):
        return task.guess(source.targets("train"), source.targets("test"))
    taught, asked = (
        [c.references for c in parts.conversations.conversations(split) if c.task == task.name]
        for split in ("val", "test")
    )
    return task.guess(taught, asked)


def describe(cell: Cell, lr: float) -> dict[str, Any]:
    """A cell at its learning rate, as ``variants.json`` and ``contenders.json`` list it."""
    return {
        "cell": cell.id,
        "strategy": cell.strategy,
        "levels": list(cell.selection.levels) or None,
        "query": cell.selection.query,
        "label": cell.label,
        "options": dict(cell.options),
        "alias": cell.alias,
        "baselines": list(cell.baselines),
        "chosen_lr": lr,
    }


def describe_variant(variant: Variant) -> dict[str, Any]:
    """A variant as ``variant.yaml`` of its run tells it."""
    cell = variant.cell
    return {
        "variant": variant.id,
        "cell": cell.id,
        "strategy": cell.strategy,
        "levels": list(cell.selection.levels),
        "query": cell.selection.query,
        "options": dict(cell.options),
        "lr": variant.lr,
        "training": dict(variant.training),
    }


def child_params(study: StudyConfig, variant: Variant, replicate: str) -> dict[str, Any]:
    """Flat scalars of a child run."""
    cell, training = variant.cell, training_identity(study)
    params: dict[str, Any] = {
        "strategy": cell.strategy,
        "levels": ",".join(map(str, cell.selection.levels)),
        "query": cell.selection.query,
        "replicate": replicate,
        "lr": variant.lr,
        "alias": cell.alias,
    }
    params |= {
        f"lr_{part}": variant.lr * training[f"{part}_lr_scale"] for part in ("fuser", "gates", "projector", "head")
    }
    params |= {f"options.{key}": value for key, value in cell.options}
    params |= {key: value for key, value in training.items() if not key.endswith("_lr_scale")}
    return params


def final_metrics(member: Member, parts: Parts, grid: tuple[int, int], phase: str) -> dict[str, float]:
    """Cost, convergence, gates, attention and, for the final replicates, the test metrics."""
    from fusion_workbench.modules.cost import flops, parameters
    from fusion_workbench.modules.probes.bank import loss_still_falling

    probe, dim = member.probe, parts.encoder.dim
    device = next(probe.parameters()).device
    dtype = next(probe.parameters()).dtype
    tokens = grid[0] * grid[1]
    example = torch.zeros(len(probe.fuser.uses), 1, tokens, dim, device=device, dtype=dtype)
    falling = loss_still_falling(member.history)
    gates = {
        key: value for key, value in (member.history[-1] if member.history else {}).items() if key.startswith("gate/")
    }
    seconds = member.step_seconds
    metrics: dict[str, float] = {
        "cost/parameters": parameters(probe.fuser) + parameters(probe.projector),
        "cost/parameters_fuser": parameters(probe.fuser),
        "cost/parameters_heads": parameters(probe.heads),
        "cost/flops_per_image": flops(lambda x: probe.tokens(x, grid), example),
        "cost/seconds": seconds,
        "cost/samples_per_second": member.images / seconds if seconds else math.nan,
        "cost/peak_memory_mb": peak_memory_mb(),
        "loss_still_falling": falling,
        "converged": float(member.outcome == "finished" and falling < STILL_FALLING),
        **member.diagnostics,
        **gates,
    }
    if phase != "search":
        metrics["cost/ms_per_image_forward"] = _forward_ms(member, example, grid)
    if gates:
        metrics["gates_opened"] = float(all(value >= GATES_OPEN for value in gates.values()))
    if "test" in member.evaluations:
        test = member.evaluations["test"]
        metrics |= {f"test/{key}": value for key, value in test.metrics.items()} | {"test/loss": test.loss}
    return {key: float(value) for key, value in metrics.items() if math.isfinite(value)}


def child_files(member: Member, parts: Parts, variant: Variant, phase: str) -> dict[str, str | bytes]:
    """Resolved YAML always; outcomes and the trained fuser for the final replicates."""
    import safetensors.torch

    cell = variant.cell
    described = describe_variant(variant)
    files: dict[str, str | bytes] = {"variant.yaml": yaml.safe_dump(described, sort_keys=False)}
    if phase == "search" or member.outcome != "finished":
        return files
    for split, evaluation in member.evaluations.items():
        files[f"outcomes/{split}.parquet"] = _outcomes(evaluation, parts, split)
    weights = {
        f"{part}.{key}": value.detach().cpu().contiguous()
        for part, module in (
            ("fuser", member.probe.fuser),
            ("projector", member.probe.projector),
            ("heads", member.probe.heads),
        )
        for key, value in module.state_dict().items()
    }
    if inside := member.inside | {f"gate/{name}": torch.stack(gates) for name, gates in member.gates.items() if gates}:
        plain = {key: value.contiguous() for key, value in inside.items()}
        files["inside.safetensors"] = safetensors.torch.save(
            plain, metadata={"levels": ",".join(map(str, cell.selection.levels))}
        )
    files["fuser/model.safetensors"] = safetensors.torch.save(weights, metadata={"format": "pt"})
    config = described | {
        "encoder": parts.encoder.passport(),
        "dim": parts.encoder.dim,
        "projector": member.config.probe.projector,
        "width": member.config.probe.width or parts.encoder.dim,
        "out_dim": member.probe.fuser.out_dim,
    }
    files["fuser/config.json"] = to_json(config)
    return files


def _outcomes(evaluation: Evaluation, parts: Parts, split: str) -> bytes:
    """Per-example outcomes as Parquet: example_id, group, task, score, items, and a column ``stat.…`` a statistic."""
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
            | {f"stat.{key}": values.numpy() for key, values in evaluation.statistics[task.name].items()}
        )
        for task in parts.tasks
    ]
    buffer = io.BytesIO()
    pd.concat(frames, ignore_index=True).to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def _forward_ms(member: Member, example: torch.Tensor, grid: tuple[int, int]) -> float:
    """Milliseconds an image for fuser and projector in a batch of 32, the median of five."""
    batch = example.expand(-1, _TIMED_BATCH, -1, -1).contiguous()
    times = []
    with torch.inference_mode():
        for _ in range(6):
            if batch.is_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            member.probe.tokens(batch, grid)
            if batch.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:]) / _TIMED_BATCH


def peak_memory_mb() -> float:
    """Of the whole bank: the device's allocator on CUDA, the process elsewhere."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
