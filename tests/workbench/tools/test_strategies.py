"""The table of strategies, and the check that users run on their own."""

from __future__ import annotations

import io
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from places import DOCS
from rich.console import Console

from fusion_workbench.config.study import load_study
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.cost import flops, parameters
from fusion_workbench.modules.fusion import STRATEGIES
from fusion_workbench.modules.language import INJECTIONS, injection
from fusion_workbench.modules.language.injection import build_injection
from fusion_workbench.modules.probes.probe import Probe, ProbeConfig
from fusion_workbench.study.prepare import prepare
from fusion_workbench.tools.strategies import (
    EMBEDDED,
    EMBEDDED_PAIR,
    FUSED,
    INJECTED,
    MARKERS,
    check_strategy,
    injection_rows,
    markdown,
    rows,
    show,
)

PAGE = DOCS / "strategies.md"
THEIRS = """
from dataclasses import dataclass
from fusion_workbench.modules.fusion import Fusion, register_strategy

@dataclass(frozen=True)
class Options:
    deaf: bool = False

@register_strategy("{name}", options=Options, uses_levels=True)
class Mine(Fusion):
    def forward(self, features, grid):
        self.check(features, grid)
        return features[1 if self.options.deaf else 0 :].sum(0)
"""


def printed(function: object, *arguments: object) -> tuple[str, object]:
    console = Console(file=io.StringIO(), width=200)
    assert callable(function)
    result = function(console, *arguments)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue(), result


def test_the_documented_tables_are_the_codes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    ends = [[marker.format(table.mark) for marker in MARKERS] for table in (FUSED, INJECTED)]
    tables = [text[text.index(begin) : text.index(end) + len(end)] + "\n" for begin, end in ends]
    assert "\n".join(tables) == markdown(), (
        "run `workbench strategies --markdown` and put its tables into docs/strategies.md"
    )


def test_every_strategy_is_described() -> None:
    described = set(re.findall(r"\*\*`(\w+)`\*\*", PAGE.read_text(encoding="utf-8")))
    specs = {**STRATEGIES, **INJECTIONS}.items()
    assert described == {name for name, spec in specs if spec.cls.__module__.startswith("fusion_workbench.modules.")}


def test_the_table_holds_what_a_probe_costs() -> None:
    """Against modules in memory, with the numbers read off a real forward pass."""
    by_name = {row.name: row for row in rows()}
    for name in ("weighted", "fpn", "mmfuser (attention=global)", "matched", "sti"):
        row = by_name[name]
        config = ProbeConfig(
            row.strategy, EMBEDDED.selection, EMBEDDED.dim, row.options, EMBEDDED.projector, EMBEDDED.width
        )
        probe = Probe(config, [])
        features = torch.zeros(len(probe.fuser.uses), 1, 64, EMBEDDED.dim)
        found = parameters(probe), flops(lambda x, p=probe: p.tokens(x, EMBEDDED.grid), features)
        assert row.costs[1] == found, name


def test_mmfuser_costs_what_its_paper_says() -> None:
    """5,190,592 parameters; 4.79 GMACs of linear maps and 0.05 of sampling an image, beyond the projector."""
    by_name = {row.name: row.costs[0] for row in rows()}
    assert by_name["mmfuser"][0] - by_name["deep_only"][0] == 5_190_592
    assert (by_name["mmfuser"][1] - by_name["deep_only"][1]) / 2e9 == pytest.approx(4.84, abs=0.01)


def test_injections_cost_a_projector_a_level() -> None:
    """Against modules in memory; four levels and the query at the paper's setting, three at the embedded one."""
    by_name = {row.name: row for row in injection_rows()}
    plain = by_name["deep_only"].costs
    for name in INJECTIONS:
        for pair, levels, own, single in zip(INJECTED.settings, (4, 3), by_name[name].costs, plain, strict=True):
            assert own == tuple((levels + 1) * value for value in single), (name, pair.name)
    pair = EMBEDDED_PAIR
    real = build_injection("deepstack", pair.injection)
    features = torch.zeros(4, 1, 64, pair.dim)
    assert by_name["deepstack"].costs[1] == (parameters(real), flops(lambda x: real(x, pair.grid), features))
    assert by_name["internal_direct (encoder_depth=24)"].cells == ("3, 9, 16, 23",)


def test_the_terminal_shows_every_strategy() -> None:
    text, _ = printed(show)
    for name in {**STRATEGIES, **INJECTIONS}:
        assert re.search(rf"│ {name}\b", text), name


def test_one_of_their_own_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STRATEGIES, "_members", STRATEGIES._members.copy())
    (tmp_path / "strategy_of_mine.py").write_text(THEIRS.format(name="mine"))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    text, kept = printed(check_strategy, "strategy_of_mine:Mine")
    assert kept is True
    assert sys.path == before
    assert "mine (strategy_of_mine.Mine)" in text
    assert "all 11 requirements kept" in text
    assert 'mine = "strategy_of_mine:Mine"' in text
    text, kept = printed(check_strategy, "strategy_of_mine:Mine", {"deaf": True})
    assert kept is False
    assert "layer 1 is used and does not move the output" in text
    assert "1 of 11 requirements broken" in text
    with pytest.raises(WorkbenchError, match="Did you mean 'Mine'"):
        printed(check_strategy, "strategy_of_mine:Mien")


def test_a_strategy_of_ours_by_name() -> None:
    text, kept = printed(check_strategy, "dci", {"layer_norm": "none"})
    assert kept is True
    assert "entry-points" not in text


def test_an_injection_of_ours_by_name() -> None:
    text, kept = printed(check_strategy, "deepstack", {"order": "deep_first"})
    assert kept is True
    assert "all 10 requirements kept; use it in a study of language models: strategies: [{name: deepstack}]" in text
    assert "entry-points" not in text
    with pytest.raises(WorkbenchError, match="this language model has 8 blocks"):
        printed(check_strategy, "deepstack", {"start": 6})


def test_a_study_of_probes_with_an_injection_is_refused_at_once(tmp_path: Path) -> None:
    study = load_study("quickstart", ["strategies[1].name=deepstack"])
    with pytest.raises(WorkbenchError, match="a probe cannot have it; a study with a language_model"):
        prepare(study, tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()
    study = load_study("mllm_quick", ["strategies[1].name=deepstakc"])
    with pytest.raises(WorkbenchError, match="Did you mean 'deepstack'"):
        prepare(study, tmp_path / "workspace")


def test_an_injection_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example at the head of modules/language/injection.py, and one that injects what nobody asked for."""
    monkeypatch.setattr(INJECTIONS, "_members", INJECTIONS._members.copy())
    example = re.search(r"    @dataclass.*?\{self.setting.depth - 1: added\}\)\n", injection.__doc__ or "", re.DOTALL)
    assert example
    head = (
        "from dataclasses import dataclass\n"
        "from fusion_workbench.modules.language.injection import Injection, register_injection\n"
        "from fusion_workbench.modules.language.visual import VisualInput\n\n"
    )
    code = head + textwrap.dedent(example[0])
    deaf = (
        code.replace("LastBlock", "Deaf").replace("last_block", "deaf").replace("features[:-1].sum(0)", "features[0]")
    )
    (tmp_path / "injection_of_mine.py").write_text(code)
    (tmp_path / "deaf_of_mine.py").write_text(deaf)
    monkeypatch.chdir(tmp_path)
    text, kept = printed(check_strategy, "injection_of_mine:LastBlock")
    assert kept is True, text
    assert 'last_block = "injection_of_mine:LastBlock"' in text
    text, kept = printed(check_strategy, "deaf_of_mine:Deaf")
    assert kept is False
    assert "layer 3 is used and does not move the logits" in text
    assert "what each method of Injection owes" in text
    with pytest.raises(WorkbenchError, match="Did you mean 'Deaf'"):
        printed(check_strategy, "deaf_of_mine:Daef")


def test_the_example_of_the_docs_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STRATEGIES, "_members", STRATEGIES._members.copy())
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    (tmp_path / "example_of_the_docs.py").write_text(code[1])
    monkeypatch.chdir(tmp_path)
    _, kept = printed(check_strategy, "example_of_the_docs:Max", {"scale": 2})
    assert kept is True
