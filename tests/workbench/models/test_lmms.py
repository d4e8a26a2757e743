"""Our models under lmms-eval: its requests, answered; with the real package where it is installed."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from places import ROOT

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.lmms import Answering, Generation, batches, manifest, match_image_tokens

DOCUMENTS = [{"question": f"{'?' * number} What is {number}?", "shade": 10 * number} for number in range(7)]


class Hook:
    """lmms-eval's cache of answers."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Any, Any]] = []

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self.kept.append((kind, request, answer))


class Lmms:
    """What ``lmms_eval.api.model.lmms`` 0.7.3 gives a model, where the package is absent."""

    def __init__(self) -> None:
        self._rank = 0
        self.cache_hook = Hook()
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank


class Instance:
    """A request, as ``lmms_eval.api.instance.Instance``."""

    def __init__(self, *args: Any) -> None:
        self.args = args


class Echo:
    """Says the question and the shade of every image; its calls are kept."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def answer(
        self, images: Sequence[Sequence[Any]], questions: Sequence[str], max_new_tokens: int, batch_size: int
    ) -> list[str]:
        self.calls.append((len(questions), max_new_tokens, batch_size))
        assert all(image.mode == "RGB" for shown in images for image in shown)
        return [
            f"{question}|{[image.getpixel((0, 0))[0] for image in shown]}|STOP and more"
            for question, shown in zip(questions, images, strict=True)
        ]

    def log_likelihoods(
        self, images: Sequence[Sequence[Any]], questions: Sequence[str], continuations: Sequence[str], batch_size: int
    ) -> list[tuple[float, bool]]:
        assert len(images) == len(questions) == len(continuations) <= batch_size
        return [(-float(len(words)), words == "no") for words in continuations]


class Model(Answering, Lmms):
    pass


def model(batch_size: int = 1) -> Model:
    made = Model(Echo(), batch_size)
    made.task_dict = {"scenes": {"test": DOCUMENTS}, "other": {"test": DOCUMENTS}}
    return made


def show(document: dict[str, Any]) -> list[Image.Image]:
    return [Image.new("L", (3, 2), document["shade"])]


def request(number: int, task: str = "scenes", **wishes: Any) -> Instance:
    return Instance(DOCUMENTS[number]["question"], wishes, show, number, task, "test")


# --- generation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 100])
def test_answers_come_in_the_order_of_the_requests(size: int) -> None:
    made = model(size)
    answers = made.generate_until([request(number, until="STOP") for number in (3, 0, 6, 2)])
    assert answers == [f"{DOCUMENTS[n]['question']}|[{10 * n}]|" for n in (3, 0, 6, 2)]
    assert max(count for count, _, _ in made.model.calls) == min(size, 4)  # type: ignore[attr-defined]
    assert len(made.cache_hook.kept) == 4


def test_unlike_wishes_and_tasks_are_not_batched() -> None:
    made = model(8)
    made.generate_until(
        [
            request(0, max_new_tokens=4),
            request(1, max_new_tokens=16, temperature=0, top_p=None),
            request(2, max_new_tokens=4),
            request(3, "other", max_new_tokens=4),
        ]
    )
    assert sorted(made.model.calls) == [(1, 4, 8), (1, 16, 8), (2, 4, 8)]  # type: ignore[attr-defined]


@given(
    st.lists(st.tuples(st.text(max_size=9), st.integers(1, 3), st.sampled_from(["a", "b"])), max_size=30),
    st.integers(1, 9),
)
def test_every_request_is_in_one_batch(rows: list[tuple[str, int, str]], size: int) -> None:
    asked = [(context, {}, None, 0, task, "test") for context, _, task in rows]
    wishes = [Generation(max_new_tokens=tokens) for _, tokens, _ in rows]
    found = list(batches(asked, wishes, size))
    assert sorted(place for part in found for place in part) == list(range(len(rows)))
    for part in found:
        assert 1 <= len(part) <= size
        assert len({(wishes[place], asked[place][4]) for place in part}) == 1
        assert [len(asked[place][0]) for place in part] == sorted((len(asked[p][0]) for p in part), reverse=True)


def test_a_request_without_wishes_gets_the_models_own() -> None:
    made = model()
    made.generate_until([request(0)])
    assert made.model.calls == [(1, 128, 1)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("until", "text", "left"),
    [("\n\n", "a\nb\n\nc", "a\nb"), (["###", "b"], "abc###", "a"), ([""], "abc", "abc"), (None, "abc", "abc")],
)
def test_stop_strings(until: Any, text: str, left: str) -> None:
    assert Generation.of({"until": until}, "scenes", 5).cut(text) == left


@pytest.mark.parametrize(
    "wishes",
    [
        {"temperature": 0.7, "do_sample": False},
        {"temperature": 0, "do_sample": True},  # as some tasks have it
        {"temperature": None, "top_p": 0.5, "num_beams": 1},
    ],
)
def test_what_comes_to_the_likeliest_words_is_answered(wishes: dict[str, Any]) -> None:
    assert Generation.of(wishes, "scenes", 5) == Generation(max_new_tokens=5)


@pytest.mark.parametrize("wishes", [{"num_beams": 5}, {"temperature": 1.0, "do_sample": True}, {"temperature": "0.2"}])
def test_what_is_not_built_is_said_before_any_answer(wishes: dict[str, Any]) -> None:
    made = model()
    with pytest.raises(WorkbenchError, match=r"'other' .* not built; add --gen_kwargs"):
        made.generate_until([request(0), request(1, "other", **wishes)])
    assert made.model.calls == []  # type: ignore[attr-defined]


def test_several_rounds_are_not_built() -> None:
    with pytest.raises(WorkbenchError, match="several rounds"):
        model().generate_until_multi_round([request(0)])


# --- images -----------------------------------------------------------------------------------------------------


def test_text_alone_has_no_image() -> None:
    made = model()
    said = made.generate_until([Instance("Why?", {}, lambda document: [None], 0, "scenes", "test")])
    assert said == ["Why?|[]|STOP and more"]


def test_a_video_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="task 'scenes' shows a str"):
        model().generate_until([Instance("Why?", {}, lambda document: ["film.mp4"], 0, "scenes", "test")])


@pytest.mark.parametrize(
    ("context", "images", "expected"),
    [
        ("What?", 1, "What?"),
        ("<image>\nWhat?", 1, "<image>\nWhat?"),
        ("<image> or <image>?", 2, "<image> or <image>?"),
        ("<image>\nWhat?", 2, "What?"),
        ("<image>\nWhat?", 0, "What?"),
    ],
)
def test_image_words_are_as_many_as_images_or_none(context: str, images: int, expected: str) -> None:
    assert match_image_tokens(context, images) == expected


# --- choices ----------------------------------------------------------------------------------------------------


def test_the_likeliest_choice_has_the_smallest_number() -> None:
    choices = [Instance("Is it?", f" {word}", show, 0, "scenes", "test") for word in ("yes", "no", "perhaps")]
    for size in (1, 2, 8):
        found = model(size).loglikelihood(choices)
        assert found == [(3.0, False), (2.0, True), (7.0, False)]  # without the delimiter in front


def test_a_target_may_be_made_of_the_document() -> None:
    found = model().loglikelihood([Instance("Is it?", lambda d: str(d["shade"]), show, 4, "scenes", "test")])
    assert found == [(2.0, False)]
    assert model().loglikelihood([Instance("", "A")]) == [(1.0, False)]  # of a choice without its question


# --- lmms-eval itself -------------------------------------------------------------------------------------------


def test_the_plugin_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "fusion_workbench.models.lmms_plugin", raising=False)
    with pytest.raises(WorkbenchError, match=r"fusion-workbench\[eval\]"):
        importlib.import_module("fusion_workbench.models.lmms_plugin")


def plugin(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, list[Any]]:
    """The plugin, on lmms-eval where it is installed and on its stand-in elsewhere; and what it loaded."""
    try:
        import lmms_eval.api.model  # noqa: F401
    except ImportError:
        package, api, stand_in = (ModuleType(name) for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"))
        stand_in.lmms = Lmms  # type: ignore[attr-defined]
        for made in (package, api, stand_in):
            monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.delitem(sys.modules, "fusion_workbench.models.lmms_plugin", raising=False)
    found = importlib.import_module("fusion_workbench.models.lmms_plugin")
    monkeypatch.delitem(sys.modules, "fusion_workbench.models.lmms_plugin")
    loaded: list[Any] = []

    def load(folder: Path, device: str) -> Echo:
        loaded.append((folder, device))
        return Echo()

    monkeypatch.setattr(found, "_load", load)
    return found, loaded


def test_the_plugin_takes_what_lmms_eval_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, loaded = plugin(monkeypatch)
    made = found.FusionWorkbench(folder=str(tmp_path), batch_size="8", device="cpu")
    assert loaded == [(tmp_path, "cpu")]
    assert made.batch_size == 8
    assert str(made.device) == "cpu"
    made.task_dict = {"scenes": {"test": DOCUMENTS}}
    made.cache_hook = Hook()
    assert made.generate_until([request(2, until="|")]) == [DOCUMENTS[2]["question"]]
    assert found.FusionWorkbench.is_simple is True


@pytest.mark.parametrize(
    ("wrong", "said"), [({}, "--model_args folder=PATH"), ({"folder": "x", "batch_size": "auto"}, "--batch_size auto")]
)
def test_the_plugin_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], said: str) -> None:
    found, loaded = plugin(monkeypatch)
    with pytest.raises(WorkbenchError, match=said):
        found.FusionWorkbench(**wrong)
    assert loaded == []


def test_the_entry_point_leads_to_the_manifest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["fusion_workbench"].partition(":")
    assert getattr(importlib.import_module(module), name) is manifest


def test_lmms_eval_makes_our_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = pytest.importorskip("lmms_eval.models.registry_v2").ModelRegistryV2()
    found, _ = plugin(monkeypatch)
    monkeypatch.setitem(sys.modules, found.__name__, found)
    registry.register_manifest(manifest())
    cls = registry.get_model_class("fusion_workbench")
    assert cls is found.FusionWorkbench
    made = cls.create_from_arg_string(f"folder={tmp_path}", {"batch_size": "2", "device": "cpu"})
    assert made.batch_size == 2
