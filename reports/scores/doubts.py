"""What may be wrong with scores that can all be read: another unit, another direction, a judge that failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.scores.score_names import less_is_better
from fusion_workbench.reports.scores.tables import Scores
from fusion_workbench.reports.statistics.copies import LEAST
from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.statistics.unpaired import Difference
from fusion_workbench.reports.words.wording import listed

_PERCENT = 20  # a largest score above it, up to 100, may be in per cent
_SEVERAL = 0.25  # more scores of −1 than this are no failures


def refuse_two_units(scores: Scores) -> None:
    """Raises WorkbenchError where some scores are 0 or 1 and others of the same measure 0 or 100."""
    for measure in scores.measures:
        shares, percents = _units(scores, measure)
        right = [name for name, row in shares.items() if set(np.unique(row)) <= {0.0, 1.0}]
        hundred = [name for name, row in percents.items() if set(np.unique(row)) <= {0.0, 100.0}]
        if right and hundred:
            on = f" on {measure}" if measure else ""
            raise WorkbenchError(
                f"the scores of {right[0]}{on} are 0 or 1 and those of {hundred[0]} 0 or 100: bring both to one unit."
            )


def doubts(scores: Scores, pairs: Mapping[tuple[str, str, str], Difference], higher_is_better: bool) -> Iterator[str]:
    """What people should know before they believe a verdict, a sentence each."""
    for measure in scores.measures:
        on = f" on {measure}" if measure else ""
        own = {s: o.scores for (s, m), o in scores.example_scores.items() if m == measure}
        shares, percents = _units(scores, measure)
        if shares and percents:
            yield (
                f"The scores of {next(iter(shares))}{on} lie between 0 and 1, and those of {next(iter(percents))} go "
                f"up to {max(row.max() for row in percents.values()):g}: if these are per cent, no difference is true."
            )
        if higher_is_better and less_is_better(measure):
            yield f"{measure} is judged as if more were better; --lower-is-better turns it round."
        values = np.unique(np.concatenate([rows.ravel() for rows in own.values()]))
        if len(values) == 1:
            yield f"Every score{on} is {values[0]:g}: nothing is compared there."
        else:
            yield from _never_varying(own, on)
            yield from _failures(own, on)
    for (measure, one, other), m in pairs.items():
        both = scores.example_scores[one, measure], scores.example_scores[other, measure]
        if m.identical and m.estimate.examples >= LEAST and any(np.ptp(o.scores) > 0 for o in both):
            on = f" on {measure}" if measure else ""
            yield (
                f"{one} and {other} have the same score on every example{on}: are they two systems, and is it a score?"
            )


def _units(scores: Scores, measure: str) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Replicates whose scores lie between 0 and 1, and those whose scores go up to about 100."""
    shares, percents = {}, {}
    for (system, m), o in scores.example_scores.items():
        for replicate, row in zip(o.replicates, o.scores, strict=True) if m == measure else ():
            name = f"{system}, replicate {replicate}," if replicate and len(o.replicates) > 1 else system
            if row.min() >= 0 and 0 < row.max() <= 1:
                shares[name] = row
            elif row.min() >= 0 and _PERCENT < row.max() <= 100:
                percents[name] = row
    return shares, percents


def _never_varying(own: Mapping[str, Floats], on: str) -> Iterator[str]:
    still = [s for s, rows in own.items() if len(rows) > 1 and rows.shape[1] >= LEAST and np.ptp(rows) == 0]
    if still:
        has, its = ("has", "its") if len(still) == 1 else ("have each", "their")
        yield f"{listed(still)} {has} one score{on} throughout, so nothing shows whether {its} replicates are several."


def _failures(own: Mapping[str, Floats], on: str) -> Iterator[str]:
    for system, rows in own.items():
        failed = rows == -1
        number = int(failed.sum())
        if 0 < number <= _SEVERAL * rows.size and rows[~failed].min() >= 0:
            yield (
                f"{number} of {rows.size} scores of {system}{on} {'is' if number == 1 else 'are'} -1, which harnesses "
                "write where a judge failed: better leave such documents out."
            )
