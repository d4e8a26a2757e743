"""A study against the sweep as it is usually written: what a variant-epoch costs, and what the whole grid would.

The part that takes turns is one training of each of the grid's strategies. Ours is the study itself, from empty
workspace to last row: encoding, the bank, ledger, MLflow, token maps, layer analysis. Then the whole grid is run once
by ours, and its naive time extended from what a naive epoch and a naive test took.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fusion_workbench.bench.others.naive_sweep import Protocol, Sweep, run_sweep, write_images
from fusion_workbench.bench.record import Figure, Kind
from fusion_workbench.bench.strategies import SMALL, TINY, step_of
from fusion_workbench.bench.studies import PART, grid_parts
from fusion_workbench.bench.turns import Ratio, Setting, clock, in_turn
from fusion_workbench.runner.experiment import Experiment, StudyResult
from fusion_workbench.schema.names import SEARCH_REPLICATE, on_validation
from fusion_workbench.study.identity import LEDGER, seed_of
from fusion_workbench.study.jobs import Job
from fusion_workbench.study.ledger import Ledger, LedgerEntry
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.progress import Display
from fusion_workbench.system.console import WordsConsole
from fusion_workbench.training.probes import EVAL_BATCH, member_of

REPEATS = 3  # at most: a naive sweep takes minutes
AGAINST = "naive sweep"


def run_study(parts: Parts) -> StudyResult:
    """A prepared study, run without a word."""
    return Experiment(parts, Display(WordsConsole(file=io.StringIO()), progress=False)).run()


def entries_of(parts: Parts) -> list[LedgerEntry]:
    """The rows of a study's ledger."""
    ledger = Ledger(parts.folder / LEDGER)
    try:
        return ledger.entries()
    finally:
        ledger.close()


def faster_precision(setting: Setting) -> str:
    """Lightning's name of the precision in which a training step of concat is faster here."""
    shape = TINY if setting.tiny else SMALL
    meters = {
        name: clock(step_of("concat", shape, setting.device, bf16).both, setting.device, setting.least)
        for name, bf16 in (("32-true", False), ("bf16-mixed", True))
    }
    taken = {name: Ratio.of(seconds).median for name, seconds in in_turn(meters, 3).items()}
    return min(taken, key=lambda name: taken[name])


class PartOfTheGrid:
    """The part as both sides train it.

    Args:
        setting: how it is measured.
        precision: of the naive training, Lightning's name.

    Raises:
        WorkbenchError: as :func:`bench.studies.grid_parts`.
    """

    def __init__(self, setting: Setting, precision: str) -> None:
        self.setting, self.turns = setting, 0
        self.parts = grid_parts(setting, setting.scratch / "part", PART)
        self.images = setting.scratch / "images"
        write_images(self.parts.source, self.images)
        lr = self.parts.study.search.learning_rates[0]
        variants = [self.parts.variant(cell, lr) for cell in self.parts.space.listed]
        self.members = [member_of(self.parts, Job(variant, "0")) for variant in variants]
        training = self.parts.study.training
        self.protocol = Protocol(
            epochs=training.epochs,
            batch_size=training.batch_size,
            eval_batch_size=max(EVAL_BATCH, training.batch_size),
            order_seed=seed_of("order", "0"),
            accelerator=setting.device,
            precision=precision,
            gradient_clip=training.gradient_clip,
        )
        self.sweeps: list[Sweep] = []
        self.ours: list[LedgerEntry] = []

    @property
    def variant_epochs(self) -> int:
        return len(self.members) * self.protocol.epochs

    def naive(self) -> float:
        """Seconds of the naive sweep."""
        parts, tracking = self.parts, self.setting.scratch / f"naive-{self.turns}.db"
        sweep = run_sweep(self.members, parts.tasks, parts.encoder, parts.source, self.images, self.protocol, tracking)
        self.sweeps.append(sweep)
        return sweep.seconds

    def study(self) -> float:
        """Seconds of the same as a study, in a workspace of its own."""
        self.turns += 1
        parts = grid_parts(self.setting, self.setting.scratch / f"workspace-{self.turns}", PART)
        start = time.perf_counter()
        run_study(parts)
        seconds = time.perf_counter() - start
        self.ours = entries_of(parts)
        return seconds

    def apart(self) -> dict[str, float]:
        """``VARIANT METRIC`` → by how much the naive sweep's validation metric is from the study's."""
        return differences(self.ours, self.sweeps[-1])


def differences(ours: list[LedgerEntry], naive: Sweep) -> dict[str, float]:
    """Variant and metric → naive minus ours, on validation after the last epoch."""
    apart = {}
    for entry in ours:
        scored: Mapping[str, float] = naive.evaluations[entry.variant]["val"].metrics
        for metric, value in scored.items():
            apart[f"{entry.variant} {metric}"] = value - entry.result[on_validation(metric)]
    return apart


def measure(setting: Setting) -> Iterator[Figure]:
    """The part in turn, whether both found the same, the whole grid."""
    precision = faster_precision(setting)
    part = PartOfTheGrid(setting, precision)
    meters: dict[str, Callable[[], float]] = {"naive": part.naive, "ours": part.study}
    seconds = in_turn(meters, min(REPEATS, setting.repeats), warm=0)
    facts: dict[str, Any] = {
        "variant_epochs": part.variant_epochs,
        "trainings": len(part.members),
        "naive_precision": precision,
        "naive_workers": part.protocol.workers,
        "encoder_precision": part.parts.encoder.precision,
        "seconds": {who: Ratio.of(taken).median for who, taken in seconds.items()},
    }
    yield Figure(
        f"a variant-epoch of a study of {len(part.members)} trainings",
        AGAINST,
        Kind.SPEED,
        Ratio.paired(seconds["naive"], seconds["ours"]),
        note=f"ours with all that a study does once; naive in {precision}, the faster here, its encoder in "
        f"{part.parts.encoder.precision} as ours, {part.protocol.workers} workers",
        facts=facts,
    )
    apart = part.apart()
    yield Figure(
        "validation metrics of the same trainings",
        AGAINST,
        Kind.EQUAL,
        Ratio.of(list(apart.values())),
        note="naive minus ours, median and range over cells and tasks, as shares; ours reads features that the store "
        "rounded to bf16, so a few examples may fall otherwise",
        facts={"differences": apart},
    )
    yield _whole(setting, part)


def _whole(setting: Setting, part: PartOfTheGrid) -> Figure:
    parts = grid_parts(setting, setting.scratch / "grid")
    start = time.perf_counter()
    result = run_study(parts)
    ours = time.perf_counter() - start
    entries, epochs = entries_of(parts), parts.study.training.epochs
    tested = sum(entry.replicate != SEARCH_REPLICATE for entry in entries)
    extended = []
    for sweep in part.sweeps:
        epoch = sum(sweep.fit_seconds) / len(sweep.fit_seconds) / epochs
        test = sum(sweep.test_seconds) / len(sweep.test_seconds)
        extended.append((result.trained * epochs * epoch + tested * test) / ours)
    return Figure(
        f"the whole grid, {result.trained} trainings of {epochs} epochs",
        f"{AGAINST}, extended from {len(part.members)} trainings",
        Kind.SPEED,
        Ratio.of(extended),
        note=f"ours was run whole, once; the naive time is {result.trained * epochs} times the mean of a naive epoch "
        f"and {tested} times that of a naive test, each of the part above",
        facts={"ours_seconds": ours, "trainings": result.trained, "tested": tested},
    )
