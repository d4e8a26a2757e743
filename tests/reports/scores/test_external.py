"""Reading others' scores: formats, names, and every way that a file can be wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.scores.sample_logs import is_sample_name, task_of
from fusion_workbench.reports.scores.tables import Scores, read_scores

LONG = """model,seed,task,example_id,photo,correct
a,0,read,x1,p,1
a,0,read,x2,p,0
a,1,read,x1,p,1
a,1,read,x2,p,1
b,0,read,x1,p,0
b,0,read,x2,p,0.5
b,1,read,x1,p,true
b,1,read,x2,p,False
"""
ROW = '{"system": "a", "example": "x", "score": 1}'


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def log(path: Path, scores: dict[str, list[Any]], task: str = "pope", **more: list[Any]) -> str:
    """A sample log as lmms-eval writes it: a key for each metric, beside what the harness says of the document."""
    lines = []
    for i in range(len(next(iter(scores.values())))):
        frame = {"doc_id": i, "target": "yes", "filtered_resps": ["Yes"], "doc_hash": "ab" * 32, "input": "Is there?"}
        lines.append(json.dumps(frame | {k: v[i] for k, v in {**scores, **more}.items() if v[i] is not None}))
    return write(path / f"20260901_120000_samples_{task}.jsonl", "\n".join(lines) + "\n")


def same(one: Scores, other: Scores) -> None:
    assert (one.systems, one.measures) == (other.systems, other.measures)
    for key, o in one.example_scores.items():
        assert o.replicates == other.example_scores[key].replicates
        assert o.examples == other.example_scores[key].examples
        assert o.groups == other.example_scores[key].groups
        np.testing.assert_array_equal(o.scores, other.example_scores[key].scores)


def test_a_long_table_with_other_people_s_words(tmp_path: Path) -> None:
    found = read_scores([write(tmp_path / "s.csv", LONG)], columns=["group=photo"])
    assert (found.systems, found.measures) == (("a", "b"), ("read",))
    b = found.example_scores["b", "read"]
    assert (b.replicates, b.examples, b.groups) == (("0", "1"), ("x1", "x2"), ("p", "p"))
    np.testing.assert_array_equal(b.scores, [[0, 0.5], [1, 0]])


def test_every_format_says_the_same(tmp_path: Path) -> None:
    frame = pd.read_csv(write(tmp_path / "s.csv", LONG), dtype=str)
    frame["correct"] = [1, 0, 1, 1, 0, 0.5, 1, 0]
    frame["seed"] = frame["seed"].astype(float)  # 0.0 and 0 are one replicate
    csv = read_scores([str(tmp_path / "s.csv")])
    frame.to_parquet(tmp_path / "s.parquet")
    frame.to_csv(tmp_path / "s.tsv", sep="\t", index=False)
    frame.to_json(tmp_path / "s.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "s.json", orient="records")
    write(tmp_path / "semi.csv", LONG.replace(",", ";"))
    for name in ("s.parquet", "s.jsonl", "s.json", "semi.csv"):
        same(csv, read_scores([str(tmp_path / name)]))
    assert read_scores([str(tmp_path / "s.tsv")]).systems == ("a", "b")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6),
            st.floats(-1e6, 1e6, allow_subnormal=False),
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda row: row[0].strip(),
    )
)
def test_whatever_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float]]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    frame = pd.DataFrame([("a", name, score) for name, score in rows], columns=["system", "example", "score"])
    frame.to_csv(folder / "s.csv", index=False)
    found = read_scores([str(folder / "s.csv")]).example_scores["a", ""]
    assert dict(zip(found.examples, found.scores[0].tolist(), strict=True)) == pytest.approx(dict(rows))


def test_a_table_without_systems_is_named_by_its_file_or_the_option(tmp_path: Path) -> None:
    text = "example,score\n1,0\n2,1\n"
    write(tmp_path / "base@0.csv", text)
    write(tmp_path / "mine" / "run1.csv", text)
    found = read_scores([str(tmp_path / "base@0.csv")], systems=[f"mine@7={tmp_path}/mine/*.csv"])
    assert found.systems == ("mine", "base")
    assert found.example_scores["base", ""].replicates == ("0",)
    assert found.example_scores["mine", ""].replicates == ("7",)


def test_sample_logs_of_lmms_eval(tmp_path: Path) -> None:
    for model, scores in {"org__a": [1.0, 0.0, 1.0], "org__b@1": [1.0, 1.0, 1.0]}.items():
        dicts = [{"question_id": i, "score": s, "prediction": "yes"} for i, s in enumerate(scores)]
        log(tmp_path / model, {"pope_accuracy": dicts, "pope_f1_score": dicts, "submission": [{"a": 1, "b": 2}] * 3})
    found = read_scores([str(tmp_path)])
    assert found.systems == ("org__a", "org__b")
    assert found.measures == ("pope/pope_accuracy",)  # the F1 repeats it, the submission is no score
    assert "pope/pope_f1_score holds the same scores" in found.notes[0]
    assert found.example_scores["org__b", "pope/pope_accuracy"].replicates == ("1",)
    np.testing.assert_array_equal(found.example_scores["org__a", "pope/pope_accuracy"].scores, [[1, 0, 1]])
    assert read_scores([str(tmp_path)], metrics=["pope_f1_score"]).measures == ("pope/pope_f1_score",)


def test_metrics_of_some_documents_and_groups_inside_them(tmp_path: Path) -> None:
    """MME scores each document under one of two names, and asks two questions of a picture."""

    def entry(i: int) -> dict[str, Any]:
        return {"question_id": f"img{i // 2}", "category": "ocr", "score": float(i % 2)}

    seen = {"mme_perception_score": [entry(i) if i < 4 else None for i in range(6)]}
    thought = {"mme_cognition_score": [entry(i) if i >= 4 else None for i in range(6)]}
    log(tmp_path / "a", seen, "mme", **thought)
    found = read_scores([str(tmp_path / "a")], columns=["group=question_id"])
    assert found.measures == ("mme/mme_perception_score", "mme/mme_cognition_score")
    assert found.example_scores["a", "mme/mme_perception_score"].groups == ("img0", "img0", "img1", "img1")


def test_a_log_is_told_from_a_table_of_json_lines(tmp_path: Path) -> None:
    row = '{"doc_id": 1, "target": "x", "correct": 1, "model": "a"}'
    assert read_scores([write(tmp_path / "rows.jsonl", row)]).systems == ("a",)
    named = '{"doc_id": 1, "target": "x", "score": 1}'  # a metric called score
    assert read_scores([write(tmp_path / "m" / "samples_t.jsonl", named)]).measures == ("t/score",)
    marked = '{"doc_id": 1, "filtered_resps": ["x"], "acc": 1}'
    assert read_scores([write(tmp_path / "m" / "other.jsonl", marked)]).systems == ("m",)


def test_filters_of_lm_eval_are_measures_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"doc_id": i, "target": "4", "filtered_resps": ["4"], "filter": kind, "metrics": ["exact_match"]}
        | {"exact_match": float(i == 0 or kind == "flexible"), "doc": {"n": 3}}
        for i in range(3)
        for kind in ("strict", "flexible")
    ]
    name = tmp_path / "m" / "samples_gsm8k_2026-09-01T12-00-00.123456.jsonl"
    found = read_scores([write(name, "\n".join(map(json.dumps, rows)))])
    assert found.measures == ("gsm8k/exact_match,strict", "gsm8k/exact_match,flexible")
    assert found.example_scores["m", "gsm8k/exact_match,strict"].scores.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("20260901_120000_samples_mme.jsonl", "mme"),
        ("samples_gsm8k_cot_2026-09-01T12-00-00.123456.jsonl", "gsm8k_cot"),
        ("samples_pope.jsonl", "pope"),
        ("2026-09-01T12-00-00_samples_ai2d_lite.jsonl", "ai2d_lite"),
    ],
)
def test_names_of_logs(name: str, task: str) -> None:
    assert is_sample_name(Path(name))
    assert task_of(Path(name)) == task


def test_what_is_not_scored_everywhere_is_counted(tmp_path: Path) -> None:
    found = read_scores([write(tmp_path / "s.csv", LONG.replace("a,1,read,x2,p,1\n", ""))])
    assert found.example_scores["a", "read"].examples == ("x1",)
    assert found.notes == ("a on read: 1 of 2 examples are not scored in every replicate and are left out.",)


TABLE = "system,example,score\n"
WRONG = [
    ("s.csv", TABLE + "a,1,0\na,2,good\n", [], r"s\.csv:3: 'good' is no number \(column 'score'\)"),
    ("s.csv", TABLE + "a,1,\n", [], r"s\.csv:2: there is no number \(column 'score'\)"),
    ("s.csv", TABLE + "a,1,nan\n", [], r"s\.csv:2: 'nan' is no number"),
    ("s.csv", TABLE + 'a,"two\nlines",0\na,3,inf\n', [], r"s\.csv:4: 'inf' is no number"),
    (
        "s.csv",
        TABLE + "a,1,0\na,1,1\n",
        [],
        r"s\.csv:3: example '1' of a is scored a second time \(first in .*s\.csv:2\)",
    ),
    ("s.csv", TABLE + "a,1\n", [], r"s\.csv:2: the row is shorter than the head"),
    ("s.csv", TABLE + "a,,1\n", [], r"s\.csv:2: the example has no name"),
    ("s.csv", TABLE, [], r"s\.csv: the file holds no row of scores"),
    ("s.csv", "", [], r"s\.csv: the file is empty"),
    ("s.jsonl", "\n", [], r"s\.jsonl: the file is empty"),
    ("s.jsonl", '{"example": 1, "score": 1}\n{"example": 2,\n', [], r"s\.jsonl:2: not valid JSON"),
    ("s.jsonl", '{"example": 1, "score": 1}\n[3]\n', [], r"s\.jsonl:2: expected a JSON object, and found list"),
    ("s.jsonl", '{"example": 1, "score": 1}\n{"example": 2}\n', [], r"s\.jsonl:2: there is no number"),
    ("s.parquet", "PAR1 torn", [], r"s\.parquet: not a Parquet file that can be read"),
    ("s.xlsx", "?", [], r"s\.xlsx: '\.xlsx' is not read; known: \.csv"),
    ("s.csv", "model,method,example,score\na,b,1,0\n", [], r"the system could be 'model' or 'method'; say which with"),
    ("s.csv", "model,idx,score\na,1,0\n", [], r"no column holds the example; there are model, idx, score"),
    ("s.csv", TABLE + "a,1,0\n", ["score=scores"], r"no column 'scores' for the score\. Did you mean 'score'\?"),
    ("s.csv", TABLE + "a,1,0\n", ["sistem=model"], r"there is no role 'sistem'\. Did you mean 'system'\?"),
    ("s.csv", TABLE + "a,1,0\n", ["system"], r"--column system: expected ROLE=COLUMN"),
    ("s.csv", "system,example,score,group\na,1,0,p\na,2,0,\n", [], r"a: 1 of 2 examples have no group"),
    (
        "s.csv",
        "system,example,score,group\na,1,0,p\nb,1,0,q\n",
        [],
        r"s\.csv:3: example '1' is in group 'q', and elsewhere",
    ),
    (
        "s.csv",
        "system,seed,example,score\na,0,1,0\na,1,2,0\n",
        [],
        r"its replicates \(0, 1\) have no example in common",
    ),
    ("samples_t.jsonl", '{"doc_id": 0, "target": 1, "m": {"a": "x"}}', [], r"no metric has a number for each document"),
    (
        "samples_t.jsonl",
        '{"doc_id": 0, "target": 1, "m": 1}\n{"doc_id": 1, "target": 1, "m": null}',
        [],
        r"jsonl:2: 'm' holds",
    ),
    ("samples_t.jsonl", '{"doc_id": null, "target": 1, "m": 1}', [], r"jsonl:1: the document has no doc_id"),
    (
        "samples_t.jsonl",
        '{"doc_id": 0, "target": 1, "m": 1}',
        ["group=photo"],
        r"nor the document holds the group 'photo'",
    ),
]


@pytest.mark.parametrize(("name", "text", "columns", "said"), WRONG)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, name: str, text: str, columns: list[str], said: str) -> None:
    with pytest.raises(WorkbenchError, match=said) as caught:
        read_scores([write(tmp_path / name, text)], columns=columns)
    assert "\n" not in str(caught.value)


def test_no_files_no_folder_no_match_no_metric(tmp_path: Path) -> None:
    table = write(tmp_path / "s.csv", LONG)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"files": []}, "no files: name some"),
        ({"files": [str(tmp_path / "gone.csv")]}, "there is no such file"),
        ({"files": [str(tmp_path)], "systems": ["a=nothing*"]}, "no file matches 'nothing\\*'"),
        ({"files": [], "systems": ["a"]}, "expected NAME=PATTERN"),
        ({"files": [], "systems": [f"a={table}", f"b={table}"]}, "is named by --system a too"),
        ({"files": [table], "metrics": ["reed"]}, "--metric reed: no score is of that. Did you mean 'read'?"),
    ]
    for arguments, said in cases:
        with pytest.raises(WorkbenchError, match=said.replace("?", r"\?")):
            read_scores(**arguments)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WorkbenchError, match="holds no sample logs and no tables"):
        read_scores([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("s.json", "[" * 100_000, "s.json: not JSON that can be read (nested too deep)"),
        ("s.jsonl", f'{ROW}\n{{"score": {"9" * 5000}}}', "s.jsonl:2: not JSON that can be read (a number is"),
        ("s.csv", "system,example,score\na,x,1\na,y,-1e308\n", "s.csv:3: '-1e308' is too large for a score"),
    ],
)
def test_what_no_reader_expects_is_said_in_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(WorkbenchError, match=re.escape(said)):
        read_scores([write(tmp_path / name, text)])


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    lines = '{"system": "a\\ud800", "example": "x", "score": 1}\n{"system": "b", "example": "x", "score": 0}\n'
    assert read_scores([write(tmp_path / "s.jsonl", lines)]).systems == ("a?", "b")


def test_a_name_that_is_too_long_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="there is no such file"):
        read_scores([f"{tmp_path}/{'x' * 300}.csv"])


def test_a_score_of_a_log_that_no_float_holds_is_none(tmp_path: Path) -> None:
    path = log(tmp_path, {"acc": [10**400, 10**400], "f1": [1.0, 0.5]})
    assert read_scores([path]).measures == ("pope/f1",)
