"""The visual language model: losses of answers alone, training by parts, answers in words, checkpoints."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from every_strategy import every_strategy
from quiet_trainer import trainer
from tiny_language import FAMILIES, LORA, WIDTH, tiny_decoder
from tiny_visual import DIM, GRID, LAYERS, Chat, Stateful, tiny_model
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.core.tokens import IGNORE
from fusion_workbench.modules.fusion import STRATEGIES
from fusion_workbench.modules.language import INJECTIONS, generation
from fusion_workbench.modules.language.connector import ConnectorConfig, build_connector, match_scale, seeded_connector
from fusion_workbench.modules.language.vlm import VisionLanguageModel
from fusion_workbench.modules.optim import Recipe

CHAT = Chat()


# --- connector --------------------------------------------------------------------------------------------------


def config(strategy: str = "mmfuser", **changes: Any) -> ConnectorConfig:
    selection = Selection((1, 2), 3)
    return ConnectorConfig(strategy, selection, dim=DIM, width=WIDTH, depth=3, **changes)


def hidden_states(layers: int, images: int, seed: int) -> Tensor:
    """As an encoder's: every layer of a scale of its own, a few channels far from the others."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.3 * 4.0**layer for layer in range(layers)]).view(-1, 1, 1, 1)
    mean = torch.zeros(DIM).index_fill(0, torch.tensor([3, 7]), 9.0)
    return scale * (mean + torch.randn(layers, images, 4, DIM, generator=draw))


STRATEGIES_TRIED = [
    *[(name, options) for name, options in every_strategy() if not options],
    ("mmfuser", {"gate_init": 1.0}),
    *[(name, {}) for name in sorted(INJECTIONS)],
]


@pytest.mark.parametrize(("strategy", "options"), STRATEGIES_TRIED)
@pytest.mark.parametrize("norm", [True, False])
def test_every_strategy_starts_at_the_scale_of_words(strategy: str, options: dict[str, Any], norm: bool) -> None:
    """On other images than it is measured on; what is injected too. As initialised they are far apart."""
    selection = config().selection if strategy in INJECTIONS or STRATEGIES[strategy].uses_levels else Selection((), 3)
    shape = replace(config(strategy, options=options, projector_norm=norm), selection=selection, grid=GRID)
    connector = seeded_connector(shape, 1).train()
    before = [p.clone() for p in connector.parameters()]
    match_scale(connector, hidden_states(len(connector.uses), 16, 0), GRID, 0.05)
    assert connector.training
    given = connector(hidden_states(len(connector.uses), 16, 1), GRID)
    for tokens in (given.tokens, *given.injected.values()):
        assert math.isclose(tokens.square().mean().sqrt().item(), 0.05, rel_tol=0.1)
    moved = [not torch.equal(a, b) for a, b in zip(before, connector.parameters(), strict=True)]
    assert sum(moved) == 2 * (1 + len(given.injected))  # weight and bias of the last map of each projector
    assert not any(module._forward_hooks for module in connector.modules())


@pytest.mark.parametrize("strategy", ["deep_only", "concat", "mmfuser"])
@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu"])
def test_a_connector_gives_tokens_as_wide_as_words(strategy: str, projector: str) -> None:
    connector = build_connector(config(strategy, projector=projector))
    given = connector(torch.randn(len(connector.uses), 8, 4, DIM), GRID)
    assert given.tokens.shape == (8, 4, WIDTH)
    assert not given.injected
    assert {name.split(".")[0] for name in connector.state_dict()} <= {"fuser", "projector"}
    parts = connector.parts()
    assert set(parts) == {"fuser", "gates", "projector"}
    assert sum(map(len, parts.values())) == len(list(connector.parameters()))
    assert bool(parts["gates"]) == (strategy == "mmfuser")


def test_a_connector_is_a_function_of_its_seed() -> None:
    state = torch.get_rng_state()
    one, same, other = (seeded_connector(config(), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(WorkbenchError, match=r"reads layers \[3\], and the features hold \[1, 2\]"):
        VisionLanguageModel(build_connector(config()), tiny_decoder(), GRID, layers=[1, 2])


# --- losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_answers_by_hand(family: str) -> None:
    """By transformers' own loss on the same embeddings, a token at a time."""
    model = tiny_model(family=family).eval()
    batch = CHAT.batch([("<image>what? ", "cat"), ("say a. ", "a"), ("<image><image>same? ", "no")])
    logits, spliced = model(batch)
    total, sums = 0.0, []
    for row, labels in enumerate(spliced.labels):
        wanted = [(s, int(labels[s + 1])) for s in range(len(labels) - 1) if labels[s + 1] != IGNORE]
        each = [float(-logits[row, s].log_softmax(-1)[token]) for s, token in wanted]
        sums.append(sum(each) / len(each))
        total += sum(each)
    assert [len(a) + 1 for a in ("cat", "a", "no")] == (spliced.labels != IGNORE).sum(1).tolist()
    assert model.loss_per_example(batch).tolist() == pytest.approx(sums, abs=1e-5)
    assert float(model.training_step(batch, 0)) == pytest.approx(total / (4 + 2 + 3), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["deep_only", "mmfuser"])
def test_company_does_not_move_a_loss(family: str, strategy: str) -> None:
    model = tiny_model(strategy, family=family).eval()
    turns = [("<image>what? ", "cat"), ("say a. ", "a"), ("<image> and <image>: same? ", "no"), ("<image>", "x")]
    together = model.loss_per_example(CHAT.batch(turns)).tolist()
    alone, seen = [], 0
    for turn in turns:
        alone += model.loss_per_example(CHAT.batch([turn], first_image=seen)).tolist()
        seen += turn[0].count("<image>")
    assert together == pytest.approx(alone, abs=1e-5)


def test_images_move_the_loss_of_their_row_alone() -> None:
    model = tiny_model().eval()
    turns = [("<image>what? ", "cat"), ("say a. ", "a"), ("<image>what? ", "dog")]
    batch = CHAT.batch(turns)
    other = batch | {"features": torch.cat([batch["features"][:, :1], batch["features"][:, 1:].flip(-1)], 1)}
    before, after = model.loss_per_example(batch), model.loss_per_example(other)
    assert torch.allclose(before[:2], after[:2], atol=1e-6)
    assert abs(float(before[2] - after[2])) > 1e-3


def test_text_alone_gives_every_parameter_a_gradient_of_zero() -> None:
    model = tiny_model("mmfuser")
    model.training_step(CHAT.batch([("say a. ", "a")]), 0).backward()
    for parameter in model.connector.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_batch_without_answers_is_no_nan() -> None:
    model = tiny_model()
    batch = CHAT.batch([("say a, b, c. ", "a")])
    loss = model.training_step(batch | {"labels": torch.full_like(batch["labels"], -100)}, 0)
    loss.backward()
    assert float(loss) == 0


def test_layers_are_picked_from_what_the_features_hold() -> None:
    batch = CHAT.batch([("<image>what? ", "cat")])
    connector = build_connector(config("concat"))
    narrow = VisionLanguageModel(connector, tiny_decoder(), GRID, layers=LAYERS)
    wide = VisionLanguageModel(connector, tiny_decoder(), GRID, layers=[3, 0, 2, 1])
    more = torch.stack([batch["features"][2], torch.full_like(batch["features"][0], 9.0), *batch["features"][[1, 0]]])
    assert torch.equal(narrow.loss_per_example(batch), wide.loss_per_example(batch | {"features": more}))


# --- answers -----------------------------------------------------------------------------------------------------

PROMPTS = [("<image>what is it? ", ""), ("say a. ", ""), ("<image> and <image>? ", ""), ("<image>", "")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_answers_as_its_rows_do_alone(family: str) -> None:
    model = tiny_model(family=family)
    together = model.generate(CHAT.prompts(PROMPTS), max_new_tokens=12)
    alone, seen = [], 0
    for prompt in PROMPTS:
        alone += model.generate(CHAT.prompts([prompt], first_image=seen), max_new_tokens=12)
        seen += prompt[0].count("<image>")
    assert together == alone
    assert len(set(together)) == len(together)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_what_teacher_forcing_would_say(family: str) -> None:
    model = tiny_model(family=family)
    prompt = CHAT.prompts(PROMPTS[:1])
    with torch.no_grad():
        spliced = model.spliced(prompt, "left")
        ids = generation.generate_ids(model.decoder, spliced, 10)
        prompt["input_ids"] = torch.cat([prompt["input_ids"], ids], 1)
        prompt["attention_mask"] = prompt["input_ids"] != 0
        logits, whole = model.eval()(prompt)
    first = int(spliced.attention_mask.sum()) - 1
    assert logits[0, first : first + ids.shape[1]].argmax(-1).tolist() == ids[0].tolist()
    assert whole.inputs_embeds.shape[1] == first + 1 + ids.shape[1]


def test_a_streamed_answer_is_the_answer() -> None:
    model = tiny_model()
    prompt = CHAT.prompts(PROMPTS[:1])
    pieces = list(model.stream(prompt, max_new_tokens=12))
    assert len(pieces) > 1
    assert "".join(pieces) == model.generate(prompt, max_new_tokens=12)[0]


def test_training_goes_on_in_training_mode_after_an_answer() -> None:
    model = tiny_model(family="gpt2")
    model.decoder.train_fully()
    model.train()
    model.generate(CHAT.prompts(PROMPTS[:1]), max_new_tokens=2)
    assert all(module.training for module in model.decoder.modules())


# --- fitting -----------------------------------------------------------------------------------------------------


def weights(model: VisionLanguageModel) -> dict[str, Tensor]:
    names = model.trained_names()
    return {name: value.clone() for name, value in model.state_dict().items() if name in names}


def fit_batches() -> Stateful:
    words = ["cat", "dog", "a", "no", "yes", "six", "two", "red"]
    turns = [("<image>what? ", word) if n % 3 else ("say it. ", word) for n, word in enumerate(words)]
    seen = [sum(turn[0].count("<image>") for turn in turns[:n]) for n in range(0, 8, 2)]
    return Stateful([CHAT.batch(turns[n : n + 2], first_image=seen[n // 2]) for n in range(0, 8, 2)])


@pytest.mark.parametrize("trains", ["frozen", "lora", "full"])
def test_training_moves_what_it_should(trains: str) -> None:
    model = tiny_model("mmfuser", recipe=Recipe.of(1e-2, warmup=0.03))
    train = {
        "frozen": model.decoder.freeze,
        "lora": lambda: model.decoder.add_lora(LORA),
        "full": model.decoder.train_fully,
    }
    train[trains]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(max_epochs=1).fit(model, fit_batches())
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert moved <= model.trained_names()
    assert any(name.startswith("decoder") for name in moved) == (trains != "frozen")
    assert any("gamma" in name for name in moved)


class StopAt(L.Callback):
    """Saves and ends in the middle of an epoch."""

    def __init__(self, step: int, path: str) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


@pytest.mark.parametrize("trains", ["frozen", "lora", "full"])
def test_a_run_that_was_cut_in_an_epoch_ends_with_the_same_weights(trains: str, tmp_path: Any) -> None:
    def fresh() -> VisionLanguageModel:
        model = tiny_model("mmfuser", family="gpt2", recipe=Recipe.of(1e-2, warmup=0.03))
        train = {
            "frozen": model.decoder.freeze,
            "lora": lambda: model.decoder.add_lora(LORA),
            "full": model.decoder.train_fully,
        }
        torch.manual_seed(5)  # LoRA's own start, and dropout
        train[trains]()
        return model

    path = str(tmp_path / "middle.ckpt")
    whole = fresh()
    trainer(max_epochs=2).fit(whole, fit_batches())
    cut = fresh()
    trainer(max_epochs=2, callbacks=[StopAt(2, path)]).fit(cut, fit_batches())
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint["state_dict"]) == cut.trained_names()
    again = fresh()
    trainer(max_epochs=2).fit(again, fit_batches(), ckpt_path=path, weights_only=True)
    assert not all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(cut).values(), strict=True))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Any) -> None:
    path = str(tmp_path / "deep.ckpt")
    trainer(max_epochs=1, callbacks=[StopAt(1, path)]).fit(tiny_model(), fit_batches())
    with pytest.raises(WorkbenchError, match=r"another model .* does not hold adapter\.fuser"):
        trainer(max_epochs=1).fit(tiny_model("mmfuser"), fit_batches(), ckpt_path=path)


def test_compiled_trains_alike() -> None:
    plain, compiled = tiny_model(), tiny_model()
    compiled.decoder.compile(backend="eager")
    for model in (plain, compiled):
        trainer(max_epochs=1).fit(model, fit_batches())
    for name, value in weights(plain).items():
        assert torch.allclose(value, weights(compiled)[name], atol=1e-6)


# --- injection -----------------------------------------------------------------------------------------------------


def injecting(decoder: Any, family: str = "llama") -> VisionLanguageModel:
    connector = seeded_connector(config("deepstack"), 1)
    return VisionLanguageModel(connector, decoder or tiny_decoder(family), GRID, layers=LAYERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_company_does_not_move_a_loss_where_layers_are_injected(family: str) -> None:
    model = injecting(None, family).eval()
    turns = [("<image>what? ", "cat"), ("say a. ", "a"), ("<image> and <image>: same? ", "no")]
    together = model.loss_per_example(CHAT.batch(turns)).tolist()
    alone = [float(model.loss_per_example(CHAT.batch([turn], first_image=n)).detach()) for n, turn in enumerate(turns)]
    assert together == pytest.approx([alone[0], alone[1], together[2]], abs=1e-5)
    assert model.generate(CHAT.prompts(turns), 6)[:2] == [
        model.generate(CHAT.prompts([turn], first_image=0), 6)[0] for turn in turns[:2]
    ]


def test_what_one_model_injects_does_not_reach_another_on_the_same_decoder() -> None:
    decoder = tiny_decoder()
    plain, other = tiny_model(decoder=decoder), injecting(decoder)
    batch = CHAT.batch([("<image>what? ", "cat"), ("<image>what? ", "dog")])
    before = plain.loss_per_example(batch)
    assert not torch.allclose(other.loss_per_example(batch), tiny_model("deep_only", seed=1).loss_per_example(batch))
    assert torch.equal(plain.loss_per_example(batch), before)
    trainer(max_epochs=1).fit(other, fit_batches())
    with torch.no_grad():
        embeds = torch.randn(3, 5, WIDTH)  # another batch size: an injector that still held something would say so
        mask, places = torch.ones(3, 5, dtype=torch.bool), torch.arange(5).expand(3, 5)
        found = decoder(embeds, mask, places)
        assert torch.equal(found, tiny_decoder()(embeds, mask, places))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_injected_gradients_under_checkpointing(checkpointing: bool) -> None:
    model = injecting(None)
    if checkpointing:
        model.decoder.checkpoint_gradients()
    model.train()
    model.training_step(CHAT.batch([("<image>what? ", "cat"), ("say a. ", "a")]), 0).backward()
    total = sum(float(p.grad.abs().sum()) for p in model.connector.parameters() if p.grad is not None)
    assert total == pytest.approx(float(_plain_total()), rel=1e-4)


@functools.cache
def _plain_total() -> float:
    model = injecting(None)
    model.training_step(CHAT.batch([("<image>what? ", "cat"), ("say a. ", "a")]), 0).backward()
    return sum(float(p.grad.abs().sum()) for p in model.connector.parameters() if p.grad is not None)
