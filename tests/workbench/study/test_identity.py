"""A study and its variants keep their ids, and an old study its defaults, whatever a later version changes.

``data/golden/schema_1.json`` holds what workbench 0.1.0 made of its study files, and all its defaults.
"""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from places import DATA
from rich.console import Console
from typer.testing import CliRunner

from fusion_workbench.config import history as config_history
from fusion_workbench.config import study as config
from fusion_workbench.config.aliases import DeprecatedKeyWarning, rename_keys, rename_override
from fusion_workbench.config.history import VERSIONS, Changes, Version, as_version_1, newest
from fusion_workbench.config.language import LanguageConfig, StageConfig
from fusion_workbench.config.study import (
    StudyConfig,
    TrainingConfig,
    bundled,
    digest,
    load_study,
    study_from_yaml,
    to_yaml,
)
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.study.identity import as_begun, folder_of, study_id, variant
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.sweeps.space import Cell, build_space

GOLDEN = json.loads((DATA / "golden" / "schema_1.json").read_text(encoding="utf-8"))
DEPTH = {"planted": 4, "mmfuser_llava_7b": 24}  # blocks of the encoders; of the others 12
WRITTEN = {
    "least": "strategies: [{name: concat}]\nselections: [{levels: [3, 6, 9]}]\n",
    "most": """
name: most
question: Does every part count?
encoder: {name: some/encoder, revision: abc, image_size: [224, 448], precision: bf16}
source: {name: finescenes, options: {train: 24, val: 8, test: 12}}
tasks: [read]
strategies:
  - {name: mmfuser, options: {points: 8}, choices: {gate_init: [0.0, 0.5]}, alias: A}
  - {name: concat, selections: [{levels: [hs:3, 50%], query: -2}]}
  - {name: sum}
selections: [{levels: [1, 2]}, {levels: [2, 5], query: 10}]
space: {count: [1, 2], layers: [2, 4, 6], queries: [11, 12]}
single_layers: [all]
baselines: false
replicates: 7
plan: {primary: read, margin: null, looks: [5, 7], families: [{measures: [read]}]}
search: {sampler: random, budget: 5, keep: 2, learning_rates: [0.01], scope: strategy, seed: 3}
training: {epochs: 2, projector: mlp2x_gelu, gates_lr_scale: 10, warmup: 0, precision: bf16-mixed, live: true}
""",
    "language": """
strategies: [{name: concat}, {name: deepstack}]
selections: [{levels: [3, 6]}]
source: {name: llava, options: {file: words.json}}
tasks: [answer]
language_model:
  name: some/model
  system: null
  probes: other
  lora: {rank: 16, targets: [q_proj]}
  stages:
    - {name: align, source: {name: captions, options: {file: c.json}}}
    - {name: tune, language_model: lora, warmup: 0.1}
""",
}


def cells_of(study: StudyConfig, depth: int = 12) -> list[Cell]:
    from fusion_workbench.study.prepare import strategy_traits

    space = build_space(study, depth, strategy_traits(study.language_model is not None, study.schema))
    sampled = [cell for strategy in study.strategies if space.counts for cell in space.enumerate(strategy)]
    return [*space.listed, *sampled]


def ids(study: StudyConfig, depth: int = 12) -> dict[str, Any]:
    found = [variant(study, cell, lr).id for cell in cells_of(study, depth) for lr in study.search.learning_rates]
    return {"study": study_id(study), "variants": len(found), "first": found[0], "all": digest(found)}


# --- ids of 0.1.0 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GOLDEN["ids"].keys() - WRITTEN.keys()))
def test_bundled_studies_keep_their_ids(name: str) -> None:
    if name not in bundled():
        pytest.fail(f"the bundled study {name} is gone; whoever began it cannot go on with it")
    study = load_study(name, schema=1)
    assert ids(study, DEPTH.get(name, 12)) == GOLDEN["ids"][name], (
        f"the ids of {name} have moved. Where its file was changed on purpose, write the new ids to schema_1.json; "
        "otherwise see how changes are written down in config_history.py"
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_written_studies_keep_their_ids(name: str) -> None:
    assert ids(study_from_yaml(WRITTEN[name], name, default_name=name, schema=1)) == GOLDEN["ids"][name]


def flat_defaults(schema: type[Any], above: str = "") -> dict[str, Any]:
    """Every key of a dataclass with its default; entries of a default list by what they change of theirs."""
    hints, found = get_type_hints(schema), {}
    for known in dataclasses.fields(schema):
        hint, key = hints[known.name], above + known.name
        default = known.default if known.default is not dataclasses.MISSING else known.default_factory()  # type: ignore[misc]
        if dataclasses.is_dataclass(hint):
            found |= flat_defaults(hint, f"{key}.")  # type: ignore[arg-type]
            continue
        if isinstance(default, list):
            default = [
                {f.name: v for f in dataclasses.fields(d) if (v := getattr(d, f.name)) != getattr(type(d)(), f.name)}
                if dataclasses.is_dataclass(d)
                else d
                for d in default
            ]
        found[key] = default
        for inner in filter(dataclasses.is_dataclass, get_args(hint)):
            found |= flat_defaults(inner, f"{key}[]." if get_origin(hint) is list else f"{key}.")
    return found


def recorded_defaults(first: Mapping[str, Any], strategy: str = "") -> dict[str, Any]:
    """The defaults of 0.1.0 with every change that was written down since."""
    found = dict(first)
    for changes in config_history.changes_after(1, strategy):
        found = {config_history._new_name(key, changes.renamed): value for key, value in found.items()}
        found |= {key: config_history.translated(found[key], values) for key, values in changes.values.items()}
        found |= changes.added
        for key, (before, since) in changes.changed.items():
            assert found.get(key, "no such key") == before, f"VERSIONS: {key} was {found.get(key)!r}, not {before!r}"
            found[key] = since
    return found


def unrecorded(now: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """What a developer who changed the config has yet to write down."""
    wrong = [
        f"'{key}' is new: add it to `added`, with the value that means 'as before' (and to `changed`, if its default "
        "is another), or to `renamed`, if it had another name"
        for key in now.keys() - recorded.keys()
    ]
    wrong += [f"'{key}' is gone: keep it, or say in `renamed` what it is called now" for key in recorded.keys() - now]
    wrong += [
        f"the default of '{key}' is {now[key]!r} now: add ({recorded[key]!r}, {now[key]!r}) to `changed`"
        for key in now.keys() & recorded.keys()
        if not config_history._alike(now[key], recorded[key])
    ]
    return sorted(wrong)


def test_every_change_of_the_config_is_written_down() -> None:
    now = flat_defaults(StudyConfig)
    del now["schema"]  # the version itself
    wrong = unrecorded(now, recorded_defaults(GOLDEN["study"]))
    assert not wrong, f"old studies would be trained again; write it down in config_history.VERSIONS: {wrong}"


def test_every_change_of_a_strategy_s_options_is_written_down() -> None:
    import fusion_workbench.modules as modules
    from fusion_workbench.modules.fusion import STRATEGIES
    from fusion_workbench.modules.language.injection import INJECTIONS

    every = {**STRATEGIES, **INJECTIONS}
    ours = {name: spec for name, spec in every.items() if spec.options.__module__.startswith(f"{modules.__name__}.")}
    new = sorted(ours.keys() - GOLDEN["strategies"].keys())
    assert not new, f"add the options of {new} to `strategies` of tests/data/golden/schema_1.json"
    for name, first in GOLDEN["strategies"].items():
        wrong = unrecorded(flat_defaults(ours[name].options), recorded_defaults(first, name))
        assert not wrong, f"write it down in config_history.VERSIONS, under `strategies` and '{name}': {wrong}"


# --- a later version --------------------------------------------------------------------------------------------


@dataclass
class LaterTraining(TrainingConfig):
    warmup: float = 0.1  # was 0.05
    smoothing: float = 0.0  # new


@dataclass
class LaterStage(StageConfig):
    warmup: float = 0.06  # was 0.03
    clip: float = 0.0  # new


@dataclass
class LaterLanguage(LanguageConfig):
    stages: list[LaterStage] = field(default_factory=lambda: [LaterStage()])  # type: ignore[assignment]


@dataclass
class LaterStudy(StudyConfig):
    training: LaterTraining = field(default_factory=LaterTraining)
    language_model: LaterLanguage | None = None


LATER = Changes(
    added={"training.smoothing": 0.0, "language_model.stages[].clip": 0.0},
    changed={"training.warmup": (0.05, 0.1), "language_model.stages[].warmup": (0.03, 0.06)},
)


@contextmanager
def version(changes: Changes = LATER, study: type[StudyConfig] = LaterStudy, **more: Changes) -> Iterator[int]:
    """The workbench with a version more, whose study file is ``study``; yields its number."""
    with pytest.MonkeyPatch.context() as patch:
        hints = get_type_hints(study)
        parts = dict(config._PARTS)
        parts |= {(study, key): part for (owner, key), part in config._PARTS.items() if owner is StudyConfig}
        parts[study, "training"] = (hints["training"], False)
        if study is LaterStudy:
            parts[study, "language_model"] = (LaterLanguage, False)
            parts |= {(LaterLanguage, "stages"): (LaterStage, True)}
            parts |= {(LaterLanguage, "lora"): config._PARTS[LanguageConfig, "lora"]}
            parts |= {(LaterStage, "source"): config._PARTS[StageConfig, "source"]}
        patch.setattr(config, "_PARTS", parts)
        patch.setattr(config, "StudyConfig", study)
        number = newest() + 1
        patch.setitem(VERSIONS, number, Version(changes, more))
        yield number


@pytest.mark.parametrize("name", sorted(GOLDEN["ids"]))
def test_a_later_version_moves_no_id_of_an_old_study(name: str) -> None:
    with version(mmfuser=Changes(added={"rings": 1})):
        if name in WRITTEN:
            study = study_from_yaml(WRITTEN[name], name, default_name=name, schema=1)
        else:
            study = load_study(name, schema=1)
        assert ids(study, DEPTH.get(name, 12)) == GOLDEN["ids"][name]


def test_a_changed_default_is_for_new_studies_alone() -> None:
    old = study_from_yaml(WRITTEN["least"], "x")
    with version() as later:
        new = study_from_yaml(WRITTEN["least"], "x")
        kept = study_from_yaml(WRITTEN["least"], "x", schema=later - 1)
        assert (new.schema, new.training.warmup, kept.training.warmup) == (later, 0.1, 0.05)
        assert study_id(new) != study_id(kept) == study_id(old)
        cell = cells_of(old)[0]
        assert variant(new, cell, 1e-3).id != variant(kept, cell, 1e-3).id == variant(old, cell, 1e-3).id
        asked = study_from_yaml(WRITTEN["least"], "x", ["training.warmup=0.05"])
        assert study_id(asked) == study_id(old)  # who asks for the old default asks for the old study


def test_defaults_of_entries_of_a_list_follow_the_version() -> None:
    words = ["language_model.stages=[{name: one}, {name: two, warmup: 0.2}]", "language_model.stages[0].epochs=2"]
    old = study_from_yaml(WRITTEN["language"], "x", words)
    for overrides in (words, ["language_model={name: some/model, system: null, probes: '', lora: {rank: 16}}", *words]):
        with version() as later:
            kept = study_from_yaml(WRITTEN["language"], "x", overrides, schema=later - 1)
            new = study_from_yaml(WRITTEN["language"], "x", overrides)
            assert kept.language_model is not None
            assert new.language_model is not None
            assert [stage.warmup for stage in kept.language_model.stages] == [0.03, 0.2]
            assert [stage.warmup for stage in new.language_model.stages] == [0.06, 0.2]
            assert study_id(kept) == study_id(old) != study_id(new)


def test_a_default_list_of_entries_follows_the_version() -> None:
    text = "strategies: [{name: concat}]\nselections: [{levels: [3]}]\nlanguage_model: {name: x}"
    old = study_from_yaml(text, "x")
    with version() as later:
        kept = study_from_yaml(text, "x", schema=later - 1)
        assert kept.language_model is not None
        assert [stage.warmup for stage in kept.language_model.stages] == [0.03]
        assert study_id(kept) == study_id(old)


def test_a_resolved_study_says_under_which_version_it_was_begun() -> None:
    old = study_from_yaml(WRITTEN["least"], "x")
    with version() as later:
        kept = study_from_yaml(WRITTEN["least"], "x", schema=later - 1)
        again = study_from_yaml(to_yaml(kept), "again")
        assert again == kept
        assert yaml.safe_load(to_yaml(kept))["schema"] == later - 1
        assert study_id(study_from_yaml(to_yaml(old), "written before there was the version")) == study_id(old)
        new = study_from_yaml(WRITTEN["least"], "x")
        assert study_from_yaml(WRITTEN["least"], "x", [f"schema={later}"], schema=1) == new


def _cropped(schema: int | None = None) -> StudyConfig:
    text = WRITTEN["language"].replace("{file: words.json}", "{file: words.json, padding: crop}")
    text = text.replace("{file: c.json}", "{file: c.json, padding: crop}")
    assert text.count("crop") == 2
    return study_from_yaml(text, "x", schema=schema)


def test_a_word_that_means_something_else_now_keeps_its_meaning_in_old_studies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``padding: crop`` of 0.1 cut before it resized: an old study goes on with that, and a new one is another."""

    def paddings(study: StudyConfig) -> list[str]:
        assert study.language_model is not None
        sources = [study.source, study.language_model.stages[0].source]
        return [source.options["padding"] for source in sources if source is not None]

    new, old = _cropped(), _cropped(schema=1)
    assert paddings(new) == ["crop"] * 2
    assert paddings(old) == ["crop_then_resize"] * 2
    assert study_id(new) != study_id(old)
    assert study_from_yaml(to_yaml(old), "again") == old
    cell = cells_of(old)[0]
    with monkeypatch.context() as patch:
        patch.setitem(VERSIONS, 2, replace(VERSIONS[2], study=replace(VERSIONS[2].study, redefined={})))  # as in 0.1.0
        then = _cropped(schema=1)
        assert paddings(then) == ["crop"] * 2
        ids_of_then = study_id(then), variant(then, cell, 1e-3).id
    assert (study_id(old), variant(old, cell, 1e-3).id) == ids_of_then
    assert variant(new, cell, 1e-3).id != ids_of_then[1]


@pytest.mark.parametrize("said", ["schema=0", "schema=99", "schema=-1"])
def test_a_version_that_nobody_knows_is_refused(said: str) -> None:
    with pytest.raises(WorkbenchError, match=r"schema is (0|99|-1); this workbench knows 1"):
        study_from_yaml(WRITTEN["least"], "x", [said])


def test_options_of_strategies_follow_the_version() -> None:
    """An option that is new is no other cell while it is neutral; a changed default is another study."""
    old = study_from_yaml(WRITTEN["least"], "x")
    cell = Cell("concat", cells_of(old)[0].selection, (("layer_norm", "per_layer"),))
    with version(concat=Changes(added={"scale": 1.0}, changed={"layer_norm": ("per_layer", "none")})) as later:
        grown = dataclasses.replace(cell, options=(*cell.options, ("scale", 1.0)))
        other = dataclasses.replace(cell, options=(*cell.options, ("scale", 2.0)))
        assert grown.id == cell.id != other.id
        assert grown.family == cell.family != other.family
        assert config_history.defaults_before(1, "concat") == {"layer_norm": "per_layer"}
        kept = study_from_yaml(WRITTEN["least"], "x", schema=later - 1)
        assert study_id(kept) == study_id(old) != study_id(study_from_yaml(WRITTEN["least"], "x"))
        options = {dict(c.options)["layer_norm"] for c in cells_of(kept) if c.strategy == "concat"}
        assert options == {"per_layer"}


def test_gates_of_language_models_train_at_the_rate_of_the_rest_unless_begun_before() -> None:
    """Probes keep the default that was tuned for them; whoever says a rate gets it."""
    before = study_from_yaml(WRITTEN["language"], "x", schema=1)
    new = study_from_yaml(WRITTEN["language"], "x")
    assert (before.training.gates_lr_scale, new.training.gates_lr_scale) == (100.0, 1.0)
    assert study_from_yaml(to_yaml(before), "x") == before
    assert study_id(study_from_yaml(WRITTEN["language"], "x", ["training.gates_lr_scale=100"])) == study_id(before)
    assert study_from_yaml(WRITTEN["least"], "x").training.gates_lr_scale == 100.0
    for name in ("mllm_quick", "mllm_finescenes"):
        assert load_study(name, schema=1).training.gates_lr_scale == 1.0
    first = flat_defaults(StudyConfig)
    for entry in VERSIONS.values():
        assert {key: probes for key, (probes, _) in entry.study.language.items()} == {
            key: first[key] for key in entry.study.language
        }


# --- going on ---------------------------------------------------------------------------------------------------

STUDY = """
name: tiny
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 24, val: 8, test: 12}}}}
strategies: [{{name: concat}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 1
plan: {{confirm: []}}
search: {{learning_rates: [0.003]}}
training: {{epochs: 1, batch_size: 8, head_hidden: 16}}
tracking: {{uri: "{uri}"}}
"""


def run(study: StudyConfig, workspace: Path) -> tuple[Any, dict[str, dict[str, float]]]:
    """The result, and by replicate what the ledger holds of the only variant."""
    from fusion_workbench.runner.experiment import Experiment
    from fusion_workbench.study.prepare import prepare
    from fusion_workbench.study.progress import Display

    parts = prepare(study, workspace, progress=False)
    result = Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()
    ledger = Ledger(parts.folder / "ledger.db")
    entries = {entry.replicate: entry.result for entry in ledger.entries()}
    ledger.close()
    kept = {r: {k: v for k, v in result.items() if "cost/" not in k} for r, result in entries.items()}
    return result, kept


def test_an_old_study_goes_on_under_a_later_version(tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path) -> None:
    """Nothing is trained twice, and what is trained now is what the old version would have trained."""
    from mlflow.tracking import MlflowClient

    text = STUDY.format(encoder=tiny_dinov2, uri=mlflow_uri)
    whole, expected = run(study_from_yaml(text, "tiny", ["replicates=2"]), tmp_path / "whole")
    before, _ = run(study_from_yaml(text, "tiny"), tmp_path / "begun")
    (folder,) = (tmp_path / "begun" / "studies").iterdir()
    ledger = Ledger(folder / "ledger.db")
    ledger._db.execute("DELETE FROM facts WHERE name = 'schema'")  # as 0.1.0 left it
    ledger.close()
    with version():

        def make(schema: int) -> StudyConfig:
            return study_from_yaml(text, "tiny", ["replicates=2"], schema=schema)

        study = as_begun(make, tmp_path / "begun")
        assert (study.schema, study.training.warmup) == (1, 0.05)
        after, trained = run(study, tmp_path / "begun")
        assert (after.run_id, after.trained, after.kept) == (before.run_id, 1, 1)
        assert trained == expected
        assert yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))["schema"] == 1

        fresh = as_begun(make, tmp_path / "elsewhere")
        result, others = run(fresh, tmp_path / "elsewhere")
        assert result.study_id not in (before.study_id, whole.study_id)
        assert others.keys() == expected.keys()
        assert others != expected
    client = MlflowClient(tracking_uri=mlflow_uri)
    children = client.search_runs(["0", "1"], "tags.`workbench.phase` = 'final'")
    warmups = {(run.data.tags["workbench.study_id"], run.data.params["warmup"]) for run in children}
    assert warmups == {(before.study_id, "0.05"), (result.study_id, "0.1")}


def begin(study: StudyConfig, workspace: Path, **facts: Any) -> None:
    """A ledger as a study that was begun would have it."""
    ledger = Ledger(folder_of(workspace, study.name, study_id(study)) / "ledger.db")
    for name, value in facts.items():
        ledger.remember(name, value)
    ledger.close()


def test_the_version_is_found_by_the_ledger(tmp_path: Path) -> None:
    def make(schema: int) -> StudyConfig:
        return study_from_yaml(WRITTEN["least"], "x", schema=schema)

    first = make(1)
    with version() as later:
        assert as_begun(make, tmp_path).schema == later  # nothing is there
        folder_of(tmp_path, first.name, study_id(first)).mkdir(parents=True)
        assert as_begun(make, tmp_path).schema == later  # a folder alone is no study
        begin(first, tmp_path)
        assert as_begun(make, tmp_path).schema == 1
        asked = [f"schema={later}"]
        named = as_begun(lambda schema: study_from_yaml(WRITTEN["least"], "x", asked, schema=schema), tmp_path)
        assert named.schema == later  # who names the version begins anew
        begin(named, tmp_path, schema=later)
        assert as_begun(make, tmp_path).schema == later


def test_versions_that_differ_in_the_plan_alone_are_told_apart_by_the_ledger(tmp_path: Path) -> None:
    def make(schema: int) -> StudyConfig:
        return study_from_yaml(WRITTEN["least"], "x", schema=schema)

    begin(make(1), tmp_path / "first", run_id="r")
    with version(Changes(changed={"plan.confirm_share": (0.5, 0.25)}), StudyConfig) as later:
        begin(make(later), tmp_path / "later", run_id="r", schema=later)
        assert study_id(make(1)) == study_id(make(later))
        assert (as_begun(make, tmp_path / "first").schema, make(1).plan.confirm_share) == (1, 0.5)
        assert as_begun(make, tmp_path / "later").schema == later


def test_a_study_that_an_earlier_version_would_refuse_is_new(tmp_path: Path) -> None:
    known = newest()

    def make(schema: int) -> StudyConfig:
        if schema <= known:
            raise WorkbenchError("no such thing yet")
        return study_from_yaml(WRITTEN["least"], "x", schema=schema)

    with version() as later:
        assert as_begun(make, tmp_path).schema == later
    with pytest.raises(WorkbenchError, match="no such thing"):
        as_begun(make, tmp_path)


# --- names ------------------------------------------------------------------------------------------------------


def renamed_training() -> type[StudyConfig]:
    """``training.projector`` as ``training.projection``."""
    hints = get_type_hints(TrainingConfig)
    fields = [
        ("projection" if f.name == "projector" else f.name, hints[f.name], field(default=f.default))
        for f in dataclasses.fields(TrainingConfig)
    ]
    training = dataclasses.make_dataclass("RenamedTraining", fields)
    return dataclasses.make_dataclass(
        "RenamedStudy", [("training", training, field(default_factory=training))], bases=(StudyConfig,)
    )


RENAMED = Changes(renamed={"training.projection": "training.projector"})


def test_a_new_name_moves_no_id_and_the_old_one_goes_on_working() -> None:
    old_words, new_words = ("training: {projector: mlp2x_gelu}\n", "training: {projection: mlp2x_gelu}\n")
    text = WRITTEN["least"]
    old = study_from_yaml(text + old_words, "x")
    cell = cells_of(old)[0]
    with version(RENAMED, renamed_training()):
        new = study_from_yaml(text + new_words, "x")
        assert study_id(new) == study_id(old)
        assert variant(new, cell, 1e-3).id == variant(old, cell, 1e-3).id
        told = r"'training.projector' is called 'training.projection' now; the old name is deprecated"
        with pytest.warns(DeprecatedKeyWarning, match=told) as caught:
            assert study_from_yaml(text + old_words, "x") == new
        assert len(caught) == 1
        for said in ("training.projector=mlp2x_gelu", "training={projector: mlp2x_gelu}"):
            with pytest.warns(DeprecatedKeyWarning, match=told) as caught:
                assert study_from_yaml(text, "x", [said]) == new
            assert len(caught) == 1
        both = "training: {projector: linear, projection: linear}\n"
        with pytest.raises(WorkbenchError, match=r"'training.projector' is the old name of 'training.projection'"):
            study_from_yaml(text + both, "mine.yaml")
        with pytest.raises(WorkbenchError, match="is the old name of"):
            study_from_yaml(text, "x", ["training={projector: linear, projection: linear}"])
        twice = ["training.projection=linear", "training.projector=linear"]
        with (
            pytest.warns(DeprecatedKeyWarning),
            pytest.raises(WorkbenchError, match=r"'training.projection' is given by its old name too"),
        ):
            study_from_yaml(text, "x", twice)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            study_from_yaml(text + new_words, "x")


def test_names_move_between_sections_and_inside_of_lists() -> None:
    changes = Changes(renamed={"optimiser.decay": "training.weight_decay", "strategies[].copy": "strategies[].alias"})
    with version(changes, StudyConfig):
        new = {"optimiser": {"decay": 0.1}, "training": {"epochs": 2}, "strategies": [{"copy": "A"}, {"name": "x"}]}
        old = {"training": {"epochs": 2, "weight_decay": 0.1}, "strategies": [{"alias": "A"}, {"name": "x"}]}
        assert as_version_1(new) == old
        with pytest.warns(DeprecatedKeyWarning):
            rename_keys(old, "x")
        assert old == new
        with pytest.raises(WorkbenchError, match=r"'training.weight_decay' is the old name of 'optimiser.decay'"):
            rename_keys({"optimiser": {"decay": 0.1}, "training": {"weight_decay": 0.1}}, "x")
        with pytest.warns(DeprecatedKeyWarning):
            assert rename_override("training.weight_decay", 0.1) == ("optimiser.decay", 0.1)
        with pytest.warns(DeprecatedKeyWarning):
            assert rename_override("strategies[1].alias", "B") == ("strategies.1.copy", "B")
        entries = [{"alias": "A"}]
        with pytest.warns(DeprecatedKeyWarning):
            assert rename_override("strategies", entries) == ("strategies", entries)
        assert entries == [{"copy": "A"}]


@pytest.mark.parametrize(("before", "since"), [(True, "length"), (False, "none")])
def test_a_renamed_key_s_values_are_read_and_hashed_as_they_were(before: bool, since: str) -> None:
    words = WRITTEN["language"]
    new = study_from_yaml(words, "x", [f"language_model.group_by={since}"])
    said = f"language_model.group_by_length={str(before).lower()}"
    with pytest.warns(DeprecatedKeyWarning, match=r"group_by_length' is called 'language_model\.group_by' now"):
        assert study_from_yaml(words, "x", [said]) == new
    file = words.replace("  system: null\n", f"  system: null\n  group_by_length: {str(before).lower()}\n")
    with pytest.warns(DeprecatedKeyWarning):
        assert study_from_yaml(file, "x") == new
    plain = {"language_model": {"group_by": since}}
    assert as_version_1(plain) == {"language_model": {"group_by_length": before}}
    other = {"language_model": {"group_by": "modality_length"}}
    assert as_version_1(other) == {"language_model": {"group_by_length": "modality_length"}}
    with (
        pytest.warns(DeprecatedKeyWarning),
        pytest.raises(WorkbenchError, match=r"group_by' takes words, and YAML reads a number there"),
    ):
        study_from_yaml(words, "x", ["language_model.group_by_length=1.5"])


def test_defaults_and_neutral_values_follow_a_later_name() -> None:
    """A key that was added, then renamed, with its section renamed after that and its default changed."""
    with (
        version(Changes(added={"training.smooth": 0.0}), StudyConfig),
        version(Changes(renamed={"training.smoothing": "training.smooth"}), StudyConfig),
        version(Changes(changed={"training.smoothing": (0.0, 0.1)}), StudyConfig) as third,
        version(Changes(renamed={"optimiser": "training"}), StudyConfig),
    ):
        assert as_version_1({"optimiser": {"smoothing": 0.0, "epochs": 2}}) == {"training": {"epochs": 2}}
        assert as_version_1({"optimiser": {"smoothing": 0.1}}) == {"training": {"smooth": 0.1}}
        known = {key: before for key, (before, _) in VERSIONS[2].study.changed.items()}
        assert config_history.defaults_before(1) == known | {"optimiser.smoothing": 0.0}
        assert config_history.defaults_before(third) == {}


def test_options_keep_their_old_names_too() -> None:
    text = "strategies: [{name: concat, options: {norm: none}, choices: {scales: [1]}}]\nselections: [{levels: [3]}]"
    old = study_from_yaml(text, "x")
    with version(concat=Changes(renamed={"layer_norm": "norm"})):
        with pytest.warns(DeprecatedKeyWarning, match="'norm' is called 'layer_norm' now"):
            new = study_from_yaml(text, "x", schema=1)
        assert new.strategies[0].options == {"layer_norm": "none"}
        assert study_id(new) == study_id(old)


def test_an_old_name_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    import typer

    from fusion_workbench.cli.terminal import show_deprecations

    app = typer.Typer()

    @app.command()
    def told() -> None:
        show_deprecations()
        warnings.warn("x.yaml: 'a' is called 'b' now; the old name is deprecated.", DeprecatedKeyWarning, stacklevel=1)

    with warnings.catch_warnings(record=False):
        warnings.simplefilter("default")
        before = warnings.showwarning
        try:
            said = CliRunner().invoke(app).output
        finally:
            warnings.showwarning = before
    assert said.splitlines()[0] == "note: x.yaml: 'a' is called 'b' now; the old name is deprecated."


# --- any words --------------------------------------------------------------------------------------------------

words = st.fixed_dictionaries(
    {},
    optional={
        "training.epochs": st.integers(1, 50),
        "training.warmup": st.floats(0, 0.9),
        "training.weight_decay": st.floats(0, 1),
        "training.precision": st.sampled_from(["32-true", "bf16-mixed"]),
        "training.live": st.booleans(),
        "search.learning_rates": st.lists(st.floats(1e-6, 1), min_size=1, max_size=3),
        "encoder.image_size": st.integers(1, 999) | st.lists(st.integers(1, 999), min_size=2, max_size=2),
        "tasks": st.lists(st.sampled_from(["read", "digit"]), min_size=1, max_size=2, unique=True),
        "strategies[0].options": st.dictionaries(st.sampled_from("abc"), st.integers() | st.booleans(), max_size=2),
        "baselines": st.booleans(),
        "replicates": st.integers(1, 9),
        "question": st.text("abc", max_size=5),
    },
)


def spoken(said: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in said.items()]


@settings(deadline=None, max_examples=15)
@given(words, st.sampled_from([0.0, 1e-9, 0.1, 1.0]) | st.floats(0, 1))
def test_a_new_key_moves_the_id_when_and_only_when_it_is_set(said: dict[str, Any], smoothing: float) -> None:
    old = study_from_yaml(WRITTEN["least"], "x", spoken(said))
    with version():
        kept = study_from_yaml(WRITTEN["least"], "x", spoken(said), schema=1)
        told = study_from_yaml(WRITTEN["least"], "x", [*spoken(said), "training.smoothing=0"], schema=1)
        moved = study_from_yaml(WRITTEN["least"], "x", [*spoken(said), f"training.smoothing={smoothing!r}"], schema=1)
        assert study_id(kept) == study_id(told) == study_id(old)
        assert (study_id(moved) == study_id(old)) == (smoothing == 0)
        assert (variant_of(moved) == variant_of(old)) == (smoothing == 0)
        assert variant_of(kept) == variant_of(told) == variant_of(old)
        new = study_from_yaml(WRITTEN["least"], "x", spoken(said))
        assert (study_id(new) == study_id(old)) == ("training.warmup" in said)


def variant_of(study: StudyConfig) -> str:
    from fusion_workbench.core.layers import Selection

    return variant(study, Cell("concat", Selection((3,), 12)), 1e-3).id
