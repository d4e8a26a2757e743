"""What a study of language models records of itself and of each variant-replicate: params, metrics, artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusion_workbench.config.study import StudyConfig
from fusion_workbench.models.folder import ModelInfo, save_model, what_to_save
from fusion_workbench.schema.language import LanguageModel
from fusion_workbench.schema.names import (
    KEPT_WEIGHTS,
    Artifact,
    CostMetric,
    model_file,
    no_image_metric,
    on_test,
    scores_file,
    task_metric,
)
from fusion_workbench.study.language_parts import count_parameters, stage_rates
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.record import finite, keeps_results, training_metrics, variant_file, variant_params
from fusion_workbench.study.tracking import to_json

if TYPE_CHECKING:
    from fusion_workbench.study.language_parts import LanguageParts
    from fusion_workbench.sweeps.space import Variant
    from fusion_workbench.training.evaluation import SplitPredictions
    from fusion_workbench.training.language_training import LanguageRun

# Dense bf16 operations a second, by the name of the device (NVIDIA's data sheets).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "4090": 165e12}


def study_files(parts: Parts) -> dict[str, str | bytes]:
    """``language_model.json`` of the parent run."""
    language = parts.language
    assert language is not None
    config = language.config
    stages = [
        {
            "name": stage.name,
            "language_model": stage.language_model,
            "connector": stage.connector,
            "epochs": stage.epochs,
            "batch_size": stage.batch_size or parts.study.training.batch_size,
            "accumulate": stage.accumulate,
            "template": stage.template,
            "conversations": language.lengths(stage).total,
            "cut": language.lengths(stage).cut,
            "left_out": language.lengths(stage).left_out,
            "rates": dict(stage_rates(parts.study, stage, 1.0)),
        }
        for stage in config.stages
    ]
    tracked = LanguageModel(
        name=config.name,
        revision=config.revision or "",
        parameters=language.parameters,
        width=language.width,
        depth=language.depth,
        stages=tuple(stage.name for stage in config.stages),
        probes=config.probes,
        controls=config.controls,
    )
    words = {split: parts.conversations.text_fingerprint(split) for split in ("train", "val", "test")}
    described = tracked.plain(stages, words, config.max_new_tokens)
    return {Artifact.LANGUAGE_MODEL: to_json(described)}


def child_params(study: StudyConfig, variant: Variant, replicate: str) -> dict[str, Any]:
    """Flat scalars of a child run."""
    assert study.language_model is not None
    params = variant_params(variant, replicate)
    params |= {"projector": study.training.projector, "language_model": study.language_model.name}
    for stage in study.language_model.stages:
        params |= {f"{stage.name}.lr_{part}": rate for part, rate in stage_rates(study, stage, variant.lr).items()}
        params[f"{stage.name}.language_model"] = stage.language_model
        params[f"{stage.name}.epochs"] = stage.epochs
    if what_to_save([stage.language_model for stage in study.language_model.stages]) == "own":
        params[KEPT_WEIGHTS] = study.language_model.keep_weights
    return params


def length_params(language: LanguageParts, variant: Variant) -> dict[str, int]:
    """What of each stage's conversations a run is trained on; strategies that append tokens have room for less."""
    params = {}
    for stage in language.config.stages:
        lengths = language.lengths(stage, variant.cell)
        params[f"{stage.name}.conversations"] = lengths.kept
        params |= {f"{stage.name}.cut": lengths.cut, f"{stage.name}.left_out": lengths.left_out}
    return params


def final_metrics(
    run: LanguageRun, parts: Parts, answers: Mapping[str, SplitPredictions], controls: Mapping[str, SplitPredictions]
) -> dict[str, float]:
    """Cost, convergence, gates; of the final replicates the test metrics and the no-image baselines."""
    from fusion_workbench.modules.cost import flops

    assert parts.language is not None
    connector, tasks = run.model.connector, parts.language.tasks
    grid = parts.encoder.grid()
    owner = next(connector.parameters())
    example = torch.zeros(len(connector.uses), 1, grid[0] * grid[1], parts.encoder.dim, device=owner.device)
    own = count_parameters(connector)
    metrics = training_metrics(
        fuser=own["fuser"],
        projector=own["projector"],
        flops=flops(lambda x: connector(x, grid).tokens, example),
        samples=run.samples,
        seconds=run.before + run.seconds,
        timed=run.seconds,
        peak_memory_mb=run.peak_memory_mb,
        history=run.history,
        status=run.status,
    )
    metrics[CostMetric.PARAMETERS_TRAINED] = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    if run.flops_seen and (peak := peak_flops()):
        metrics[CostMetric.MFU] = run.flops_seen / run.seconds / peak
    metrics |= run.gates()
    if "test" in answers:
        metrics |= run.diagnose("test")
        metrics |= {on_test(key): value for key, value in answers["test"].metrics(tasks).items()}
    for name, control in controls.items():
        for task in tasks:
            value = control.metrics([task]).get(task_metric(task.name, task.metric_name))
            if value is not None:
                metrics[no_image_metric(name, task.name)] = value
    return finite(metrics)


def child_files(
    run: LanguageRun, parts: Parts, answers: Mapping[str, SplitPredictions], phase: str, scratch: Path
) -> dict[str, str | bytes | Path]:
    """Resolved YAML always; per-example scores, predictions and the model's folder for the final replicates.

    The model is written to ``scratch``, and stays there until the files are logged.
    """
    files: dict[str, str | bytes | Path] = dict(variant_file(run.job.variant))
    if not keeps_results(phase, run.status):
        return files
    for split, predictions in answers.items():
        files[scores_file(split)] = predictions.scores_parquet()
    if "test" in answers:
        files[Artifact.ANSWERS] = answers["test"].predictions_parquet()
    info = _model_info(run, parts)
    if info.kept == "own" and run.language.config.keep_weights == "none":
        return files
    folder = scratch / "model"
    save_model(run.model, folder, parts.encoder, info)
    files |= {model_file(str(path.relative_to(folder))): path for path in folder.rglob("*") if path.is_file()}
    return files


def _model_info(run: LanguageRun, parts: Parts) -> ModelInfo:
    """What is saved with the model's weights."""
    assert parts.language is not None
    config, options = parts.language.config, parts.study.source.options
    named = {key: options[key] for key in ("padding", "background") if key in options}
    return ModelInfo(
        run.connector_config,
        config.name,
        config.revision,
        what_to_save([stage.language_model for stage in config.stages]),
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
        dtype=torch.bfloat16 if config.keep_weights == "bf16" else None,
    )


def peak_flops() -> float:
    """Of this device; 0 where it is not known."""
    if not torch.cuda.is_available():
        return 0.0
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), 0.0)
