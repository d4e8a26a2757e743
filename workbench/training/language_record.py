"""What is written down of a study of language models and of each variant-replicate: params, metrics, artifacts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from fusion_workbench.config.study import StudyConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.folder import Described, kept_of, save_model
from fusion_workbench.study.jobs import SEARCH
from fusion_workbench.study.language_parts import parameters_of, stage_rates
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.record import STILL_FALLING, describe_variant
from fusion_workbench.study.tracking import to_json

if TYPE_CHECKING:
    from fusion_workbench.study.ledger import Ledger
    from fusion_workbench.sweeps.space import Variant
    from fusion_workbench.training.answering import Answers
    from fusion_workbench.training.language_run import LanguageRun

# Dense bf16 operations a second, by the name of the device (NVIDIA's data sheets).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "4090": 165e12}


def study_files(parts: Parts) -> dict[str, str | bytes]:
    """``language_model.json`` of the parent run."""
    language = parts.language
    assert language is not None
    config = language.config
    described = {
        "name": config.name,
        "revision": config.revision,
        "width": language.width,
        "depth": language.depth,
        "parameters": language.parameters,
        "stages": [
            {
                "name": stage.name,
                "language_model": stage.language_model,
                "connector": stage.connector,
                "epochs": stage.epochs,
                "batch_size": stage.batch_size or parts.study.training.batch_size,
                "accumulate": stage.accumulate,
                "conversations": len(language.sources[stage.name].conversations("train")),
                "rates": dict(stage_rates(parts.study, stage, 1.0)),
            }
            for stage in config.stages
        ],
        "words": {split: parts.conversations.words(split) for split in ("train", "val", "test")},
        "max_new_tokens": config.max_new_tokens,
        "controls": config.controls,
        "probes": config.probes,
    }
    return {"language_model.json": to_json(described)}


def check_words(parts: Parts, ledger: Ledger) -> None:
    """Remember what is taught and asked; a file that was edited since would mix two data sets in one study.

    Raises:
        WorkbenchError: the conversations are not those of the study's earlier runs.
    """
    now = {split: parts.conversations.words(split) for split in ("train", "val", "test")}
    before = ledger.fact("words")
    if before is not None and before != now:
        changed = ", ".join(split for split in now if before.get(split) != now[split])
        raise WorkbenchError(
            f"the conversations of study '{parts.study.name}' have changed since its earlier runs ({changed}); give it "
            "another workspace, or restore the files."
        )
    ledger.remember("words", now)


def child_params(study: StudyConfig, variant: Variant, replicate: str) -> dict[str, Any]:
    """Flat scalars of a child run."""
    assert study.language_model is not None
    cell = variant.cell
    params: dict[str, Any] = {
        "strategy": cell.strategy,
        "levels": ",".join(map(str, cell.selection.levels)),
        "query": cell.selection.query,
        "replicate": replicate,
        "lr": variant.lr,
        "alias": cell.alias,
        "projector": study.training.projector,
        "language_model": study.language_model.name,
    }
    params |= {f"options.{key}": value for key, value in cell.options}
    for stage in study.language_model.stages:
        params |= {f"{stage.name}.lr_{part}": rate for part, rate in stage_rates(study, stage, variant.lr).items()}
        params[f"{stage.name}.language_model"] = stage.language_model
        params[f"{stage.name}.epochs"] = stage.epochs
    return params


def final_metrics(
    run: LanguageRun, parts: Parts, answers: Mapping[str, Answers], controls: Mapping[str, Answers]
) -> dict[str, float]:
    """Cost, convergence, gates; of the final replicates the test metrics and the controls."""
    from fusion_workbench.modules.cost import flops
    from fusion_workbench.modules.probes.bank import loss_still_falling

    assert parts.language is not None
    adapter, tasks = run.model.adapter, parts.language.tasks
    grid = parts.encoder.grid()
    owner = next(adapter.parameters())
    example = torch.zeros(len(adapter.uses), 1, grid[0] * grid[1], parts.encoder.dim, device=owner.device)
    own = parameters_of(adapter)
    falling = loss_still_falling(run.history)
    metrics: dict[str, float] = {
        "cost/parameters": own["fuser"] + own["projector"],
        "cost/parameters_fuser": own["fuser"],
        "cost/parameters_trained": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "cost/flops_per_image": flops(lambda x: adapter(x, grid).tokens, example),
        "cost/seconds": run.before + run.seconds,
        "cost/samples_per_second": run.samples / run.seconds if run.seconds else math.nan,
        "cost/peak_memory_mb": run.peak_memory_mb,
        "cost/mfu": run.flops_seen / run.seconds / peak if run.flops_seen and (peak := peak_flops()) else math.nan,
        "loss_still_falling": falling,
        "converged": float(run.outcome == "finished" and falling < STILL_FALLING),
        **run.gates(),
    }
    if "test" in answers:
        metrics |= {f"test/{key}": value for key, value in answers["test"].metrics(tasks).items()}
    for name, control in controls.items():
        for task in tasks:
            value = control.metrics([task]).get(f"{task.name}/{task.metric_name}")
            if value is not None:
                metrics[f"control/{name}/{task.name}"] = value
    return {key: float(value) for key, value in metrics.items() if math.isfinite(value)}


def child_files(
    run: LanguageRun, parts: Parts, answers: Mapping[str, Answers], phase: str, scratch: Path
) -> dict[str, str | bytes | Path]:
    """Resolved YAML always; outcomes, answers and the model's folder for the final replicates.

    The model is written to ``scratch``, and stays there until the files are logged.
    """
    files: dict[str, str | bytes | Path] = {
        "variant.yaml": yaml.safe_dump(describe_variant(run.job.variant), sort_keys=False)
    }
    if phase == SEARCH or run.outcome != "finished":
        return files
    for split, said in answers.items():
        files[f"outcomes/{split}.parquet"] = said.outcomes()
    if "test" in answers:
        files["outcomes/answers.parquet"] = answers["test"].words()
    folder = scratch / "model"
    save_model(run.model, folder, parts.encoder, _described(run, parts))
    files |= {f"model/{path.relative_to(folder)}": path for path in folder.rglob("*") if path.is_file()}
    return files


def _described(run: LanguageRun, parts: Parts) -> Described:
    """What the model's folder says of it."""
    assert parts.language is not None
    config, options = parts.language.config, parts.study.source.options
    named = {key: options[key] for key in ("padding", "background") if key in options}
    return Described(
        run.adapter_config,
        config.name,
        config.revision,
        kept_of([stage.language_model for stage in config.stages]),
        config.system,
        config.max_length,
        **named,
        origin={
            "study": parts.study.name,
            "study_id": parts.study_id,
            "cell": run.job.variant.cell.label,
            "variant": run.job.variant.id,
            "replicate": run.job.replicate,
        },
    )


def peak_flops() -> float:
    """Of this device; 0 where it is not known."""
    if not torch.cuda.is_available():
        return 0.0
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), 0.0)
