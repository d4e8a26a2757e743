"""A study as the report sees it: plain values, nothing of MLflow left in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion_workbench.core.layers import Selection
from fusion_workbench.reports.reading.language import Asked, LanguageModel
from fusion_workbench.reports.reading.layers import Importance, Inside, Similarity

Floats = NDArray[np.float64]

# What became of a variant-replicate, in the words of the report.
FINISHED, UNREADABLE, RUNNING, MISSING = "finished", "unreadable", "running", "missing"
STATES: dict[str, str] = {
    FINISHED: "trained to the end; counted in every table",
    "diverged": "the loss left the finite numbers",
    "out_of_memory": "did not fit into memory",
    "pruned": "stopped early by the search",
    "failed": "broke off with an error",
    "killed": "was stopped from outside, and not trained again",
    UNREADABLE: "finished, but its outcomes cannot be read",
    RUNNING: "still training",
    MISSING: "not started yet",
}
ENDED = frozenset(STATES) - {RUNNING, MISSING}  # nothing more comes


@dataclass(frozen=True)
class Task:
    """What was read off the fused tokens."""

    name: str
    metric: str = "accuracy"
    direction: str = "maximize"
    chance: float | None = None
    title: str = ""
    unit: str = "share"  # of the scores; see reports/units.py
    perfect: float | None = None  # the metric of a model that is always right
    ratio: tuple[str, str] | None = None  # statistics whose sums' quotient the metric is; None: a mean over examples
    chance_test: float | None = None  # of the guess that ``chance`` is of, on test; they differ where the splits do

    @property
    def sign(self) -> int:
        """+1 where more is better, -1 where less is."""
        return 1 if self.direction == "maximize" else -1

    @property
    def spans(self) -> bool:
        """Whether it is known how far it is from chance to perfect."""
        return self.chance is not None and self.perfect is not None and self.chance != self.perfect

    @property
    def blind(self) -> float | None:
        """What a guess that looks at no image reaches on test."""
        return self.chance if self.chance_test is None else self.chance_test

    def gain(self, scores: Floats) -> Floats:
        """Scores as shares of the way from chance (0) to perfect (1). Only where :attr:`spans`."""
        assert self.chance is not None
        assert self.perfect is not None
        return (scores - self.chance) / (self.perfect - self.chance)


@dataclass(frozen=True)
class Family:
    """Measures whose comparisons are corrected together, at ``share`` of the study's level."""

    measures: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class Plan:
    """What was to count as a result, fixed before the first run.

    Attributes:
        primary: the measure that the recommended cell is picked by.
        families: what is corrected together; their shares add up to at most 1.
        level: the chance of any false better or worse in the whole study.
        margin: a difference within it is as good as none, in scores where they are shares, else as a share of the way
            from chance to perfect. None: nothing is called equivalent.
        looks: numbers of replicates after which verdicts are read. The level is spent in proportion, so that looking
            and then adding replicates stays honest; the last look is the planned end.
        confirm: the same for the fresh replicates on which the winner is judged; empty: there are none.
        confirm_share: of the level, what is kept for the fresh replicates; the rest is for comparing all cells.
    """

    primary: str
    families: tuple[Family, ...]
    level: float
    margin: float | None
    looks: tuple[int, ...]
    confirm: tuple[int, ...] = ()
    confirm_share: float = 0.0

    def exploring(self) -> Plan:
        """The part of the plan that compares all cells on the study's own replicates."""
        return self._part(1 - self.confirm_share, self.looks)

    def confirming(self) -> Plan:
        """The part that judges the winner on fresh replicates."""
        return self._part(self.confirm_share, self.confirm)

    def _part(self, share: float, looks: tuple[int, ...]) -> Plan:
        families = tuple(Family(f.measures, f.share * share) for f in self.families)
        return replace(self, families=families, looks=looks, confirm=(), confirm_share=0.0)

    def spent(self) -> tuple[float, ...]:
        """The share of the level at each look: in proportion to the replicates that it adds."""
        return tuple((b - a) / self.looks[-1] for a, b in zip((0, *self.looks), self.looks, strict=False))


@dataclass(frozen=True)
class Cell:
    """A strategy, a selection, options: one cell of the report's table."""

    id: str
    strategy: str
    levels: tuple[int, ...]
    query: int
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    alias: str = ""
    baselines: tuple[str, ...] = ()
    chosen_lr: float | None = None

    @property
    def selection(self) -> Selection:
        return Selection(self.levels, self.query)

    @property
    def single(self) -> bool:
        """One layer, unfused."""
        return not self.levels

    @property
    def name(self) -> str:
        """How a sentence calls it."""
        alone = self.strategy == "deep_only" and self.single
        alias = f" ({self.alias})" if self.alias else ""
        return f"layer {self.query} alone{alias}" if alone else self.label


@dataclass(frozen=True)
class Contender:
    """A cell that was trained again on fresh replicates, and why.

    Attributes:
        roles: among ``winner`` (the best on validation) and ``fusion`` (the best that reads several layers).
        stands_for: the (measure, baseline) that it was picked as.
        controls: the budgets of the best fusion that it meets with one layer: ``parameters``, ``flops``.
        without: the layer of the best fusion that it does without.
    """

    cell: Cell
    roles: tuple[str, ...] = ()
    stands_for: tuple[tuple[str, str], ...] = ()
    controls: tuple[str, ...] = ()
    without: int | None = None


@dataclass(frozen=True)
class Run:
    """One child run: a variant-replicate, or a step of the learning-rate search."""

    run_id: str
    cell: str
    phase: str  # "search", "final" or "confirm"
    replicate: str
    state: str  # a key of STATES
    lr: float | None
    started: int  # milliseconds since 1970, UTC
    metrics: Mapping[str, float]  # the last value of each
    params: Mapping[str, str]
    history: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)  # metric → (epoch, value)…


@dataclass(frozen=True)
class Outcomes:
    """Scores of one cell on one task and split.

    Attributes:
        replicates: R names, in order.
        examples: N identifiers, sorted.
        scores: ``[R, N]``, the mean over each example's items; of a metric that is a ratio of sums, each example's
            share of it, so that the mean over examples is the metric.
        groups: of each example; empty where it is not known.
    """

    replicates: tuple[str, ...]
    examples: tuple[str, ...]
    scores: Floats
    groups: tuple[str, ...] = ()

    def cut(self, replicates: Sequence[str], examples: Sequence[str]) -> Floats:
        """``[R, N]`` scores of some replicates and examples, in that order."""
        if tuple(replicates) == self.replicates and tuple(examples) == self.examples:
            return self.scores
        rows = {name: i for i, name in enumerate(self.replicates)}
        columns = {name: i for i, name in enumerate(self.examples)}
        chosen = self.scores[np.ix_([rows[r] for r in replicates], [columns[e] for e in examples])]
        return np.asarray(chosen, dtype=float)


@dataclass(frozen=True)
class LookScore:
    """One example on one task: its mean over all cells, and by replicate; None where one was not trained."""

    mean: float
    before: tuple[float | None, ...]  # the baseline
    after: tuple[float | None, ...]  # the featured cell


@dataclass(frozen=True)
class LookExample:
    """A test image to look at. ``task`` is empty where it was drawn at random."""

    example: str
    group: str
    kind: str  # random, hardest, improved, worsened
    task: str
    picture: str  # a data URI
    scores: Mapping[str, LookScore]  # by task


@dataclass(frozen=True)
class LookColumn:
    """Token maps of one layer, or of one cell's fused tokens, an example each."""

    layer: int | None
    query: bool  # whether a shown cell asks with this layer
    cell: str
    label: str
    replicate: str  # whose fuser it is
    explained: tuple[float, ...]  # of the tokens' variance: red, green, blue
    tiles: tuple[str, ...]  # data URIs, a token a pixel


@dataclass(frozen=True)
class LookLevel:
    """Where on the images one level is drawn on: clear at its mean share, strongest at ``low`` and ``high``."""

    layer: int
    mean: float  # the level's share of all that is drawn
    low: float
    high: float
    tiles: tuple[str, ...]  # data URIs, tints to lay over the images


@dataclass(frozen=True)
class LookRegions:
    """For one cell's fuser, where each level is drawn on."""

    cell: str
    label: str
    replicate: str
    levels: tuple[LookLevel, ...]


@dataclass(frozen=True)
class Look:
    """What the study's last step left to look at."""

    baseline: str | None  # cells
    featured: str | None
    columns: tuple[LookColumn, ...]
    examples: tuple[LookExample, ...]
    regions: tuple[LookRegions, ...] = ()


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
    passport: Mapping[str, Any]
    source: Mapping[str, Any]
    tasks: tuple[Task, ...]
    cells: tuple[Cell, ...]  # those that go on to the replicates
    searched: Mapping[str, Cell]  # also those that were only searched
    replicates: tuple[str, ...]  # those that the study asks for
    runs: tuple[Run, ...]
    outcomes: Mapping[tuple[str, str, str], Outcomes]  # (cell, task, split)
    groups: tuple[str, ...]  # of the test split
    plan: Plan | None = None  # None: of a study from before there were plans
    departures: tuple[str, ...] = ()  # from the plan, in words
    notes: tuple[str, ...] = ()  # what the query had to leave out
    look: Look | None = None  # None: the study logged none
    contenders: tuple[Contender, ...] = ()  # trained again on fresh replicates
    confirmed: Mapping[tuple[str, str, str], Outcomes] = field(default_factory=dict)  # as outcomes, of those
    fresh_replicates: tuple[str, ...] = ()
    similarity: Similarity | None = None  # likewise
    importance: Importance | None = None
    insides: Mapping[str, tuple[Inside, ...]] = field(default_factory=dict)  # cell → replicates; of the best few cells
    experiment_id: str = ""  # MLflow's, for links to runs
    language: LanguageModel | None = None  # None: a study of probes
    asked: Asked | None = None  # questions and what cells answered; None: nothing that can be read

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
        return str(self.source.get("group_name") or "group")

    def fresh(self) -> StudyRecord | None:
        """The fresh replicates of the contenders as a study of their own; None where none was started.

        Likewise where the plan, changed since, has none: it keeps no part of its level for them.
        """
        runs = tuple(replace(r, phase="final") for r in self.runs if r.phase == "confirm")
        if not runs or not self.contenders or (self.plan and not self.plan.confirm):
            return None
        return replace(
            self,
            cells=tuple(c.cell for c in self.contenders),
            runs=runs,
            outcomes=self.confirmed,
            replicates=self.fresh_replicates,
            plan=self.plan and self.plan.confirming(),
            contenders=(),
            confirmed={},
        )

    def finals(self, cell: str) -> tuple[Run, ...]:
        """The counted runs of a cell, by replicate."""
        return tuple(r for r in self.runs_of(cell) if r.phase == "final" and r.state == FINISHED)

    def state(self, cell: str, replicate: str) -> str:
        """What became of a variant-replicate."""
        found = [r.state for r in self.runs_of(cell) if (r.replicate, r.phase) == (replicate, "final")]
        return found[-1] if found else MISSING

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
        return bool(self.cells) and self.counts().get(FINISHED, 0) == self.expected

    def cell(self, cell_id: str) -> Cell:
        return self.searched[cell_id]

    def mean_metric(self, cell: str, metric: str, replicates: frozenset[str] | None = None) -> float | None:
        """Mean of a final metric over a cell's counted runs; None where none has it."""
        runs = [r for r in self.finals(cell) if replicates is None or r.replicate in replicates]
        values = [r.metrics[metric] for r in runs if metric in r.metrics]
        return sum(values) / len(values) if values else None
