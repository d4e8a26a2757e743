"""Words that change on the way in: CSV, TSV, JSON, image folders and Parquet, as they stand in the file."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from cases import Kind, case
from llava_files import caption, picture, write
from pyarrow import parquet

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.datamodules.rows.hub import HubDataset
from fusion_workbench.datamodules.rows.hub_tables import words_of
from fusion_workbench.datamodules.rows.llava import Llava

HEAD = "image,question,answers\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow files that datasets writes stay in the test's folder."""
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, where rows find them."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / "pics" / name, seed=ord(name[0]))
    return tmp_path


def source(path: Path, **options: Any) -> HubDataset:
    how = {"size": 8, "val_share": 0.0, "test_share": 0.0, "bad_rows": 0.9, "quarantine": str(path.parent / "bad")}
    found = build_source("hf_dataset", {"path": str(path), "images": str(path.parent / "pics"), **how, **options})
    assert isinstance(found, HubDataset)
    return found


def answers(path: Path, **options: Any) -> list[tuple[str, ...]]:
    return [c.references for c in source(path, **options).conversations("train")]


def table(folder: Path, *cells: str, name: str = "q.csv", separator: str = ",", head: str = HEAD) -> Path:
    """A CSV file of a question a row, with ``cells`` as the answers."""
    path = folder / name
    lines = "".join(separator.join(["a.png", "What?", cell]) + "\n" for cell in cells)
    path.write_text(head.replace(",", separator) + lines, encoding="utf-8")
    return path


TEXTS = [
    "2",
    "3",
    "007",
    "012",
    "1e3",
    "1.0",
    "2.50",
    "-0",
    "+5",
    ".5",
    "1_000",
    "0x1F",
    "1e400",
    "True",
    "False",
    "true",
    "no",
    "None",
    "NA",
    "N/A",
    "null",
    "NULL",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "<NA>",
    "#N/A",
    "2020-01-02",
    "12:30",
    "1/2",
    "50%",
    "1E5",
    "10000000000000000001",
]


@case(
    Kind.WORDS,
    "a CSV or TSV file with answers such as 007, 1e3, 2.50, True, None, NA, null, nan, a date",
    "each cell is the text that stands in the file",
    "huggingface/datasets#4467",
    "confident-ai/deepeval#3298",
)
@pytest.mark.parametrize(("name", "separator"), [("q.csv", ","), ("q.tsv", "\t"), ("q.csv", ";")])
def test_cells_are_text(folder: Path, name: str, separator: str) -> None:
    assert answers(table(folder, *TEXTS, name=name, separator=separator)) == [(text,) for text in TEXTS]


@case(
    Kind.WORDS,
    "a CSV file with answers 2 and 3, and an empty cell",
    "2 and 3 stay; the row without an answer is a bad row",
    "huggingface/datasets#4467",
)
def test_numbers_stay_whole_beside_an_empty_cell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answers(table(folder, "2", "3", "")) == [("2",), ("3",)]
    assert "q.csv:4 (answers: there is no answer in the row)" in capsys.readouterr().err


@case(
    Kind.WORDS,
    "JSON in which a column holds numbers in one row, words or lists in another",
    "each value stays what it is, without quotation marks",
    "huggingface/datasets#5827",
    "huggingface/datasets#7222",
    "hiyouga/LlamaFactory#8805",
)
@pytest.mark.parametrize("name", ["q.json", "q.jsonl"])
def test_mixed_columns_of_json(folder: Path, name: str) -> None:
    mixed: list[Any] = [2, "cat", ["2", "two"], [2, "two"], [{"answer": "dog"}, {"answer": 2}], "null", "[1]", '"q"']
    rows = [{"image": "a.png", "question": f"{n}?", "answers": value} for n, value in enumerate(mixed)]
    rows.append({"image": ["a.png", "b.png"], "question": "Alike?", "answers": "no"})
    found = source(write(folder / name, rows)).conversations("train")
    assert [c.references for c in found] == [
        ("2",), ("cat",), ("2", "two"), ("2", "two"), ("dog", "2"), ("null",), ("[1]",), ('"q"',), ("no",),
    ]  # fmt: skip
    assert [c.question for c in found] == [*(f"{n}?" for n in range(8)), "Alike?"]
    assert found[-1].images == (0, 1)


@case(
    Kind.WORDS,
    "JSON in which one turn is a number and another a word",
    "the text of each, for the question and image of every row too",
    "hiyouga/LlamaFactory#8805",
)
def test_mixed_turns_of_json(folder: Path) -> None:
    def talk(answer: Any, image: Any = "a.png") -> dict[str, Any]:
        turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": answer}]
        return {"image": image, "conversations": turns}

    path = write(folder / "q.jsonl", [talk(2), talk("cat"), talk("x", ["a.png", "b.png"])])
    found = source(path, conversations="conversations").conversations("train")
    assert [c.turns[-1].text for c in found] == ["2", "cat", "x"]
    assert {c.question for c in found} == {"How many?"}
    assert [c.images for c in found] == [(0,), (0,), (0, 1)]


@case(
    Kind.WORDS,
    "numbers and booleans in JSON: 1.0, 2.50, 1e3, 12345678901234567890.5, true",
    "the text that stands in the file; NaN, which is none, is a bad row",
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_numbers_of_json_are_as_they_are_written(folder: Path, suffix: str) -> None:
    numbers = [
        "2",
        "2.0",
        "2.50",
        "1e3",
        "1E-7",
        "0.1",
        "12345678901234567890.5",
        "123456789012345678901",
        "true",
        "false",
    ]
    rows = [f'{{"image": "a.png", "question": "?", "answers": {number}}}' for number in [*numbers, "NaN", "null"]]
    path = folder / f"q.{suffix}"
    path.write_text("\n".join(rows) if suffix == "jsonl" else f"[{','.join(rows)}]")
    assert answers(path) == [(number,) for number in numbers]
    asked = '"conversations": [{"from": "human", "value": "?"}]'
    llava = [f'{{"image": "a.png", "id": {n}.50, {asked}, "answers": [{number}]}}' for n, number in enumerate(numbers)]
    path.write_text("\n".join(llava) if suffix == "jsonl" else f"[{','.join(llava)}]")
    options = {"train": str(path), "images": str(folder / "pics"), "val_share": 0.0, "test_share": 0.0}
    found = build_source("llava", options)
    assert isinstance(found, Llava)
    assert [c.answers for c in found.conversations("train")] == [(number,) for number in numbers]
    assert found.conversations("train")[1].id == "1.50"


@case(Kind.WORDS, "a folder of images with a metadata.csv or metadata.jsonl", "its words as they stand in the file")
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metadata_of_a_folder_of_images(folder: Path, suffix: str) -> None:
    if suffix == "csv":
        text = "file_name,question,answers\na.png,Plate?,007\nb.png,Code?,NA\nb.png,Much?,\n"
    else:
        rows = [("a.png", "007"), ("b.png", "NA"), ("b.png", ["2", "two"])]
        text = "".join(json.dumps({"file_name": f, "question": "?", "answers": a}) + "\n" for f, a in rows)
    (folder / "pics" / f"metadata.{suffix}").write_text(text)
    found = source(folder / "pics", images="")
    wanted = [("007",), ("NA",)] + ([("2", "two")] if suffix == "jsonl" else [])
    assert [c.references for c in found.conversations("train")] == wanted
    assert found.size("train") == 2
    assert found.conversations("train")[0].origin.endswith(f"metadata.{suffix}:{2 if suffix == 'csv' else 1}")


@case(
    Kind.WORDS,
    "a folder with CSV files for its splits, one of them packed",
    "read as text; packed anew under the same name, it is read anew",
)
def test_folders_of_csv(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    table(data, "007", name="train.csv")
    (data / "test.csv.gz").write_bytes(gzip.compress(f"{HEAD}b.png,Which?,012\n".encode()))
    how = {"images": str(folder / "pics"), "test": "test"}
    assert [c.references for c in source(data, **how).conversations("test")] == [("012",)]
    (data / "test.csv.gz").write_bytes(gzip.compress(f"{HEAD}b.png,Which?,013\n".encode()))
    assert [c.references for c in source(data, **how).conversations("test")] == [("013",)]
    assert answers(data, **how) == [("007",)]


@case(
    Kind.WORDS,
    "a table as Excel writes it: a byte-order mark, semicolons, line breaks in cells",
    "read; a row of too few cells is a bad row, with its line",
)
def test_excel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "q.csv"
    lines = [
        "image;question;answers",
        'a.png;"What is\r\nthis; or ""that""?";1,50',
        "a.png;Cut?",
        ";;",
        "b.png;B?;b",
        "",
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = source(path).conversations("train")
    assert [(c.question, c.references) for c in found] == [
        ('What is\r\nthis; or "that"?', ("1,50",)),
        ("B?", ("b",)),
    ]
    assert "q.csv:4 (columns: 2 cells where the head names 3 columns)" in capsys.readouterr().err
    assert found[1].origin == f"{path}:6"


@case(
    Kind.WORDS,
    "a CSV file in UTF-16 or Windows-1252, with a column or a key twice, an open quotation mark or no head",
    "refused in one line, with the line of the file",
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEAD}a.png,Où?,é\n".encode("cp1252"), r"q\.csv:2 is not UTF-8 \(byte 0xf9\)"),
        (HEAD.encode() + b"a.png,x,y\n" * 9999 + b"a.png,x,\xe9\n", r"q\.csv:10001 is not UTF-8 \(byte 0xe9\)"),
        (f"{HEAD}a.png,x,y\n".encode("utf-16"), r"q\.csv is UTF-16; save it as UTF-8"),
        (b"image,question,answers,answers\na.png,x,y,z\n", r"q\.csv:1: the column 'answers' stands twice"),
        (f'{HEAD}a.png,x,y\na.png,"x,y\na.png,x,z\n'.encode(), r"q\.csv:3: a quotation mark that opens a cell"),
        (f'{HEAD}a.png,"x"y,z\n'.encode(), r"q\.csv:2: .*written twice"),
        (b"", r"q\.csv has no head"),
        (b"a.png,x,y\n", r"q\.csv has no column 'image'"),
        (b"image,question,answer\na.png,x,y\n", r"no column 'answers'. Did you mean 'answer'\?"),
    ],
)
def test_tables_that_cannot_be_read(folder: Path, content: bytes, message: str) -> None:
    (folder / "q.csv").write_bytes(content)
    with pytest.raises(WorkbenchError, match=message) as caught:
        answers(folder / "q.csv")
    assert "\n" not in str(caught.value)


@case(Kind.WORDS, "a key that stands twice in a row of JSON", "a bad row that names the key")
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_key_twice(folder: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.dumps(caption("a.png")), '{"image": "a.png", "conversations": [], "image": "b.png"}']
    path = folder / f"q.{suffix}"
    path.write_text("\n".join(rows) if suffix == "jsonl" else "[" + ",\n".join(rows) + "]")
    options = {"train": str(path), "images": str(folder / "pics"), "val_share": 0.0, "test_share": 0.0, "bad_rows": 0.5}
    assert build_source("llava", options).size("train") == 1
    assert "q." + suffix + ":2 (doubled key: the key 'image' stands twice" in capsys.readouterr().err


def typed(folder: Path, **columns: Any) -> Path:
    """A Parquet file of a question a row."""
    number = len(next(iter(columns.values())))
    picture_of = {"bytes": (folder / "pics" / "a.png").read_bytes(), "path": None}
    rest = {"image": [picture_of] * number, "question": ["What?"] * number}
    path = folder / "q.parquet"
    parquet.write_table(pyarrow.table({**rest, **columns}), path)
    return path


@case(
    Kind.WORDS,
    "Parquet: whole numbers with missing cells; fractional numbers",
    "2 stays 2; of fractional numbers, whose text Parquet has lost, a notice says how they are read",
    "huggingface/datasets#4467",
)
def test_numbers_of_parquet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = pyarrow.array([2, None, 3], pyarrow.int64())
    assert answers(typed(folder, answers=whole)) == [("2",), ("3",)]
    assert "fractional" not in capsys.readouterr().err
    assert answers(typed(folder, answers=pyarrow.array([0.1, 2.0, None], pyarrow.float32()))) == [("0.1",), ("2.0",)]
    assert "answers: the column is of fractional numbers, so 2 is read as '2.0'" in capsys.readouterr().err
    assert answers(typed(folder, answers=pyarrow.array([1.5, float("nan")]))) == [("1.5",)]
    text = ["007", "NA", "null", "1.0", "[1]"]
    assert answers(typed(folder, answers=text)) == [(one,) for one in text]


@case(
    Kind.WORDS,
    "Parquet that holds JSON as text, or numbers of classes, as datasets writes mixed columns and labels",
    "the values themselves, and the names of the classes",
    "huggingface/datasets#5827",
)
def test_what_datasets_keeps_in_another_form(folder: Path) -> None:
    path = typed(folder, answers=['"cat"', "2", '["2", "two"]', "2.50"], label=[1, 0, 1, 0])
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train")
    features = datasets.Features({**loaded.features, "label": datasets.ClassLabel(names=["no", "yes"])})
    if hasattr(datasets, "Json"):
        features["answers"] = datasets.Json()
    loaded.cast(features).save_to_disk(folder / "saved")
    if hasattr(datasets, "Json"):
        assert answers(folder / "saved") == [("cat",), ("2",), ("2", "two"), ("2.50",)]
    assert answers(folder / "saved", answers="label") == [("yes",), ("no",), ("yes",), ("no",)]


@case(
    Kind.WORDS,
    "a Parquet file replaced by another with the same time of modification",
    "read anew, not from the cache of datasets",
)
def test_a_table_replaced_keeping_its_time(folder: Path) -> None:
    path = typed(folder, answers=["old"])
    facts = path.stat()
    assert answers(path) == [("old",)]
    typed(folder, answers=["new"])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert answers(path) == [("new",)]


@case(
    Kind.WORDS,
    "the hub cannot be reached, and datasets keeps what it once read of CSV or JSON",
    "refused; names the way out: a folder that holds the files",
    "huggingface/datasets#4467",
)
def test_earlier_readings_are_not_served(folder: Path) -> None:
    from datasets.packaged_modules.cache.cache import Cache

    cache = folder / "cache"
    datasets.load_dataset("csv", data_files=str(table(folder, "007")), cache_dir=str(cache))
    kept = next(path for path in cache.glob("csv/*/*/*") if path.is_dir())
    builder = Cache(
        cache_dir=str(cache), dataset_name="csv", config_name=kept.parts[-3], version=kept.parts[-2], hash=kept.name
    )
    with pytest.raises(WorkbenchError, match=r"'some/dataset' cannot be reached.*name a folder that holds its files"):
        words_of(builder, "some/dataset")


def test_rows_that_were_right_before(folder: Path) -> None:
    """Rows whose words were right before give the same conversations and images."""
    rows = [
        {"image": "a.png", "question": "What?", "answers": "This"},
        {"image": "b.png", "question": "W?", "answers": "T"},
    ]
    found = source(write(folder / "q.jsonl", rows))
    assert [c.id for c in found.conversations("train")] == ["train-000001", "train-000002"]
    as_table = source(table(folder, "This", name="q.csv"))
    assert as_table.conversations("train")[0].turns == found.conversations("train")[0].turns
