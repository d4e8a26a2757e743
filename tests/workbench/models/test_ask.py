"""The commands about whole models: what they print, write and refuse."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import build_model, picture, save_language
from typer.testing import CliRunner, Result

from fusion_workbench.cli.main import app
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.connector_files import read_connector_file
from fusion_workbench.models.folder import save_model
from fusion_workbench.models.loaded import load_model

QUESTION = "what is it?"


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(tiny_clip: Path, language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built, encoder, described = build_model(tiny_clip, language, projector_norm=False)
    folder = tmp_path_factory.mktemp("models") / "deep"
    save_model(built, folder, encoder, described)
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(says: str, *words: object) -> None:
    """The command ends with one line, which the console script prints with status 2."""
    result = run(*words)
    assert isinstance(result.exception, WorkbenchError), result.output
    message = str(result.exception)
    assert says in message
    assert "\n" not in message
    assert not result.stdout


# --- ask ----------------------------------------------------------------------------------------------------------


def test_ask_prints_the_answer_and_nothing_else(model: Path, tmp_path: Path) -> None:
    one, two = picture(tmp_path), picture(tmp_path, "b.png", 1)
    loaded = load_model(model, "cpu")
    for images, question in (([one], QUESTION), ([], "hello?"), ([one, two], "<image> or <image>?")):
        wanted = loaded.answer([images], [question], 8)[0]
        shown = [word for image in images for word in ("--image", image)]
        result = run("ask", "--model", model, *shown, "--max-new-tokens", 8, question)
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{wanted}\n"


def test_ask_refuses_in_one_line(model: Path, tmp_path: Path) -> None:
    image = picture(tmp_path)
    (tmp_path / "words.png").write_text("no image")
    refused("question is empty", "ask", "--model", model, "--image", image, "  ")
    refused("none.png does not exist", "ask", "--model", model, "--image", tmp_path / "none.png", QUESTION)
    refused("words.png is not an image", "ask", "--model", model, "--image", tmp_path / "words.png", QUESTION)
    refused("1 images and 2 <image> words", "ask", "--model", model, "--image", image, "<image><image>?")
    refused("there is no such folder", "ask", "--model", "nowhere", "--workspace", tmp_path, QUESTION)
    refused("is no model folder", "ask", "--model", tmp_path, QUESTION)


def test_an_answer_does_not_steer_the_terminal(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_workbench.cli.models import ask
    from fusion_workbench.models.loaded import LoadedModel

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said = "caf\u00e9\n\x1b[2Jx\u202ey"
    monkeypatch.setattr(LoadedModel, "stream", lambda *_: iter([said]))
    assert run("ask", "--model", model, QUESTION).stdout == f"{said}\n"  # a pipe is given every character
    monkeypatch.setattr("sys.stdout", Terminal())
    ask(QUESTION, str(model))
    assert sys.stdout.getvalue() == "caf\u00e9\n\ufffd[2Jx\ufffdy\n"  # type: ignore[attr-defined]


def test_a_model_is_found_by_its_run(model: Path, mlflow_uri: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_experiment_by_name("fusion-workbench")
    assert experiment is not None
    runs = {}
    for name in ("model", "probe"):
        tags = {"workbench.phase": "final", "workbench.study_id": "0" * 16, "workbench.cell": "x"}
        runs[name] = client.create_run(experiment.experiment_id, tags=tags).info.run_id
        client.set_terminated(runs[name], "FINISHED")
    client.log_artifacts(runs["model"], str(model), "model")
    words = ("--uri", mlflow_uri, "--max-new-tokens", 4, QUESTION)
    by_run, by_folder = run("ask", "--model", runs["model"], *words), run("ask", "--model", model, *words)
    assert by_run.exit_code == 0, by_run.output
    assert by_run.stdout == by_folder.stdout
    refused("keeps no model", "ask", "--model", runs["probe"], *words)
    refused("has no run", "ask", "--model", "f" * 32, *words)
    refused("no-such-study", "ask", "--model", "no-such-study", *words)


# --- predict ------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> tuple[Path, Path, list[dict[str, Any]]]:
    """A file of questions of every kind, its image folder, and what its answers should hold beside predictions."""
    folder = tmp_path / "images"
    folder.mkdir()
    picture(folder, "a.png")
    picture(folder, "b.png", 1)
    rows: list[dict[str, Any]] = [
        {
            "id": "r1",
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nis it?"}, {"from": "gpt", "value": "Yes"}],
        },
        {"question_id": 7, "image": "b.png", "text": "what is there?"},
        {"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image> or <image>?"}]},
        {"id": "t", "question": "no image?", "answers": ["No", "no"]},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = [
        {"id": "r1", "question": "<image>\nis it?", "answers": ["Yes"]},
        {"id": "7", "question": "<image>\nwhat is there?"},
        {"id": "3", "question": "<image> or <image>?"},
        {"id": "t", "question": "no image?", "answers": ["No", "no"]},
    ]
    return file, folder, kept


def test_predict_answers_every_row_in_its_order(
    model: Path, asked: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    file, folder, kept = asked
    out = tmp_path / "deeper" / "answers.jsonl"
    words = ("predict", file, "--model", model, "--images", folder, "--out", out, "--max-new-tokens", 6)
    result = run(*words, "--batch-size", 3)
    assert result.exit_code == 0, result.output
    assert "4 answers" in result.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    loaded = load_model(model, "cpu")
    images = [["a.png"], ["b.png"], ["a.png", "b.png"], []]
    said = loaded.answer([[folder / name for name in own] for own in images], [row["question"] for row in kept], 6)
    assert rows == [row | {"prediction": words} for row, words in zip(kept, said, strict=True)]
    assert sorted(path.name for path in out.parent.iterdir()) == ["answers.jsonl"]

    refused("is there already", *words)
    again = run(*words, "--overwrite")
    assert again.exit_code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows


def test_predict_goes_on_where_it_was_cut_off(
    model: Path, asked: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusion_workbench.models.loaded import LoadedModel

    file, folder, _ = asked
    out, whole = tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    words = ("predict", file, "--model", model, "--images", folder, "--max-new-tokens", 6, "--batch-size", 1)
    run(*words, "--out", whole)
    real, calls = LoadedModel.answer, []

    def cut_off(self: LoadedModel, *args: Any) -> list[str]:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(LoadedModel, "answer", cut_off)
    run(*words, "--out", out)
    assert not out.exists()
    part = tmp_path / "answers.jsonl.part"
    part.write_text(part.read_text() + '{"number": 3, "predic')  # torn
    result = run(*words, "--out", out)
    assert result.exit_code == 0, result.output
    assert "2 of them from before" in result.stdout
    assert len(calls) == 5
    assert out.read_text() == whole.read_text()
    assert not part.exists()

    run(*words, "--out", whole, "--overwrite")
    part.write_text('{"identity": "another"}\n')
    out.unlink()
    refused("of another model, question file or setting", *words, "--out", out)


def test_predict_loses_nothing(model: Path, asked: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    file, folder, _ = asked
    words = ("predict", file, "--model", model, "--images", folder, "--max-new-tokens", 2, "--overwrite")
    before = file.read_bytes()
    refused("is the file of questions itself", *words, "--out", file)
    assert file.read_bytes() == before
    refused("is a folder", *words, "--out", folder)
    part = tmp_path / "answers.jsonl.part"
    for foreign in ("my notes\n", "[]\n", '{"identity": "another"}'):
        part.write_text(foreign)
        refused("of another model, question file or setting", *words, "--out", tmp_path / "answers.jsonl")
        assert part.read_text() == foreign


def test_an_answer_that_lacks_its_line_end_is_asked_again(tmp_path: Path) -> None:
    from fusion_workbench.models.predict import _kept

    part = tmp_path / "part"
    head, one = '{"identity": "x"}\n', '{"number": 0, "prediction": "a"}\n'
    for torn in ("", '{"number": 1, "prediction": "b"}', '{"num', "7\n"):
        part.write_text(head + one + torn)
        assert _kept(part, "x") == {0: "a"}
        assert part.read_text() == head + one
    for cut in range(len(head)):
        part.write_text(head[:cut])
        assert _kept(part, "x") == {}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"image": "none.png", "question": "?"}, ":2: missing image"),
        ({"image": "../questions.jsonl", "question": "?"}, ":2: image path"),
        ({"image": "torn.png", "question": "?"}, ":2: undecodable image"),
        ({"image": "a.png", "question": "<image> <image>"}, ":2: images and <image> differ"),
        ({"conversations": []}, ":2: no conversations"),
        ([1], ":2: not an object"),
    ],
)
def test_predict_names_the_row_that_cannot_be_asked(
    row: object, says: str, model: Path, asked: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    _, folder, _ = asked
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:100])
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps({"question": "fine?"}) + "\n" + json.dumps(row) + "\n")
    out = tmp_path / "answers.jsonl"
    refused(f"{file}{says}", "predict", file, "--model", model, "--images", folder, "--out", out)
    assert not list(tmp_path.glob("answers*"))


def test_predict_without_what_it_needs(
    model: Path, asked: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    file, _, _ = asked
    out = tmp_path / "answers.jsonl"
    refused("--images", "predict", file, "--model", model, "--out", out)
    refused("none.json cannot be read", "predict", tmp_path / "none.json", "--model", model, "--out", out)
    refused("does not exist", "predict", file, "--model", model, "--images", tmp_path / "none", "--out", out)
    (tmp_path / "empty.jsonl").write_text("")
    refused("holds no questions", "predict", tmp_path / "empty.jsonl", "--model", model, "--out", out)


# --- convert ------------------------------------------------------------------------------------------------------


def stock_answer(folder: Path, image: Image.Image, question: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Ids, logits of the next token, and answer of a stock LLaVA folder, by transformers alone."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    stock = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        logits = stock(**inputs).logits[0, -1]
        ids = stock.generate(**inputs, max_new_tokens=6, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return inputs["input_ids"], logits, processor.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("size", [(56, 56), (40, 64)], ids=["square", "wide"])
def test_a_converted_model_answers_alike_in_transformers(size: tuple[int, int], model: Path, tmp_path: Path) -> None:
    """Processor, chat template and padding included."""
    path = picture(tmp_path, size=size)
    out = tmp_path / "stock"
    result = run("convert", model, "--out", out)
    assert result.exit_code == 0, result.output
    loaded = load_model(model, "cpu")
    asked = loaded._prompt([path], QUESTION)
    ids, logits, answer = stock_answer(out, Image.open(path), QUESTION)
    assert ids[0].tolist().count(int(ids.max())) == 16  # a token for each patch
    assert [i for i in ids[0].tolist() if i != int(ids.max())] == [i for i in asked.ids if i >= 0]
    with torch.no_grad():
        wanted = loaded.model(loaded._batch([asked]))[0][0, -1]
    torch.testing.assert_close(logits[: len(wanted)], wanted, rtol=0, atol=1e-4 if size == (56, 56) else 0.05)
    if size == (56, 56):
        assert answer == loaded.answer([[path]], [QUESTION], 6)[0]

    result = run("convert", "--from-llava", out, "--out", tmp_path / "back")  # and back
    assert result.exit_code == 0, result.output
    back = load_model(tmp_path / "back", "cpu")
    assert back.answer([[path]], [QUESTION], 6) == loaded.answer([[path]], [QUESTION], 6)
    again = back._prompt([path], QUESTION)
    assert again.ids == asked.ids
    with torch.no_grad():
        found = back.model(back._batch([again]))[0][0, -1]
    torch.testing.assert_close(found[: len(wanted)], wanted, rtol=0, atol=1e-4)


def test_what_has_no_stock_form_says_why(tiny_clip: Path, language: Path, tmp_path: Path) -> None:
    built, encoder, described = build_model(tiny_clip, language, "mmfuser", (0, 1), options={"heads": 2})
    save_model(built, tmp_path / "model", encoder, described)
    refused("the strategy is MMFuser", "convert", tmp_path / "model", "--out", tmp_path / "stock")
    assert not (tmp_path / "stock").exists()
    refused("normalises", "convert", tmp_path / "model", "--to", "mm-projector", "--out", tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("strategy", "levels", "options"),
    [("deep_only", (), {}), ("mmfuser", (0, 1), {"heads": 2}), ("concat", (0, 1), {"layer_norm": "none"})],
)
def test_connector_files_out_and_in(
    strategy: str, levels: tuple[int, ...], options: dict[str, Any], tiny_clip: Path, language: Path, tmp_path: Path
) -> None:
    built, encoder, described = build_model(
        tiny_clip, language, strategy, levels, options=options, projector_norm=False
    )
    save_model(built, tmp_path / "model", encoder, described)
    file = tmp_path / "mm_projector.bin"
    result = run("convert", tmp_path / "model", "--to", "mm-projector", "--out", file)
    assert result.exit_code == 0, result.output
    assert read_connector_file(file).strategy == ("mmfuser" if strategy == "mmfuser" else "deep_only")
    named = ("--levels", ",".join(map(str, levels))) if levels else ()
    words = ("convert", "--mm-projector", file, "--encoder", tiny_clip, "--language-model", language, *named)
    result = run(*words, "--system", "", "--out", tmp_path / "back")
    assert result.exit_code == 0, result.output
    image = picture(tmp_path)
    ours, back = load_model(tmp_path / "model", "cpu"), load_model(tmp_path / "back", "cpu")
    assert back.log_likelihood([image], QUESTION, "yes") == ours.log_likelihood([image], QUESTION, "yes")


def test_a_connector_file_that_does_not_fit(model: Path, tiny_clip: Path, language: Path, tmp_path: Path) -> None:
    file = tmp_path / "mm_projector.bin"
    run("convert", model, "--to", "mm-projector", "--out", file)
    words = ("convert", "--mm-projector", file, "--out", tmp_path / "out")
    refused("--encoder and --language-model", *words)
    both = ("--encoder", tiny_clip, "--language-model", language)
    refused("0 levels beside the query, and 1 are named", *words, *both, "--levels", "1")
    weights = torch.load(file, weights_only=True)
    narrow = {name: value[:16] if name.startswith("model.mm_projector.2") else value for name, value in weights.items()}
    torch.save(narrow, file)
    refused("tokens of 16 channels", *words, *both)
    torch.save({"model.mm_projector.weight": torch.ones(32, 20), "model.mm_projector.bias": torch.ones(32)}, file)
    refused("reads tokens of 20 channels", *words, *both)
    refused("name one thing", "convert", model, "--mm-projector", file, "--out", tmp_path / "out")
    refused("name one thing", "convert", "--out", tmp_path / "out")
    refused("there is no folder", "convert", "--from-llava", tmp_path / "none", "--out", tmp_path / "out")
    refused("of the type 'clip_vision_model'", "convert", "--from-llava", tiny_clip, "--out", tmp_path / "out")
    refused("is there already", "convert", model, "--out", tmp_path)
    assert not (tmp_path / "out").exists()
