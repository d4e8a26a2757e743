"""What a study is about to do, before it does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusion_workbench.config.history import defaults_before, newest, path_of, places
from fusion_workbench.config.study import to_dict

if TYPE_CHECKING:
    from rich.console import Console

    from fusion_workbench.config.language import StageConfig
    from fusion_workbench.config.study import StudyConfig
    from fusion_workbench.study.prepare import Parts
    from fusion_workbench.sweeps.space import Cell

_SAMPLE = 20_000  # conversations of a stage that a plan looks at: a minute at the most


def _unpinned(parts: Parts) -> str:
    """What to add to a study whose encoder may be another one tomorrow."""
    if parts.encoder.pinned or not parts.encoder.revision:
        return ""
    return f"\n             not pinned: add encoder.revision={parts.encoder.revision}"


def _steps(parts: Parts) -> str:
    """How long one training is, in words."""
    training = parts.study.training
    if parts.language is None:
        steps = training.epochs * (parts.source.size("train") // training.batch_size)
        return f"{steps} steps of {training.batch_size} images each"
    from fusion_workbench.study.language_parts import stage_steps

    language = parts.language
    stages = zip(language.config.stages, stage_steps(parts.study, language, sample=_SAMPLE), strict=True)
    return ", then ".join(
        f"{'' if _counted(parts, stage) else 'about '}{steps} steps of "
        f"{stage.accumulate * (stage.batch_size or training.batch_size)} conversations "
        f"({stage.name}, language model {stage.language_model})"
        for stage, steps in stages
    )


def _counted(parts: Parts, stage: StageConfig) -> bool:
    """Whether every conversation of a stage was looked at."""
    assert parts.language is not None
    lengths = parts.language.lengths(stage, sample=_SAMPLE)
    return lengths.seen == lengths.total


def _lengths(parts: Parts, cells: Sequence[Cell]) -> list[str]:
    """What is cut and left out for its length: a line for each stage, and one for each strategy that has less room."""
    language = parts.language
    assert language is not None
    from fusion_workbench.study.language_parts import stage_steps

    longer = {language.tokens_per_image(cell): cell for cell in cells}
    longer.pop(language.chat.tokens_per_image, None)
    lines = []
    for place, stage in enumerate(language.config.stages):
        lines.append((stage.name, language.lengths(stage, sample=_SAMPLE).words()))
        for tokens, cell in sorted(longer.items()):
            steps = stage_steps(parts.study, language, cell, _SAMPLE)[place]
            if words := language.lengths(stage, cell, _SAMPLE).words():
                lines.append((f"{stage.name}, {cell.strategy} of {tokens} tokens an image", f"{words}; {steps} steps"))
    return [f"  lengths    {name}: {words}" for name, words in lines if words]


def _begun(study: StudyConfig) -> str:
    """What an earlier version of the study file gave a study, where today's would give something else; or nothing."""
    plain = to_dict(study)
    kept = [
        f"{'.'.join(place)} {holder[place[-1]]}"
        for key, before in defaults_before(study.schema, language=study.language_model is not None).items()
        for place, holder in places(plain, path_of(key))
        if holder[place[-1]] == before
    ]
    if not kept:
        return ""
    return f"  begun      under schema {study.schema}, and keeps {', '.join(kept)}; schema={newest()} begins it anew\n"


def show_plan(console: Console, parts: Parts) -> None:
    """Print cells, trainings, steps and disk use. Raises WorkbenchError when the features would not fit on the disk."""
    from rich.text import Text

    from fusion_workbench.sweeps.planner import Planner

    study = parts.study
    planner = Planner(parts.space, study.search, None, "plan")
    per_strategy = Counter(cell.strategy for cell in planner.finalists())
    rates = sorted(set(study.search.learning_rates))
    searched = 0
    if len(rates) > 1:
        searched = len(rates) * (
            len(planner.representatives()) if study.search.scope == "strategy" else len(planner.finalists())
        )
    cells = ", ".join(f"{count} {name}" for name, count in per_strategy.items())
    console.print(Text.assemble((study.name, "bold"), f"  {study.question}"))
    more = "" if planner.exhaustive else f", and up to {study.search.budget} sampled for each strategy"
    console.print(
        f"{_begun(study)}"
        f"  cells      {sum(per_strategy.values())} ({cells}){more}\n"
        f"  training   {study.replicates} replicates + {searched} runs for the learning rate "
        f"({', '.join(f'{r:g}' for r in rates)}); "
        f"{_steps(parts)}\n"
        f"  encoder    {parts.encoder.name}, layers {planner.layers()}, {parts.encoder.precision}"
        f"{_unpinned(parts)}",
        highlight=False,
    )
    if parts.language is not None:
        millions = parts.language.parameters / 1e6
        console.print(f"  language   {parts.language.config.name}, {millions:,.0f} M parameters", highlight=False)
        for line in _lengths(parts, planner.finalists()):
            console.print(line, highlight=False, markup=False)
    if study.plan.confirm:
        many = " or ".join(map(str, study.plan.confirm))
        console.print(
            f"  judging    on {many} fresh replicates: winner, baselines, controls, the best fusion without each layer",
            highlight=False,
        )
    if parts.store is not None:
        plan = parts.store.plan(planner.layers())
        text = str(plan).removeprefix("feature store: ") if plan.images else f"all stored at {plan.where}"
        console.print(f"  features   {text}", highlight=False, markup=False)
