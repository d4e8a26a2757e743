"""Which layers decide whether a cell is among the best: Optuna's PED-ANOVA over a study's cells.

PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255) compares how a parameter is distributed among the best trials
and among all of them; the more these differ, the more the parameter matters for being among the best. Here a trial is a
cell, its parameters whether it reads each layer, its strategy and its query, its value the validation objective.
Nothing is trained for it, and it says nothing of cells that the study does not hold.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator

FEWEST = 10  # cells; of fewer, the best are no sample
TOP_SHARE, TOP_LEAST = 0.1, 5  # how many count as the best; Optuna's documentation asks for at least five


@dataclass(frozen=True)
class ScoredCell:
    """One cell: what it reads, and what came out."""

    layers: frozenset[int]
    strategy: str
    query: int
    value: float  # more is better


@dataclass(frozen=True)
class Importance:
    """Shares of what sets the best cells apart; layers, strategy and query sum to 1.

    ``reason`` says why there are none; then the shares are empty. A parameter that all cells share has none either.
    """

    cells: int
    top: int = 0  # cells that count as the best
    layers: dict[int, float] = field(default_factory=dict)
    strategy: float | None = None
    query: float | None = None
    read_by_top: dict[int, float] = field(default_factory=dict)  # layer → share of the best cells that read it
    read_by_all: dict[int, float] = field(default_factory=dict)
    reason: str = ""


def importance(scored_cells: Sequence[ScoredCell]) -> Importance:
    """PED-ANOVA of being among the best tenth of the cells (at least five). A cell without a finite value is none."""
    scored = [cell for cell in scored_cells if math.isfinite(cell.value)]
    if len(scored) < FEWEST:
        return Importance(len(scored), reason=f"{len(scored)} cells; it takes {FEWEST}")
    values = sorted((cell.value for cell in scored), reverse=True)
    cutoff = values[max(TOP_LEAST, math.ceil(TOP_SHARE * len(scored))) - 1]
    top = [cell for cell in scored if cell.value >= cutoff]
    if len(top) == len(scored):
        return Importance(len(scored), len(top), reason="all cells have the same value")
    distributions = _distributions(scored)
    if not distributions:
        return Importance(len(scored), len(top), reason="all cells read the same layers in the same way")
    shares = _ped_anova(scored, distributions, len(top) / len(scored))
    layers = sorted(int(name.removeprefix("layer_")) for name in distributions if name.startswith("layer_"))
    return Importance(
        cells=len(scored),
        top=len(top),
        layers={layer: shares[f"layer_{layer}"] for layer in layers},
        strategy=shares.get("strategy"),
        query=shares.get("query"),
        read_by_top={layer: _read(layer, top) for layer in layers},
        read_by_all={layer: _read(layer, scored) for layer in layers},
    )


def _distributions(scored: Sequence[ScoredCell]) -> dict[str, BaseDistribution]:
    """What the cells differ in."""
    layers = sorted({layer for cell in scored for layer in cell.layers})
    choices: dict[str, list[bool] | list[str] | list[int]] = {
        f"layer_{n}": [False, True] for n in layers if any(n not in cell.layers for cell in scored)
    }
    choices["strategy"] = sorted({cell.strategy for cell in scored})
    choices["query"] = sorted({cell.query for cell in scored})
    return {name: CategoricalDistribution(values) for name, values in choices.items() if len(values) > 1}


def _ped_anova(
    scored: Sequence[ScoredCell], distributions: dict[str, BaseDistribution], quantile: float
) -> dict[str, float]:
    logging.getLogger("optuna").setLevel(logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for cell in scored:
        plain = {f"layer_{n}": n in cell.layers for n in range(max(cell.layers, default=0) + 1)}
        every = {name: plain.get(name, False) for name in distributions} | {
            "strategy": cell.strategy,
            "query": cell.query,
        }
        params = {name: every[name] for name in distributions}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=cell.value))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():  # few cells of a kind: the report says on how many it rests
        warnings.simplefilter("ignore")
        importances = optuna.importance.get_param_importances(
            study, evaluator=evaluator, params=list(distributions), normalize=False
        )
    total = sum(importances.values())
    return {name: value / total if total > 0 else 0.0 for name, value in importances.items()}


def _read(layer: int, cells: Sequence[ScoredCell]) -> float:
    return sum(layer in cell.layers for cell in cells) / len(cells)
