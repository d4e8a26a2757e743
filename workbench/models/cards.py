"""Model cards: of a connector, with what its study found of it, and of a whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from fusion_workbench.schema.names import CostMetric

if TYPE_CHECKING:
    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.schema.records import Cell, TrackedSource

_LOAD_CONNECTOR = """```python
from fusion_workbench.models.connector import load_connector

connector = load_connector("this/folder")
tokens = connector(["photo.jpg"])  # [1, {tokens}, {width}]
```
"""
_LOAD_MODEL = """```python
from fusion_workbench.models.loaded import load_model

model = load_model("this/folder")
print(model.answer([["photo.jpg"]], ["What is in the picture?"])[0])
```

```sh
workbench ask --model this/folder --image photo.jpg "What is in the picture?"
```
"""
_KEPT = {
    "named": "was frozen and is not in this folder: it is read by its name",
    "lora": "was trained by LoRA; the updates are in `language_model/`, in peft's format, the rest is read by its name",
    "own": "was trained in full; its weights are in `language_model/`",
}
_GENERAL = "Scores are of heads trained on these tokens; a language model may use them otherwise."
_COSTS = (
    ("parameters", CostMetric.PARAMETERS, "{:,.0f}"),
    ("FLOPs an image", CostMetric.FLOPS, "{:,.0f}"),
    ("milliseconds an image, forward, on the machine of the study", CostMetric.FORWARD_MS, "{:.3g}"),
    ("seconds of training, with the heads, a replicate", CostMetric.SECONDS, "{:.3g}"),
)


def connector_card(analysis: Analysis, cell: Cell, config: Mapping[str, Any]) -> str:
    """The card of an exported connector, as Markdown.

    Args:
        analysis, cell: the study, and what of it was exported.
        config: ``config.json`` of the folder.
    """
    from fusion_workbench.reports.analysis.answer import answer

    recommendation, encoder, study = answer(analysis), config["encoder"], config["study"]
    recommended = recommendation.cell is not None and recommendation.cell.id == cell.id
    fresh = recommendation.judged is not analysis and any(
        key[-1] == cell.id for key in recommendation.judged.comparisons
    )
    judged = recommendation.judged if fresh else analysis  # what a cell was picked on makes it look better than it is
    tokens = " × ".join(map(str, encoder["grid"]))
    layers = ", ".join(map(str, config["layers"]))
    lines = [
        _front(config["strategy"], [_on_hub(encoder, encoder["encoder"])]),
        f"# {cell.name} on {encoder['encoder']}\n",
        f"A connector between a frozen vision encoder and a model that reads tokens: hidden states {layers} of "
        f"`{encoder['encoder']}` ({encoder['family']}, {encoder['depth']} blocks), fused by `{config['strategy']}`, "
        f"then a `{config['projector']}` projector to {config['width']} channels. It was trained as a probe, not with "
        "a language model.\n",
        _LOAD_CONNECTOR.format(tokens=encoder["grid"][0] * encoder["grid"][1], width=config["width"]),
        f"The grid is {tokens} tokens; pictures are cut to its shape and resized to {encoder['image_size']} px.\n",
        "## What its study found\n",
        f"*{analysis.record.question}* Study `{study['name']}` ({study['id']}), "
        f"{len(analysis.record.finals(cell.id))} of {len(analysis.record.replicates)} replicates of this cell; the "
        f"weights are of replicate {study['replicate']}, the first, not the best.\n",
        (
            "This is the cell that the study recommends: the best on validation."
            if recommended
            else f"This is not the cell that the study recommends. {recommendation.headline}"
        )
        + "\n",
        *([f"Judged on {judged.reached} fresh replicates, which had no part in the picking:\n"] if fresh else []),
        _evidence(judged, cell),
        "## What is not known\n",
        "".join(f"- {caveat}\n" for caveat in (*recommendation.caveats, _GENERAL)),
        "## What it costs\n",
        _costs(analysis, cell),
        "## Where it comes from\n",
        _data(analysis.record.source),
        _yaml(config["training"]),
        f"MLflow run `{study['run']}`, command `{study['command']}`, commit `{study['commit']}`, encoder fingerprint "
        f"`{encoder['fingerprint'][:16]}`.\n",
        _licences("The encoder and the data"),
    ]
    return "\n".join(lines)


def model_card(config: Mapping[str, Any]) -> str:
    """The card of a whole model, as Markdown. ``config`` is ``config.json`` of the folder."""
    connector, encoder, language = config["adapter"], config["encoder"], config["language"]
    base = [_on_hub(encoder, encoder["encoder"]), _on_hub(language, language["name"])]
    layers = ", ".join(map(str, config["layers"]))
    rows, columns = encoder["grid"]
    norm = "which are normalised first" if connector["projector_norm"] else "as they are"
    lines = [
        _front(connector["strategy"], base, "image-text-to-text"),
        f"# {connector['strategy']}, {encoder['encoder']}, {language['name']}\n",
        f"A vision-language model: hidden states {layers} of `{encoder['encoder']}` ({encoder['family']}, "
        f"{encoder['depth']} blocks) by the strategy `{connector['strategy']}`, then a `{connector['projector']}` "
        f"projector of the tokens, {norm}, into `{language['name']}` ({language['model_type']}, "
        f"{language['parameters']:,} parameters), which {_KEPT[language['kept']]}.\n",
        _LOAD_MODEL,
        f"Images are made squares (`{config['images']['padding']}`) of {encoder['image_size']} px, a grid of "
        f"{rows} × {columns} tokens.\n",
        "## Where it comes from\n",
        _yaml(config["origin"]) if config["origin"] else "It says nothing of its origin.\n",
        f"Encoder fingerprint `{encoder['fingerprint'][:16]}`, workbench {config['workbench']}, "
        + ", ".join(f"{name} {number}" for name, number in config["versions"].items())
        + ".\n",
        _licences("Encoder, language model and data"),
    ]
    return "\n".join(lines)


# --- what both have ---------------------------------------------------------------------------------------------


def _front(strategy: str, base: Sequence[str | None], task: str | None = None) -> str:
    """The front matter that model hubs read. ``base``: names of the models that it was made of."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="fusion-workbench",
        pipeline_tag=task,
        tags=["visual-layer-fusion", strategy],
        base_model=[name for name in base if name] or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _on_hub(part: Mapping[str, Any], name: str) -> str | None:
    """A hub's model has a commit; a folder and an asset have none."""
    return name if part["revision"] else None


def _yaml(plain: Mapping[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(dict(plain), sort_keys=False)}```\n"


def _licences(whose: str) -> str:
    return (
        f"{whose} keep the licences that they came with; what these say of weights trained with them holds for this "
        "folder too.\n"
    )


# --- what a study found -----------------------------------------------------------------------------------------


def _evidence(analysis: Analysis, cell: Cell) -> str:
    """A row a task: its test score with interval, and the verdict against every baseline."""
    from fusion_workbench.schema.names import BASELINES

    columns = [b for b in BASELINES if any((m.name, b) in analysis.baselines for m in analysis.measures)]
    rows = [f"| | test, mean [95 % interval] | {' | '.join(f'against {b}' for b in columns)} |"]
    rows.append("|---|---|" + "---|" * len(columns))
    for measure in analysis.measures:
        if (cell.id, measure.name) not in analysis.means:
            continue
        unit, mean = measure.unit, analysis.means[cell.id, measure.name]
        score = f"{unit.score(mean.mean)} [{unit.score(mean.low)}, {unit.score(mean.high)}]"
        verdicts = []
        for baseline in columns:
            comparison = analysis.comparisons.get((measure.name, baseline, cell.id))
            if comparison is None:
                verdicts.append("–")
            elif comparison.difference is None:
                verdicts.append(comparison.verdict)
            else:
                verdicts.append(f"{comparison.verdict}, {unit.effect(comparison.difference)}")
        rows.append(f"| {unit.after(f'{measure.name} ({measure.metric})')} | {score} | {' | '.join(verdicts)} |")
    return "\n".join(rows) + "\n"


def _costs(analysis: Analysis, cell: Cell) -> str:
    """Fuser and projector, means over the replicates; the encoder's own cost is the same for every cell."""
    mean = analysis.record.mean_metric
    rows = [
        (what, value)
        for what, name, form in _COSTS
        if (found := mean(cell.id, name)) is not None and (value := form.format(found))
    ]
    return "Fuser and projector, without the encoder:\n\n" + "".join(f"- {what}: {value}\n" for what, value in rows)


def _data(source: TrackedSource) -> str:
    """What it was trained, chosen and tested on."""
    sizes = source.sizes
    counts = ", ".join(f"{sizes[split]:,} {split}" for split in ("train", "val", "test") if split in sizes)
    return f"Data: `{source.version or source.name or 'unknown'}`{f', {counts} images' if counts else ''}.\n"
