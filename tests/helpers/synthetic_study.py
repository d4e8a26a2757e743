"""Synthetic studies in a real MLflow, written as the tracker writes them, with a truth that is known."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from fusion_workbench.reports.reading.records import Run, StudyRecord
from fusion_workbench.reports.statistics.example_scores import ExampleScores
from fusion_workbench.schema.plan import ComparisonFamily, Plan
from fusion_workbench.schema.records import Cell, Contender, Task, TrackedSource

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MIDDLE = ((3, 4, 5), 6)
SELECTIONS = (((3, 6, 9), 12), ((1, 3, 5), 12), ((9, 10, 11), 12), MIDDLE)
ITEMS = {"read": 6, "digit": 1}
Key = tuple[str, tuple[int, ...], int]  # and a budget, where a control has one


def truth(task: str, strategy: str, levels: Sequence[int], query: int) -> float:
    """Expected score: detail peaks at layer 5, category at 10; fusion gains a little over its best layer.

    A control of the same budget reads the query alone, a little better than a plain projector does.
    """
    if strategy == "matched":
        return 0.01 + truth(task, "deep_only", (), query)
    peak, top, floor = {"read": (5.0, 0.46, 0.06), "digit": (10.0, 0.62, 0.18)}[task]
    layers = [*levels, query]
    each = [floor + (top - floor) * np.exp(-(((layer - peak) / 3.6) ** 2)) for layer in layers]
    gain = {"deep_only": 0.0, "average": -0.07, "concat": 0.03, "mmfuser": 0.02}[strategy]
    return float(0.6 * max(each) + 0.4 * np.mean(each) + (gain if levels else 0.0))


@dataclass
class Synthetic:
    """What to write. ``fate`` maps (cell key, replicate) to a status other than finished.

    With ``confirm`` it tracks a plan and trains what validation picks again, as the workbench does; fresh replicates
    are c0, c1, …; ``luck`` is what the study's own replicates show of a cell beyond its truth, on both splits.
    """

    name: str = "synthetic"
    experiment: str = "fusion-workbench"
    depth: int = 12
    singles: Sequence[int] = tuple(range(13))
    selections: Sequence[tuple[tuple[int, ...], int]] = SELECTIONS
    strategies: Sequence[str] = ("average", "concat", "mmfuser")
    replicates: int = 5
    examples: int = 400
    groups: Sequence[str] = ("astronaut", "coffee", "rocket", "chelsea")
    classes: Sequence[str] = tuple("0123456789")
    question: str = "Which layers should a model read, fused how, and how sure is that?"
    status: str = "FINISHED"
    rates: Sequence[float] = (0.001, 0.003)
    truth: Callable[[str, str, Sequence[int], int], float] = truth
    fate: dict[tuple[Key, int], str] = field(default_factory=dict)
    planned: bool = True  # whether variants.json was written
    epochs: int = 8
    errors: Sequence[str] = ()  # tasks measured by a count that is wrong: less is better, and not below 1
    group_name: str = "photograph"
    look: bool = False  # whether the last step logged one
    confirm: Sequence[int] = ()  # looks at fresh replicates
    fresh: int | None = None  # fresh replicates that are trained; None: as many as the last look takes
    luck: dict[Key, float] = field(default_factory=dict)
    layers: bool = False  # whether similarity, importance, insides and (with a look) regions were logged
    language: dict[str, Any] | None = None  # language_model.json: then it is a study of language models
    blind: dict[str, float] | None = None  # kind of control → score without the image; None: that of a constant answer
    said: str = "the answer is {}"  # what cells answer

    def planned_keys(self) -> list[Key]:
        fused = [(s, levels, query) for levels, query in self.selections for s in self.strategies]
        return [("deep_only", (), layer) for layer in self.singles] + fused

    def write(self, uri: str) -> str:
        """Write it and return the parent's run id."""
        from mlflow.tracking import MlflowClient

        return _Writer(self, MlflowClient(tracking_uri=uri)).write()


def cell_id(key: Key) -> str:
    return sha256(repr(key).encode()).hexdigest()[:16]


def label(key: Key) -> str:
    strategy, levels, query = key[:3]
    return f"{strategy} [{','.join(map(str, levels))}]→{query}" if levels else f"{strategy} {query}"


class _Writer:
    def __init__(self, study: Synthetic, client: MlflowClient) -> None:
        self.study, self.client = study, client
        experiment = client.get_experiment_by_name(study.experiment)
        self.experiment = experiment.experiment_id if experiment else client.create_experiment(study.experiment)
        self.id = sha256(study.name.encode()).hexdigest()[:16]
        self.difficulty = {
            split: np.random.default_rng([7, i]).normal(0, 0.22, study.examples)
            for i, split in enumerate(("val", "test"))
        }

    def write(self) -> str:
        study = self.study
        tags = {
            "workbench.kind": "study",
            "workbench.study": study.name,
            "workbench.study_id": self.id,
            "workbench.schema": "1",
            "workbench.question": study.question,
            "workbench.command": f"workbench sweep {study.name}",
            "workbench.commit": "05766c5e0f3c8f0d1b7f4c9f5d3a1e2b4c6d8e9f",
            "workbench.versions": json.dumps({"python": "3.11.2", "fusion-workbench": "0.1.0", "torch": "2.13.0"}),
            "workbench.device": "CPU, 2 threads, x86_64",
        }
        parent = self.client.create_run(self.experiment, run_name=study.name, tags=tags).info.run_id
        config = {
            "name": study.name,
            "question": study.question,
            "replicates": study.replicates,
            "tasks": ["read", "digit"],
        }
        self._files(parent, {"study.yaml": yaml.safe_dump(config, sort_keys=False).encode()} | self._descriptions())
        first = {key[0]: key for key in reversed(study.planned_keys())}
        for key in first.values():  # as with scope 'strategy': one cell stands for all of its strategy
            for lr in study.rates:
                self._child(parent, key, "search", "search", lr)
        for replicate in range(study.replicates):
            for key in study.planned_keys():
                self._child(parent, key, "final", str(replicate), study.rates[-1])
        if study.confirm:
            self._confirm(parent)
        if study.status != "RUNNING":
            self.client.set_terminated(parent, study.status)
        return str(parent)

    def _confirm(self, parent: str) -> None:
        """``contenders.json``, ``plan.json`` and fresh replicates, as ``workbench/runner/confirm.py`` leaves them."""
        from fusion_workbench.reports import find_picks

        study = self.study
        self._files(parent, {"plan.json": self._plan(None)})
        picks = find_picks(self.client.tracking_uri, self.id)
        assert picks is not None
        contenders: dict[Key, dict[str, Any]] = {}

        def entry(key: Key) -> dict[str, Any]:
            plain: dict[str, Any] = {"roles": [], "stands_for": [], "controls": [], "without": None}
            return contenders.setdefault(key, self._variant(key) | plain)

        keys = {cell_id(key): key for key in study.planned_keys()}
        entry(keys[picks.winner.id])["roles"].append("winner")
        if picks.fusion is not None:
            entry(keys[picks.fusion.id])["roles"].append("fusion")
        for pair, cell in picks.baselines.items():
            entry(keys[cell.id])["stands_for"].append(list(pair))
        if picks.fusion is not None:
            strategy, levels, query = keys[picks.fusion.id]
            for budget in ("parameters", "flops"):
                entry(("matched", levels, query, budget))["controls"].append(budget)  # type: ignore[arg-type]
            for layer in (*levels, query):
                others = [n for n in (*levels, query) if n != layer]
                key = (strategy if others[:-1] else "deep_only", tuple(others[:-1]), others[-1])
                entry(key)["without"] = layer
        trained = study.confirm[-1] if study.fresh is None else study.fresh
        for number in range(trained):
            for key in contenders:
                self._child(parent, key, "confirm", f"c{number}", study.rates[-1])
        done = trained if study.status != "RUNNING" else None
        files = {"contenders.json": json.dumps(list(contenders.values())).encode(), "plan.json": self._plan(done)}
        self._files(parent, files)

    def _plan(self, confirmed: int | None) -> bytes:
        from fusion_workbench.config.plan import PlanConfig, full_plan
        from fusion_workbench.schema.plan import plan_hash

        plan = full_plan(PlanConfig(confirm=list(self.study.confirm)), list(ITEMS), self.study.replicates)
        registered = {"hash": plan_hash(plan), "plan": plan, "first": plan, "changes": []}
        return json.dumps(registered | {"stopped": None, "confirmed": confirmed}).encode()

    def _descriptions(self) -> dict[str, bytes]:
        study = self.study
        encoder_info = {"encoder": "assets:encoder", "depth": study.depth, "dim": 384, "grid": [8, 8], "tokens": 64}
        encoder_info |= {"prefix_tokens": 1, "final_norm": True, "fingerprint": "ab" * 32}
        source = {
            "name": "finescenes",
            "version": "finescenes/1",
            "group_name": study.group_name,
            "fingerprints": {"train": "cd" * 32, "val": "ef" * 32, "test": "01" * 32},
            "sizes": {"train": 1000, "val": study.examples, "test": study.examples},
            "classes": {"read": list("ABC"), "digit": list(study.classes)},
            "groups": {"test": list(study.groups)},
        }
        tasks = {
            "read": {"metric": "accuracy", "direction": "maximize", "chance": 1 / 34, "title": "each printed glyph"},
            "digit": {"metric": "accuracy", "direction": "maximize", "chance": 0.1, "title": "the handwritten digit"},
        }
        for task in study.errors:
            tasks[task] |= {"metric": "mae", "direction": "minimize", "unit": "count", "chance": None}
        out: dict[str, Any] = {"passport.json": encoder_info, "source.json": source, "tasks.json": tasks}
        if study.planned:
            out["variants.json"] = [self._variant(key) for key in study.planned_keys()]
        if study.language is not None:
            out["language_model.json"] = study.language
        files = {name: json.dumps(value).encode() for name, value in out.items()}
        return files | (look_files(study) if study.look else {}) | (layer_files(study) if study.layers else {})

    def _variant(self, key: Key) -> dict[str, Any]:
        strategy, levels, query = key[:3]
        depth = self.study.depth
        named = {("deep_only", (), depth): "deepest layer", ("deep_only", (), depth - 1): "penultimate layer"}
        named[("concat", *MIDDLE)] = "middle concat"
        baselines = ([named[key]] if key in named else []) + (["single layer"] if strategy == "deep_only" else [])
        return {
            "cell": cell_id(key),
            "strategy": strategy,
            "levels": list(levels) or None,
            "query": query,
            "label": label(key),
            "options": {"heads": 0, "points": 4} if strategy == "mmfuser" else {},
            "alias": "",
            "baselines": baselines,
            "chosen_lr": self.study.rates[-1],
        }

    def _child(self, parent: str, key: Key, phase: str, replicate: str, lr: float) -> None:
        from mlflow.entities import Metric, Param

        strategy, levels, query = key[:3]
        fate = self.study.fate.get((key, int(replicate))) if phase == "final" else None
        if fate == "missing":
            return
        tags = {"mlflow.parentRunId": parent, "workbench.kind": "variant-replicate", "workbench.study_id": self.id}
        tags |= {"workbench.cell": cell_id(key), "workbench.phase": phase, "workbench.replicate": replicate}
        if fate != "running":
            tags["workbench.outcome"] = "finished" if fate in (None, "unreadable") else fate
        name = f"{label(key)} " + (f"r{replicate}" if phase != "search" else f"search lr {lr:g}")
        run = self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
        params = {
            "strategy": strategy,
            "levels": ",".join(map(str, levels)),
            "query": query,
            "lr": lr,
            "replicate": replicate,
            "epochs": self.study.epochs,
            "batch_size": 64,
        }
        metrics = self._metrics(key, phase, replicate, lr)
        if fate in (None, "unreadable"):
            scores = self._scores(key, replicate) if phase != "search" else {}
            for (split, task), score in scores.items():
                metric = "mae" if task in self.study.errors else "accuracy"
                metrics.append((f"{split}/{task}/{metric}", float(score.mean()), self.study.epochs))
            if phase != "search":
                signs = {task: -1 if task in self.study.errors else 1 for task in ITEMS}
                mean = np.mean([sign * scores["val", task].mean() for task, sign in signs.items()])
                metrics = [m for m in metrics if m[0] != "val/objective" or m[2] < self.study.epochs - 1]
                metrics.append(("val/objective", float(mean), self.study.epochs - 1))
                files = {f"outcomes/{split}.parquet": self._parquet(scores, split) for split in ("val", "test")}
                if self.study.language is not None:
                    files["outcomes/answers.parquet"] = self._answers(scores)
                    metrics += self._spoken(replicate)
                if self.study.layers and strategy == "mmfuser":
                    files["inside.safetensors"] = inside_file(levels, self.study.epochs, hash_of(replicate))
                self._files(run, files if fate is None else {"outcomes/test.parquet": b"PAR1 torn"})
        logged = [Metric(k, v, 0, step) for k, v, step in metrics]
        self.client.log_batch(run, metrics=logged, params=[Param(k, str(v)) for k, v in params.items()])
        if fate == "running":
            return
        self.client.set_terminated(run, "FINISHED" if fate in (None, "unreadable", "pruned") else "FAILED")

    def _metrics(self, key: Key, phase: str, replicate: str, lr: float) -> list[tuple[str, float, int]]:
        strategy, levels, query = key[:3]
        rng = np.random.default_rng([int(cell_id(key)[:8], 16), hash_of(replicate), int(lr * 1e4)])
        best = float(np.mean([self.study.truth(task, strategy, levels, query) for task in ITEMS]))
        width = 384 * (len(levels) + 1) if strategy == "concat" else 384
        extra = 0.8e6 if strategy == "mmfuser" else 0.0
        rows: list[tuple[str, float, int]] = []
        for epoch in range(self.study.epochs):
            rise = 1 - np.exp(-(epoch + 1) / (2 if lr > 0.002 else 4))
            rows.append(("train/loss", float(3.2 * np.exp(-epoch / 3) + 0.6 + rng.normal(0, 0.02)), epoch))
            rows.append(("val/objective", float(best * rise + rng.normal(0, 0.004)), epoch))
        final = {
            "cost/parameters": width * 384 + 384 + extra,
            "cost/flops_per_image": 2 * 64 * (width * 384 + extra),
            "cost/seconds": float(rng.normal(31 if strategy == "mmfuser" else 9, 1)),
            "cost/samples_per_second": float(rng.normal(300 if strategy == "mmfuser" else 900, 20)),
            "cost/peak_memory_mb": float(rng.normal(1800, 10)),
            "cost/ms_per_image_forward": float(rng.normal(0.9 if strategy == "mmfuser" else 0.15, 0.01)),
            "loss_still_falling": float(rng.normal(0.008, 0.004)) + (0.03 if strategy == "mmfuser" else 0),
            "converged": 0.0 if strategy == "mmfuser" and replicate == "1" else 1.0,
        }
        if strategy == "mmfuser":
            shut = levels == (9, 10, 11)
            final |= {"gate/gamma1_rms": float(rng.normal(0.004 if shut else 0.35, 0.001 if shut else 0.04))}
            final |= {"gate/gamma2_rms": float(rng.normal(0.002 if shut else 0.12, 0.0005 if shut else 0.02))}
            final["gates_opened"] = float(not shut)
            share = rng.dirichlet(8 * np.ones(len(levels)))
            final |= {f"attention_share/layer_{level}": float(s) for level, s in zip(levels, share, strict=True)}
        return rows + [(key_, value, self.study.epochs) for key_, value in final.items()]

    def _scores(self, key: Key, replicate: str) -> dict[tuple[str, str], np.ndarray]:
        """Crossed noise: a replicate's shift, an example's difficulty (shared by all cells), their interaction."""
        strategy, levels, query = key[:3]
        out = {}
        for number, (task, items) in enumerate(ITEMS.items()):
            rng = np.random.default_rng([int(cell_id(key)[:8], 16), hash_of(replicate), number])
            shift = rng.normal(0, 0.008)
            for split in ("val", "test"):
                lucky = 0.0 if replicate.startswith("c") else self.study.luck.get(key, 0.0)
                mean = self.study.truth(task, strategy, levels, query) + shift + lucky
                chance = np.clip(mean + self.difficulty[split] + rng.normal(0, 0.05, self.study.examples), 0.01, 0.99)
                share = rng.binomial(items, chance) / items
                out[split, task] = 4 * (1 - share) + 0.5 if task in self.study.errors else share
        return out

    def _parquet(self, scores: dict[tuple[str, str], np.ndarray], split: str) -> bytes:
        import pandas as pd

        groups = self.study.groups
        frames = [
            pd.DataFrame(
                {
                    "example_id": [f"{split}-{i:05d}" for i in range(self.study.examples)],
                    "group": [groups[i % len(groups)] for i in range(self.study.examples)],
                    "task": task,
                    "score": scores[split, task],
                    "items": np.full(self.study.examples, items, dtype="int32"),
                }
            )
            for task, items in ITEMS.items()
        ]
        buffer = io.BytesIO()
        pd.concat(frames, ignore_index=True).to_parquet(buffer, index=False)
        return buffer.getvalue()

    def _spoken(self, replicate: str) -> list[tuple[str, float, int]]:
        """Scores without the image, and costs that only language models have."""
        rng = np.random.default_rng([hash_of(replicate), 3])
        blind = self.study.blind or {"blank": 0.05, "shuffled": 0.06}
        scores = {
            f"control/{kind}/{task}": float(np.clip(score + rng.normal(0, 0.008), 0, 1))
            for kind, score in blind.items()
            for task in ITEMS
        }
        costs = {"cost/mfu": float(rng.normal(0.31, 0.01)), "cost/parameters_projector": 2.2e6}
        return [(name, value, self.study.epochs) for name, value in (scores | costs).items()]

    def _answers(self, scores: dict[tuple[str, str], np.ndarray]) -> bytes:
        import pandas as pd

        rows = [
            {
                "example_id": f"test-{i:05d}",
                "task": task,
                "question": f"Which {task} is in picture {i}?",
                "prediction": self.study.said.format(i % 10 if score > 0.5 else "not clear"),
                "answers": [str(i % 10), f"number {i % 10}"],
                "score": score,
            }
            for task in ITEMS
            for i, score in enumerate(scores["test", task])
        ]
        buffer = io.BytesIO()
        pd.DataFrame(rows).to_parquet(buffer, index=False)
        return buffer.getvalue()

    def _files(self, run: str, files: dict[str, bytes]) -> None:
        """Straight into the artifact folder: logging them one by one is most of a test's time."""
        root = Path(self.client.get_run(run).info.artifact_uri.removeprefix("file://"))
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def look_files(study: Synthetic) -> dict[str, bytes]:
    """A look as the study's last step logs it: five examples, two layers, one cell, random colours."""
    from PIL import Image

    def picture(rows: int, columns: int, kind: str, seed: int) -> bytes:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 255, (rows, columns, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    levels, query = study.selections[0]
    after, before = ("concat", levels, query), ("deep_only", (), study.depth)
    whys = [("random", ""), ("random", ""), ("hardest", "read"), ("improved", "digit"), ("worsened", "digit")]
    examples = [
        {
            "example_id": f"test-{i:05d}",
            "index": i,
            "group": study.groups[i % len(study.groups)],
            "file": f"image-{i}.webp",
            "why": {"kind": kind, "task": task},
            "scores": {
                "read": {"mean": 0.25, "before": [0.0, 0.5, None], "after": [0.5, 0.5, 1.0]},
                "digit": {"mean": 0.125, "before": [0.0, 1.0, None], "after": [1.0, 1.0, 1.0]},
            },
        }
        for i, (kind, task) in enumerate(whys)
    ]
    columns = [
        {"kind": "cell", "cell": cell_id(after), "label": label(after), "replicate": "0", "run": "r", "file": "a.png"},
        {"kind": "layer", "layer": levels[0], "query": False, "file": "b.png"},
        {"kind": "layer", "layer": query, "query": True, "file": "c.png"},
    ]
    look = {"schema": 1, "split": "test", "seed": 1, "grid": [8, 6], "baseline": cell_id(before)}
    look |= {"featured": cell_id(after), "examples": examples}
    look["columns"] = [c | {"explained": [0.25, 0.125, 0.0625]} for c in columns]
    if study.layers:
        shares = [{"layer": n, "file": "d.png", "mean": 0.5, "low": 0.25, "high": 0.75} for n in levels]
        owner = {"cell": cell_id(after), "label": label(after), "replicate": "0"}
        look["regions"] = [owner | {"levels": shares}]
    files = {f"look/{name}.png": picture(8 * len(whys), 6, "PNG", seed) for seed, name in enumerate("abcd")}
    files |= {f"look/image-{i}.webp": picture(56, 56, "WEBP", i) for i in range(len(whys))}
    return files | {"look/look.json": json.dumps(look).encode()}


def layer_files(study: Synthetic) -> dict[str, bytes]:
    """Similarity with a border between layers 4 and 5, and importance that puts layer 5 first."""
    layers = range(study.depth + 1)
    matrix = [[1.0 if a == b else 0.9 if (a < 5) == (b < 5) else 0.3 for a in layers] for b in layers]
    similarity = {"schema": 1, "layers": list(layers), "matrix": matrix, "images": 48, "tokens": 768}
    shares = {str(n): 0.4 if n == 5 else 0.03 for n in layers}
    importance = {"schema": 1, "cells": 26, "top": 5, "layers": shares, "strategy": 0.2, "query": 0.04, "reason": ""}
    importance |= {"read_by_top": {str(n): 0.8 if n == 5 else 0.1 for n in layers}, "values": "mean over replicates"}
    importance |= {"read_by_all": {str(n): 0.3 if n == 5 else 0.05 for n in layers} | {"12": 0.9}}
    plain = {"similarity.json": similarity, "importance.json": importance}
    return {name: json.dumps(value).encode() for name, value in plain.items()}


def inside_file(levels: Sequence[int], epochs: int, seed: int) -> bytes:
    """What a run logs of its MMFuser: two gates of 24 channels that open, attention and offsets of 6 heads."""
    from safetensors.numpy import save

    rng = np.random.default_rng(seed)
    rise = np.linspace(0, 0.3, epochs)[:, None]
    gates = {f"gate/gamma{n}": rise * rng.normal(size=24) / n for n in (1, 2)}
    shares = rng.dirichlet(np.ones(len(levels)), 6).T
    arrays = gates | {"attention": shares, "offsets": 1 + rng.random((len(levels), 6))}
    plain = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in arrays.items()}
    return save(plain, metadata={"levels": ",".join(map(str, levels))})


def hash_of(word: str) -> int:
    return int(sha256(word.encode()).hexdigest()[:8], 16)


LANGUAGE_MODEL = {
    "name": "SmolLM2-135M",
    "parameters": 134_515_008,
    "width": 576,
    "depth": 30,
    "stages": [{"name": "connector"}, {"name": "instructions"}],
    "probes": "probes",
    "controls": True,
    "max_new_tokens": 16,
}


def copy_database(template: Path, folder: Path) -> str:
    """A fresh MLflow database in ``folder``, its artifacts below it. Returns its URI."""
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "mlflow.db"
    shutil.copy(template, database)
    connection = sqlite3.connect(database)
    with connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? || '/' || experiment_id", [(folder / "artifacts").as_uri()]
        )
    connection.close()
    return f"sqlite:///{database}"


def planted(
    scores: dict[tuple[str, tuple[int, ...], int], dict[str, np.ndarray]],
    validation: dict[tuple[str, tuple[int, ...], int], dict[str, float]] | None = None,
    directions: dict[str, str] | None = None,
    groups: Sequence[str] = tuple("abcdefghijkl"),
    flops: dict[tuple[str, tuple[int, ...], int], float] | None = None,
    depth: int = 12,
) -> StudyRecord:
    """A record made by hand: for each cell and task the test scores ``[R, N]``.

    Validation scores are the test scores moved to the mean that ``validation`` names.
    """
    tasks = list(dict.fromkeys(task for by_task in scores.values() for task in by_task))
    cells, runs, example_scores = [], [], {}
    for key, by_task in scores.items():
        strategy, levels, query = key[:3]
        named = {("deep_only", (), depth): "deepest layer", ("deep_only", (), depth - 1): "penultimate layer"}
        named[("concat", *MIDDLE)] = "middle concat"
        tags = ((named[key],) if key in named else ()) + (("single layer",) if strategy == "deep_only" else ())
        cells.append(Cell(cell_id(key), strategy, levels, query, label(key), baselines=tags, chosen_lr=0.003))
        replicates = tuple(str(r) for r in range(len(next(iter(by_task.values())))))
        means = {}
        for task, values in by_task.items():
            examples = tuple(f"{i:05d}" for i in range(values.shape[1]))
            example_scores[cell_id(key), task, "test"] = ExampleScores(replicates, examples, values)
            validated = (validation or {}).get(key, {}).get(task, float(values.mean()))
            example_scores[cell_id(key), task, "val"] = ExampleScores(
                replicates, examples, values - values.mean() + validated
            )
            means[task] = validated
        sign = {task: -1 if (directions or {}).get(task) == "minimize" else 1 for task in tasks}
        metrics = {f"val/{task}/accuracy": value for task, value in means.items()}
        metrics["val/objective"] = float(np.mean([sign[task] * value for task, value in means.items()]))
        metrics["cost/flops_per_image"] = (flops or {}).get(key, 1e6 * (1 + len(levels)))
        runs += [
            Run(f"{cell_id(key)}{r}", cell_id(key), "final", r, "finished", 0.003, 0, metrics, {}) for r in replicates
        ]
    return StudyRecord(
        name="planted",
        study_id="0" * 16,
        run_id="run",
        experiment="fusion-workbench",
        tracking_uri="sqlite:///mlflow.db",
        status="FINISHED",
        question="",
        started=0,
        ended=1,
        tags={},
        study_yaml="",
        encoder_info={"depth": depth},
        source=TrackedSource(group_name="photograph"),
        tasks=tuple(Task(t, direction=(directions or {}).get(t, "maximize"), chance=0.1) for t in tasks),
        cells=tuple(cells),
        searched={c.id: c for c in cells},
        replicates=tuple(sorted({r.replicate for r in runs})),
        runs=tuple(runs),
        example_scores=example_scores,
        groups=tuple(groups),
    )


def tried_again(
    record: StudyRecord,
    scores: dict[Any, dict[str, np.ndarray]],
    winner: Any,
    fusion: Any = None,
    stands_for: dict[Any, Sequence[tuple[str, str]]] | None = None,
    controls: dict[Any, Sequence[str]] | None = None,
    without: dict[Any, int] | None = None,
    plan: Plan | None = None,
) -> StudyRecord:
    """A record made by hand with fresh replicates: for each cell and task the test scores ``[R, N]``.

    The plan, unless another is given: all measures in one family, half of the level of .05 for the fresh replicates,
    a margin of one point.
    """
    number = len(next(iter(next(iter(scores.values())).values())))
    fresh = tuple(f"c{r}" for r in range(number))
    cells = {c.id: c for c in record.cells}
    contenders, runs, example_scores = [], [], {}
    for key, by_task in scores.items():
        name = cell_id(key)
        cell = cells.get(name) or Cell(name, *key[:3], label(key), chosen_lr=0.003)
        roles = [word for word, who in (("winner", winner), ("fusion", fusion)) if who == key]
        pairs = tuple((stands_for or {}).get(key, ()))
        contenders.append(
            Contender(cell, tuple(roles), pairs, tuple((controls or {}).get(key, ())), (without or {}).get(key))
        )
        for task, values in by_task.items():
            examples = tuple(f"{i:05d}" for i in range(values.shape[1]))
            for split in ("val", "test"):
                example_scores[name, task, split] = ExampleScores(fresh, examples, values)
        runs += [Run(f"{name}{r}", name, "confirm", r, "finished", 0.003, 0, {}, {}) for r in fresh]
    measures = (*(t.name for t in record.tasks), *(["overall"] if len(record.tasks) > 1 else []))
    looks = (len(record.replicates),)
    default = Plan(measures[-1], (ComparisonFamily(measures, 1.0),), 0.05, 0.01, looks, (number,), 0.5)
    return replace(
        record,
        contenders=tuple(contenders),
        fresh_example_scores=example_scores,
        fresh_replicates=fresh,
        searched={**record.searched, **{c.cell.id: c.cell for c in contenders}},
        runs=(*record.runs, *runs),
        plan=plan or default,
    )


def tiny(**changes: Any) -> Synthetic:
    """Four cells, three replicates, thirty examples."""
    plain: dict[str, Any] = {
        "singles": (5, 12),
        "selections": (((3, 6), 12),),
        "strategies": ("concat", "mmfuser"),
        "examples": 30,
        "epochs": 2,
        "replicates": 3,
        "rates": (0.003,),
    }
    return Synthetic(**(plain | changes))
