"""Fresh replicates: what validation picked is trained again, with its controls, before anything is claimed of it.

Contenders are the winner, the best fusion and the baselines, as the replicates' validation picks them; for the best
fusion also one layer with its parameters or its FLOPs (``matched``), and itself without each of its layers. They are
picked once, written down, and trained on replicates that had no part in the picking, as many as the plan's looks take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_workbench.config.study import SelectionConfig, StrategyConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.study.identity import variant
from fusion_workbench.study.jobs import CONFIRM, SEARCH, Job, JobTrainer, fresh
from fusion_workbench.study.plan_log import write_plan
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.record import describe
from fusion_workbench.study.tracking import to_json

if TYPE_CHECKING:
    from fusion_workbench.sweeps.space import Cell

_FACT = "contenders"  # in the ledger


@dataclass(frozen=True)
class Contender:
    """A cell to train again, and why; see :class:`reports.reading.records.Contender`."""

    cell: Cell
    lr: float
    roles: tuple[str, ...] = ()
    stands_for: tuple[tuple[str, str], ...] = ()
    controls: tuple[str, ...] = ()
    without: int | None = None

    def entry(self) -> dict[str, Any]:
        return describe(self.cell, self.lr) | {
            "roles": list(self.roles),
            "stands_for": [list(pair) for pair in self.stands_for],
            "controls": list(self.controls),
            "without": self.without,
        }


class Confirmer:
    """Picks the contenders of one study and trains them on fresh replicates.

    Args:
        parts: the prepared study.
        banks: trains and knows ledger, tracker and parent run.
        cells: the study's finalists.
        rates: their learning rates.
    """

    def __init__(self, parts: Parts, banks: JobTrainer, cells: Sequence[Cell], rates: Mapping[str, float]) -> None:
        self.parts = parts
        self.banks = banks
        self.cells = {cell.id: cell for cell in cells}
        self.rates = dict(rates)

    def run(self, looks: Sequence[int]) -> int:
        """Train up to the look that decides, or the last; how many variant-replicates did not finish."""
        contenders = self._contenders() if looks else []
        if not contenders:
            return 0
        study, ledger = self.parts.study, self.banks.ledger
        variants = [variant(study, c.cell, c.lr) for c in contenders]
        reached = 0
        for look in looks:
            jobs = [Job(v, fresh(r)) for r in range(reached, look) for v in variants]
            self.banks.train(jobs, CONFIRM)
            reached = look
            if look < looks[-1] and self._decided():
                self.banks.display.say(f"decided after {look} fresh replicates, as planned: no more are needed")
                break
        ledger.remember("confirmed", reached)
        write_plan(ledger, self.banks.tracker, self.banks.run_id)
        done = [ledger.find(v.id, fresh(r)) for r in range(reached) for v in variants]
        return sum(1 for entry in done if entry is None or not entry.finished)

    def _decided(self) -> bool:
        from fusion_workbench.reports import is_confirmed

        with self.banks.display.step("looking at the fresh replicates"):
            return is_confirmed(self.banks.tracker.uri, self.parts.study_id, self.parts.study.tracking.experiment)

    # --- who --------------------------------------------------------------------------------------------------------

    def _contenders(self) -> list[Contender]:
        """Those of the ledger, or, the first time, those that validation points to now."""
        ledger, tracker, run_id = self.banks.ledger, self.banks.tracker, self.banks.run_id
        known: list[dict[str, Any]] | None = ledger.fact(_FACT)
        contenders = [self._restored(entry) for entry in known] if known is not None else self._pick()
        entries = [contender.entry() for contender in contenders]
        if entries:  # of a study in which nothing has finished yet, they are picked when something has
            ledger.remember(_FACT, entries)
        tracker.log_files(run_id, {"contenders.json": to_json(entries)})
        return contenders

    def _restored(self, entry: Mapping[str, Any]) -> Contender:
        levels = tuple(entry["levels"] or ())
        cell = self._cell(entry["strategy"], Selection(levels, entry["query"]), entry["options"], entry["alias"])
        return Contender(
            replace(cell, baselines=tuple(entry["baselines"])),
            entry["chosen_lr"],
            tuple(entry["roles"]),
            tuple((measure, name) for measure, name in entry["stands_for"]),
            tuple(entry["controls"]),
            entry["without"],
        )

    def _pick(self) -> list[Contender]:
        from fusion_workbench.reports import find_picks

        with self.banks.display.step("picking on validation what is trained again"):
            found = find_picks(self.banks.tracker.uri, self.parts.study_id, self.parts.study.tracking.experiment)
        if found is None:
            return []
        roles: dict[str, list[str]] = {}
        stands_for: dict[str, list[tuple[str, str]]] = {}
        roles.setdefault(found.winner.id, []).append("winner")
        if found.fusion is not None:
            roles.setdefault(found.fusion.id, []).append("fusion")
        for key, cell in found.baselines.items():
            stands_for.setdefault(cell.id, []).append(key)
        chosen = [
            Contender(self.cells[cell], self.rates[cell], tuple(roles.get(cell, ())), tuple(stands_for.get(cell, ())))
            for cell in dict.fromkeys([*roles, *stands_for])
            if cell in self.cells
        ]
        if found.fusion is not None and found.fusion.id in self.cells:
            fusion = self.cells[found.fusion.id]
            extra = [*self._controls(fusion), *self._without(fusion)]
            rates = self._rates([c.cell for c in extra])
            merged = {c.cell.id: c for c in chosen}
            for contender in extra:  # one that is among the others already is trained once
                before = merged.get(contender.cell.id, replace(contender, lr=rates[contender.cell.id]))
                merged[contender.cell.id] = replace(
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
            self.banks.display.say(f"no control of the same size is trained: {fusion.label} injects into the decoder")
            return
        changed = self._changed_options(fusion)
        sizes: dict[int, Contender] = {}
        for budget in ("parameters", "flops"):
            options = {"like": fusion.strategy, "like_options": changed, "budget": budget}
            try:
                cell = self._cell("matched", fusion.selection, options)
                size = self._projector_size(cell)
            except WorkbenchError as error:
                self.banks.display.say(f"no control of the same {budget} is trained: {error}")
                continue
            before = sizes.get(size)
            controls = (*(before.controls if before else ()), budget)
            sizes[size] = Contender(before.cell if before else cell, 0.0, controls=controls)
        yield from sizes.values()

    def _without(self, fusion: Cell) -> Iterator[Contender]:
        """The fusion without each of its layers; without its query, its highest level asks."""
        from fusion_workbench.modules.meta import on_meta

        for layer in fusion.selection.layers:
            rest = [other for other in fusion.selection.layers if other != layer]
            selection = Selection(tuple(rest[:-1]), rest[-1])
            try:
                if selection.levels:
                    cell = self._cell(fusion.strategy, selection, dict(fusion.options), fusion.alias)
                    on_meta(self.parts.models.build, cell)
                else:
                    cell = self._cell("deep_only", selection, {})
            except WorkbenchError as error:
                self.banks.display.say(f"{fusion.label} without layer {layer} cannot be trained: {error}")
                continue
            yield Contender(self.cells.get(cell.id, cell), 0.0, without=layer)

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
        found = {cell.id: self.rates[cell.id] for cell in cells if cell.id in self.rates}
        if search.scope == "strategy":
            families = {self.cells[cell].family: rate for cell, rate in self.rates.items() if cell in self.cells}
            found |= {c.id: families[c.family] for c in cells if c.id not in found and c.family in families}
        rest = [cell for cell in cells if cell.id not in found]
        if len(grid) > 1:
            self.banks.train([Job(variant(self.parts.study, c, lr), SEARCH) for c in rest for lr in grid], SEARCH)
        return found | {c.id: self.banks.best_rate(c, grid)[0] if len(grid) > 1 else grid[0] for c in rest}
