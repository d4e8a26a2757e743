"""Fresh replicates: what validation picked is trained again, with its budget-matched controls, before any claim.

Contenders are the winner, the best fusion and the baselines, as the replicates' validation picks them; for the best
fusion also one layer with its parameters or its FLOPs (``matched``), and itself without each of its layers. They are
picked once, written down, and trained on replicates that had no part in the picking, as many as the plan's looks take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fusion_workbench.config.study import SelectionConfig, StrategyConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.schema.names import (
    MATCHED_STRATEGY,
    SEARCH_REPLICATE,
    Artifact,
    Budget,
    Phase,
    Role,
    fresh_replicate,
)
from fusion_workbench.schema.records import Contender
from fusion_workbench.study.jobs import Job, JobTrainer
from fusion_workbench.study.plan_log import write_plan
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.tracking import to_json

if TYPE_CHECKING:
    from fusion_workbench.sweeps.space import Cell

_FACT = "contenders"  # in the ledger


class Confirmer:
    """Picks the contenders of one study and trains them on fresh replicates.

    Args:
        parts: the prepared study.
        trainer: of the study, with its ledger, tracker and parent run.
        cells: the study's finalists.
        rates: their learning rates.
    """

    def __init__(self, parts: Parts, trainer: JobTrainer, cells: Sequence[Cell], rates: Mapping[str, float]) -> None:
        self.parts = parts
        self.trainer = trainer
        self.cells = {cell.id: cell for cell in cells}
        self.rates = dict(rates)
        self.trainable = dict(self.cells)  # also those that are trained on fresh replicates alone

    def run(self, looks: Sequence[int]) -> int:
        """Train up to the interim analysis that decides, or the last; how many variant-replicates did not finish."""
        contenders = self._contenders() if looks else []
        if not contenders:
            return 0
        ledger = self.trainer.ledger
        variants = [self.parts.variant(self.trainable[c.cell.id], _rate(c)) for c in contenders]
        reached = 0
        for look in looks:
            jobs = [Job(v, fresh_replicate(r)) for r in range(reached, look) for v in variants]
            self.trainer.train(jobs, Phase.CONFIRM)
            reached = look
            if look < looks[-1] and self._decided():
                self.trainer.display.say(f"decided after {look} fresh replicates, as planned: no more are needed")
                break
        ledger.remember("confirmed", reached)
        write_plan(ledger, self.trainer.tracker, self.trainer.run_id)
        done = [ledger.find(v.id, fresh_replicate(r)) for r in range(reached) for v in variants]
        return sum(1 for entry in done if entry is None or not entry.finished)

    def _decided(self) -> bool:
        from fusion_workbench.reports import is_confirmed

        with self.trainer.display.step("analysing the fresh replicates"):
            return is_confirmed(self.trainer.tracker.uri, self.trainer.run_id, self.parts.study.tracking.experiment)

    # --- who --------------------------------------------------------------------------------------------------------

    def _contenders(self) -> list[Contender]:
        """Those of the ledger, or, the first time, those that validation points to now."""
        ledger, tracker, run_id = self.trainer.ledger, self.trainer.tracker, self.trainer.run_id
        stored: list[dict[str, Any]] | None = ledger.fact(_FACT)
        contenders = [self._restored(entry) for entry in stored] if stored is not None else self._pick()
        entries = [contender.plain() for contender in contenders]
        if entries:  # of a study in which nothing has finished yet, they are picked when something has
            ledger.remember(_FACT, entries)
        tracker.log_files(run_id, {Artifact.CONTENDERS: to_json(entries)})
        return contenders

    def _restored(self, entry: Mapping[str, Any]) -> Contender:
        contender = Contender.read(entry)
        tracked = contender.cell
        cell = self._cell(tracked.strategy, tracked.selection, tracked.options, tracked.alias)
        self.trainable[tracked.id] = replace(cell, baselines=tracked.baselines)
        return contender

    def _contender(self, cell: Cell, rate: float | None = None, **why: Any) -> Contender:
        """``rate``: its learning rate; None: not searched yet."""
        self.trainable[cell.id] = cell
        return Contender(cell.tracked(rate), **why)

    def _pick(self) -> list[Contender]:
        from fusion_workbench.reports import find_picks

        with self.trainer.display.step("picking on validation what is trained again"):
            picks = find_picks(self.trainer.tracker.uri, self.trainer.run_id, self.parts.study.tracking.experiment)
        if picks is None:
            return []
        roles: dict[str, list[str]] = {}
        stands_for: dict[str, list[tuple[str, str]]] = {}
        roles.setdefault(picks.winner.id, []).append(Role.WINNER)
        if picks.fusion is not None:
            roles.setdefault(picks.fusion.id, []).append(Role.FUSION)
        for key, cell in picks.baselines.items():
            stands_for.setdefault(cell.id, []).append(key)
        chosen = [
            self._contender(
                self.cells[cell],
                self.rates[cell],
                roles=tuple(roles.get(cell, ())),
                stands_for=tuple(stands_for.get(cell, ())),
            )
            for cell in dict.fromkeys([*roles, *stands_for])
            if cell in self.cells
        ]
        if picks.fusion is not None and picks.fusion.id in self.cells:
            fusion = self.cells[picks.fusion.id]
            extra = [*self._controls(fusion), *self._without(fusion)]
            rates = self._rates([self.trainable[c.cell.id] for c in extra])
            merged = {c.cell.id: c for c in chosen}
            for contender in extra:  # one that is among the others already is trained once
                cell = contender.cell
                before = merged.get(cell.id, replace(contender, cell=replace(cell, chosen_lr=rates[cell.id])))
                merged[cell.id] = replace(
                    before,
                    controls=before.controls + tuple(c for c in contender.controls if c not in before.controls),
                    without=contender.without if contender.without is not None else before.without,
                )
            chosen = list(merged.values())
        return chosen

    def _controls(self, fusion: Cell) -> Iterator[Contender]:
        """One layer with the fusion's parameters, and with its FLOPs; one cell where both give the same projector."""
        from fusion_workbench.modules.fusion import STRATEGIES

        if fusion.strategy not in STRATEGIES:
            self.trainer.display.say(f"no control of the same size is trained: {fusion.label} injects into the decoder")
            return
        changed = self._changed_options(fusion)
        sizes: dict[int, tuple[Cell, tuple[str, ...]]] = {}
        for budget in Budget:
            options = {"like": fusion.strategy, "like_options": changed, "budget": str(budget)}
            try:
                cell = self._cell(MATCHED_STRATEGY, fusion.selection, options)
                size = self._projector_size(cell)
            except WorkbenchError as error:
                self.trainer.display.say(f"no control of the same {budget} is trained: {error}")
                continue
            first, budgets = sizes.get(size, (cell, ()))
            sizes[size] = (first, (*budgets, budget))
        for cell, budgets in sizes.values():
            yield self._contender(cell, controls=budgets)

    def _without(self, fusion: Cell) -> Iterator[Contender]:
        """The fusion without each of its layers; without its query, its highest level becomes the query."""
        from fusion_workbench.modules.meta import on_meta

        for layer in fusion.selection.layers:
            remaining = [other for other in fusion.selection.layers if other != layer]
            selection = Selection(tuple(remaining[:-1]), remaining[-1])
            try:
                if selection.levels:
                    cell = self._cell(fusion.strategy, selection, dict(fusion.options), fusion.alias)
                    on_meta(self.parts.models.build, cell)
                else:
                    cell = self._cell("deep_only", selection, {})
            except Exception as error:  # a strategy of anybody is built
                self.trainer.display.say(f"{fusion.label} without layer {layer} cannot be trained: {error}")
                continue
            yield self._contender(self.cells.get(cell.id, cell), without=layer)

    def _cell(self, strategy: str, selection: Selection, options: Mapping[str, Any], alias: str = "") -> Cell:
        config = StrategyConfig(strategy, dict(options), selections=[SelectionConfig()], alias=alias)
        return next(self.parts.space.cells(config, selection))

    def _changed_options(self, cell: Cell) -> str:
        """Options that are not the strategy's defaults, as ``matched`` reads them."""
        from fusion_workbench.modules.fusion import canonical_options

        defaults = canonical_options(cell.strategy, {})
        changed = {key: value for key, value in cell.options if value != defaults[key]}
        return ", ".join(
            f"{key}={to_json(value) if not isinstance(value, str) else value}" for key, value in changed.items()
        )

    def _projector_size(self, cell: Cell) -> int:
        """Parameters of the cell's projector, built without memory."""
        from fusion_workbench.modules.cost import parameters
        from fusion_workbench.modules.fusion import build
        from fusion_workbench.modules.meta import on_meta

        encoder, training = self.parts.encoder, self.parts.study.training
        fuser = on_meta(build, cell.strategy, cell.selection, encoder.dim, dict(cell.options))
        return parameters(on_meta(fuser.projector, training.projector, self.parts.width, encoder.grid()))

    # --- learning rates ---------------------------------------------------------------------------------------------

    def _rates(self, cells: Sequence[Cell]) -> dict[str, float]:
        """As for all others: the same rates tried on the search replicate, for each cell or once a strategy."""
        search = self.parts.study.search
        grid = sorted(set(search.learning_rates))
        rates = {cell.id: self.rates[cell.id] for cell in cells if cell.id in self.rates}
        if search.scope == "strategy":
            families = {self.cells[cell].family: rate for cell, rate in self.rates.items() if cell in self.cells}
            rates |= {c.id: families[c.family] for c in cells if c.id not in rates and c.family in families}
        unsearched = [cell for cell in cells if cell.id not in rates]
        if len(grid) > 1:
            self.trainer.train(
                [Job(self.parts.variant(c, lr), SEARCH_REPLICATE) for c in unsearched for lr in grid],
                Phase.SEARCH,
            )
        return rates | {c.id: self.trainer.best_rate(c, grid)[0] if len(grid) > 1 else grid[0] for c in unsearched}


def _rate(contender: Contender) -> float:
    """The rate that it is trained at."""
    assert contender.cell.chosen_lr is not None
    return contender.cell.chosen_lr
