"""The last step of a study, beside its token maps: what the layers have in common, and which of them decide.

Two files go to the parent run, for the report to render. ``similarity.json``: linear CKA between all layers that the
study can read, on validation images (:mod:`modules.similarity`). ``importance.json``: PED-ANOVA over the study's cells
(:mod:`sweeps.importance`). Both are remembered in the ledger, made again when what they rest on has changed, and never
end a study that fails to make them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from fusion_workbench.runner.optional_step import log_once
from fusion_workbench.schema.names import LAYERS_SCHEMA, Artifact
from fusion_workbench.study.identity import seed_of
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.tracking import Tracker, to_json

if TYPE_CHECKING:
    from fusion_workbench.study.ledger import Ledger
    from fusion_workbench.study.progress import Display
    from fusion_workbench.sweeps.planner import Planner
    from fusion_workbench.sweeps.space import Cell, Variant

SPLIT = "val"
_IMAGES = 512  # from the store, at most
_LIVE_IMAGES = 128  # encoded anew where there is no store
_BATCH = 32  # images a minibatch
_TOKENS = 16  # of each image: 512 examples a minibatch


def log_layers(
    parts: Parts,
    tracker: Tracker,
    run_id: str,
    variants: Sequence[Variant],
    planner: Planner,
    ledger: Ledger,
    display: Display,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Log similarity and importance to the parent run ``run_id``; whether both are there now."""

    def logged(artifact: Artifact, doing: str, inputs: dict[str, Any], make: Callable[[], dict[str, Any]]) -> bool:
        name = artifact.removesuffix(".json")
        return log_once(
            name,
            {"schema": LAYERS_SCHEMA, "run": run_id} | inputs,
            lambda: {artifact: to_json({"schema": LAYERS_SCHEMA} | make())},
            doing=doing,
            what=f"the {name} of layers",
            tracker=tracker,
            run_id=run_id,
            ledger=ledger,
            display=display,
            check=check,
        )

    layers = planner.layers()
    inputs = {"layers": layers, "encoder": parts.encoder.fingerprint, "images": parts.source.fingerprint(SPLIT)}
    similar = logged(Artifact.SIMILARITY, "comparing layers", inputs, lambda: similarity(parts, layers))
    values, of = _values(parts, variants, planner, ledger)
    basis = {"cells": sorted([cell.id, value] for cell, value in values), "of": of}
    weighed = logged(Artifact.IMPORTANCE, "weighing layers", basis, lambda: importances(parts, values, of))
    return similar and weighed


# --- similarity -----------------------------------------------------------------------------------------------------


def similarity(parts: Parts, layers: Sequence[int]) -> dict[str, Any]:
    """Linear CKA between ``layers``, tokens as examples, each normalised without parameters as the projector does.

    Images and the tokens taken of each are drawn by the source and nothing else, so studies of one source compare.
    """
    from fusion_workbench.modules.similarity import FEWEST, MinibatchCKA, sample_tokens

    generator = torch.Generator().manual_seed(seed_of("similarity", parts.source.fingerprint(SPLIT)))
    most = _LIVE_IMAGES if parts.features.store is None else _IMAGES
    order = torch.randperm(parts.source.size(SPLIT), generator=generator)[:most]
    cka = MinibatchCKA(len(layers))
    features = parts.features.split(SPLIT, layers)
    for index in torch.split(order, _BATCH):
        examples = sample_tokens(features.rows(index), _TOKENS, generator).float().cpu()
        if examples.shape[1] >= FEWEST:
            cka.add(torch.nn.functional.layer_norm(examples, examples.shape[-1:]))
    matrix = [[value if math.isfinite(value) else None for value in row] for row in cka.matrix().tolist()]
    facts = {"estimate": "linear CKA, unbiased, minibatches", "normalised": True, "split": "validation"}
    return facts | {"layers": list(layers), "images": len(order), "tokens": cka.examples, "matrix": matrix}


# --- importance -----------------------------------------------------------------------------------------------------


def importances(parts: Parts, values: Sequence[tuple[Cell, float]], of: str) -> dict[str, Any]:
    """PED-ANOVA over cells with their values, as plain values; see :class:`sweeps.importance.Importance`."""
    from fusion_workbench.sweeps.importance import ScoredCell, importance

    result = importance(
        [
            ScoredCell(frozenset(parts.layers_read(cell)), cell.strategy, cell.selection.query, value)
            for cell, value in values
            if not cell.alias  # a cell counts once, whatever it is called
        ]
    )
    return asdict(result) | {"split": "validation", "values": of}


def _values(
    parts: Parts, variants: Sequence[Variant], planner: Planner, ledger: Ledger
) -> tuple[list[tuple[Cell, float]], str]:
    """Each cell with its validation objective, and what that is of.

    The mean over its replicates, where every cell that has a value went on to them; otherwise, in a study that draws
    its cells from a space, what Optuna was told: one replicate, the same for all.
    """
    scored_cells = planner.scored_cells()
    replicates = [str(r) for r in range(parts.study.replicates)]
    final = {v.cell.id: mean for v in variants if (mean := ledger.objective(v.id, replicates)) is not None}
    if all(cell.id in final for cell, _ in scored_cells):
        return [(v.cell, final[v.cell.id]) for v in variants if v.cell.id in final], "mean over replicates"
    return scored_cells, "search replicate"
