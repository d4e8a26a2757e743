"""One table for all six kinds: what it refuses, how it answers an unknown name, what it does with plug-ins."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.core.registry import Registry, check_options
from fusion_workbench.datamodules.build import SOURCES, build_source
from fusion_workbench.modules.answers import METRICS, find_metric
from fusion_workbench.modules.encoders.families import FAMILIES, Family, register_family
from fusion_workbench.modules.fusion import STRATEGIES, build
from fusion_workbench.modules.language import INJECTIONS
from fusion_workbench.modules.language.injection import injection_spec
from fusion_workbench.modules.tasks import TASKS, build_task

GROUP = "tests.shapes"
ALL = {
    "strategies": STRATEGIES,
    "injections": INJECTIONS,
    "tasks": TASKS,
    "sources": SOURCES,
    "families": FAMILIES,
    "metrics": METRICS,
}


class Shape(ABC):
    title = "a shape"
    direction = "maximize"

    @abstractmethod
    def area(self) -> float: ...


class Square(Shape):
    def area(self) -> float:
        return 1.0


class Disc(Square):
    pass


def shapes(**settings: Any) -> Registry[type[Shape]]:
    return Registry(
        "shape",
        "shapes",
        base=Shape,
        decorator="@register_shape('a_name')",
        words={"direction": ("maximize", "minimize")},
        **{"group": GROUP, "requires": ("title",), **settings},
    )


# --- registering ----------------------------------------------------------------------------------------------------


def test_it_is_a_mapping_in_the_order_of_registration() -> None:
    found = shapes()
    found.add("square", Square, Square)
    found.add("disc", Disc, Disc)
    assert list(found) == ["square", "disc"]
    assert len(found) == 2
    assert found["disc"] is found.find("disc") is found.of_class(Disc) is Disc
    assert "oval" not in found
    assert found.get("oval") is None


class Untitled(Square):
    direction = "maximise"


class Abstract(Shape):
    pass


@pytest.mark.parametrize(
    ("name", "cls", "says"),
    [
        ("square", Disc, r"two shapes are called 'square': \S+\.Square and \S+\.Disc; rename one\."),
        ("two words", Disc, "the shape name 'two words' cannot be had; a name has letters"),
        ("pkg:Disc", Disc, "the shape name 'pkg:Disc' cannot be had"),
        ("", Disc, "the shape name '' cannot be had"),
        ("disc", int, r"shape 'disc': builtins\.int is not a subclass of \S+\.Shape\."),
        ("disc", Abstract, r"shape 'disc': \S+\.Abstract lacks area\."),
        ("disc", Untitled, r"\.Untitled has direction = 'maximise'\. Did you mean 'maximize'"),
    ],
)
def test_what_is_refused(name: str, cls: type[Any], says: str) -> None:
    found = shapes()
    found.add("square", Square, Square)
    with pytest.raises(WorkbenchError, match=says) as caught:
        found.add(name, cls, cls)
    assert "\n" not in str(caught.value)
    assert list(found) == ["square"]


def test_what_a_class_lacks_is_named() -> None:
    with pytest.raises(WorkbenchError, match=r"Disc lacks corners, colour\."):
        shapes(requires=("corners", "title", "colour")).add("disc", Disc, Disc)


def test_a_module_that_is_run_twice_registers_once() -> None:
    found = shapes()
    found.add("square", Square, Square)
    again = type("Square", (Square,), {"__module__": Square.__module__, "__qualname__": Square.__qualname__})
    found.add("square", again, again)
    assert found["square"] is again


def test_two_kinds_can_share_their_names() -> None:
    flat = shapes()
    round_ones = shapes(beside=flat, elsewhere="'{name}' is round, and this place is flat.")
    flat.add("square", Square, Square)
    round_ones.add("disc", Disc, Disc)
    for registry, name, cls in ((round_ones, "square", Disc), (flat, "disc", Square)):
        with pytest.raises(WorkbenchError, match=f"two shapes are called '{name}'"):
            registry.add(name, cls, cls)
    with pytest.raises(WorkbenchError, match="study: 'disc' is round, and this place is flat"):
        flat.find("disc", "study")
    with pytest.raises(WorkbenchError, match=r"unknown shape 'square'\. Known: disc\."):
        round_ones.find("square")


@dataclass(frozen=True)
class Bare:
    size: int
    name: str = ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Bare, "shape 'disc': its options Bare have no default for size."),
        (Disc, "they must be a dataclass."),
        ({"size": 3}, "shape 'disc': its options are {'size': 3}; they must be a dataclass."),
    ],
)
def test_options_are_a_dataclass_with_defaults(options: Any, says: str) -> None:
    with pytest.raises(WorkbenchError) as caught:
        check_options("shape 'disc'", options)
    assert says in str(caught.value)


# --- looking up -----------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    found = shapes()
    with pytest.raises(WorkbenchError, match=r"^unknown shape 'disc'\.$"):
        found.find("disc")
    found.add("disc", Disc, Disc)
    with pytest.raises(WorkbenchError, match=r"^study\.shape: unknown shape 'disk'\. Did you mean 'disc'\?$"):
        found.find("disk", "study.shape")


def test_a_class_that_is_not_registered_is_told_how() -> None:
    with pytest.raises(WorkbenchError, match=r"Disc is a Shape and not registered; put @register_shape\('a_name'\)"):
        shapes().of_class(Disc)


# --- plug-ins: real metadata of distributions on the import path ------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Put a distribution on the import path: its module, and its entry points as ``name = module:object`` lines."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(module: str, code: str, entries: str) -> None:
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(entries)

    return install


HOST = "import test_registry as host\n"  # this file, under the name that pytest imports it by


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry[type[Shape]]:
    """One that the plug-ins of a test register in."""
    found = shapes()
    found.add("square", Square, Square)
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "current", found, raising=False)
    return found


OVAL = HOST + "class Oval(host.Square): pass\nhost.current.add('oval', Oval, Oval)\n"


def test_plugins_are_loaded_when_they_are_needed(
    installed: Callable[[str, str, str], None], registry: Registry[type[Shape]]
) -> None:
    installed("oval_shapes", OVAL, f"[{GROUP}]\noval = oval_shapes:Oval\n")
    assert registry["square"] is registry.find("square") is Square
    assert "oval_shapes" not in sys.modules
    assert registry.find("oval").__name__ == "Oval"
    assert list(registry) == ["square", "oval"]


def test_a_listing_holds_them_too(installed: Callable[[str, str, str], None], registry: Registry[type[Shape]]) -> None:
    installed("listed_shapes", OVAL, f"[{GROUP}]\noval = listed_shapes\n")  # a module will do
    assert list(registry) == ["square", "oval"]


@pytest.mark.parametrize(
    ("code", "entry", "reason"),
    [
        ("import nowhere_at_all\n", "Oval", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise RuntimeError('first\\nsecond')\n", "Oval", "RuntimeError: first"),
        ("raise RuntimeError\n", "Oval", "RuntimeError"),
        ("Oval = None\n", "Ovel", "AttributeError"),
        (HOST + "class Oval(host.Square): pass\n", "Oval", "Oval is a Shape and not registered; put @register_shape"),
        ("class Oval: pass\n", "Oval", "Oval is not a subclass of"),
        (
            HOST + "class Oval(host.Square): pass\nhost.current.add('square', Oval, Oval)\n",
            "Oval",
            "two shapes are called 'square'",
        ),
    ],
    ids=["import", "raises", "wordless", "absent", "unregistered", "other kind", "taken"],
)
def test_one_that_fails_is_named_and_breaks_nothing(
    code: str, entry: str, reason: str, installed: Callable[[str, str, str], None], registry: Registry[type[Shape]]
) -> None:
    installed("broken_shapes", code, f"[{GROUP}]\noval = broken_shapes:{entry}\n")
    assert registry["square"] is Square
    line = f"shape plugin oval = broken_shapes:{entry} is left out: of broken-shapes 1.2, it fails with "
    with pytest.warns(UserWarning, match="left out") as warned:
        assert list(registry) == ["square"]
    assert len(warned) == 1
    message = str(warned[0].message)
    assert message.startswith(line)
    assert reason in message
    assert "\n" not in message
    with pytest.raises(WorkbenchError) as caught:
        registry.find("oval")
    assert str(caught.value) == f"unknown shape 'oval': the {message}"
    with pytest.raises(
        WorkbenchError, match=r"unknown shape 'squire'\. Did you mean 'square'\? Plug-ins that fail: oval"
    ):
        registry.find("squire")


def test_one_that_fails_leaves_the_next_alone(
    installed: Callable[[str, str, str], None], registry: Registry[type[Shape]]
) -> None:
    installed("torn_shapes", "1 / 0\n", f"[{GROUP}]\ntorn = torn_shapes:Torn\n")
    installed("well_shapes", OVAL, f"[{GROUP}]\noval = well_shapes:Oval\n")
    with pytest.warns(UserWarning, match="torn"):
        assert "oval" in registry


def test_an_object_is_adopted_under_its_entry_point_s_name_and_the_former_group_is_read(
    installed: Callable[[str, str, str], None], registry: Registry[type[Shape]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: Registry[Shape] = shapes(
        group="tests.new", former_group="tests.old", adopt=lambda name, shape: held.add(name, shape, str(shape.area()))
    )
    installed("whole_shapes", HOST + "one, two = host.Square(), host.Disc()\n", "[tests.old]\none = whole_shapes:one\n")
    installed("more_shapes", "from whole_shapes import two\n", "[tests.new]\ntwo = more_shapes:two\n")
    assert {name: type(shape) for name, shape in held.items()} == {"one": Square, "two": Disc}


def test_a_plugin_of_one_kind_may_bring_another_that_shares_its_names(
    installed: Callable[[str, str, str], None], registry: Registry[type[Shape]]
) -> None:
    """As injections in the group of strategies."""
    beside = shapes(group="tests.beside", beside=registry)
    code = HOST + "class Ring(host.Square): pass\nhost.beside.add('ring', Ring, Ring)\n"
    sys.modules[__name__].beside = beside  # type: ignore[attr-defined]
    installed("ring_shapes", code, f"[{GROUP}]\nring = ring_shapes:Ring\n")
    assert "ring" in beside
    assert "ring" not in registry


# --- the six kinds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_each_kind_is_open_to_packages(kind: str) -> None:
    assert ALL[kind].group == f"fusion_workbench.{kind}"
    assert len(ALL[kind]) > 1


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: build("conact", Selection((1,), 2), 8), "unknown strategy 'conact'. Did you mean 'concat'?"),
        (lambda: injection_spec("deepstakc"), "unknown injection 'deepstakc'. Did you mean 'deepstack'?"),
        (lambda: build_task("reed", {}, {}), "unknown task 'reed'. Did you mean 'read'?"),
        (lambda: build_source("crown", {}), "unknown source 'crown'. Did you mean 'crowns'?"),
        (lambda: FAMILIES.find("wisper"), "unknown encoder family 'wisper'. Did you mean 'whisper'?"),
        (lambda: find_metric("anl", "here"), "here: unknown answer metric 'anl'. Did you mean 'anls'?"),
    ],
)
def test_each_kind_answers_alike(ask: Callable[[], object], says: str) -> None:
    with pytest.raises(WorkbenchError) as caught:
        ask()
    assert str(caught.value).startswith(says)


def test_a_family_is_replaced_only_when_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAMILIES, "_members", FAMILIES._members.copy())
    other = Family("ViTModel", "layers", final_norm=False)
    register_family("clip", FAMILIES["clip"])
    with pytest.raises(WorkbenchError, match="two encoder families are called 'clip'"):
        register_family("clip", other)
    assert register_family("clip", other, replace=True) is FAMILIES["clip"] is other
