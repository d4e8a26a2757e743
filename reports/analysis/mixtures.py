"""Rows of one study that were not trained under the same: accepted changes, and versions and hardware that differ."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_workbench.reports.reading.records import Run, StudyRecord
from fusion_workbench.reports.statistics.example_scores import natural_key
from fusion_workbench.reports.words.wording import listed
from fusion_workbench.schema.dependencies import TrackedDependencies
from fusion_workbench.schema.names import Artifact, Phase, Status


def mixtures(record: StudyRecord) -> tuple[str, ...]:
    """Sentences on the finished rows that the report counts; none where all were trained under the same."""
    runs = [run for run in record.runs if run.phase != Phase.SEARCH and run.state == Status.FINISHED]
    return (*_dependencies(record, runs), *_environments(runs))


def _dependencies(record: StudyRecord, runs: Sequence[Run]) -> list[str]:
    tracked = record.dependencies
    if tracked is None:
        tags = sorted({run.dependencies for run in runs if run.dependencies})
        if not tags:
            return []  # of a study of before there was such a record
        mixed = f"; its rows are of {len(tags)} different sets of dependencies" if len(tags) > 1 else ""
        return [f"{Artifact.DEPENDENCIES}, which says what the rows depend on, is missing or cannot be read{mixed}."]
    out = []
    groups = _by_change(tracked, runs)
    for number, change in enumerate(tracked.changes):
        if not change.changed:
            continue
        before = [run for group in groups[: number + 1] for run in group]
        after = [run for group in groups[number + 1 :] for run in group]
        what = listed([str(one) for one in change.changed])
        if before and after:
            out.append(
                f"Mixed: {what} changed, accepted on {change.when}. {_rows(before)} were trained before it and "
                f"{_rows(after)} after it; their numbers do not compare."
            )
        else:
            out.append(
                f"Accepted on {change.when}: {what} changed, after {change.finished} variant-replicates, searches "
                f"included; all rows that are counted were trained {'before' if before else 'after'} it."
            )
    known = {tracked.tag, "", *(tag for c in tracked.changes for tag in (c.before, c.after))}
    if unknown := [run for run in runs if run.dependencies not in known]:
        out.append(f"{_rows(unknown)} were trained under dependencies that {Artifact.DEPENDENCIES} does not tell.")
    return out


def _by_change(tracked: TrackedDependencies, runs: Sequence[Run]) -> list[list[Run]]:
    """The rows of before the first change, of between it and the second, … by their tags; those without one are first.

    What was changed and changed back has its first tag again; it counts where the tag was met last.
    """
    groups: list[list[Run]] = [[] for _ in range(len(tracked.changes) + 1)]
    place = {"": 0}
    for number, change in enumerate(tracked.changes):
        place.setdefault(change.before, number)
        place[change.after] = number + 1
    for run in runs:
        groups[place.get(run.dependencies, len(tracked.changes))].append(run)
    return groups


def _rows(runs: Sequence[Run]) -> str:
    """How many, and of which replicates."""
    replicates = sorted({run.replicate for run in runs}, key=natural_key)
    noun = "variant-replicate" if len(runs) == 1 else "variant-replicates"
    return f"{len(runs)} {noun} (replicate{'s' * (len(replicates) > 1)} {', '.join(replicates)})"


def _environments(runs: Sequence[Run]) -> list[str]:
    """One sentence for all that differs; rows of before this was recorded say nothing."""
    parts = []
    for key in dict.fromkeys(key for run in runs for key in run.environment):
        counts: dict[str, int] = {}
        for run in runs:
            if key in run.environment:
                counts[run.environment[key]] = counts.get(run.environment[key], 0) + 1
        if len(counts) > 1:
            parts.append(f"{key} {listed([f'{value} ({number})' for value, number in counts.items()])}")
    if not parts:
        return []
    return [f"Trained with or on different things, variant-replicates in brackets: {'; '.join(parts)}."]
