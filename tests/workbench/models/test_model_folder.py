"""A whole model goes into a folder and comes back the same, or is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from tiny_models import build_model, picture, save_language
from torch import nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.transforms import load_image, squared
from fusion_workbench.models.files import CARD, CONFIG
from fusion_workbench.models.folder import CONNECTOR, read_model_config, save_model, what_to_save
from fusion_workbench.models.loaded import LoadedModel, load_model
from fusion_workbench.modules.language.vlm import VisionLanguageModel

QUESTION = "what is it?"


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def saved(tiny_clip: Path, language: Path, tmp_path: Path) -> Path:
    model, encoder, described = build_model(tiny_clip, language)
    save_model(model, tmp_path / "model", encoder, described)
    return tmp_path / "model"


def assert_same(one: VisionLanguageModel, other: VisionLanguageModel) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    ("strategy", "levels", "settings"),
    [
        ("deep_only", (), {"projector_norm": False}),
        ("concat", (0, 1), {}),
        ("mmfuser", (0, 1), {"options": {"heads": 2}}),
        ("deepstack", (0, 1), {"projector_norm": False}),
        ("average", (1,), {"projector": "linear", "output_rms": 0.5}),
    ],
)
def test_what_is_saved_loads_the_same(
    strategy: str, levels: tuple[int, ...], settings: dict[str, Any], tiny_clip: Path, language: Path, tmp_path: Path
) -> None:
    model, encoder, described = build_model(tiny_clip, language, strategy, levels, **settings)
    folder = tmp_path / "model"
    save_model(model, folder, encoder, described)
    assert not list(folder.glob("language_model*"))  # it was frozen: its name is enough
    loaded = load_model(folder, "cpu")
    assert_same(model, loaded.model)
    image = picture(tmp_path)
    wanted = LoadedModel(model, encoder, read_model_config(folder)).log_likelihood([image], QUESTION, "yes")
    assert loaded.log_likelihood([image], QUESTION, "yes") == wanted
    assert loaded.log_likelihood([picture(tmp_path, "b.png", 1)], QUESTION, "yes")[0] != wanted[0]
    save_model(model, folder, encoder, described)  # once more over itself
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "model"]
    assert (folder / CONNECTOR).stat().st_mode & 0o777 == 0o644
    assert strategy in (folder / CARD).read_text()


def test_lora_is_kept_as_peft_does(tiny_clip: Path, language: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from fusion_workbench.modules.language.decoder import LoraOptions

    model, encoder, described = build_model(tiny_clip, language)
    model.decoder.add_lora(LoraOptions(rank=3, alpha=6, dropout=0.0, targets=("q_proj", "down_proj")))
    for parameter in model.decoder.lora_parameters():
        nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "model"
    save_model(model, folder, encoder, replaced(described, kept="lora"))
    loaded = load_model(folder, "cpu")
    assert loaded.model.decoder.trains == "lora"
    assert_same(model, loaded.model)
    written = safetensors.torch.load_file(folder / "language_model" / "adapter_model.safetensors")
    held = {name: value for name, value in model.decoder.model.state_dict().items() if ".lora_" in name}
    assert written.keys() == {
        f"base_model.model.{name.replace('.default.', '.')}" for name in held
    }  # as 0.1 wrote them
    for name, value in held.items():
        assert torch.equal(written[f"base_model.model.{name.replace('.default.', '.')}"], value)

    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(language), folder / "language_model")
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        ours = model.decoder(model.decoder.embed(ids), torch.ones(1, 3, dtype=torch.bool), torch.arange(3)[None])
        torch.testing.assert_close(theirs.eval()(ids).logits, ours, rtol=1e-5, atol=1e-5)

    (folder / "language_model" / "adapter_model.safetensors").unlink()
    with pytest.raises(WorkbenchError, match=r"adapter_model\.safetensors cannot be read"):
        load_model(folder, "cpu")


def test_a_taught_language_model_is_kept_whole(tiny_clip: Path, language: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(language, tmp_path / "mine"))
    model, encoder, described = build_model(tiny_clip, mine)
    for parameter in model.decoder.model.parameters():
        parameter.data += 0.1
    save_model(model, tmp_path / "model", encoder, replaced(described, kept="own"))
    shutil.rmtree(mine)
    assert_same(model, load_model(tmp_path / "model", "cpu").model)


def test_an_encoder_of_its_own_goes_along(tiny_clip: Path, language: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(tiny_clip, tmp_path / "mine"))
    model, encoder, described = build_model(mine, language)
    save_model(model, tmp_path / "model", encoder, replaced(described, own_encoder=True))
    shutil.rmtree(mine)
    moved = Path(shutil.move(tmp_path / "model", tmp_path / "moved"))
    assert_same(model, load_model(moved, "cpu").model)


def replaced(described: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(described, **changes)


def test_another_encoder_or_language_model_is_refused(
    saved: Path, tiny_clip: Path, tiny_dinov2: Path, language: Path, tmp_path: Path
) -> None:
    with pytest.raises(WorkbenchError, match="trained on another"):
        load_model(saved, "cpu", encoder=str(tiny_dinov2))
    with pytest.raises(WorkbenchError, match="trained with another"):
        load_model(saved, "cpu", language=str(save_language(tmp_path / "other", seed=1)))
    with pytest.raises(WorkbenchError, match=r"could not be loaded"):
        load_model(saved, "cpu", language=str(tmp_path / "none"))
    moved = {"encoder": str(shutil.copytree(tiny_clip, tmp_path / "clip"))}
    moved["language"] = str(shutil.copytree(language, tmp_path / "llama"))
    load_model(saved, "cpu", **moved)
    config = json.loads((saved / CONFIG).read_text())
    config["encoder"]["encoder"] = str(tmp_path / "gone")
    (saved / CONFIG).write_text(json.dumps(config))
    with pytest.raises(WorkbenchError, match="which is not here"):
        load_model(saved, "cpu")


def test_damage_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="there is no folder"):
        load_model(tmp_path / "none")
    whole = (saved / CONNECTOR).read_bytes()
    (saved / CONNECTOR).write_bytes(whole[:-8])
    with pytest.raises(WorkbenchError, match="cannot be read as safetensors"):
        load_model(saved, "cpu")
    weights = safetensors.torch.load(whole)
    for change, says in (
        ({"more": torch.ones(1)}, "holds more"),
        ({"projector.map.0.bias": torch.ones(3)}, r"shape \[3\]"),
    ):
        safetensors.torch.save_file(weights | change, saved / CONNECTOR)
        with pytest.raises(WorkbenchError, match=says):
            load_model(saved, "cpu")
    config = json.loads((saved / CONFIG).read_text())
    for change, says in (
        ({"schema": 99}, "schema 99"),
        ({"kind": "something"}, "is no model folder"),
    ):
        (saved / CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(WorkbenchError, match=says) as error:
            load_model(saved, "cpu")
        assert "\n" not in str(error.value)
    (saved / CONFIG).write_text("{")
    with pytest.raises(WorkbenchError, match="cannot be read"):
        load_model(saved, "cpu")


def test_the_crop_of_an_old_folder_is_what_it_was_trained_with(saved: Path, tmp_path: Path) -> None:
    path = picture(tmp_path, size=(45, 91))
    config = json.loads((saved / CONFIG).read_text())
    del config["sha256"]  # as in folders of before 0.2

    def read(schema: int, padding: str, **origin: str) -> np.ndarray[Any, Any]:
        images = config["images"] | {"padding": padding}
        (saved / CONFIG).write_text(json.dumps(config | {"schema": schema, "images": images, "origin": origin}))
        return load_model(saved, "cpu")._load_image(path)

    clip, before = (squared(load_image(path), 56, padding, []) for padding in ("crop", "crop_then_resize"))
    assert not np.array_equal(clip, before)
    assert np.array_equal(read(2, "crop", study="tiny"), clip)
    assert np.array_equal(read(1, "crop", study="tiny"), before)
    assert np.array_equal(read(1, "crop", **{"converted from": "stock LLaVA x"}), clip)  # which was never trained here
    assert np.array_equal(read(2, "crop_then_resize", study="tiny"), before)
    with pytest.raises(WorkbenchError, match=r"images\.padding is 'corp'\. Did you mean 'crop'"):
        read(2, "corp")


def test_a_folder_of_something_else_is_not_replaced(tiny_clip: Path, language: Path, tmp_path: Path) -> None:
    model, encoder, described = build_model(tiny_clip, language)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(WorkbenchError, match="is no model folder, so it is not replaced"):
        save_model(model, tmp_path / "mine", encoder, described)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_answers_do_not_depend_on_who_is_asked_beside(saved: Path, tmp_path: Path) -> None:
    loaded = load_model(saved, "cpu")
    one, two = picture(tmp_path, "a.png"), picture(tmp_path, "b.png", 1)
    images = [[one], [], [one, two], [two], [np.asarray(Image.open(one))], [Image.open(one)]]
    questions = [QUESTION, "say a longer thing about nothing", "<image> or <image>?", QUESTION, QUESTION, QUESTION]
    together = loaded.answer(images, questions, 12, batch_size=4)
    assert together == [loaded.answer([i], [q], 12)[0] for i, q in zip(images, questions, strict=True)]
    assert together[0] == together[4] == together[5]
    assert len(set(together)) > 2
    assert "".join(loaded.stream(images[2], questions[2], 12)) == together[2]
    assert "".join(loaded.stream([], questions[1], 12)) == together[1]


def test_likelihoods(saved: Path, tmp_path: Path) -> None:
    loaded, image = load_model(saved, "cpu"), picture(tmp_path)
    said = loaded.answer([[image]], [QUESTION], 5)[0]
    best, greedy = loaded.log_likelihood([image], QUESTION, said)
    other, wrong = loaded.log_likelihood([image], QUESTION, said[:-1] + ("Z" if said[-1] != "Z" else "Y"))
    assert best > other
    assert not wrong
    assert greedy
    # one token: against the distribution after the prompt
    logits = loaded.model(loaded._batch([loaded._prompt([image], QUESTION)]))[0][0, -1].log_softmax(-1)
    token = loaded.chat.encode(loaded._conversation([image], QUESTION, "k")).input_ids[-2]
    assert loaded.log_likelihood([image], QUESTION, "k")[0] == pytest.approx(logits[token].item(), abs=1e-5)


def test_likelihoods_do_not_depend_on_who_is_asked_beside(saved: Path, tmp_path: Path) -> None:
    loaded = load_model(saved, "cpu")
    one, two = picture(tmp_path, "a.png"), picture(tmp_path, "b.png", 1)
    said = loaded.answer([[one]], [QUESTION], 5)[0]
    images = [[one], [], [one, two], [two], [one]]
    questions = [QUESTION, "a longer thing about nothing", "<image> or <image>?", QUESTION, QUESTION]
    answers = [said, "k", "yes and no", "k", "no"]
    alone = [loaded.log_likelihood(*asked) for asked in zip(images, questions, answers, strict=True)]
    for size in (2, 3, 5):
        together = loaded.log_likelihoods(images, questions, answers, size)
        assert [likelihood for likelihood, _ in together] == pytest.approx([value for value, _ in alone], abs=1e-4)
        assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]
    assert alone[0][1]
    assert len({value for value, _ in alone}) == 5


def test_what_cannot_be_asked(saved: Path, tmp_path: Path) -> None:
    loaded, image = load_model(saved, "cpu"), picture(tmp_path)
    (tmp_path / "torn.png").write_bytes(image.read_bytes()[:200])
    for images, question, says in (
        ([image], "  ", "question is empty"),
        ([image], "<image>", "question is empty"),
        ([image], "<image> <image>?", "1 images and 2 <image> words"),
        ([tmp_path / "none.png"], QUESTION, "does not exist"),
        ([tmp_path / "torn.png"], QUESTION, "cut off"),
        ([np.zeros((4, 4), np.uint8)], QUESTION, "uint8"),
    ):
        with pytest.raises(WorkbenchError, match=says) as error:
            loaded.answer([images], [question])
        assert "\n" not in str(error.value)
    with pytest.raises(WorkbenchError, match="continuation"):
        loaded.log_likelihood([image], QUESTION, " ")


@pytest.mark.parametrize(
    ("stages", "kept"),
    [
        (["frozen"], "named"),
        ([], "named"),
        (["frozen", "lora"], "lora"),
        (["lora", "lora"], "lora"),
        (["lora", "frozen"], "own"),
        (["lora", "frozen", "lora"], "own"),
        (["frozen", "full"], "own"),
        (["full", "frozen"], "own"),
    ],
)
def test_what_is_kept_of_a_language_model(stages: list[str], kept: str) -> None:
    assert what_to_save(stages) == kept
