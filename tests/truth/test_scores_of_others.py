"""`workbench verdict` and `workbench power` on others' scores: a number is judged only where it is the score."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Kind, case
from places import ROOT
from typer.testing import CliRunner, Result

from fusion_workbench.cli.main import app
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.scores.judge import Judgement, judge_scores
from fusion_workbench.reports.scores.score_names import counts_up
from fusion_workbench.reports.scores.tables import Scores, read_scores

TASKS = json.loads((ROOT / "tests/data/truth/lmms_eval/tasks.json").read_text(encoding="utf-8"))["tasks"]


def log(path: Path, lines: list[dict[str, Any]], task: str = "t") -> str:
    """A log as lmms-eval writes it: a line a document, its metrics beside what the harness says of it."""
    path.mkdir(parents=True, exist_ok=True)
    file = path / f"20260101_000000_samples_{task}.jsonl"
    frame = {"target": "A", "filtered_resps": ["A"], "doc_hash": "h"}
    file.write_text("".join(json.dumps({"doc_id": i, **frame, **line}) + "\n" for i, line in enumerate(lines)))
    return str(file)


def two(path: Path, good: list[dict[str, Any]], bad: list[dict[str, Any]], task: str = "t") -> list[str]:
    return [log(path / "good", good, task), log(path / "bad", bad, task)]


def refused(files: list[str], **options: list[str]) -> str:
    with pytest.raises(WorkbenchError) as caught:
        read_scores(files, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def judged(files: list[str], *, higher: bool = True, **options: list[str]) -> tuple[Scores, Judgement]:
    scores = read_scores(files, **options)
    return scores, judge_scores(scores, higher_is_better=higher)


def table(path: Path, text: str, name: str = "s.csv") -> list[str]:
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(text, encoding="utf-8")
    return [str(path / name)]


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def mmbench(i: int, prediction: str) -> dict[str, Any]:
    row = {"index": 241 + i, "question": "q", "answer": "A", "prediction": prediction, "source": "s", "category": "c"}
    return {"gpt_eval_score": row, "submission": row}


# --- harness logs ---------------------------------------------------------------------------------------------------


@case(
    Kind.SCORES,
    "a log of MMBench: the only number a question has is its index, and good answers all, bad none",
    "refused: no score for each document, which keys there are, and `--column score=KEY`",
    "EvolvingLMMs-Lab/lmms-eval#43",
    "EvolvingLMMs-Lab/lmms-eval#45",
    "EvolvingLMMs-Lab/lmms-eval#538",
)
def test_an_index_is_no_score(tmp_path: Path) -> None:
    files = two(tmp_path, [mmbench(i, "A") for i in range(40)], [mmbench(i, "B") for i in range(40)], "mmbench_en_dev")
    said = refused(files)
    assert "no metric has a number for each document that is known as its score" in said
    assert "gpt_eval_score, submission (index, question, answer," in said
    assert "--column score=KEY" in said


@pytest.mark.parametrize(
    ("metric", "entry"),
    [
        ("vinoground_text_score", {"index": 3, "categories": "x", "question_type": "t", "pred": "B"}),
        ("timescope_perception_score", {"id": "v0", "length": 60, "task_type": "t", "pred_answer": "B", "answer": "A"}),
        ("wemath_loose", {"ID": "v0", "question number": 2, "answer": "A", "response": "B"}),
        ("gpt_eval_score", {"index": 7, "type": "t", "masked_answer": "A", "prediction": "B"}),  # MMUPD
        ("long_acc", {"video": "v", "count": 4, "duration": 61.5, "n_frames": 8}),  # CG-AV-Counting
        ("cost", {"num_tokens": 311, "latency": 0.4}),
    ],
)
@case(
    Kind.SCORES,
    "logs whose numbers are an index, a length, a question's number, counts or times (Vinoground, TimeScope, WeMath, "
    "MMUPD, CG-AV-Counting)",
    "refused in one line",
    "EvolvingLMMs-Lab/lmms-eval#538",
)
def test_lengths_counts_and_times_are_no_scores(tmp_path: Path, metric: str, entry: dict[str, Any]) -> None:
    said = refused([log(tmp_path / "a", [{metric: entry}] * 3)])
    assert f"(there are: {metric} (" in said


@case(
    Kind.SCORES,
    "a number of its own in a log's line is called `sample_id`, `num_tokens` or `response_length`",
    "refused, and read when `--column score=` names it (unless it counts up)",
)
@pytest.mark.parametrize("name", ["sample_id", "num_tokens", "response_length", "index", "inference_time"])
def test_a_number_beside_the_metrics_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    lines = [{name: value} for value in (31, 4, 15, 92, 6, 5, 35)]
    file = log(tmp_path / "a", lines)
    assert f"by its name '{name}' is no score" in refused([file])
    found = read_scores([file], columns=[f"score={name}"])
    assert found.example_scores["a", f"t/{name}"].scores.tolist() == [[31, 4, 15, 92, 6, 5, 35]]
    both = log(tmp_path / "b", [{**line, "acc": 1.0} for line in lines])
    assert read_scores([both]).measures == ("t/acc",)


@case(
    Kind.SCORES,
    "MathVista, MMVP and HR-Bench: the score is `true_false`, `is_correct`, `gpt_score`, beside other numbers",
    "read, and which key was read is told",
    "EvolvingLMMs-Lab/lmms-eval#553",
    "EvolvingLMMs-Lab/lmms-eval#14",
)
def test_known_names_of_correctness_are_read(tmp_path: Path) -> None:
    right = [True, False, True, True]
    for name, other in (
        ("true_false", {"precision": 2.0}),
        ("is_correct", {"pair_index": 3}),
        ("gpt_score", {"index": 5}),
    ):
        lines = [{"metric": {"question_id": i, **other, name: value}} for i, value in enumerate(right)]
        del lines[1]["metric"][next(iter(other))]  # a number of some documents only
        found = read_scores([log(tmp_path / name, lines)])
        assert found.example_scores[name, "t/metric"].scores.tolist() == [[1, 0, 1, 1]]
        assert found.notes == (f"The score of t/metric is its '{name}'.",)


@case(
    Kind.SCORES,
    "a key named by `--column score=KEY`, or known as the score, is there for some documents only",
    "refused: for how many it is there, and what to do",
    "EvolvingLMMs-Lab/lmms-eval#553",
)
def test_a_score_of_some_documents_only(tmp_path: Path) -> None:
    lines = [{"m": {"true_false": True, **({"precision": 1.0} if i % 4 == 0 else {})}} for i in range(8)]
    said = refused([log(tmp_path / "a", lines)], columns=["score=precision"])
    assert ".jsonl:2: 'm' holds no number under 'precision', and does for 2 of 8 documents; leave these" in said
    assert "--metric, or name another key with --column score=KEY" in said
    assert "under 'true_falze'. Did you mean 'true_false'?" in refused(
        [log(tmp_path / "a", lines)], columns=["score=true_falze"]
    )
    half = [{"m": {"accuracy": 1.0} if i % 2 else {"MRA": 0.5}, "acc": 1.0} for i in range(8)]  # VSI-Bench
    file = log(tmp_path / "b", half)
    assert "under 'accuracy', and does for 4 of 8 documents" in refused([file])
    assert read_scores([file], metrics=["acc"]).measures == ("t/acc",)


@case(
    Kind.SCORES,
    "`--column score=index`: a key that counts up with the documents, in whatever order they stand",
    "refused: it is an index and no score",
)
def test_what_counts_up_is_refused_though_named(tmp_path: Path) -> None:
    lines = [mmbench(i, "A") for i in range(12)]
    said = refused([log(tmp_path / "a", lines)], columns=["score=index"])
    assert "counts up (241, 242, 243, …) as an index does" in said
    shuffled = np.random.default_rng(0).permutation(20)
    rows = "".join(f"a,{i},{10 * i}\n" for i in shuffled)
    assert "counts up (0, 10, 20, …)" in refused(table(tmp_path, "system,example,value\n" + rows))


def test_no_scores_of_answers_count_up() -> None:
    assert counts_up([0, 1, 2, 3, 4, 5])
    assert counts_up([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert counts_up([7, 8, 9], "index")
    for real in ([0, 1], [0, 1, 0, 1, 0, 1], [1] * 9, [0] * 9, [1, 2, 3, 4, 5], [0, 1, 2], [0, 0, 1, 1, 2, 2], []):
        assert not counts_up(real), real


@pytest.mark.parametrize("task", TASKS, ids=[f"{t['family']}-{i}" for i, t in enumerate(TASKS)])
@case(
    Kind.SCORES,
    "the results of every task family of lmms-eval 0.7.2 (327, as `process_results` returns them)",
    "the score of each document is read, or the log is refused: 235 and 92 families",
    "EvolvingLMMs-Lab/lmms-eval#538",
)
def test_every_task_family_is_read_right_or_refused(tmp_path: Path, task: dict[str, Any]) -> None:
    file = log(tmp_path / "a", task["lines"], "x")
    if not task["scores"]:
        refused([file])
        return
    found = read_scores([file], metrics=["x"])
    read = {measure.removeprefix("x/"): o.scores[0].tolist() for (_, measure), o in found.example_scores.items()}
    assert read == task["scores"]


def test_the_docs_count_the_families() -> None:
    families = {t["family"] for t in TASKS}
    read = {t["family"] for t in TASKS if t["scores"]}
    said = f"Of the {len(families)} task families of lmms-eval 0.7.2, {len(read)} hold a score for each document"
    assert said in " ".join((ROOT / "docs/verdict.md").read_text(encoding="utf-8").split())
    assert (len(families), len(read)) == (327, 235), "the case above prints them"


@case(
    Kind.SCORES,
    "one object under many metrics: its number is that of some (`rvos_precision` has `precision`), and not of others "
    "(`rmse` of an object with `mae`)",
    "each reads its own key, the others are not judged, and repetitions are told",
)
def test_one_object_under_many_names(tmp_path: Path) -> None:
    counted = [{"acc": float(i % 2), "mae": float(i), "squared_error": float(i * i)} for i in (3, 1, 2, 5)]
    found = read_scores([log(tmp_path / "a", [dict.fromkeys(("acc", "mae", "rmse"), o) for o in counted])])
    assert found.measures == ("t/acc", "t/mae")
    assert found.example_scores["a", "t/mae"].scores.tolist() == [[3, 1, 2, 5]]
    parsed = [{"valid": bool(i), "correct": i > 1} for i in range(4)]
    lines = [dict.fromkeys(("k_acc", "k_format_error"), o) for o in parsed]
    assert read_scores([log(tmp_path / "b", lines)]).measures == ("t/k_acc",)
    (said,) = read_scores([log(tmp_path / "b", lines)], metrics=["k_format_error"]).notes
    assert said.startswith("The score of t/k_format_error is its 'correct', as that of k_acc: its mean is judged, not")


@case(
    Kind.SCORES,
    "NaturalBench, CameraBench: the object's `score` is the answer that was given (yes is 1), right or wrong",
    "refused, with the reason",
)
def test_a_score_that_is_the_answer(tmp_path: Path) -> None:
    lines = [{"naturalbench_G_ACC": {"id": i, "score": i % 2}} for i in range(6)]
    assert "the 'score' of naturalbench_G_ACC is the answer that was given" in refused([log(tmp_path / "a", lines)])


@case(
    Kind.SCORES,
    "TempCompass: `match_success` says whether an answer could be parsed, `rating` whether it is right",
    "`rating` is read",
)
def test_a_match_that_is_no_correctness(tmp_path: Path) -> None:
    lines = [{"avg_accuracy": {"match_success": True, "rating": i % 2, "dim": "x"}} for i in range(4)]
    assert read_scores([log(tmp_path / "a", lines)]).example_scores["a", "t/avg_accuracy"].scores.tolist() == [
        [0, 1, 0, 1]
    ]
    alone = [{"avg_accuracy": {"match_success": True, "dim": "x"}}] * 4
    assert "(match_success, dim)" in refused([log(tmp_path / "b", alone)])


@case(
    Kind.SCORES,
    "an object with several scores (`accuracy` and `score`) under a metric whose name does not choose",
    "refused: say which with `--column score=KEY`; `gpt_eval_score` and `…_accuracy` choose by their names",
)
def test_several_scores_are_asked_about(tmp_path: Path) -> None:
    entry = [{"score": i + 1, "accuracy": "yes" if i % 2 else "no"} for i in range(4)]
    file = log(tmp_path / "a", [{"judge": e} for e in entry])
    assert "the score of judge could be 'accuracy' or 'score'; say which with --column score=KEY" in refused([file])
    assert read_scores([file], columns=["score=score"]).example_scores["a", "t/judge"].scores.tolist() == [[1, 2, 3, 4]]
    named = read_scores([log(tmp_path / "b", [{"gpt_eval_score": e, "gpt_eval_accuracy": e} for e in entry])])
    assert named.example_scores["b", "t/gpt_eval_score"].scores.tolist() == [[1, 2, 3, 4]]
    assert named.example_scores["b", "t/gpt_eval_accuracy"].scores.tolist() == [[0, 1, 0, 1]]


@case(
    Kind.SCORES,
    "documents that a task writes under a category they are not of (`total` 0), or whose judge failed (`valid` false, "
    "score -1); a judge's bare -1",
    "not counted, and told; a bare -1 is told",
)
def test_documents_that_do_not_count(tmp_path: Path) -> None:
    lines = [{"motion": {"score": float(i), "total": i}} for i in (1, 0, 1, 0, 1)]
    found = read_scores([log(tmp_path / "a", lines)])
    assert found.example_scores["a", "t/motion"].examples == ("0", "2", "4")
    assert found.notes[0] == "t/motion: 2 of 5 documents are marked as not counted."
    failed = [{"kris": {"score": s, "valid": s >= 0}} for s in (3.0, -1.0, 4.0)]
    assert read_scores([log(tmp_path / "b", failed)]).example_scores["b", "t/kris"].scores.tolist() == [[3, 4]]
    rated = [{"gpt_eval_score": {"rating": float(r)}} for r in (7, 8, -1, 3, 9, 2, 6)]
    _, verdict = judged([*two(tmp_path / "c", rated, [{"gpt_eval_score": {"rating": 5.0}}, *rated[1:2], *rated[3:]])])
    assert "1 of 7 scores of good on t/gpt_eval_score is -1, which harnesses write where a judge failed" in " ".join(
        verdict.caveats
    )


@case(
    Kind.SCORES,
    "a measure of which less is better (`wer`, `mae`), judged as if more were",
    "told, with `--lower-is-better`",
)
def test_a_measure_of_which_less_is_better(tmp_path: Path) -> None:
    files = two(tmp_path, [{"wer": w} for w in (0.1, 0.4, 0.2)], [{"wer": w} for w in (0.5, 0.9, 0.6)])
    said = "t/wer is judged as if more were better; --lower-is-better turns it round."
    assert said in judged(files)[1].caveats
    assert said not in judged(files, higher=False)[1].caveats


@case(
    Kind.SCORES,
    "a JSON file as lmms-eval wrote it before 0.2: one object with `logs`, over many lines or on one",
    "read: task and model are taken from its head",
    "EvolvingLMMs-Lab/lmms-eval#394",
)
@pytest.mark.parametrize("indent", [1, None])
def test_logs_of_old_lmms_eval(tmp_path: Path, indent: int | None) -> None:
    for name, right in (("a", [1.0, 0.0, 1.0]), ("b", [0.0, 0.0, 1.0])):
        logs = [
            {"doc_id": i, "target": "A", "filtered_resps": ["A"], "doc_hash": "h", "exact_match": r}
            for i, r in enumerate(right)
        ]
        args = {"model": "llava", "model_args": f"pretrained=org/{name},device_map=auto"}
        whole = {"args": args, "model_configs": {"task": "gqa"}, "logs": logs}
        (tmp_path / f"{name}.json").write_text(json.dumps(whole, indent=indent))
    found = read_scores([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert (found.systems, found.measures) == (("org/a", "org/b"), ("gqa/exact_match",))
    assert found.example_scores["org/a", "gqa/exact_match"].scores.tolist() == [[1, 0, 1]]


@case(
    Kind.SCORES,
    "a JSON file that is one object and no log: the results of a whole run, or anything else",
    "refused as that, and not as broken JSON",
    "EvolvingLMMs-Lab/lmms-eval#394",
)
def test_one_object_is_told_as_one(tmp_path: Path) -> None:
    results = {"results": {"pope": {"pope_accuracy,none": 0.8}}, "configs": {}, "versions": {}}
    for indent in (2, None):
        (tmp_path / "r.json").write_text(json.dumps(results, indent=indent))
        said = refused([str(tmp_path / "r.json")])
        assert said.endswith(
            "the results of a whole run, without the score of each document; --log_samples writes these."
        )
    (tmp_path / "o.json").write_text(json.dumps({"model": "a", "scores": {"x": 1}}, indent=2))
    assert "one JSON object (model, scores) where one a line is wanted" in refused([str(tmp_path / "o.json")])
    (tmp_path / "l.json").write_text(json.dumps([{"example": "x", "score": 1}, {"example": "y", "score": 0}], indent=2))
    assert read_scores([str(tmp_path / "l.json")]).example_scores["l", ""].scores.tolist() == [[1, 0]]


# --- tables ---------------------------------------------------------------------------------------------------------

HEAD = "system,example,score\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("System,system,example,score\na,b,1,0\n", "two columns are called as the system is ('System' and 'system')"),
        ("system,example,score,Score\na,1,0,1\n", "say which with --column score=NAME"),
        (
            "system,example,score,score\na,1,0,1\n",
            "two columns are called as the score is ('score' and 'score'); rename",
        ),
        ("system,example,idx,length\na,1,0,9\n", "no column holds the score; there are system, example, idx, length"),
        ("system,example,accuracy,true_false\na,1,0,1\n", "the score could be 'true_false' or 'accuracy'"),
        (HEAD + "a,1,0,5\n", "s.csv:2: the row has 4 values and the head 3 columns (a decimal comma"),
        (HEAD + 'a,1,"0,5"\n', "'0,5' is no number (column 'score')"),
        (HEAD.replace(",", ";") + "a;1;0,5\n", "or true or false, with a decimal point: 0.5."),
        (HEAD + 'a,1,"1,234.5"\n', "without separators of thousands."),
        (HEAD + "a,1,1_000\n", "'1_000' is no number"),
        (HEAD + "a,1,50%\n", "without a sign of per cent."),
        (HEAD + "a,1,correct\n", "'correct' is no number"),
        (HEAD + "a,1,NaN\n", "'NaN' is no number"),
        (HEAD + "a,1,-inf\n", "'-inf' is no number"),
        (HEAD + 'a,1,1\na,"2,0\na,3,1\n', "s.csv:4: unexpected end of data."),
        (HEAD + "a,1,1\na,1,0\n", "example '1' of a is scored a second time"),
    ],
)
@case(
    Kind.SCORES,
    "CSVs with columns that differ by capitals, decimal commas, separators of thousands, `50%`, `1_000`, `correct`, "
    "NaN, quotation marks that never close, a row longer than the head",
    "refused in one line with the place and how it is written",
)
def test_a_table_that_could_be_read_wrong(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(table(tmp_path, text))


@case(
    Kind.SCORES,
    "tables with a BOM, semicolons, tabs, `True`/`1`/`1.0` as scores, `007` as an example's name",
    "read as the same scores, names as they are written",
)
def test_tables_as_programs_write_them(tmp_path: Path) -> None:
    text = "\ufeffsystem,example,Score\na,007,True\na,7,1\na,8,0.0\na,9,FALSE\n"
    for name, sign in (("s.csv", ","), ("semi.csv", ";"), ("s.tsv", "\t")):
        found = read_scores(table(tmp_path, text.replace(",", sign), name)).example_scores["a", ""]
        assert dict(zip(found.examples, found.scores[0], strict=True)) == {"007": 1, "7": 1, "8": 0, "9": 0}


@case(
    Kind.SCORES,
    "a table with `score` and `correct` columns",
    "`score` is read, and that it is, and that there is another, is told",
)
def test_another_column_that_may_be_meant(tmp_path: Path) -> None:
    files = table(tmp_path, "system,example,score,correct\na,1,0.9,0\nb,1,0.2,1\n")
    said = "The score is column 'score'; there is 'correct' too (--column score=correct)."
    assert read_scores(files).notes == (said,)
    asked = read_scores(files, columns=["score=correct"])
    assert asked.notes == ()
    assert asked.example_scores["b", ""].scores.tolist() == [[1]]


@case(
    Kind.SCORES,
    "JSON lines whose first row lacks a column that later rows have (`replicate`), or that hold a key twice",
    "the column counts for all rows; the key is refused",
)
def test_json_rows_of_different_keys(tmp_path: Path) -> None:
    rows = [{"system": "a", "example": "x", "score": 1}, {"system": "a", "example": "x", "score": 0, "seed": 1}]
    found = read_scores(table(tmp_path, "\n".join(map(json.dumps, rows)), "s.jsonl"))
    assert found.example_scores["a", ""].replicates == ("1", "")
    twice = '{"system": "a", "example": "x", "score": 1, "score": 0}\n'
    assert "s.jsonl:1: 'score' stands twice in one object." in refused(table(tmp_path, twice, "s.jsonl"))


def scores_of(rng: np.random.Generator, system: str, top: float, binary: bool) -> str:
    rows = []
    for seed in range(5):
        drawn = (rng.random(40) < 0.7) if binary else rng.random(40)
        rows += [f"{system},{seed},{i},{top * float(x):g}" for i, x in enumerate(drawn)]
    return "\n".join(rows) + "\n"


@case(
    Kind.SCORES,
    "one system's scores are 0 or 1, the other's 0 or 100; or shares beside per cent",
    "the first is refused; the second is told",
)
def test_shares_and_per_cent(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    head = "system,seed,example,score\n"
    files = table(tmp_path, head + scores_of(rng, "a", 1, True) + scores_of(rng, "b", 100, True))
    with pytest.raises(
        WorkbenchError, match=r"the scores of a, replicate 0, are 0 or 1 and those of b, replicate 0, 0 or"
    ):
        judged(files)
    assert isinstance(run("power", "--scores", *files).exception, WorkbenchError)
    _, verdict = judged(table(tmp_path, head + scores_of(rng, "a", 1, False) + scores_of(rng, "b", 100, False)))
    assert verdict.caveats[0].startswith(
        "The scores of a, replicate 0, lie between 0 and 1, and those of b, replicate 0,"
    )
    _, verdict = judged(table(tmp_path, head + scores_of(rng, "a", 1, False) + scores_of(rng, "b", 1, True)))
    assert verdict.caveats == ()


@case(
    Kind.SCORES,
    "two systems with the same score on every example; a measure on which every score is one value",
    "told: are they two systems, and is it a score",
)
def test_scores_that_never_differ(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = scores_of(rng, "a", 1, True)
    head = "system,seed,example,score\n"
    _, verdict = judged(table(tmp_path, head + rows + rows.replace("a,", "b,")))
    assert "a and b have the same score on every example: are they two systems, and is it a score?" in verdict.caveats
    constant = "".join(f"{s},{r},{i},-1\n" for s in "ab" for r in range(5) for i in range(12))
    assert "Every score is -1: nothing is compared there." in judged(table(tmp_path, head + constant))[1].caveats


# --- what is printed ------------------------------------------------------------------------------------------------


@case(
    Kind.FILES,
    "escape sequences, reversed reading direction and formulas in names of systems, measures and columns of scores",
    "none reaches the terminal, the page, the CSV, JSON or Markdown raw",
)
def test_names_move_no_terminal(tmp_path: Path) -> None:
    evil = "=a\x1b[31m\u202eb\x07"
    rows = [
        {
            "system": s,
            "task": f"t\x1b]0;x\x07{evil}",
            "example": f"{i}\x1b",
            "score": (i + len(s)) % 2,
            "seed": f"{r}\x1b",
        }
        for s in (evil, "plain")
        for i in range(4)
        for r in range(2)
    ]
    files = table(tmp_path, "\n".join(map(json.dumps, rows)), "s.jsonl")
    out = tmp_path / "out\x1b[2J"
    done = run("verdict", *files, "--out", str(out))
    assert done.exit_code == 0, done.exception
    written = [path.read_text(encoding="utf-8") for path in out.iterdir()]
    for text in (done.output, *written):
        assert not set(text) & set("\x1b\x07\u202e"), text
    loaded = list(csv.DictReader((out / "verdict.csv").open(newline="")))
    assert {row["system"][:3] for row in loaded} == {"'=a", "pla"}
    assert "\\u001b" not in (out / "verdict.json").read_text()
    named = run("verdict", "-s", f"x{evil}={files[0]}", "--column", "system=example")
    assert not set(named.output) & set("\x1b\x07\u202e")
