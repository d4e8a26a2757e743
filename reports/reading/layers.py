"""What a study logged of its layers and of its fusers' insides, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.names import GATE, LAYERS_SCHEMA

Floats = NDArray[np.float64]
_MOST_BYTES = 64_000_000  # of an inside.safetensors


@dataclass(frozen=True)
class Similarity:
    """Linear CKA between layers, ``matrix [n, n]``, nan where it is not known."""

    layers: tuple[int, ...]
    matrix: Floats
    images: int
    tokens: int
    normalised: bool


@dataclass(frozen=True)
class Importance:
    """PED-ANOVA over the study's cells; shares of layers, strategy and query sum to 1.

    ``reason`` says why there are none. ``read_by_top`` and ``read_by_all`` are the shares of the best and of all cells
    that read a layer: where the former is smaller, the best avoid it.
    """

    cells: int
    top: int
    layers: Mapping[int, float]
    strategy: float | None
    query: float | None
    read_by_top: Mapping[int, float]
    read_by_all: Mapping[int, float]
    values: str  # what a cell's value is
    reason: str

    @property
    def avoided(self) -> frozenset[int]:
        return frozenset(n for n in self.layers if self.read_by_top.get(n, 0.0) < self.read_by_all.get(n, 0.0))


@dataclass(frozen=True)
class Inside:
    """What one replicate's trained fuser does.

    Attributes:
        levels: the layers that it asks.
        gates: name → ``[epochs, channels]``, at the end of each epoch.
        attention: ``[levels, heads]``, each level's share of a head's attention.
        offsets: ``[levels, heads]``, root mean square distance of the samples from their cell, in cells.
    """

    replicate: str
    levels: tuple[int, ...]
    gates: Mapping[str, Floats]
    attention: Floats | None = None
    offsets: Floats | None = None


def read_similarity(plain: Mapping[str, Any]) -> Similarity:
    """``similarity.json``. Raises WorkbenchError, KeyError, TypeError or ValueError for anything else."""
    _known(plain)
    layers = tuple(int(layer) for layer in plain["layers"])
    matrix = np.asarray(plain["matrix"], dtype=float)  # None becomes nan
    if matrix.shape != (len(layers), len(layers)):
        raise WorkbenchError(f"its matrix is {list(matrix.shape)} for {len(layers)} layers")
    return Similarity(layers, matrix, int(plain["images"]), int(plain["tokens"]), bool(plain.get("normalised", False)))


def read_importance(plain: Mapping[str, Any]) -> Importance:
    """``importance.json``. Raises as :func:`read_similarity`."""
    _known(plain)

    def by_layer(name: str) -> dict[int, float]:
        return {int(layer): float(share) for layer, share in plain[name].items()}

    def share(name: str) -> float | None:
        return None if plain[name] is None else float(plain[name])

    return Importance(
        cells=int(plain["cells"]),
        top=int(plain["top"]),
        layers=by_layer("layers"),
        strategy=share("strategy"),
        query=share("query"),
        read_by_top=by_layer("read_by_top"),
        read_by_all=by_layer("read_by_all"),
        values=str(plain.get("values", "")),
        reason=str(plain.get("reason", "")),
    )


def read_inside(file: Path, replicate: str) -> Inside:
    """``inside.safetensors`` of a run.

    Raises:
        WorkbenchError: it is too large, not safetensors, or its arrays do not fit its levels.
    """
    from safetensors import SafetensorError, safe_open

    if file.stat().st_size > _MOST_BYTES:
        raise WorkbenchError(f"it is larger than {_MOST_BYTES // 10**6} MB")
    try:
        with safe_open(file, framework="numpy") as stored:
            named = (stored.metadata() or {}).get("levels", "")
            arrays = {key: np.asarray(stored.get_tensor(key), dtype=float) for key in stored.keys()}  # noqa: SIM118
        levels = tuple(int(level) for level in named.split(",") if level)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise WorkbenchError(f"it cannot be read ({type(error).__name__})") from None
    for key in ("attention", "offsets"):
        if key in arrays and (arrays[key].ndim != 2 or len(arrays[key]) != len(levels)):
            raise WorkbenchError(f"its {key} is {list(arrays[key].shape)} for {len(levels)} levels")
    gates = {
        key.removeprefix(GATE): values.reshape(len(values), -1)
        for key, values in arrays.items()
        if key.startswith(GATE) and values.ndim and values.size
    }
    return Inside(replicate, levels, gates, arrays.get("attention"), arrays.get("offsets"))


def _known(plain: Mapping[str, Any]) -> None:
    if plain["schema"] != LAYERS_SCHEMA:
        raise WorkbenchError(f"schema {plain['schema']!r}; this version reads {LAYERS_SCHEMA}")
