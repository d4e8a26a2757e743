"""A study as the report sees it: plain values, nothing of MLflow left in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fusion_workbench.reports.reading.language import ShownQuestions
from fusion_workbench.reports.reading.layers import Importance, Inside, Similarity
from fusion_workbench.reports.statistics.example_scores import ExampleScores
from fusion_workbench.schema.dependencies import TrackedDependencies
from fusion_workbench.schema.language import LanguageModel
from fusion_workbench.schema.names import Phase, Status
from fusion_workbench.schema.plan import Plan
from fusion_workbench.schema.records import Cell, Contender, Task, TrackedSource

# What became of a variant-replicate, in the words of the report.
STATES: dict[str, str] = {
    Status.FINISHED: "trained to the end; counted in every table",
    Status.DIVERGED: "the loss left the finite numbers",
    Status.OUT_OF_MEMORY: "did not fit into memory",
    Status.PRUNED: "stopped early by the search",
    Status.FAILED: "broke off with an error",
    Status.KILLED: "was stopped from outside, and not trained again",
    Status.UNREADABLE: "finished, but its outcomes cannot be read",
    Status.RUNNING: "still training",
    Status.MISSING: "not started yet",
}
ENDED = frozenset(STATES) - {Status.RUNNING, Status.MISSING}  # nothing more comes


@dataclass(frozen=True)
class Run:
    """One child run: a variant-replicate, or a step of the learning-rate search."""

    run_id: str
    cell: str
    phase: str  # a Phase
    replicate: str
    state: str  # a Status
    lr: float | None
    started: int  # milliseconds since 1970, UTC
    metrics: Mapping[str, float]  # the last value of each
    params: Mapping[str, str]
    history: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)  # metric → (epoch, value)…
    dependencies: str = ""  # what it was trained under (schema.dependencies.combined); empty: not recorded
    environment: Mapping[str, str] = field(default_factory=dict)  # versions and hardware, in words
    code: Mapping[str, str] = field(default_factory=dict)  # strategy → hash of a plug-in's code
    error: str = ""  # what it broke off with, and where
    altered: bool = False  # whether its metrics in MLflow are not those that the study wrote there


@dataclass(frozen=True)
class TokenMapScore:
    """One example on one task: its mean over all cells, and by replicate; None where one was not trained."""

    mean: float
    before: tuple[float | None, ...]  # the baseline
    after: tuple[float | None, ...]  # the featured cell


@dataclass(frozen=True)
class TokenMapExample:
    """A test image to look at. ``task`` is empty where it was drawn at random."""

    example: str
    group: str
    kind: str  # random, hardest, improved, worsened
    task: str
    picture: str  # a data URI
    scores: Mapping[str, TokenMapScore]  # by task


@dataclass(frozen=True)
class TokenMapColumn:
    """Token maps of one layer, or of one cell's fused tokens, an example each."""

    layer: int | None
    query: bool  # whether a shown cell asks with this layer
    cell: str
    label: str
    replicate: str  # whose fuser it is
    explained: tuple[float, ...]  # of the tokens' variance: red, green, blue
    tiles: tuple[str, ...]  # data URIs, one pixel per token


@dataclass(frozen=True)
class TokenMapLevel:
    """Where on the images one level is drawn on: clear at its mean share, strongest at ``low`` and ``high``."""

    layer: int
    mean: float  # the level's share of all that is drawn
    low: float
    high: float
    tiles: tuple[str, ...]  # data URIs, tints to lay over the images


@dataclass(frozen=True)
class TokenMapRegions:
    """For one cell's fuser, where each level is drawn on."""

    cell: str
    label: str
    replicate: str
    levels: tuple[TokenMapLevel, ...]


@dataclass(frozen=True)
class TokenMaps:
    """What the study's last step left to look at."""

    baseline: str | None  # cells
    featured: str | None
    columns: tuple[TokenMapColumn, ...]
    examples: tuple[TokenMapExample, ...]
    regions: tuple[TokenMapRegions, ...] = ()


@dataclass(frozen=True)
class StudyRecord:
    """Everything that the report says comes from here."""

    name: str
    study_id: str
    run_id: str
    experiment: str
    tracking_uri: str
    status: str  # of the parent run
    question: str
    started: int
    ended: int | None
    tags: Mapping[str, str]
    study_yaml: str
    encoder_info: Mapping[str, Any]
    source: TrackedSource
    tasks: tuple[Task, ...]
    cells: tuple[Cell, ...]  # those that go on to the replicates
    searched: Mapping[str, Cell]  # also those that were only searched
    replicates: tuple[str, ...]  # those that the study asks for
    runs: tuple[Run, ...]
    example_scores: Mapping[tuple[str, str, str], ExampleScores]  # (cell, task, split)
    groups: tuple[str, ...]  # of the test split
    plan: Plan | None = None  # None: of a study from before there were plans
    departures: tuple[str, ...] = ()  # from the plan, in words
    notes: tuple[str, ...] = ()  # what the query had to leave out
    token_maps: TokenMaps | None = None  # None: the study logged none
    contenders: tuple[Contender, ...] = ()  # trained again on fresh replicates
    fresh_example_scores: Mapping[tuple[str, str, str], ExampleScores] = field(
        default_factory=dict
    )  # as outcomes, of those
    fresh_replicates: tuple[str, ...] = ()
    similarity: Similarity | None = None  # likewise
    importance: Importance | None = None
    insides: Mapping[str, tuple[Inside, ...]] = field(default_factory=dict)  # cell → replicates; of the best few cells
    experiment_id: str = ""  # MLflow's, for links to runs
    language: LanguageModel | None = None  # None: a study of probes
    dependencies: TrackedDependencies | None = None  # None: of a study from before they were recorded
    shown_questions: ShownQuestions | None = None  # questions and what cells answered; None: nothing that can be read
    unchecked: int = 0  # runs of replicates, of before 0.2, whose artifacts have no sha256

    @cached_property
    def _by_cell(self) -> Mapping[str, tuple[Run, ...]]:
        """A cell's runs, all phases, in order: tables ask for them thousands of times."""
        out: dict[str, list[Run]] = {}
        for run in self.runs:
            out.setdefault(run.cell, []).append(run)
        return {cell: tuple(runs) for cell, runs in out.items()}

    def runs_of(self, cell: str) -> tuple[Run, ...]:
        """Every run of a cell, of the search and of the replicates."""
        return self._by_cell.get(cell, ())

    @property
    def group_name(self) -> str:
        """What the source calls a group of images that no split cuts through."""
        return self.source.group_name

    def fresh(self) -> StudyRecord | None:
        """The fresh replicates of the contenders as a study of their own; None where none was started.

        Likewise where the plan, changed since, has none: it keeps no part of its level for them.
        """
        runs = tuple(replace(r, phase=Phase.FINAL) for r in self.runs if r.phase == Phase.CONFIRM)
        if not runs or not self.contenders or (self.plan and not self.plan.confirm):
            return None
        return replace(
            self,
            cells=tuple(c.cell for c in self.contenders),
            runs=runs,
            example_scores=self.fresh_example_scores,
            replicates=self.fresh_replicates,
            plan=self.plan and self.plan.confirming(),
            contenders=(),
            fresh_example_scores={},
        )

    def errors(self, cell: str) -> dict[str, list[str]]:
        """What runs of a cell broke off with → their replicates, the search's and the fresh ones among them."""
        found: dict[str, list[str]] = {}
        for run in self.runs_of(cell):
            if run.error and run.state != Status.FINISHED:
                found.setdefault(run.error, []).append(run.replicate)
        return found

    def finals(self, cell: str) -> tuple[Run, ...]:
        """The counted runs of a cell, by replicate."""
        return tuple(r for r in self.runs_of(cell) if r.phase == Phase.FINAL and r.state == Status.FINISHED)

    def state(self, cell: str, replicate: str) -> str:
        """What became of a variant-replicate."""
        found = [r.state for r in self.runs_of(cell) if (r.replicate, r.phase) == (replicate, Phase.FINAL)]
        return found[-1] if found else Status.MISSING

    def counts(self) -> dict[str, int]:
        """How many variant-replicates are in each state, those of the plan that were never started included."""
        tally = dict.fromkeys(STATES, 0)
        for cell in self.cells:
            for replicate in self.replicates:
                tally[self.state(cell.id, replicate)] += 1
        return {state: number for state, number in tally.items() if number}

    @property
    def expected(self) -> int:
        return len(self.cells) * len(self.replicates)

    @property
    def complete(self) -> bool:
        return bool(self.cells) and self.counts().get(Status.FINISHED, 0) == self.expected

    def cell(self, cell_id: str) -> Cell:
        return self.searched[cell_id]

    def mean_metric(self, cell: str, metric: str, replicates: frozenset[str] | None = None) -> float | None:
        """Mean of a final metric over a cell's counted runs; None where none has it."""
        runs = [r for r in self.finals(cell) if replicates is None or r.replicate in replicates]
        values = [r.metrics[metric] for r in runs if metric in r.metrics]
        return sum(values) / len(values) if values else None
