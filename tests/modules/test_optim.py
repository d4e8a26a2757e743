"""The training recipe: what decays, how the rate rises and falls, and that both trainers follow it step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from every_strategy import every_strategy
from quiet_trainer import trainer
from tiny_language import WIDTH
from tiny_visual import Chat, Stateful, tiny_model
from torch import Tensor, nn

from fusion_workbench.config.study import load_study
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.base import STRATEGIES
from fusion_workbench.modules.language.connector import ConnectorConfig, build_connector
from fusion_workbench.modules.language.injection import INJECTIONS
from fusion_workbench.modules.optim import MMFUSER_LLAVA, PARTS, Recipe, make_optimizer, parameter_groups
from fusion_workbench.modules.probes.bank import FusionBank, ProbeRunConfig
from fusion_workbench.modules.probes.probe import Probe, ProbeConfig
from fusion_workbench.modules.tasks import Digit, Read, Task
from fusion_workbench.study.language_parts import stage_recipe

LAYERS, DIM, GRID = (1, 2, 3), 16, (3, 4)
TASKS: list[Task] = [Read(5), Digit(4)]
SHARES = [(warmup, steps) for warmup in (0.0, 0.03, 0.05, 0.07, 0.5) for steps in (1, 7, 20, 33, 100)]


def recipe(**settings: Any) -> Recipe:
    return Recipe.of(1e-2, {"gates": 10.0}, **settings)


def probe_config(strategy: str, options: dict[str, Any]) -> ProbeConfig:
    levels = LAYERS[:-1] if STRATEGIES[strategy].uses_levels else ()
    return ProbeConfig(strategy, Selection(levels, LAYERS[-1]), DIM, options, "mlp2x_gelu", 12, 8, GRID)


def trained() -> Iterator[tuple[str, nn.Module]]:
    """Every strategy in a probe and under a language model, each with ``parts()``."""
    for name, options in every_strategy():
        yield f"probe-{name}{options or ''}", Probe(probe_config(name, options), TASKS)
        levels = LAYERS[:-1] if STRATEGIES[name].uses_levels else ()
        yield (
            f"language-{name}{options or ''}",
            build_connector(ConnectorConfig(name, Selection(levels, LAYERS[-1]), DIM, WIDTH, 3, options, grid=GRID)),
        )
    for name in sorted(INJECTIONS):
        yield f"language-{name}", build_connector(ConnectorConfig(name, Selection((1, 2), 3), DIM, WIDTH, 3, grid=GRID))


TRAINED = dict(trained())


# --- groups ------------------------------------------------------------------------------------------------------


def test_each_part_has_its_rate_and_vectors_never_decay() -> None:
    chosen = Recipe({"projector": 1, "fuser": 2, "gates": 3, "language": 4}, weight_decay=0.5)
    model = tiny_model("mmfuser", recipe=chosen)
    model.decoder.train_fully()
    groups = parameter_groups(model.parts(), model.recipe)
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert rates["fuser"] == (2, 0.5)
    assert rates["fuser/bare"] == (2, 0)
    assert rates["gates/bare"] == (3, 0)
    assert rates["projector"] == (1, 0.5)
    assert rates["language/bare"] == (4, 0)
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    assert all(p.ndim < 2 for group in groups if group["name"].endswith("/bare") for p in group["params"])


@pytest.mark.parametrize("module", TRAINED.values(), ids=TRAINED)
def test_norms_biases_and_gates_never_decay(module: Any) -> None:
    """Of every strategy, whoever trains it; all else decays, and each parameter is in one group."""
    groups = parameter_groups(module.parts(), recipe(weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay) == len(list(module.parameters()))
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
    spared = {id(p) for m in module.modules() if isinstance(m, norms) for p in m.parameters()}
    spared |= {id(p) for name, p in module.named_parameters() if name.rpartition(".")[2] == "bias"}
    spared |= {id(p) for p in module.parts()["gates"]}
    assert all(decay[key] == 0 for key in spared)
    weights = [p for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in [m.weight]]
    assert weights
    assert all(decay[id(p)] == 0.5 for p in weights)


def test_what_is_frozen_has_no_group() -> None:
    probe = Probe(probe_config("concat", {}), TASKS)
    probe.fuser.requires_grad_(False)
    probe.projector.requires_grad_(False)
    assert {group["name"].split("/")[0] for group in parameter_groups(probe.parts(), recipe())} == {"head"}


def test_a_rate_for_each_part_that_trains() -> None:
    assert set(Recipe.of(0.5).rates) == set(PARTS)
    assert Recipe.of(0.5, {"gates": 4.0}).rate("gates") == 2
    with pytest.raises(WorkbenchError, match="no learning rate for the part 'head'; the recipe has projector, fuser"):
        parameter_groups(Probe(probe_config("concat", {}), TASKS).parts(), MMFUSER_LLAVA)


# --- schedule ----------------------------------------------------------------------------------------------------


def of_llava(step: int, rising: int, steps: int) -> float:
    """The share of the peak rate in step ``step``, from 0, of a training by transformers' Trainer."""
    if step < rising:
        return step / rising
    return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


@pytest.mark.parametrize(("warmup", "steps"), SHARES)
def test_the_schedule_is_that_of_transformers_trainer(warmup: float, steps: int, tmp_path: Any) -> None:
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=warmup, report_to="none", use_cpu=True)
    rising = arguments.get_warmup_steps(steps)
    assert recipe(warmup=warmup).warmup_steps(steps) == rising
    optimizer, schedule = make_optimizer({"head": [nn.Parameter(torch.zeros(1))]}, recipe(warmup=warmup), steps)
    for step in range(steps):
        assert schedule.get_last_lr() == pytest.approx([1e-2 * of_llava(step, rising, steps)], abs=1e-15)
        optimizer.step()
        schedule.step()
    if rising < steps:
        assert schedule.get_last_lr() == pytest.approx([0], abs=1e-12)


# --- both trainers -----------------------------------------------------------------------------------------------


def _of_the_bank(chosen: Recipe, steps: int) -> list[dict[str, tuple[float, float]]]:
    """Rate and decay of the fuser's, gates' and projector's groups before every step of a bank."""
    probe_run = ProbeRunConfig("v", "v", probe_config("mmfuser", {"heads": 2}), chosen, 0, 0)
    bank = FusionBank([probe_run], TASKS, LAYERS, GRID)
    return _seen(bank, [_probe_batch() for _ in range(steps)])


def _of_the_language_model(chosen: Recipe, steps: int) -> list[dict[str, tuple[float, float]]]:
    batch = Chat().batch([("<image>what? ", "cat")])
    return _seen(tiny_model("mmfuser", recipe=chosen), [batch for _ in range(steps)])


def _probe_batch() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    corner = torch.rand(6, 2, 2, generator=draw) * 0.6
    return {
        "features": torch.randn(len(LAYERS), 6, 12, DIM, generator=draw),
        "index": torch.arange(6),
        "read.label": torch.randint(5, (6, 2), generator=draw),
        "read.box": torch.cat([corner, corner + 0.3], -1),
        "read.valid": torch.ones(6, 2, dtype=torch.bool),
        "digit.label": torch.randint(4, (6,), generator=draw),
    }


def _seen(model: Any, batches: list[Any]) -> list[dict[str, tuple[float, float]]]:
    import lightning as L

    class Watch(L.Callback):
        def __init__(self) -> None:
            self.rows: list[dict[str, tuple[float, float]]] = []

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            self.rows.append(
                {
                    group["name"]: (group["lr"], group["weight_decay"])
                    for group in trainer.optimizers[0].param_groups
                    if group["name"].split("/")[0] in ("fuser", "gates", "projector")
                }
            )

    watch = Watch()
    trainer(max_epochs=1, limit_val_batches=0, callbacks=[watch]).fit(model, Stateful(batches))
    return watch.rows


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3])
def test_both_trainers_follow_one_recipe_step_by_step(warmup: float) -> None:
    chosen = recipe(weight_decay=0.1, warmup=warmup)
    rows = _of_the_bank(chosen, 9)
    assert rows == _of_the_language_model(chosen, 9)
    shares = [of_llava(step, math.ceil(9 * warmup), 9) for step in range(9)]
    assert [row["fuser"] for row in rows] == [(pytest.approx(1e-2 * share), 0.1) for share in shares]
    assert [row["gates/bare"] for row in rows] == [(pytest.approx(1e-1 * share), 0.0) for share in shares]


# What MMFuser's trainer (llava/train/llava_trainer.py of yuecao0119/MMFuser) does with rates, in our words: whatever
# trains has the stage's --learning_rate, but for the fuser, gates and all, which is module 0 of its projector: it has
# --ms_cross_attn_lr where a script gives one (scripts/mmfuser/pretrain_13b.sh and scripts/v1_5/pretrain.sh do, and
# pretrain_7b.sh does not). Matrices have the script's weight decay, which is 0, norms and biases none; gates would
# decay there, by that same 0. One schedule is over all groups.
STAGES = {
    "align": {"projector": 1e-3, "fuser": 1e-4, "gates": 1e-4},
    "instruct": dict.fromkeys(("projector", "fuser", "gates", "language"), 2e-5),
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_rates_of_the_published_recipe(stage: str) -> None:
    """Of every parameter at every step of a stage of 70 steps; vectors do not decay where matrices would."""
    study = load_study("mmfuser_llava_7b")
    assert study.language_model is not None
    settings = {entry.name: entry for entry in study.language_model.stages}[stage]
    model = tiny_model("mmfuser")
    if settings.language_model == "full":
        model.decoder.train_fully()
    model.recipe = stage_recipe(study, settings, study.search.learning_rates[0])
    assert (model.recipe.gradient_clip, model.recipe.betas, model.recipe.eps) == (1.0, (0.9, 0.999), 1e-8)
    optimizer, schedule = make_optimizer(model.parts(), model.recipe, 70)
    names = {id(p): name for name, p in model.named_parameters()}
    of = {id(p): part for part, parameters in model.parts().items() for p in parameters}
    assert set(of) == {id(p) for p in model.parameters() if p.requires_grad}
    for step in range(70):
        seen = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert seen.keys() == of.keys()
        for key, rate in seen.items():
            assert rate == pytest.approx(STAGES[stage][of[key]] * of_llava(step, 3, 70), rel=1e-12), names[key]
        optimizer.step()
        schedule.step()
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)
    decaying = parameter_groups(model.parts(), replace(model.recipe, weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in decaying for p in group["params"]}
    assert {key for key, value in decay.items() if value} == {
        id(p) for p in model.parameters() if p.requires_grad and p.ndim > 1
    }
