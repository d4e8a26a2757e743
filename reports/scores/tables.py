"""Other people's results: per-example scores from tables and sample logs, as the report's own outcomes.

A *table* is long: one row an example, with columns for the system, the example and the score, and where there are any
the replicate, the group of the example and the measure. A *sample log* is what lmms-eval and lm-eval write with
``--log_samples``: a file is one system, one replicate and one task (:mod:`reports.scores.sample_logs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.reports.scores.columns import columns_of, mapping_of, number, passed_over, shown, word
from fusion_workbench.reports.scores.files import File, files_of
from fusion_workbench.reports.scores.old_logs import system_of, task_of_header
from fusion_workbench.reports.scores.row_readers import delimited, objects_of, parquet
from fusion_workbench.reports.scores.sample_logs import is_sample_log, read_log
from fusion_workbench.reports.scores.score_names import counts_up
from fusion_workbench.reports.statistics.copies import counted_once
from fusion_workbench.reports.statistics.example_scores import ExampleScores, natural_key


class ScoreRow(NamedTuple):
    """One score. Empty words: not said."""

    system: str
    replicate: str
    measure: str
    example: str
    group: str
    score: float
    line: int


@dataclass(frozen=True)
class Scores:
    """Scores of some systems on some measures.

    Attributes:
        systems, measures: in the order in which they were met.
        outcomes: (system, measure) → ``[R, N]`` scores of the examples that all of its replicates have.
        notes: what had to be left out, in words.
    """

    systems: tuple[str, ...]
    measures: tuple[str, ...]
    example_scores: Mapping[tuple[str, str], ExampleScores]
    notes: tuple[str, ...] = ()


def read_scores(
    files: Sequence[str],
    systems: Sequence[str] = (),
    columns: Sequence[str] = (),
    metrics: Sequence[str] = (),
) -> Scores:
    """Read every file.

    Args:
        files: files, or folders whose sample logs (or else tables) are all meant.
        systems: ``NAME=PATTERN`` or ``NAME@REPLICATE=PATTERN``: whose a file is.
        columns: ``ROLE=COLUMN``; of sample logs the roles group and score, with a key.
        metrics: measures to keep, by their whole name, task or metric; empty: all.

    Raises:
        WorkbenchError: a file cannot be read, lacks a column, holds what is no number, or says something twice.
    """
    mapping = mapping_of(columns)
    found = files_of(files, systems)
    if not found:
        raise WorkbenchError("no files: name some, or --system NAME=PATTERN.")
    table = _Collected()
    for file in found:
        table.add(file.path, _entries(file, mapping, metrics, table), mapping.get("score", ""))
    return table.scores(metrics)


# --- what is in them ------------------------------------------------------------------------------------------------


def _entries(file: File, mapping: Mapping[str, str], metrics: Sequence[str], table: _Collected) -> Iterator[ScoreRow]:
    """The rows of a file; what has to be said of them is added to ``table``."""
    path, suffix = file.path, file.path.suffix.lower()
    if suffix == ".parquet":
        names, records = parquet(path)
        yield from _long(file, names, records, mapping, table.notes, "row ")
    elif suffix in (".csv", ".tsv"):
        names, records = delimited(path)
        yield from _long(file, names, records, mapping, table.notes)
    else:
        header, rows = objects_of(path)
        objects = list(rows)
        if not objects:
            raise WorkbenchError(f"{path}: the file is empty.")
        if header or is_sample_log(path, objects[0][1]):
            yield from _from_log(file, header, objects, mapping, metrics, table)
            return
        names = list(dict.fromkeys(name for _, o in objects for name in o))
        yield from _long(
            file, names, ((line, [o.get(name) for name in names]) for line, o in objects), mapping, table.notes
        )


def _from_log(
    file: File,
    header: Mapping[str, Any],
    objects: Sequence[tuple[int, Mapping[str, Any]]],
    mapping: Mapping[str, str],
    metrics: Sequence[str],
    table: _Collected,
) -> Iterator[ScoreRow]:
    folder = file.path.resolve().parent.name
    system, _, replicate = (folder, "", "") if file.system else folder.partition("@")
    if not replicate:
        system = system_of(header) or system
    log = read_log(
        file.path, objects, mapping.get("group", ""), mapping.get("score", ""), metrics, task_of_header(header)
    )
    table.notes += map(shown, log.notes)
    table.others += log.others
    table.keys.update((shown(measure), shown(key)) for measure, key in log.keys.items())
    for measure, example, group, score, line in log.rows:
        yield ScoreRow(
            file.system or shown(system),
            file.replicate or shown(replicate),
            shown(measure),
            shown(example),
            shown(group),
            score,
            line,
        )


def _long(
    file: File,
    names: Sequence[str],
    records: Iterable[tuple[int, Sequence[Any]]],
    mapping: Mapping[str, str],
    notes: list[str],
    row: str = "",
) -> Iterator[ScoreRow]:
    """Rows of a long table; ``row`` stands before the number in messages."""
    at = columns_of(file.path, names, mapping)
    notes += filter(None, [passed_over(names, at, mapping)])
    stem, _, seed = shown(file.path.stem).partition("@")
    system, replicate = file.system or stem, file.replicate or seed
    any_row = False
    for line, values in records:
        any_row = True
        where = f"{file.path}:{row}{line}"
        if len(values) <= max(i for own in at.values() for i in own):
            raise WorkbenchError(f"{where}: the row is shorter than the head, which has {len(names)} columns.")
        example = word(values, at.get("example", ()))
        if not example:
            raise WorkbenchError(f"{where}: the example has no name (column '{names[at['example'][0]]}' is empty).")
        yield ScoreRow(
            (file.system if file.system else word(values, at.get("system", ()))) or system,
            word(values, at.get("replicate", ())) or replicate,
            word(values, at.get("measure", ())),
            example,
            word(values, at.get("group", ())),
            number(values[at["score"][0]], where, names[at["score"][0]]),
            line,
        )
    if not any_row:
        raise WorkbenchError(f"{file.path}: the file holds no row of scores.")


# --- all together ---------------------------------------------------------------------------------------------------


class _Collected:
    """Every score once, with the place that it came from."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], dict[str, dict[str, float]]] = {}  # (system, measure) → replicate → example
        self.places: dict[tuple[str, str, str, str], tuple[Path, int]] = {}
        self.groups: dict[tuple[str, str], str] = {}  # (measure, example)
        self.notes: list[str] = []
        self.keys: dict[str, str] = {}  # of a log's measures: where their score stood
        self.others: list[str] = []  # measures of logs that were not asked for

    def add(self, path: Path, entries: Iterable[ScoreRow], column: str = "") -> None:
        """``column``: what the user calls the score."""
        met: dict[tuple[str, str, str], list[float]] = {}
        for e in entries:
            met.setdefault((e.system, e.measure, e.replicate), []).append(e.score)
            own = self.cells.setdefault((e.system, e.measure), {}).setdefault(e.replicate, {})
            place = (e.system, e.measure, e.replicate, e.example)
            if e.example in own:
                before = self.places[place]
                seed = f", replicate {e.replicate}" if e.replicate else ""
                raise WorkbenchError(
                    f"{path}:{e.line}: example '{e.example}' of {e.system}{seed} is scored a second time (first in "
                    f"{before[0]}:{before[1]}); name replicates in a column or with --system NAME@REPLICATE=PATTERN."
                )
            own[e.example], self.places[place] = e.score, (path, e.line)
            if e.group and self.groups.setdefault((e.measure, e.example), e.group) != e.group:
                known = self.groups[e.measure, e.example]
                raise WorkbenchError(
                    f"{path}:{e.line}: example '{e.example}' is in group '{e.group}', and elsewhere in '{known}'."
                )
        for (system, measure, replicate), scores in met.items():
            self._refuse_an_index(path, system, measure, replicate, scores, column)

    def _refuse_an_index(
        self, path: Path, system: str, measure: str, replicate: str, scores: Sequence[float], column: str
    ) -> None:
        """Raises WorkbenchError where the scores count up, by the rows or by the examples' names."""
        own = self.cells[system, measure][replicate]
        name = column or measure.rpartition("/")[2]
        for found in (scores, [own[example] for example in sorted(own, key=natural_key)]):
            if counts_up(found, name):
                first = ", ".join(f"{score:g}" for score in found[:3])
                raise WorkbenchError(
                    f"{path}: what {system} has as {f'its {measure}' if measure else 'scores'} counts up ({first}, …) "
                    "as an index does and no score; name the score with --column score=NAME."
                )

    def scores(self, metrics: Sequence[str]) -> Scores:
        systems = tuple(dict.fromkeys(system for system, _ in self.cells))
        notes = list(dict.fromkeys(self.notes))
        known = tuple(dict.fromkeys(measure for _, measure in self.cells))
        measures = _chosen(known, metrics, self.others) if metrics else self._told_apart(known, systems, notes)
        notes += [f"The score of {m} is {self.keys[m]}." for m in measures if m in self.keys]
        example_scores = {
            (system, measure): self._example_scores(system, measure, notes)
            for measure in measures
            for system in systems
            if (system, measure) in self.cells
        }
        return Scores(systems, measures, *_once_each(systems, example_scores, notes))

    def _told_apart(self, measures: tuple[str, ...], systems: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
        """Without metrics that repeat another of their task: lmms-eval logs one score under many names (POPE's
        precision, recall and F1 are worked out from all documents), and a repetition is no further comparison."""
        kept: list[str] = []
        for measure in measures:
            task = measure.partition("/")[0]
            same = [
                k
                for k in kept
                if k.partition("/")[0] == task
                and all(self.cells.get((s, k)) == self.cells.get((s, measure)) for s in systems)
            ]
            if same:
                notes.append(f"{measure} holds the same scores as {same[0]} and is left out; --metric asks for it.")
            else:
                kept.append(measure)
        return tuple(kept)

    def _example_scores(self, system: str, measure: str, notes: list[str]) -> ExampleScores:
        by_replicate = self.cells[system, measure]
        replicates = tuple(sorted(by_replicate, key=natural_key))
        every = set.union(*(set(own) for own in by_replicate.values()))
        whole = set.intersection(*(set(own) for own in by_replicate.values()))
        what = f"{system}{f' on {measure}' if measure else ''}"
        if not whole:
            raise WorkbenchError(f"{what}: its replicates ({', '.join(replicates)}) have no example in common.")
        if len(whole) < len(every):
            notes.append(
                f"{what}: {len(every) - len(whole)} of {len(every)} examples are not scored in every replicate and "
                "are left out."
            )
        examples = tuple(sorted(whole, key=natural_key))
        groups = tuple(self.groups.get((measure, example), "") for example in examples)
        if any(groups) and not all(groups):
            raise WorkbenchError(
                f"{what}: {groups.count('')} of {len(groups)} examples have no group; name all or none."
            )
        scores = np.asarray([[by_replicate[r][e] for e in examples] for r in replicates], dtype=float)
        return ExampleScores(replicates, examples, scores, groups if any(groups) else ())


def _once_each(
    systems: Sequence[str], found: Mapping[tuple[str, str], ExampleScores], notes: Sequence[str]
) -> tuple[Mapping[tuple[str, str], ExampleScores], tuple[str, ...]]:
    """The scores with replicates that are copies of each other counted once, and the notes that say so."""
    out, told = dict(found), list(notes)
    for system in systems:
        own, said = counted_once({m: o for (s, m), o in found.items() if s == system}, system)
        out.update(((system, measure), scores) for measure, scores in own.items())
        told += said
    return out, tuple(told)


def _chosen(measures: tuple[str, ...], metrics: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Those measures that are asked for, by their whole name or a part of it between slashes."""
    for wanted in metrics:
        if not any(wanted == m or wanted in m.split("/") for m in measures):
            known = [part for m in (*measures, *others) for part in {m, *m.split("/")} if part]
            raise WorkbenchError(f"--metric {wanted}: no score is of that.{nearest(wanted, set(known))}")
    return tuple(m for m in measures if any(w == m or w in m.split("/") for w in metrics))
