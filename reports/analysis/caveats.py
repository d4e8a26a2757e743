"""What bounds everything that a report says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.fresh_replicates import judge_fresh_replicates
from fusion_workbench.reports.analysis.mixtures import mixtures
from fusion_workbench.reports.statistics.copies import Copies, copies
from fusion_workbench.reports.words.wording import listed, plural
from fusion_workbench.schema.names import Phase, RunStatus, Status
from fusion_workbench.schema.plan import FEWEST, FEWEST_EXAMPLES

_LOST = (Status.DIVERGED, Status.OUT_OF_MEMORY, Status.FAILED)  # what ended by itself, and not at its end


def nothing_to_recommend(analysis: Analysis) -> str:
    counts = analysis.record.counts()
    if counts.get(Status.FINISHED):
        return "No answer: the finished runs hold no validation objective."
    lost = {state: number for state, number in counts.items() if state in _LOST}
    if lost and analysis.record.status != RunStatus.RUNNING:
        number = listed([f"{n} {state.replace('_', ' ')}" for state, n in lost.items()])
        none = f"No answer: none of {analysis.record.expected} variant-replicates finished ({number})."
        return f"{none} {_why(analysis, lost)}"
    state = "is still running and has" if analysis.record.status == RunStatus.RUNNING else "has"
    return f"No answer yet: the study {state} no finished replicate."


def _why(analysis: Analysis, lost: Mapping[str, int]) -> str:
    """What ended most of the trainings, and what would be right."""
    record = analysis.record
    state = max(lost, key=lambda name: lost[name])
    if state == Status.DIVERGED:
        rates = sorted({r.lr for r in record.runs if r.lr is not None and r.state == Status.DIVERGED})
        at = f", at {listed([f'{rate:g}' for rate in rates])}" if rates else ""
        return f"The loss left the finite numbers{at}: lower search.learning_rates, or set training.gradient_clip."
    if state == Status.OUT_OF_MEMORY:
        return "They did not fit into memory: lower training.batch_size or training.bank_size, or add devices."
    errors = Counter(run.error for run in record.runs if run.error and run.state == state)
    if errors:
        error, number = errors.most_common(1)[0]
        return f"{number} broke off with {error}; mend it, then --retry-failed trains them again."
    return "They broke off with an error; --retry-failed trains them again."


def _below_chance(analysis: Analysis) -> list[str]:
    """Tasks on which no cell does better than a guess that looks at no image."""
    out = []
    for task in analysis.record.tasks:
        measure = analysis.measure(task.name)
        means = [measure.sign * e.mean for (_, name), e in analysis.means.items() if name == task.name]
        if measure.chance is not None and means and max(means) <= measure.sign * measure.chance:
            best, chance_baseline = (
                f"{measure.unit.score(v)} {measure.unit.symbol}".strip()
                for v in (measure.sign * max(means), measure.chance)
            )
            out.append(
                f"Nothing was learned of {task.name} that holds on test: the best cell has {best}, and a guess that "
                f"looks at no image {chance_baseline}; differences between cells there say little."
            )
    return out


def _copies(analysis: Analysis) -> list[str]:
    """Cells whose replicates are the same on every test score: their seeds changed nothing."""
    found: list[tuple[str, Copies]] = []
    for cell in analysis.record.cells:
        tasks = [analysis.example_scores(cell.id, task.name) for task in analysis.record.tasks]
        copied = copies([scores for scores in tasks if scores is not None])
        if copied is not None and copied.certain:
            found.append((cell.name, copied))
    out = []
    whole = [(name, c) for name, c in found if c.all]
    if whole:
        name, c = whole[0]
        more = f" (and those of {len(whole) - 1} more cells)" if len(whole) > 1 else ""
        out.append(
            f"The {c.replicates} replicates of {name}{more} are identical on all {c.scores:,} test scores: nothing is "
            "known of seeds there, and intervals and verdicts leave them out."
        )
    for name, c in found[:3]:
        if not c.all:
            same = listed([listed(list(names)) for names in c.alike])
            out.append(
                f"Replicates {same} of {name} are identical on all {c.scores:,} test scores, and were counted as "
                "several."
            )
    return out


def caveats(analysis: Analysis) -> tuple[str, ...]:
    """What bounds everything that the report says."""
    record, out = analysis.record, []
    counts = record.counts()
    done, expected = counts.get(Status.FINISHED, 0), record.expected
    if not record.expected:
        out.append(
            f"Incomplete: no replicate was started yet; the learning-rate search has {len(record.runs)} runs so far."
        )
    elif not record.complete:
        rest = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in counts.items() if state != Status.FINISHED)
        words: dict[str, str] = {
            RunStatus.RUNNING: "is still running",
            RunStatus.KILLED: "was stopped",
            RunStatus.FAILED: "broke off",
        }
        state = words.get(record.status, "ended")
        running = " Numbers will move." if record.status == RunStatus.RUNNING or counts.get(Status.RUNNING) else ""
        out.append(
            f"Incomplete: the study {state} with {done} of {expected} variant-replicates"
            f"{f' ({rest})' if rest else ''}.{running}"
        )
    if analysis.conditional_on_groups and analysis.means:
        number = len(record.groups)
        noun = plural(record.group_name, number)
        out.append(
            f"Conditional on {'this' if number == 1 else 'these'} {noun}: the test images come from {number} {noun}; "
            "nothing here speaks for other ones."
        )
    images = min((e.examples for e in analysis.means.values()), default=FEWEST_EXAMPLES)
    if images < FEWEST_EXAMPLES:
        out.append(
            f"Conditional on {'this test image' if images == 1 else f'these {images} test images'}: nobody can tell "
            f"from {images} what others would change, so there are no verdicts (they take {FEWEST_EXAMPLES})."
        )
    out.extend(_below_chance(analysis))
    if not record.contenders and any(run.phase == Phase.CONFIRM for run in record.runs):
        out.append(
            "Fresh replicates were trained, but contenders.json, which says what they are of, is missing or cannot be "
            "read: the study's own replicates judge instead."
        )
    fresh = judge_fresh_replicates(analysis)
    out.extend(_copies(analysis))
    if fresh is not None:
        out.extend(_copies(fresh.analysis))
    reached_by = [e.replicates for e in analysis.means.values()]
    few = min(reached_by, default=0)
    if fresh is not None:
        reached, planned = fresh.replicates, len(record.fresh_replicates)
        if reached < planned:
            out.append(f"The fresh replicates are incomplete: {reached} of {planned} have ended for every contender.")
        if 0 < few < FEWEST:
            which = "All" if max(reached_by) == few else "Some"
            out.append(
                f"{which} cells are compared on {few} replicate{'s' * (few > 1)}, which gives intervals and no "
                "verdicts; what validation picked on them is judged on the fresh ones."
            )
        now = next(iter(analysis.ranked(analysis.objective.name)), None)
        if fresh.winner and now and now.id != fresh.winner.id:
            out.append(
                f"Validation would now pick {now.name}; the fresh replicates are of {fresh.winner.name}, which it "
                "picked before they were trained."
            )
    elif 0 < few < FEWEST:
        out.append(f"Some cells have {few} replicate{'s' if few > 1 else ''}; a verdict takes {FEWEST}.")
    elif few and analysis.reached < analysis.plan.looks[0]:
        out.append(f"Verdicts are read at {looks(analysis)} replicates, as planned; {analysis.reached} have ended.")
    out.extend(mixtures(record))
    out.extend(f"Departed from its plan: {change}." for change in record.departures)
    return tuple(out)


def looks(analysis: Analysis) -> str:
    """The numbers of replicates at which verdicts are read."""
    return listed([str(n) for n in analysis.plan.looks])
