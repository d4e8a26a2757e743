"""The last step of a study: pictures of token maps before and after fusion, for the report to show.

Chosen are a few cells (on validation) and a few test examples (some at random, the hardest, the most improved, the most
worsened; see :mod:`runner.token_map_choice`). Their images are encoded anew, through the first replicate's trained
fusers, and logged to the parent run as ``look/look.json`` with its pictures: an image an example, and for each map one
strip with the examples below one another, a token a pixel. Of a fuser that tells where it draws on which level, a strip
a level too.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from torch import Tensor

from fusion_workbench.config.study import digest
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.runner.token_map_choice import (
    ChosenCells,
    ChosenExample,
    Floats,
    choose_cells,
    choose_examples,
    choose_layers,
)
from fusion_workbench.study.identity import seed_of
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.tracking import Tracker, to_json

if TYPE_CHECKING:
    from fusion_workbench.modules.maps import ColourMaps, ShareMaps
    from fusion_workbench.study.ledger import Entry, Ledger
    from fusion_workbench.study.progress import Display
    from fusion_workbench.sweeps.space import Cell, Variant

SCHEMA = 1
_FACT = "look"  # in the ledger: what the logged look was made of
_PICTURE = 160  # pixels, at most
_BATCH = 8
Files = dict[str, str | bytes]


def log_look(
    parts: Parts, tracker: Tracker, run_id: str, variants: Sequence[Variant], ledger: Ledger, display: Display
) -> bool:
    """Make the look and log it to the parent run ``run_id``; whether it is there now.

    Nothing is done where the ledger says that the same replicates were looked at before. A look that fails is told in a
    line and never ends a study: everything it shows is in the tables too.
    """
    look = Look(parts, tracker, run_id, variants, ledger)
    if not look.entries:
        return False
    made_of = digest(
        {"schema": SCHEMA, "regions": True, "run": run_id, "of": sorted(str(e.run_id) for e in look.entries.values())}
    )
    if ledger.fact(_FACT) == made_of:
        return True
    try:
        with display.step("looking at test images"):
            tracker.log_files(run_id, look.files())
    except Exception as error:  # whatever it is, the study is done and its numbers stand
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        display.say(f"the look at test images is left out of the report ({type(error).__name__}): {first}")
        return False
    ledger.remember(_FACT, made_of)
    return True


@dataclass(frozen=True)
class _Map:
    """A column of the look: a layer before fusion, or a cell after it."""

    name: str  # of its file, in ``look/``
    facts: dict[str, Any]
    maps: ColourMaps
    shares: ShareMaps | None = None  # of the levels, where the fuser tells
    levels: tuple[int, ...] = ()

    def regions(self) -> dict[str, Any]:
        """Where each level is drawn on: the share at a strip's black and at its white, and the mean between them."""
        assert self.shares is not None
        reach = self.shares.reach
        levels = [
            {"layer": level, "file": self.of_level(level), "mean": mean, "low": mean - reach, "high": mean + reach}
            for level, mean in zip(self.levels, self.shares.means, strict=True)
        ]
        return {key: self.facts[key] for key in ("cell", "label", "replicate")} | {"levels": levels}

    def of_level(self, level: int) -> str:
        """The file of a level's strip, in ``look/``."""
        return f"regions-{self.facts['cell']}-{level}.png"


class Look:
    """The look of one study.

    Args:
        parts: the prepared study.
        tracker: MLflow, to read outcomes and weights from.
        run_id: the study's parent run.
        variants: the finalists at their rates.
        ledger: knows their runs.

    Attributes:
        entries: (position of the variant, replicate) → its ledger entry, of those trained to the end.
    """

    def __init__(
        self, parts: Parts, tracker: Tracker, run_id: str, variants: Sequence[Variant], ledger: Ledger
    ) -> None:
        self.parts = parts
        self.tracker = tracker
        self.run_id = run_id
        self.variants = list(variants)
        self.cells: list[Cell] = [v.cell for v in variants]
        self.replicates = [str(r) for r in range(parts.study.replicates)]
        self.entries: dict[tuple[int, str], Entry] = {
            (i, replicate): entry
            for i, v in enumerate(self.variants)
            for replicate in self.replicates
            if (entry := ledger.find(v.id, replicate)) is not None and entry.finished
        }

    def files(self) -> Files:
        """The artifacts, by their path in the run.

        Raises:
            WorkbenchError: outcomes or weights that the ledger names are not in MLflow, or not this study's.
        """
        with tempfile.TemporaryDirectory(prefix="workbench-look-") as folder:
            scores = self._scores(Path(folder))
            chosen = choose_cells(self.cells, [self._fuses(cell) for cell in self.cells], self._validation())
            signs = {task.name: 1 if task.direction == "maximize" else -1 for task in self.parts.tasks}
            seed = seed_of("look", self.parts.study_id)
            examples = choose_examples(scores, signs, chosen.baseline, chosen.featured, seed)
            images = np.stack([self.parts.source.image("test", e.index) for e in examples])
            maps = self._maps(chosen, [e.index for e in examples], Path(folder))
        rows, columns = self.parts.encoder.grid()
        files: Files = {f"look/{m.name}": _strip(m.maps.colours, columns) for m in maps}
        for m in maps:
            for level, shades in zip(m.levels, m.shares.shades if m.shares else (), strict=False):
                files[f"look/{m.of_level(level)}"] = _strip(shades, columns)
        pictures = [f"image-{e.index}.webp" for e in examples]
        files |= {f"look/{name}": _picture(image) for name, image in zip(pictures, images, strict=True)}
        described = {
            "schema": SCHEMA,
            "split": "test",
            "seed": seed,
            "grid": [rows, columns],
            "baseline": None if chosen.baseline is None else self.cells[chosen.baseline].id,
            "featured": None if chosen.featured is None else self.cells[chosen.featured].id,
            "columns": [m.facts | {"file": m.name, "explained": list(m.maps.explained)} for m in maps],
            "regions": [m.regions() for m in maps if m.shares is not None],
            "examples": self._described(examples, pictures, scores, chosen),
        }
        return {"look/look.json": to_json(described)} | files

    def _fuses(self, cell: Cell) -> bool:
        """Whether the cell's fuser reads more than one layer."""
        return len(self.parts.layers_read(cell)) > 1

    # --- what was measured --------------------------------------------------------------------------------------

    def _validation(self) -> Floats:
        """``[cells, replicates]``, nan where there is none."""
        table = np.full((len(self.cells), len(self.replicates)), np.nan)
        for (i, replicate), entry in self.entries.items():
            table[i, self.replicates.index(replicate)] = entry.result.get("val/objective", np.nan)
        return table

    def _scores(self, folder: Path) -> dict[str, Floats]:
        """For each task the test scores ``[cells, replicates, examples]``, nan where there is none."""
        import pandas as pd

        identity = self.parts.source.identity("test")
        place = {str(example): i for i, example in enumerate(identity["example_id"])}
        shape = (len(self.cells), len(self.replicates), len(place))
        scores = {task.name: np.full(shape, np.nan) for task in self.parts.tasks}
        for (i, replicate), entry in self.entries.items():
            table = pd.read_parquet(self._artifact(entry, "outcomes/test.parquet", folder))
            for task, part in table[table["items"] > 0].groupby("task"):
                index = [place[str(example)] for example in part["example_id"]]
                scores[str(task)][i, self.replicates.index(replicate), index] = part["score"].to_numpy(dtype=float)
        return scores

    def _artifact(self, entry: Entry, name: str, folder: Path) -> Path:
        """An artifact of a child run as a file here; read in place where it is on this machine."""
        run = str(entry.run_id)
        place = self._places.get(run, "")
        if place.startswith("file:"):
            file = Path(url2pathname(urlsplit(place).path)) / name
        else:
            from mlflow.artifacts import download_artifacts

            target = folder / run
            target.mkdir(exist_ok=True)
            found = download_artifacts(f"{place}/{name}", dst_path=str(target), tracking_uri=self.tracker.uri)
            file = Path(found)
        if not file.is_file():
            raise WorkbenchError(f"MLflow run {run} has no artifact {name}")
        return file

    @cached_property
    def _places(self) -> dict[str, str]:
        """run id → where its artifacts are, for every child of the study; asked for together, as one by one is slow."""
        places: dict[str, str] = {}
        token: str | None = None
        where = f"tags.`mlflow.parentRunId` = '{self.run_id}'"
        while True:
            page = self.tracker.client.search_runs([self.tracker.experiment_id], where, page_token=token)
            places |= {str(run.info.run_id): str(run.info.artifact_uri) for run in page}
            token = page.token
            if not token:
                return places

    def _described(
        self,
        examples: Sequence[ChosenExample],
        pictures: Sequence[str],
        scores: dict[str, Floats],
        chosen: ChosenCells,
    ) -> list[dict[str, Any]]:
        """The examples with their reasons and scores: of all cells, of the baseline, of the featured cell."""
        identity = self.parts.source.identity("test")

        def of(values: Floats, cell: int | None) -> list[float | None]:
            return [] if cell is None else [float(v) if np.isfinite(v) else None for v in values[cell]]

        described = []
        for example, picture in zip(examples, pictures, strict=True):
            by_task = {
                task: {
                    "mean": float(one[np.isfinite(one)].mean()),
                    "before": of(one, chosen.baseline),  # a replicate each
                    "after": of(one, chosen.featured),
                }
                for task, values in scores.items()
                if np.isfinite(one := values[..., example.index]).any()
            }
            row = identity.iloc[example.index]
            facts = {"example_id": str(row["example_id"]), "index": example.index, "group": str(row["group"])}
            why = {"kind": example.kind, "task": example.task}
            described.append(facts | {"file": picture, "why": why, "scores": by_task})
        return described

    # --- maps ---------------------------------------------------------------------------------------------------

    def _maps(self, chosen: ChosenCells, examples: Sequence[int], folder: Path) -> list[_Map]:
        """Layers before fusion, then cells after it, of test images; PCA over all of a column together."""
        from fusion_workbench.modules.maps import on_grid, pca_rgb, share_maps

        first = [i for i in dict.fromkeys([chosen.featured, *chosen.shown, chosen.baseline]) if i is not None]
        shown_cells = [self.cells[i] for i in first]
        shown_layers = choose_layers(shown_cells)
        layers = sorted({layer for cell in shown_cells for layer in cell.selection.layers} | set(shown_layers))
        features = self._features(examples, layers)  # [layers, B, T, dim]
        queries = {cell.selection.query for cell in shown_cells}
        maps = [
            _Map(
                f"layer-{layer}.png",
                {"kind": "layer", "layer": layer, "query": layer in queries},
                pca_rgb(features[layers.index(layer)]),
            )
            for layer in shown_layers
        ]
        grid = self.parts.encoder.grid()
        for i in chosen.shown:
            cell = self.cells[i]
            replicate = next(r for r in self.replicates if (i, r) in self.entries)
            entry = self.entries[i, replicate]
            fuser = self._fuser(cell, self._artifact(entry, "fuser/model.safetensors", folder))
            with torch.inference_mode():
                own = features[[layers.index(layer) for layer in fuser.uses]]
                fused, regions = fuser(own, grid), fuser.inspect(own, grid).get("regions")
            facts = {"kind": "cell", "cell": cell.id, "label": cell.label, "replicate": replicate, "run": entry.run_id}
            on_cells = on_grid(fused, fuser.token_map(grid), grid[0] * grid[1])
            shares = None if regions is None else share_maps(regions)
            maps.append(_Map(f"cell-{cell.id}.png", facts, pca_rgb(on_cells), shares, cell.selection.levels))
        return maps

    def _features(self, examples: Sequence[int], layers: Sequence[int]) -> Tensor:
        """``[layers, B, T, dim]``, float32 on the CPU; live, as the store's bf16 would move the maps' last digits."""
        from fusion_workbench.datamodules.features import LiveFeatures

        test = LiveFeatures(self.parts.encoder, self.parts.source).split("test", layers)
        chunks = torch.split(torch.tensor(examples), _BATCH)
        return torch.cat([test.rows(index).float().cpu() for index in chunks], dim=1)

    def _fuser(self, cell: Cell, weights: Path) -> Any:
        """The trained fuser, on the CPU."""
        import safetensors.torch

        from fusion_workbench.modules.fusion import build

        fuser = build(cell.strategy, cell.selection, self.parts.encoder.dim, dict(cell.options)).eval()
        state = safetensors.torch.load_file(weights)
        own = {key.removeprefix("fuser."): value for key, value in state.items() if key.startswith("fuser.")}
        try:
            fuser.load_state_dict(own)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise WorkbenchError(f"the tracked weights of '{cell.label}' do not fit its fuser: {reason}") from None
        return fuser


def _strip(colours: Tensor, columns: int) -> bytes:
    """PNG of uint8 ``[B, T, 3]`` or ``[B, T]``: the images below one another, a token a pixel."""
    return _encoded(colours.reshape(-1, columns, *colours.shape[2:]).numpy(), "PNG", optimize=True)


def _picture(image: np.ndarray[Any, Any]) -> bytes:
    """WebP of one image, small."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((_PICTURE, _PICTURE))
    return _encoded(np.asarray(picture), "WEBP", quality=88, method=6)


def _encoded(pixels: np.ndarray[Any, Any], kind: str, **options: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()
