"""Study files and overrides that cannot mean what they say: refused in one line, before any work."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml
from cases import Kind, case
from commands import command

from fusion_workbench.config.limits import LIMITS, MOST_REPLICATES
from fusion_workbench.config.overrides import parse_values
from fusion_workbench.config.study import StudyConfig, load_study, study_from_yaml, to_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.options import read_options
from fusion_workbench.core.parse import dump_yaml, parse_yaml
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.modules.fusion import canonical_options

BARE = "name: bare\nstrategies: [{name: concat}]\nselections: [{levels: [3, 6]}]\n"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


def read(text: str, *overrides: str) -> StudyConfig:
    return study_from_yaml(BARE + text, "s.yaml", overrides)


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(WorkbenchError) as error:
        read(text, *overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@case(Kind.INPUT, "a key stands twice in a study file, at any depth", "refused; names the key and both lines")
def test_doubled_keys() -> None:
    assert refused("replicates: 2\nreplicates: 3\n") == (
        "s.yaml: line 5, column 1: the key 'replicates' stands twice, in line 4 too; keep one."
    )
    assert "line 4, column 23: the key 'epochs' stands twice" in refused("training: {epochs: 1, epochs: 2}")
    assert "'a' stands twice" in refused("source: {options: {'a': 1, a: 2}}")
    merged = "b: &b {x: 1, y: 1}\nc:\n  <<: *b\n  x: 2"  # what << brings may well be given again
    assert parse_yaml(merged, "f")["c"] == {"x": 2, "y": 1}


@case(
    Kind.INPUT,
    "yes, no, on, off and y where a word is meant: question: yes, a class called no",
    "words, as in YAML 1.2; a key that takes true or false takes them still, an option says what to write",
)
@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "n", "Yes", "NO"])
def test_words_that_yaml_1_1_takes_for_truth(word: str) -> None:
    study = read(f"question: {word}\nsource: {{options: {{kinds: [{word}]}}}}\nbaselines: {word}")
    assert study.question == word
    assert study.source.options["kinds"] == [word]
    assert study.baselines is (word.lower() in ("yes", "on", "y"))
    with pytest.raises(WorkbenchError, match=r"takes 'bool'|takes bool") as error:
        canonical_options("mmfuser", {"self_attention": word})
    assert str(error.value).endswith("Write true." if study.baselines else "Write false.")


@case(
    Kind.INPUT,
    "numbers that YAML 1.1 and 1.2 read differently: 1e-3, 012, 1_000, 1:30, 0o7, a date, a commit such as 12345e67",
    "words, in which nothing is lost; a key that takes a number reads 1e-3 as 0.001, 012 as 12, 1_000 as 1000, and "
    "refuses the others",
)
def test_numbers_that_are_words() -> None:
    study = read("search: {learning_rates: [1e-3, 3E-3]}\ntraining: {epochs: 012, batch_size: 1_000}")
    assert study.search.learning_rates == [0.001, 0.003]
    assert (study.training.epochs, study.training.batch_size) == (12, 1000)
    for word in ("1:30", "0o7", "2026-11-28", "0b11", "1e3"):
        assert f"'{word}'" in refused(f"training: {{epochs: {word}}}")
    for commit in ("0123456", "12345e67", "1_000", "1:30", "2026-11-28"):
        assert read(f"encoder: {{revision: {commit}}}").encoder.revision == commit
    assert read("", "search.learning_rates=[1e-3]").search.learning_rates == [0.001]
    # options of strategies and sources
    assert canonical_options("mmfuser", {"heads": "1_2"})["heads"] == 12
    assert build_source("planted", {"train": "1_000"}).size("train") == 1000
    with pytest.raises(WorkbenchError, match=r"source.options.train is '1e3'; it must be of type int"):
        build_source("planted", {"train": "1e3"})


@case(
    Kind.INPUT,
    "a number with a point, or true, where a word is meant: revision: 1.10, question: true",
    "refused, as 1.10 would have become 1.1; asks for quotes",
)
@pytest.mark.parametrize("line", ["encoder: {revision: 1.10}", "question: true", "tasks: [read, 1.50]"])
def test_words_that_are_numbers(line: str) -> None:
    assert "quote it as it is meant" in refused(line)
    for override in ("encoder.revision=1.10", "encoder={revision: 1.10}", "strategies[0].alias=true", "tasks=[1.50]"):
        assert "quote it as it is meant" in refused("", override)
    assert read('encoder: {revision: "1.10"}').encoder.revision == "1.10"
    assert read("encoder: {revision: 1234567}").encoder.revision == "1234567"  # nothing is lost


@case(
    Kind.INPUT,
    "a resolved study.yaml is read back: words such as 1e-3, yes and 012",
    "the same words, here and in any reader of YAML 1.1 or 1.2",
)
@pytest.mark.parametrize(
    "word", ["yes", "1e-3", "0o7", "012", "1_000", "1:30", "2026-11-28", "true", "5", "<<", "~", ""]
)
def test_words_come_back(word: str) -> None:
    written = dump_yaml({"word": word, "number": 1e-05, "list": [1, 0.5, None, True]})
    assert parse_yaml(written, "f") == yaml.safe_load(written)
    assert parse_yaml(written, "f")["word"] == word
    if word not in ("true", "5", "~", ""):
        study = read(f"question: {word}")
        assert study_from_yaml(to_yaml(study), "again") == study


@case(
    Kind.INPUT,
    "values that hold themselves, 3,000 nested brackets, aliases of aliases, a number of 5,000 digits, ESC, NUL, half "
    "a surrogate pair, Python's own tags",
    "one line each",
)
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("source: {options: &o {self: *o}}", "holds itself"),
        ("single_layers: &a [*a]", "holds itself"),
        (BOMB, "grows beyond 100,000 values"),
        ("single_layers: " + "[" * 3000, "nested more than 50 levels deep"),
        ("source: " + "{a: " * 3000, "nested more than 50 levels deep"),
        ("replicates: " + "9" * 5000, "a number of 5,000 digits"),
        ('question: "\\e[31m"', "control character U+001B"),
        ('tracking: {uri: "sqlite:///\\e.db"}', "control character U+001B"),
        ("question: \x1b[31m", "character U+001B at position"),
        ("question: a\x00b", "character U+0000 at position"),
        ('question: "\\ud800"', "control character U+D800"),
        ("question: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("question: !!timestamp 2026-11-28", "is a date; quote it"),
        ("question: !!binary aGk=", "is a bytes; quote it"),
        ("question: *nobody", "undefined alias"),
        ("? [a, b]\n: c", "unhashable key"),
        ("---\nname: other", "another document"),
    ],
)
def test_text_that_means_harm(text: str, told: str) -> None:
    assert told in refused(text)


@case(
    Kind.INPUT,
    "a device, a pipe, a folder, 1 GB or a name of 5,000 letters as a study file",
    "refused at once, with the reason",
)
def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(10**9)
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for place, told in {
        "/dev/zero": "it is a device",
        tmp_path / "pipe": "it is a pipe",
        tmp_path: "it is a folder",
        tmp_path / "large.yaml": "it is larger than 1 MB",
        tmp_path / "loop.yaml": "oo many levels of symbolic links",
        "a" * 5000: "neither a file nor one of the bundled studies",
        tmp_path / "a\0b": "no file has such a name",
    }.items():
        with pytest.raises(WorkbenchError, match=told) as error:
            load_study(str(place))
        assert len(str(error.value)) < 500


@case(Kind.INPUT, "an override is given twice: training.epochs=3 training.epochs=4", "refused; names both")
def test_overrides_given_twice() -> None:
    assert refused("", "training.epochs=3", "training.epochs=4") == (
        "'training.epochs' is given twice, as 'training.epochs=3' and 'training.epochs=4'; keep one."
    )
    assert "given twice" in refused("", "strategies[0].name=concat", "strategies.0.name=average")
    with pytest.raises(WorkbenchError, match="'points' is given twice"):
        parse_values(["points=4", "points=8"])
    assert read("", "training={epochs: 3}", "training.batch_size=4").training.epochs == 3


ABSURD = [
    ("replicates", 10**9),
    ("replicates", 10**30),
    ("training.epochs", 10**12),
    ("training.batch_size", 10**12),
    ("training.bank_size", 10**9),
    ("training.width", 10**9),
    ("training.head_hidden", 10**9),
    ("training.devices", 10**9),
    ("encoder.batch_size", 10**9),
    ("encoder.image_size", 10**9),
    ("search.budget", 10**12),
    ("search.keep", 10**12),
    ("search.seed", -1),
    ("search.seed", 2**32),
    ("plan.confirm", [5, 10**9]),
    ("training.weight_decay", float("inf")),
    ("training.head_lr_scale", float("inf")),
    ("training.gates_lr_scale", float("nan")),
    ("search.learning_rates", [float("inf")]),
    ("search.learning_rates", [float("nan")]),
    ("language_model", {"max_length": 10**12}),
    ("language_model", {"max_new_tokens": 10**12}),
    ("language_model", {"lora": {"rank": 10**12}}),
    ("language_model", {"stages": [{"epochs": 10**12}]}),
    ("language_model", {"stages": [{"lr_scale": float("inf")}]}),
]


@case(
    Kind.INPUT,
    "numbers that no machine could run: 10⁹ replicates, 10¹² epochs, training samples, batch sizes, infinite rates",
    "refused before any work; names key, most and why",
)
@pytest.mark.parametrize(("key", "value"), ABSURD)
def test_numbers_that_no_machine_could_run(key: str, value: object) -> None:
    written = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    told = refused("", f"{key}={written}")
    assert told.startswith(f"s.yaml: {key}")
    assert "at most" in told or "at least" in told or "above 0" in told


@case(Kind.INPUT, "10¹² training samples of a source that draws them", "refused before they are named one by one")
@pytest.mark.parametrize("source", ["planted", "finescenes", "crowns", "finescenes_questions", "planted_questions"])
def test_samples_that_no_machine_could_hold(source: str) -> None:
    for split in ("train", "val", "test"):
        with pytest.raises(WorkbenchError, match=rf"source.options.{split} is 1,000,000,000,000; it must be at most"):
            build_source(source, {split: 10**12})


def test_every_number_of_a_study_has_limits() -> None:
    """A new number in the schema is refused here until it has limits, or is named as one that needs none."""
    from dataclasses import fields, is_dataclass
    from typing import Any, get_args, get_type_hints

    free = {
        "schema",  # known versions alone
        "search.learning_rates[]",  # checked with the limits
        "space.count[]",  # by the encoder's depth
        "plan.level",
        "plan.margin",
        "plan.confirm_share",
        "plan.families[].share",
        "plan.looks[]",  # up to replicates
        "language_model.lora.dropout",
    }

    def numbers(kind: Any, above: str) -> list[str]:
        found = []
        for field in fields(kind):
            declared = get_type_hints(kind)[field.name]
            inner = [one for one in (declared, *get_args(declared)) if one is not type(None)]
            name = f"{above}{field.name}" + ("[]" if getattr(declared, "__origin__", None) is list else "")
            if part := next((one for one in inner if is_dataclass(one)), None):
                found += numbers(part, f"{name}.")
            elif {int, float} & {*inner}:
                found.append(name)
        return found

    assert set(numbers(StudyConfig, "")) - free == set(LIMITS)


@case(
    Kind.INPUT,
    "absurd numbers on the command line: sweep, sweep --plan, power on a study file",
    "exit status 2 and one line at once",
)
@pytest.mark.parametrize("words", [["sweep"], ["sweep", "--plan"], ["power"], ["report"]])
def test_on_the_command_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(f"{BARE}replicates: 1000000000\n")
    start = time.process_time()
    assert command(monkeypatch, *words, str(file), "-w", str(tmp_path / "W")) == 2
    assert time.process_time() - start < 20  # of this process's own time: nothing is built
    told = capfd.readouterr().err
    assert told.count("\n") == 1
    assert f"replicates is 1,000,000,000; it must be at most {MOST_REPLICATES:,}" in told
    assert not (tmp_path / "W").exists()


def test_read_options_refuses_what_is_no_number() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Options:
        rate: float = 0.1
        word: str = "a"
        count: int = 1
        either: int | None = None

    assert read_options("x", Options, {"rate": "1e-3"}) == Options(rate=0.001)
    assert read_options("x", Options, {"word": "1e-3", "count": "012"}) == Options(word="1e-3", count=12)
    assert read_options("x", Options, {"either": "1_0"}) == Options(either=10)
    for wrong in ({"rate": "fast"}, {"count": "1:30"}, {"count": "1.5"}, {"count": float("inf")}, {"rate": "yes"}):
        with pytest.raises(WorkbenchError, match="it takes"):
            read_options("x", Options, wrong)
