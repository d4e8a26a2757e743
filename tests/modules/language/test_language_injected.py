"""Strategies that inject, inside the whole visual language model."""

from __future__ import annotations

import pytest
import torch
from tiny_language import FAMILIES, WIDTH, tiny_decoder, tiny_tokenizer
from tiny_visual import DIM, GRID, LAYERS, Chat, features_of
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.language import INJECTIONS
from fusion_workbench.modules.language.connector import ConnectorConfig, match_scale, seeded_connector
from fusion_workbench.modules.language.decoder import Decoder
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


def test_deepstack_adds_what_qwen3_vl_adds_where_it_does() -> None:
    """Bit for bit, by transformers' own Qwen3-VL on the same weights, tokens and words; and nowhere else."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3VLTextConfig, Qwen3VLTextModel

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": WIDTH // 4,
        "initializer_range": 0.3,
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    sections = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}  # of words and one image alike, so plain RoPE
    theirs = Qwen3VLTextModel(Qwen3VLTextConfig(**shape, rope_parameters=rope | sections)).eval()
    plain = Qwen3ForCausalLM(Qwen3Config(**shape, rope_parameters=rope))
    plain.model.load_state_dict(theirs.state_dict())
    decoder = Decoder(plain, tokenizer)
    connector = ConnectorConfig("deepstack", Selection((1, 2), 3), dim=DIM, width=WIDTH, depth=5)
    model = VisionLanguageModel(seeded_connector(connector, 0), decoder, GRID, layers=LAYERS).eval()
    batch = Chat().batch(TURNS)
    with torch.no_grad():
        logits, spliced = model(batch)
        given = model.visual(batch["features"])

        def qwen(shift: int) -> Tensor:
            """With the additions ``shift`` blocks later than Qwen3-VL has them."""
            none = torch.zeros_like(spliced.pack(given.tokens))
            states = theirs(
                inputs_embeds=spliced.inputs_embeds,
                attention_mask=spliced.attention_mask.long(),
                position_ids=spliced.position_ids.expand(3, -1, -1),
                visual_pos_masks=spliced.visual,
                deepstack_visual_embeds=[none] * shift + [spliced.pack(added) for added in given.injected.values()],
                use_cache=False,
            ).last_hidden_state
            return plain.lm_head(states)

        seen = spliced.attention_mask
        assert torch.equal(logits[seen], qwen(0)[seen])
        assert (logits[seen] - qwen(1)[seen]).abs().max() > 0.1


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
