"""The last step of a study: pictures of token maps before and after fusion, for the report to show.

Chosen are a few cells (on validation) and a few test examples (some at random, the hardest, the most improved, the most
worsened; see :mod:`runner.token_map_choice`). Their images are encoded anew, through the first replicate's trained
fusers, and logged to the parent run as ``look/look.json`` with its pictures: one image per example, and for each map
one strip with the examples below one another, one pixel per token. Of a fuser that reports where it draws on which
level, one strip per level too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.connector_files import load_weights
from fusion_workbench.models.files import read_tensors
from fusion_workbench.runner.optional_step import log_once
from fusion_workbench.runner.token_map_choice import (
    ChosenCells,
    ChosenExample,
    Floats,
    choose_cells,
    choose_examples,
    choose_layers,
)
from fusion_workbench.schema.names import OVERALL, TOKEN_MAPS_SCHEMA, Artifact, token_map_file
from fusion_workbench.study.identity import seed_of
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.tracking import Tracker, to_json
from fusion_workbench.system.scratch import scratch_folder

if TYPE_CHECKING:
    from fusion_workbench.modules.maps import ColourMaps, ShareMaps
    from fusion_workbench.reports.reading.records import StudyRecord
    from fusion_workbench.study.ledger import Ledger, LedgerEntry
    from fusion_workbench.study.progress import Display
    from fusion_workbench.sweeps.space import Cell, Variant

_PICTURE = 160  # pixels, at most
_BATCH = 8
Files = dict[str, str | bytes]


def log_token_maps(
    parts: Parts,
    tracker: Tracker,
    run_id: str,
    variants: Sequence[Variant],
    ledger: Ledger,
    display: Display,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Make the token maps and log them to the parent run ``run_id``; whether they are there now.

    Nothing is done where the ledger holds that those of the same replicates were logged before. A failure is reported
    in a line and never ends a study: everything that token maps show is in the tables too.
    """
    builder = TokenMapBuilder(parts, tracker, run_id, variants, ledger)
    if not builder.entries:
        return False
    return log_once(
        "look",
        builder.inputs(),
        builder.files,
        doing="drawing token maps",
        what="the gallery of token maps",
        tracker=tracker,
        run_id=run_id,
        ledger=ledger,
        display=display,
        check=check,
    )


@dataclass(frozen=True)
class _Map:
    """A column of token maps: a layer before fusion, or a cell after it."""

    name: str  # of its file, in ``look/``
    facts: dict[str, Any]
    maps: ColourMaps
    shares: ShareMaps | None = None  # of the levels, where the fuser reports them
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


class TokenMapBuilder:
    """Makes the token maps of one study.

    Args:
        parts: the prepared study.
        tracker: MLflow, to read scores and weights from.
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
        self.entries: dict[tuple[int, str], LedgerEntry] = {
            (i, replicate): entry
            for i, v in enumerate(self.variants)
            for replicate in self.replicates
            if (entry := ledger.find(v.id, replicate)) is not None and entry.finished
        }

    def files(self) -> Files:
        """The artifacts, by their path in the run.

        Raises:
            WorkbenchError: weights of a finished run are not in MLflow, or not this study's.
        """
        from fusion_workbench.reports.reading.query import read_study

        with scratch_folder("look") as folder:
            record = read_study(self.tracker.uri, self.run_id, self.parts.study.tracking.experiment)
            scores = self._scores(record)
            chosen = self._choose(record)
            signs = {task.name: task.sign for task in record.tasks}
            seed = seed_of("look", self.parts.study_id)
            examples = choose_examples(scores, signs, chosen.baseline, chosen.featured, seed)
            images = np.stack([self.parts.source.image("test", e.index) for e in examples])
            maps = self._maps(chosen, [e.index for e in examples], record, folder)
        rows, columns = self.parts.encoder.grid()
        files: Files = {token_map_file(m.name): _strip(m.maps.colours, columns) for m in maps}
        for m in maps:
            for level, shades in zip(m.levels, m.shares.shades if m.shares else (), strict=False):
                files[token_map_file(m.of_level(level))] = _strip(shades, columns)
        pictures = [f"image-{e.index}.webp" for e in examples]
        files |= {token_map_file(name): _picture(image) for name, image in zip(pictures, images, strict=True)}
        content = {
            "schema": TOKEN_MAPS_SCHEMA,
            "split": "test",
            "seed": seed,
            "grid": [rows, columns],
            "baseline": None if chosen.baseline is None else self.cells[chosen.baseline].id,
            "featured": None if chosen.featured is None else self.cells[chosen.featured].id,
            "columns": [m.facts | {"file": m.name, "explained": list(m.maps.explained)} for m in maps],
            "regions": [m.regions() for m in maps if m.shares is not None],
            "examples": self._example_entries(examples, pictures, scores, chosen),
        }
        return {Artifact.TOKEN_MAPS: to_json(content)} | files

    def _fuses(self, cell: Cell) -> bool:
        """Whether the cell's fuser reads more than one layer."""
        return len(self.parts.layers_read(cell)) > 1

    def inputs(self) -> dict[str, Any]:
        """All that the token maps depend on: they are made again when this changes.

        The plan's primary measure and the way that ratios are scored came later; where they change nothing, token maps
        that were made before still count.
        """
        runs = sorted(str(entry.run_id) for entry in self.entries.values())
        inputs: dict[str, Any] = {"schema": TOKEN_MAPS_SCHEMA, "regions": True, "run": self.run_id, "of": runs}
        tasks, primary = self.parts.tasks, self.parts.study.plan.primary
        if primary and len(tasks) > 1 and primary != OVERALL:
            inputs["primary"] = primary
        if any(task.ratio for task in tasks):
            inputs["ratios"] = True
        return inputs

    # --- what was measured --------------------------------------------------------------------------------------

    def _choose(self, record: StudyRecord) -> ChosenCells:
        """By the report's own ranking, so that the featured cell is the one that it recommends."""
        from fusion_workbench.reports.reading.ranking import Ranking

        place = {cell.id: i for i, cell in enumerate(self.cells)}
        ranked = [place[cell.id] for cell in Ranking(record).ranked() if cell.id in place]
        trained = [bool(record.finals(cell.id)) for cell in self.cells]
        return choose_cells(self.cells, [self._fuses(cell) for cell in self.cells], trained, ranked)

    def _scores(self, record: StudyRecord) -> dict[str, Floats]:
        """For each task the test scores ``[cells, replicates, examples]``, nan where there is none."""
        identity = self.parts.source.identity("test")
        place = {str(example): i for i, example in enumerate(identity["example_id"])}
        shape = (len(self.cells), len(self.replicates), len(place))
        scores = {task.name: np.full(shape, np.nan) for task in record.tasks}
        for i, cell in enumerate(self.cells):
            for task, table in scores.items():
                example_scores = record.example_scores.get((cell.id, task, "test"))
                if example_scores is None:
                    continue
                index = [place[example] for example in example_scores.examples]
                for replicate, row in zip(example_scores.replicates, example_scores.scores, strict=True):
                    if replicate in self.replicates:
                        table[i, self.replicates.index(replicate), index] = row
        return scores

    def _example_entries(
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

    def _maps(self, chosen: ChosenCells, examples: Sequence[int], record: StudyRecord, folder: Path) -> list[_Map]:
        """Layers before fusion, then cells after it, of test images; PCA over all of a column together."""
        from fusion_workbench.modules.maps import on_grid, pca_rgb, share_maps
        from fusion_workbench.reports.reading.artifacts import Artifacts
        from fusion_workbench.reports.reading.connect import children

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
        own_runs = children(self.tracker.client, self.tracker.client.get_run(self.run_id))
        artifacts = Artifacts(self.tracker.client, own_runs, folder)
        for i in chosen.shown:
            cell = self.cells[i]
            run = record.finals(cell.id)[0]
            weights = artifacts.file(run.run_id, Artifact.FUSER)
            if weights is None:
                raise WorkbenchError(f"MLflow run {run.run_id} has no artifact {Artifact.FUSER}")
            fuser = self._fuser(cell, weights)
            with torch.inference_mode():
                own = features[[layers.index(layer) for layer in fuser.uses]]
                fused, regions = fuser(own, grid), fuser.inspect(own, grid).get("regions")
            facts = {
                "kind": "cell",
                "cell": cell.id,
                "label": cell.label,
                "replicate": run.replicate,
                "run": run.run_id,
            }
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
        from fusion_workbench.modules.fusion import build

        fuser = build(cell.strategy, cell.selection, self.parts.encoder.dim, dict(cell.options)).eval()
        what = f"the tracked weights of '{cell.label}'"
        state = read_tensors(weights, what)
        own = {key.removeprefix("fuser."): value for key, value in state.items() if key.startswith("fuser.")}
        load_weights(fuser, own, what)
        return fuser


def _strip(colours: Tensor, columns: int) -> bytes:
    """PNG of uint8 ``[B, T, 3]`` or ``[B, T]``: the images below one another, one pixel per token."""
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
