"""Strategies that inject, inside the whole visual language model."""

from __future__ import annotations

import pytest
import torch
from tiny_language import FAMILIES, tiny_decoder
from tiny_visual import DIM, GRID, LAYERS, Chat, features_of
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.language import INJECTIONS
from fusion_workbench.modules.language.connector import ConnectorConfig, match_scale, seeded_connector
from fusion_workbench.modules.language.injection import Injection
from fusion_workbench.modules.language.vlm import VisionLanguageModel

TURNS = [("What is <image>?", "a cat"), ("And <image> or <image>?", "two"), ("No picture?", "none")]


def model_of(strategy: str, family: str = "llama") -> VisionLanguageModel:
    decoder = tiny_decoder(family)
    config = ConnectorConfig(strategy, Selection((1, 2), 3), dim=DIM, width=decoder.width, depth=decoder.depth)
    connector = seeded_connector(config, 0)
    match_scale(connector, torch.cat([features_of(n) for n in range(8)], 1), GRID, 0.3)
    return VisionLanguageModel(connector, decoder, GRID, layers=LAYERS)


def losses(model: VisionLanguageModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.loss_per_example(batch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", INJECTIONS)
def test_every_layer_moves_the_answers_of_its_image(strategy: str, family: str) -> None:
    model, batch = model_of(strategy, family).eval(), Chat().batch(TURNS)
    assert isinstance(model.connector, Injection)
    before = losses(model, batch)
    for row in range(len(LAYERS)):
        moved = batch["features"].clone()
        moved[row, 1:] += torch.randn_like(moved[row, 1:])  # both images of the second conversation
        change = (losses(model, {**batch, "features": moved}) - before).abs()
        assert change[1] > 1e-4
        assert change[0] == change[2] == 0


@pytest.mark.parametrize("strategy", INJECTIONS)
def test_a_conversation_alone_is_what_it_is_among_others(strategy: str) -> None:
    """Text-only and several images; longer neighbours fill it up."""
    model, chat = model_of(strategy).eval(), Chat()
    together = losses(model, chat.batch(TURNS))
    for row, first_image in enumerate((0, 1, 3)):
        alone = losses(model, chat.batch(TURNS[row : row + 1], first_image))
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", INJECTIONS)
def test_generated_words_are_those_of_teacher_forcing(strategy: str, family: str) -> None:
    """Left-padded and cached against right-padded and whole."""
    model, chat = model_of(strategy, family).eval(), Chat()
    asked = [question for question, _ in TURNS]
    answers = model.generate(chat.prompts([(question, "") for question in asked]), max_new_tokens=5)
    for row, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        batch = chat.batch([(question, answer)], (0, 1, 3)[row])
        with torch.no_grad():
            logits, spliced = model(batch)
        taught = spliced.labels[0, 1:] >= 0
        said, right = logits[0, :-1].argmax(-1)[taught], spliced.labels[0, 1:][taught]
        assert torch.equal(said[: len(answer)], right[: len(answer)])


@pytest.mark.parametrize("strategy", INJECTIONS)
def test_training_steps_teach_every_projector(strategy: str) -> None:
    model, batch = model_of(strategy).train(), Chat().batch(TURNS)
    optimizer = torch.optim.Adam(model.connector.parameters(), lr=0.01)
    start = {name: parameter.detach().clone() for name, parameter in model.connector.named_parameters()}
    history = []
    for step in range(8):
        loss = model.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < history[0]
    for name, parameter in model.connector.named_parameters():
        assert not torch.equal(parameter, start[name]), name


def test_the_projectors_start_at_the_scale_that_is_asked_for() -> None:
    for strategy in INJECTIONS:
        given = model_of(strategy).visual(torch.randn(len(LAYERS), 200, 4, DIM))
        for tokens in (given.tokens, *given.injected.values()):
            assert float(tokens.square().mean().sqrt().detach()) == pytest.approx(0.3, rel=0.1)


def test_too_shallow_a_language_model_is_refused() -> None:
    config = ConnectorConfig("deepstack", Selection((1, 2), 3), dim=DIM, width=8, depth=2)
    with pytest.raises(WorkbenchError, match="this language model has 2 blocks"):
        seeded_connector(config, 0)
