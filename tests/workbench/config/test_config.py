"""The study file: what it may say, and how a mistake is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_workbench.config.study import bundled, load_study, study_from_yaml, to_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.study.identity import study_id

GOOD = """
name: mine
strategies: [{name: concat}, {name: mmfuser, options: {points: 4}}]
selections: [{levels: [3, hs:6, 75%], query: -1}]
"""


def test_yaml_round_trips() -> None:
    study = study_from_yaml(GOOD, "mine.yaml")
    again = study_from_yaml(to_yaml(study), "again.yaml")
    assert again == study
    assert study_id(again) == study_id(study)


def test_overrides_reach_nested_keys_and_list_entries() -> None:
    study = study_from_yaml(
        GOOD,
        "mine.yaml",
        ["training.epochs=3", "strategies[1].options.points=8", "tasks=[read]", "encoder.revision=abc"],
    )
    assert (study.training.epochs, study.strategies[1].options["points"], study.tasks, study.encoder.revision) == (
        3,
        8,
        ["read"],
        "abc",
    )


def test_identity_ignores_what_moves_no_result() -> None:
    base = study_id(study_from_yaml(GOOD, "x"))
    for same in (
        "replicates=9",
        "training.bank_size=1",
        "encoder.batch_size=7",
        "tracking.uri=sqlite:///x.db",
        "question=why",
        "name=other",
    ):
        assert study_id(study_from_yaml(GOOD, "x", [same])) == base, same
    for other in ("training.epochs=9", "search.learning_rates=[0.1]", "encoder.image_size=56", "strategies[0].alias=A"):
        assert study_id(study_from_yaml(GOOD, "x", [other])) != base, other


@pytest.mark.parametrize("name", sorted(bundled()))
def test_bundled_studies_are_valid_and_say_what_they_ask(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.question.endswith("?")
    assert bundled()[name].read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("strategie: 1", [], "unknown key 'strategie'. Did you mean 'strategies'"),
        ("strategies: [{nam: x}]", [], r"unknown key 'strategies\[0\].nam'. Did you mean 'name'"),
        ("training: {epoch: 1}\nstrategies: [{name: x}]", [], "unknown key 'training.epoch'. Did you mean 'epochs'"),
        ("strategies: [{name: x}]\nreplicates: many", [], "wrong type for 'replicates'"),
        ("strategies: 3", [], "must be a list"),
        ("training: fast", [], "must be a mapping"),
        ("a: [", [], "line 1, column"),
        ("- 1", [], "is a mapping of keys"),
        (GOOD, ["training.epoch=3"], "Did you mean 'epochs'"),
        (GOOD, ["trainin.epochs=3"], "Did you mean 'training'"),
        (GOOD, ["training.epochs=three"], "wrong type for 'training.epochs'"),
        (GOOD, ["training.epochs"], "key=value"),
        (GOOD, ["strategies[7].name=x"], "numbered from 0"),
        (GOOD, ["training.epochs=0"], "must be at least 1"),
        (GOOD, ["search.sampler=tpee"], "Did you mean 'tpe'"),
        (GOOD, ["search.learning_rates=[]"], "one or more rates"),
        (GOOD, ["search.learning_rates=[-1]"], "above 0"),
        (GOOD, ["training.precision=16-mixed"], "training.bank_size=1"),
        (GOOD, ["training.warmup=2"], "share of the steps"),
        (GOOD, ["tasks=[]"], "tasks is empty"),
        (GOOD, ["strategies=[]"], "strategies is empty"),
        (GOOD, ["name=../x"], "names a folder"),
        (GOOD, ["plan.primary=reed"], "plan names the measure 'reed'. Did you mean 'read'"),
        (GOOD, ["plan.level=5"], "chance of a false verdict"),
        (GOOD, ["plan.margin=0"], "as good as none"),
        (GOOD, ["plan.families=[{measures: [read], share: 0.5}]"], "leaves out the primary measure 'overall'"),
        (GOOD, ["plan.families=[{measures: [overall], share: 1.5}]"], "add up to more than 1"),
        (GOOD, ["plan.families=[{measures: [overall]}, {measures: [overall]}]"], "no measure stands in two"),
        (GOOD, ["plan.families=[{measure: [overall]}]"], "families"),
        (GOOD, ["plan.looks=[3,5]"], "must rise from 5 or more to replicates"),
        (GOOD, ["plan.looks=[5,10]"], r"to replicates \(5\)"),
        (GOOD, ["plan.confirm=5"], "wrong type for 'plan.confirm': it must be a list, in brackets"),
        (GOOD, ["plan=5"], "wrong type for 'plan': it must be a mapping of keys"),
        (GOOD, ["plan.confirm=null"], "wrong type for 'plan.confirm': it cannot be null"),
        (GOOD + "\nplan: {margn: 1}", [], "unknown key 'plan.margn'. Did you mean 'margin'"),
    ],
)
def test_mistakes_are_one_clear_line(text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message) as caught:
        study_from_yaml(text, "mine.yaml", overrides)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="Did you mean 'quickstart'"):
        load_study("quickstrat")
    with pytest.raises(WorkbenchError, match="cannot be read"):
        load_study(str(tmp_path))
    binary = tmp_path / "x.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(WorkbenchError, match="cannot be read"):
        load_study(str(binary))
