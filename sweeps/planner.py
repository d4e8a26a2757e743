"""The planner: Optuna decides which cells are tried next; it is given the values.

A space that fits the budget is enumerated whole; a larger one is sampled, the strategies taking turns so that each
gets the same number of trials. A cell that was tried before is answered from memory and never trained twice.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from fusion_workbench.config.study import SearchConfig, StrategyConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.core.stopping import uninterrupted
from fusion_workbench.sweeps.journal import open_journal
from fusion_workbench.sweeps.space import Cell, Space

_MAX_REPEATS = 20  # proposals of known cells in a row, after which a strategy's share of the space counts as seen


@dataclass(frozen=True)
class Proposal:
    """A cell that Optuna wants a value for."""

    trial: int | None  # of a sampled space: others are told to Optuna when they have their value
    cell: Cell


class Planner:
    """One Optuna study over a :class:`~sweeps.space.Space`, kept in a journal file.

    Args:
        space: what can be trained.
        search: sampler, budget and seed.
        journal: the file that Optuna's journal is kept in; None keeps it in memory.
        name: the study's name in Optuna.

    Attributes:
        told: a line about a journal that was set aside, for the user; empty where none was.

    Raises:
        WorkbenchError: the journal cannot be written, or an exhaustive search does not fit the budget.
    """

    @uninterrupted()  # so are ask and tell: Optuna's lock, taken from it half released, is an error of its own
    def __init__(self, space: Space, search: SearchConfig, journal: Path | None, name: str) -> None:
        logging.getLogger("optuna").setLevel(logging.WARNING)
        self.space = space
        self.search = search
        storage, self.told = open_journal(journal, name) if journal is not None else (None, "")
        self.exhaustive = _exhaustive(space, search)
        self.study = optuna.create_study(
            study_name=name, storage=storage, sampler=_sampler(search), direction="maximize", load_if_exists=True
        )
        self._cells: dict[str, Cell] = {cell.id: cell for cell in self._fixed_cells()}
        self._pending: dict[str, int | None] = {}  # cell id → running trial, where Optuna knows of it
        self._values: dict[str, float | None] = {}
        self._spent: dict[str, int] = {}  # strategy → trials of the sampled space
        self._exhausted: set[str] = set()
        for trial in self.study.get_trials(deepcopy=False):
            self._adopt(trial)

    # --- ask and tell -------------------------------------------------------------------------------------------

    @uninterrupted()
    def ask(self, most: int) -> list[Proposal]:
        """Up to ``most`` cells that still need a value, those of an interrupted run first; empty when all is done."""
        proposals = [Proposal(trial, self._cells[cell]) for cell, trial in self._pending.items()][:most]
        for cell in list(self._cells.values()):
            if len(proposals) >= most:
                return proposals
            if cell.id not in self._values and cell.id not in self._pending:
                proposals.append(self._ask_for(cell))
        while len(proposals) < most and not self.exhaustive:
            proposal = self._propose()
            if proposal is None:
                break
            proposals.append(proposal)
        return proposals

    @uninterrupted()
    def tell(self, cell: Cell, value: float | None) -> None:
        """The cell's validation objective; None when it could not be trained to the end."""
        if cell.id in self._values:
            return
        number = self._pending.pop(cell.id, None)
        if number is None and not self.exhaustive:
            number = self._enqueue(cell).trial
            self._pending.pop(cell.id)
        self._values[cell.id] = value
        if number is None:
            self._add(cell, value)
        elif value is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, value)

    def finalists(self) -> list[Cell]:
        """The cells that go on to the replicates: all that are fixed, and the best ``keep`` a strategy of a sample."""
        fixed = list(self._cells.values()) if self.exhaustive else list(self.space.listed)
        if self.exhaustive:
            return fixed
        chosen = {cell.id: cell for cell in fixed}
        for strategy in self.space.strategies:
            own = [c for c in self._cells.values() if self.space.has_cell(strategy, c)]
            scored = [(self._values[c.id], c) for c in own if self._values.get(c.id) is not None]
            scored.sort(key=lambda pair: (-(pair[0] or 0.0), pair[1].id))
            chosen.update({cell.id: cell for _, cell in scored[: self.search.keep]})
        return list(chosen.values())

    def scored_cells(self) -> list[tuple[Cell, float]]:
        """Every cell with a value, and that value: the first that Optuna got, so of the search where there was one."""
        values = ((cell, self._values.get(cell.id)) for cell in self._cells.values())
        return [(cell, value) for cell, value in values if value is not None]

    def known_cells(self) -> list[Cell]:
        """Every cell that is listed or was proposed."""
        return list(self._cells.values())

    def layers(self) -> list[int]:
        """Every layer that any cell of the study can read."""
        layers = {layer for cell in self._cells.values() for layer in cell.selection.layers}
        if not self.exhaustive:
            layers |= set(self.space.queries) | {c for q in self.space.queries for c in self.space.below(q)}
        return sorted(layers)

    def representatives(self) -> dict[str, Cell]:
        """One cell for each family (strategy, options, alias): the first that the study names, or of its space."""
        first: dict[str, Cell] = {}
        for cell in self._fixed_cells():
            first.setdefault(cell.family, cell)
        for strategy in self.space.strategies:
            for cell in self.space.first_cells(strategy):
                first.setdefault(cell.family, cell)
        return first

    # --- the sampled space --------------------------------------------------------------------------------------

    def _propose(self) -> Proposal | None:
        """One new cell from the sampler for the strategy that has had the fewest trials."""
        while True:
            open_ = [s for s in self.space.strategies if _key(s) not in self._exhausted and self._budget_left(s)]
            if not open_:
                return None
            strategy = min(open_, key=lambda s: self._spent.get(_key(s), 0))
            for _ in range(_MAX_REPEATS):
                self.study.enqueue_trial({"strategy": _key(strategy)})
                trial = self.study.ask()
                cell = self._suggest(trial, strategy)
                self._cells.setdefault(cell.id, cell)
                if cell.id in self._values:  # a duplicate is answered, not trained
                    value = self._values[cell.id]
                    if value is None:
                        self.study.tell(trial.number, state=TrialState.FAIL)
                    else:
                        self.study.tell(trial.number, value)
                elif cell.id in self._pending:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                else:
                    self._spent[_key(strategy)] = self._spent.get(_key(strategy), 0) + 1
                    self._pending[cell.id] = trial.number
                    return Proposal(trial.number, cell)
            self._exhausted.add(_key(strategy))

    def _budget_left(self, strategy: StrategyConfig) -> bool:
        spent = self._spent.get(_key(strategy), 0)
        return spent < min(self.search.budget, self.space.size(strategy))

    def _suggest(self, trial: Trial, strategy: StrategyConfig) -> Cell:
        params = {name: _suggest(trial, name, dist) for name, dist in self._distributions().items()}
        cell = self._decode(params)
        assert cell is not None
        assert cell.strategy == strategy.name
        return cell

    def _distributions(self) -> dict[str, BaseDistribution]:
        """Fixed distributions for the whole study: gaps between ascending levels, not sets (Optuna has none)."""
        space = self.space
        dists: dict[str, BaseDistribution] = {
            "strategy": CategoricalDistribution([_key(s) for s in space.strategies]),
            "query": CategoricalDistribution(list(space.queries)),
            "count": CategoricalDistribution(list(space.counts)),
        }
        for i in range(max(space.counts)):
            dists[f"gap_{i}"] = IntDistribution(1, max(1, len(space.candidates) - max(space.counts) + 1))
        for strategy in space.strategies:
            for name, values in strategy.choices.items():
                dists[f"{_key(strategy)}.{name}"] = CategoricalDistribution([_plain(v) for v in values])
        return dists

    def recall(self, cell: Cell, value: float | None) -> None:
        """Tell Optuna a value that it had before its journal was lost, as if it had proposed the cell again."""
        if cell.id in self._values:
            return
        own = next((s for s in self.space.strategies if self.space.has_cell(s, cell)), None)
        if self.exhaustive or own is None or cell.id in {c.id for c in self._fixed_cells()}:
            self.tell(cell, value)
            return
        self._cells.setdefault(cell.id, cell)
        self._pending.pop(cell.id, None)
        self._values[cell.id] = value
        self._spent[_key(own)] = self._spent.get(_key(own), 0) + 1
        distributions = self._distributions()
        params = self._encode(cell, own, distributions)
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        self.study.add_trial(create_trial(state=state, value=value, params=params, distributions=distributions))

    def _encode(
        self, cell: Cell, strategy: StrategyConfig, distributions: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters that :meth:`_decode` takes for the cell; of what the cell does not depend on, the first value."""
        params = {
            name: d.low if isinstance(d, IntDistribution) else d.choices[0]
            for name, d in distributions.items()
            if isinstance(d, IntDistribution | CategoricalDistribution)
        }
        params |= {"strategy": _key(strategy), "query": cell.selection.query}
        options = dict(cell.options)
        params |= {f"{_key(strategy)}.{name}": _plain(options[name]) for name in strategy.choices}
        candidates, levels = self.space.below(cell.selection.query), tuple(sorted(cell.selection.levels))
        if levels:
            params["count"] = next(c for c in self.space.counts if min(c, len(candidates)) == len(levels))
            gap = distributions["gap_0"]
            assert isinstance(gap, IntDistribution)
            steps = itertools.product(range(gap.low, gap.high + 1), repeat=len(levels))
            gaps = next(gaps for gaps in steps if _levels(candidates, gaps) == levels)
            params |= {f"gap_{i}": step for i, step in enumerate(gaps)}
        return params

    def _decode(self, params: Mapping[str, Any]) -> Cell | None:
        """The cell that Optuna parameters stand for; None when they are incomplete."""
        if "cell" in params:
            return self._cells.get(params["cell"])
        try:
            strategy = next(s for s in self.space.strategies if _key(s) == params["strategy"])
            candidates = self.space.below(params["query"])
            count = min(params["count"], len(candidates))
            levels = _levels(candidates, [params[f"gap_{i}"] for i in range(count)])
            values = {name: params[f"{_key(strategy)}.{name}"] for name in strategy.choices}
        except KeyError:
            return None
        selection = Selection(levels, params["query"])
        fixed = StrategyConfig(strategy.name, {**strategy.options, **values}, alias=strategy.alias)
        return next(self.space.cells(fixed, selection))

    # --- fixed cells --------------------------------------------------------------------------------------------

    def _fixed_cells(self) -> list[Cell]:
        cells = {cell.id: cell for cell in self.space.listed}
        if self.exhaustive:
            for strategy in self.space.strategies:
                for cell in self.space.enumerate(strategy):
                    cells.setdefault(cell.id, cell)
        return list(cells.values())

    def _ask_for(self, cell: Cell) -> Proposal:
        """This very cell. Optuna need not know before it has its value, unless a sampler looks at what is running."""
        if not self.exhaustive:
            return self._enqueue(cell)
        self._pending[cell.id] = None
        return Proposal(None, cell)

    def _add(self, cell: Cell, value: float | None) -> None:
        """A trial of this very cell that has ended. Nothing is sampled, so the cell is a constant among its params."""
        params, distributions = self._described(cell, [cell.id], [cell.strategy])
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        attributes = {"label": cell.label}
        self.study.add_trial(
            create_trial(state=state, value=value, params=params, distributions=distributions, user_attrs=attributes)
        )

    def _enqueue(self, cell: Cell) -> Proposal:
        """Ask Optuna for this very cell, in parameters that keep clear of the sampler's of the same names."""
        fixed = self._fixed_cells()
        params, distributions = self._described(cell, sorted(c.id for c in fixed), sorted({c.strategy for c in fixed}))
        params = {("cell" if k == "cell" else f"listed.{k}"): v for k, v in params.items()}
        distributions = {("cell" if k == "cell" else f"listed.{k}"): d for k, d in distributions.items()}
        self.study.enqueue_trial(params, user_attrs={"label": cell.label})
        trial = self.study.ask(distributions)
        self._pending[cell.id] = trial.number
        return Proposal(trial.number, cell)

    def _described(
        self, cell: Cell, cells: Sequence[str], strategies: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """A cell as parameters, its layers as booleans, so that Optuna can weigh their importance."""
        used = set(cell.selection.levels)
        params: dict[str, Any] = {"cell": cell.id, "strategy": cell.strategy, "query": cell.selection.query}
        params |= {f"layer_{layer}": layer in used for layer in range(self.space.depth + 1)}
        distributions: dict[str, BaseDistribution] = {
            "cell": CategoricalDistribution(list(cells)),
            "strategy": CategoricalDistribution(list(strategies)),
            "query": IntDistribution(0, self.space.depth),
        }
        distributions |= {
            f"layer_{layer}": CategoricalDistribution([False, True]) for layer in range(self.space.depth + 1)
        }
        return params, distributions

    def _adopt(self, trial: FrozenTrial) -> None:
        """Take up a trial of an earlier session: its value if it has one, its cell if it was interrupted."""
        cell = self._decode(trial.params)
        if cell is None:
            if trial.state in (TrialState.RUNNING, TrialState.WAITING):
                if trial.state == TrialState.WAITING:
                    self.study.ask()
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            return
        self._cells.setdefault(cell.id, cell)
        if "cell" not in trial.params and cell.id not in self._values and cell.id not in self._pending:
            strategy = trial.params["strategy"]
            self._spent[strategy] = self._spent.get(strategy, 0) + 1
        if trial.state == TrialState.COMPLETE:
            self._values[cell.id] = trial.value
        elif trial.state == TrialState.FAIL:
            self._values.setdefault(cell.id, None)
        elif cell.id in self._pending or cell.id in self._values:
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        else:
            self._pending[cell.id] = trial.number


def _levels(candidates: Sequence[int], gaps: Sequence[int]) -> tuple[int, ...]:
    """Ascending levels, each so many places above the last; what leads beyond the candidates takes a free one."""
    place, levels = -1, list[int]()
    for gap in gaps:
        place += gap
        free = [layer for layer in candidates if layer not in levels]
        levels.append(candidates[place] if place < len(candidates) else free[place % len(free)])
    return tuple(sorted(levels))


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high)
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def _exhaustive(space: Space, search: SearchConfig) -> bool:
    sizes = {_key(strategy): space.size(strategy) for strategy in space.strategies}
    fits = all(size <= search.budget for size in sizes.values())
    if search.sampler == "exhaustive" and not fits:
        worst = max(sizes, key=lambda name: sizes[name])
        raise WorkbenchError(
            f"search.sampler is exhaustive, and the space holds {sizes[worst]} cells for '{worst}' against a budget of "
            f"{search.budget}; raise search.budget, narrow the space, or use sampler tpe."
        )
    return fits if search.sampler in ("auto", "exhaustive") else not any(sizes.values())


def _sampler(search: SearchConfig) -> optuna.samplers.BaseSampler:
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=search.seed)
    # Options written out: their defaults have changed between major versions of Optuna. Grouping keeps the listed
    # cells, which have parameters of their own, from emptying the space that multivariate TPE models.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=search.seed, multivariate=True, group=True, constant_liar=True)


def _key(strategy: StrategyConfig) -> str:
    """What Optuna calls a strategy of the study: its name, and what else sets it apart from its namesakes."""
    options = ",".join(f"{name}={value}" for name, value in sorted(strategy.options.items()))
    return strategy.name + (f"({options})" if options else "") + (f"#{strategy.alias}" if strategy.alias else "")


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
