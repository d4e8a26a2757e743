"""What is written down of a probe: params, metrics, artifacts of its variant-replicate."""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from fusion_workbench.config.study import StudyConfig
from fusion_workbench.schema.names import (
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
from fusion_workbench.study.identity import training_identity
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.record import (
    describe_variant,
    finite,
    keeps_results,
    parquet,
    peak_memory_mb,
    training_metrics,
    variant_file,
    variant_params,
)
from fusion_workbench.study.tracking import to_json

if TYPE_CHECKING:
    from fusion_workbench.modules.probes.evaluation import Evaluation
    from fusion_workbench.modules.probes.member import ProbeRun
    from fusion_workbench.sweeps.space import Variant

GATES_OPEN = 0.01  # root mean square of a gate that starts at zero, from which on it counts as opened
_TIMED_BATCH = 32


def child_params(study: StudyConfig, variant: Variant, replicate: str) -> dict[str, Any]:
    """Flat scalars of a child run."""
    training, lr = training_identity(study), variant.lr
    parts = ("fuser", "gates", "projector", "head")
    return (
        variant_params(variant, replicate)
        | {f"lr_{part}": lr * training[f"{part}_lr_scale"] for part in parts}
        | {key: value for key, value in training.items() if not key.endswith("_lr_scale")}
    )


def final_metrics(
    member: ProbeRun, parts: Parts, grid: tuple[int, int], phase: str, device: torch.device
) -> dict[str, float]:
    """Cost, convergence, gates, attention and, for the final replicates, the test metrics.

    A member that broke off is not run once more: it would only break off again.

    ``device`` is where the member was trained, and where its forward pass is timed: Lightning leaves what it has
    trained on the CPU.
    """
    from fusion_workbench.modules.cost import flops, parameters

    probe, dim = member.probe.to(device), parts.encoder.dim
    dtype = next(probe.parameters()).dtype
    tokens = grid[0] * grid[1]
    runs = member.status in (None, Status.FINISHED, Status.DIVERGED)
    example = torch.zeros(len(probe.fuser.uses), 1, tokens, dim, device=device, dtype=dtype)
    gates = {
        key: value for key, value in (member.history[-1] if member.history else {}).items() if key.startswith(GATE)
    }
    metrics = training_metrics(
        fuser=parameters(probe.fuser),
        projector=parameters(probe.projector),
        flops=flops(lambda x: probe.tokens(x, grid), example) if runs else math.nan,
        samples=member.images,
        seconds=member.step_seconds,
        timed=member.step_seconds,
        peak_memory_mb=peak_memory_mb(),
        history=member.history,
        status=member.status,
    )
    metrics |= {CostMetric.PARAMETERS_HEADS: parameters(probe.heads)} | member.diagnostics | gates
    if runs and phase != Phase.SEARCH:
        metrics[CostMetric.FORWARD_MS] = _forward_ms(member, example, grid)
    if gates:
        metrics[GATES_OPENED] = float(all(value >= GATES_OPEN for value in gates.values()))
    if "test" in member.evaluations:
        test = member.evaluations["test"]
        metrics |= {on_test(key): value for key, value in test.metrics.items()} | {on_test(LOSS): test.loss}
    return finite(metrics)


def child_files(member: ProbeRun, parts: Parts, variant: Variant, phase: str) -> dict[str, str | bytes]:
    """Resolved YAML always; outcomes and the trained fuser for the final replicates."""
    import safetensors.torch

    files: dict[str, str | bytes] = variant_file(variant)
    if not keeps_results(phase, member.status):
        return files
    for split, evaluation in member.evaluations.items():
        files[scores_file(split)] = _outcomes(evaluation, parts, split)
    weights = {
        f"{part}.{key}": value.detach().cpu().contiguous()
        for part, module in (
            ("fuser", member.probe.fuser),
            ("projector", member.probe.projector),
            ("heads", member.probe.heads),
        )
        for key, value in module.state_dict().items()
    }
    if inside := member.inside | {f"{GATE}{name}": torch.stack(gates) for name, gates in member.gates.items() if gates}:
        plain = {key: value.contiguous() for key, value in inside.items()}
        files[Artifact.INSIDE] = safetensors.torch.save(
            plain, metadata={"levels": ",".join(map(str, variant.cell.selection.levels))}
        )
    files[Artifact.FUSER] = safetensors.torch.save(weights, metadata={"format": "pt"})
    config = describe_variant(variant) | {
        "encoder": parts.encoder.encoder_info(),
        "dim": parts.encoder.dim,
        "projector": member.config.probe.projector,
        "width": member.config.probe.width or parts.encoder.dim,
        "out_dim": member.probe.fuser.out_dim,
    }
    files[Artifact.FUSER_CONFIG] = to_json(config)
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
            | {statistic_column(key): values.numpy() for key, values in evaluation.statistics[task.name].items()}
        )
        for task in parts.tasks
    ]
    return parquet(pd.concat(frames, ignore_index=True))


def _forward_ms(member: ProbeRun, example: torch.Tensor, grid: tuple[int, int]) -> float:
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
