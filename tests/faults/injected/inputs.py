"""Faults in what is typed and in files of strangers: study files, overrides, images, tables, tracked artifacts."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from injected.harness import Fault

PLAN = ("sweep {s} --plan -w {w}",)


def study_files() -> Iterator[Fault]:
    """Study files that cannot be, or say what no study can."""
    whole = {
        "empty": "",
        "a list": "- 1\n- 2\n",
        "a word": "hello",
        "not YAML": "{",
        "a tab": "a:\n\t- b",
        "holds itself": "&a [*a]",
        "options hold themselves": "options: &a {b: *a}",
        "3,000 brackets": "a: " + "[" * 3000 + "]" * 3000,
        "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "an integer of 5,000 digits": "replicates: " + "9" * 5000,
        "escape": 'name: "\\e[31mred"',
        "NUL": "name: a\0b",
        "bytes": "name: \udcff",
        "a tag": "name: !!python/object/apply:os.system [true]",
        "an unknown tag": "name: !x y",
    }
    for name, text in whole.items():
        yield Fault("study files", name, _text("study.yaml", text), PLAN, fresh=True, must_refuse=True)
    for name, line in {
        "replicates 1e9": "replicates: 1000000000",
        "replicates -1": "replicates: -1",
        "replicates 1.5": "replicates: 1.5",
        "replicates yes": "replicates: yes",
        "replicates two": "replicates: two",
        "replicates nan": "replicates: .nan",
        "epochs 1e12": "training: {epochs: 1000000000000}",
        "epochs 0": "training: {epochs: 0}",
        "batch 0": "training: {batch_size: 0}",
        "batch 1e12": "training: {batch_size: 1000000000000}",
        "bank 0": "training: {bank_size: 0}",
        "width 1e12": "training: {width: 1000000000000}",
        "decay inf": "training: {weight_decay: .inf}",
        "decay -1": "training: {weight_decay: -1}",
        "head rate inf": "training: {head_lr_scale: .inf}",
        "clip nan": "training: {gradient_clip: .nan}",
        "warm-up 2": "training: {warmup: 2}",
        "precision": "training: {precision: 17}",
        "rate inf": "search: {learning_rates: [.inf]}",
        "rate -1": "search: {learning_rates: [-1]}",
        "rate nan": "search: {learning_rates: [.nan]}",
        "no rates": "search: {learning_rates: []}",
        "rate a word": "search: {learning_rates: [fast]}",
        "rates a number": "search: {learning_rates: 0.1}",
        "budget 1e12": "search: {budget: -1}",
        "sampler": "search: {sampler: magic}",
        "train 1e12": "source: {name: finescenes, options: {train: 1000000000000, val: 8, test: 8, size: 56}}",
        "train 0": "source: {name: finescenes, options: {train: 0, val: 8, test: 8, size: 56}}",
        "train a word": "source: {name: finescenes, options: {train: many, val: 8, test: 8, size: 56}}",
        "unknown source": "source: {name: none}",
        "unknown option": "source: {name: finescenes, options: {colour: 1}}",
        "unknown key": "replicate: 2",
        "unknown strategy": "strategies: [{name: magic}]",
        "no strategy": "strategies: []",
        "strategy a word": "strategies: magic",
        "layer 99": "selections: [{levels: [99]}]",
        "layer twice": "selections: [{levels: [1, 1]}]",
        "layer -9": "selections: [{levels: [-9]}]",
        "layer a word": "selections: [{levels: [deep]}]",
        "200 %": "selections: [{levels: ['200%']}]",
        "unknown encoder": "encoder: {name: none/none, image_size: 56}",
        "image size 0": "encoder: {name: enc, image_size: 0}",
        "image size 1e9": "encoder: {name: enc, image_size: 1000000000}",
        "environment": "question: ${oc.env:HOME}",
        "a resolver": "question: ${oc.decode:1}",
        "open interpolation": "question: '${'",
        "missing interpolation": "question: ${none}",
        "a name with ..": "name: ../x",
        "a name with /": "name: a/b",
        "an empty name": "name: ''",
        "name null": "name: null",
        "name a list": "name: [a]",
        "name NUL": 'name: "a\\0b"',
        "confirm 1e9": "plan: {confirm: [1000000000]}",
        "confirm a word": "plan: {confirm: many}",
        "looks descending": "plan: {looks: [5, 2]}",
        "margin -1": "plan: {margin: -1}",
        "margin inf": "plan: {margin: .inf}",
        "unknown plan": "plan: {magic: 1}",
        "unknown task": "tasks: [magic]",
        "no tasks": "tasks: []",
        "schema 99": "schema: 99",
        "schema a word": "schema: new",
    }.items():
        yield Fault("study files", name, _with(line), PLAN, fresh=True, must_refuse=True)
    yield Fault("study files", "doubled key", _doubled, PLAN, fresh=True, must_refuse=True)
    for name, make in {"a FIFO": os.mkfifo, "a folder": os.mkdir}.items():

        def instead(folder: Path, make: Callable[[Path], None] = make) -> None:
            (folder / "study.yaml").unlink()
            make(folder / "study.yaml")

        yield Fault("study files", name, instead, PLAN, fresh=True, must_refuse=True)
    for path in ("/dev/zero", "/dev/null", "/proc/self/mem", "/none", "/"):
        yield Fault("study files", path, commands=(f"sweep {path} --plan -w {{w}}",), fresh=True, must_refuse=True)


def arguments() -> Iterator[Fault]:
    """What is typed."""
    for words in (
        "replicates",
        "replicates=",
        "=2",
        "replicates=x",
        "a.b.c=1",
        "training.epochs.x=1",
        "replicates=[1",
        "'name=a\x1b[31m'",
        "replicates=2 replicates=x",
        "training=1",
        "strategies[9].name=concat",
        "'question=${{oc.env:HOME}}'",
        "encoder.name=[/x]",
        "encoder.name=",
        "tracking.uri=x",
        "tasks=read",
    ):
        yield Fault("arguments", words, commands=("sweep {s} --plan -w {w} " + words,), fresh=True, must_refuse=True)
    long = "a" * 5000
    for command in (
        "report",
        "export",
        "report ../../etc/passwd",
        "report 'a; DROP TABLE runs'",
        "report '[/x]'",
        f"report {long}",
        "export {n}:none -w {w}",
        "export deadbeef -w {w}",
        "store remove ../x -w {w}",
        "store remove '[/x]' -w {w}",
        "layers '[/x]'",
        f"layers {long}",
        f"ask --model {long} x",
        "predict --model none x.png",
        "verdict none.csv",
        "verdict /dev/zero",
        "verdict .",
        "data check none.json",
        "data check /dev/zero --images .",
        "check-strategy none",
        "magic",
        "'\x1b[31mred'",
        "report {n} -w /none",
        "report {n} --uri magic://x",
        "report {n} --against none -w {w}",
        "report {n} --fail-on never -w {w}",
        "train magic -w {w}",
        "train concat -l x -w {w}",
        "train concat -l 1 --lr inf -w {w}",
    ):
        yield Fault("arguments", command[:60], commands=(command,), must_refuse=True)
    yield Fault(
        "arguments",
        "power of absurd replicates",
        commands=("power {s} replicates=1000000000 -w {w}",),
        must_refuse=True,
    )


def _text(name: str, text: str) -> Callable[[Path], None]:
    def inject(folder: Path) -> None:
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))

    return inject


def _doubled(folder: Path) -> None:
    path = folder / "study.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "replicates: 3\n", encoding="utf-8")


def _with(line: str) -> Callable[[Path], None]:
    """The study's file with one key changed, as a user would write it."""

    def inject(folder: Path) -> None:
        path = folder / "study.yaml"
        key = line.split(":")[0]
        kept = [row for row in path.read_text(encoding="utf-8").splitlines() if not row.startswith(f"{key}:")]
        path.write_text("\n".join([*kept, line, ""]), encoding="utf-8")

    return inject


HOSTILE: dict[str, list[object]] = {
    "source.json": [
        {"classes": 5},
        {"classes": []},
        {"sizes": "x"},
        {"sizes": {"test": -1}},
        {"groups": 3},
        {"fingerprints": []},
        {"group_counts": {"test": "many"}},
        {"name": ["a"]},
    ],
    "passport.json": [
        {"depth": "deep"},
        {"depth": -1},
        {"depth": 10**12},
        {"dim": None},
        {"image_size": "x"},
        {"name": {}},
    ],
    "tasks.json": [
        {"read": 1},
        {"read": {"direction": "sideways"}},
        {"read": {"chance": "x"}},
        {"digit": {"unit": []}},
    ],
    "plan.json": [{"level": "x"}, {"margin": -1}, {"families": 3}, {"looks": ["a"]}, {"confirm": 10**12}],
    "variants.json": [{"x": 1}],
    "similarity.json": [{"matrix": "x"}, {"layers": [10**9]}, {"schema": "x"}],
    "importance.json": [{"layers": 3}, {"strategy": 5}],
    "look/look.json": [{"columns": "x"}, {"examples": [1]}, {"featured": []}],
}
WHOLE = {
    "null": "null",
    "a word": '"x"',
    "a number": "1e999",
    "deep": "[" * 100_000 + "]" * 100_000,
    "a list": "[[1]]",
    "a mapping": "{}",
    "markup": '{"name": "<script>alert(1)</script>"}',
    "not a number": '{"a": NaN}',
}


def tracked() -> Iterator[Fault]:
    """Artifacts of the parent run that somebody else wrote, with a checksum that fits."""
    for name, changes in HOSTILE.items():
        for change in changes:
            yield Fault(
                "tracked artifacts",
                f"{name}: {json.dumps(change)}",
                _replaced(name, _merged(change)),
                ("report {n} -w {w}",),
            )
        for what, text in WHOLE.items():
            yield Fault(
                "tracked artifacts",
                f"{name}: {what}",
                _replaced(name, lambda old, text=text: text),
                ("report {n} -w {w}",),
            )
    for name, line in {
        "replicates 1e9": "replicates: 1000000000",
        "replicates x": "replicates: x",
        "deep": "a: " + "[" * 3000,
        "no strategies": "strategies: 5",
    }.items():
        yield Fault(
            "tracked artifacts",
            f"study.yaml: {name}",
            _replaced("study.yaml", lambda old, line=line: f"{old}\n{line}\n"),
            ("report {n} -w {w}",),
        )


def _merged(change: object) -> Callable[[str], str]:
    def merge(old: str) -> str:
        content = json.loads(old)
        if isinstance(content, list):
            return json.dumps([*content, change])
        for key, value in dict(change).items():  # type: ignore[call-overload]
            both = isinstance(value, dict) and isinstance(content.get(key), dict)
            content[key] = content[key] | value if both else value
        return json.dumps(content)

    return merge


def _replaced(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """Another content, and no checksum of the old one: whoever writes artifacts writes tags too."""

    def inject(folder: Path) -> None:
        path = next(folder.glob(f"W/mlartifacts/*/artifacts/{name}"))
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
        with sqlite3.connect(folder / "W" / "mlflow.db") as db:
            db.execute("DELETE FROM tags WHERE key LIKE 'workbench.sha256%'")

    return inject


def tables() -> Iterator[Fault]:
    """Score tables and sample logs of others."""
    good = "system,example,replicate,score\n" + "".join(
        f"{s},{e},{r},{(e * 7 + r + (s == 'b')) % 2}\n" for s in "ab" for e in range(30) for r in range(5)
    )
    spoiled = {
        "empty": "",
        "header alone": good.splitlines()[0],
        "no score": good.replace("score", "index"),
        "a word as score": good.replace(",0\n", ",bad\n", 1),
        "nan": good.replace(",0\n", ",nan\n", 1),
        "inf": good.replace(",0\n", ",inf\n", 1),
        "doubled row": good + good.splitlines()[5] + "\n",
        "doubled column": good.replace("score", "replicate", 1),
        "NUL": good + "\0",
        "binary": "\x89PNG\r\n\x1a\n" * 99,
        "counts up": "system,example,replicate,score\n" + "".join(f"{s},{e},0,{e}\n" for s in "ab" for e in range(40)),
        "JSON": "{}",
        "a list": "[1]",
        "deep": "[" * 100_000,
        "short row": good + "a,1\n",
        "long row": good + "a,1,2,3,4,5\n",
    }
    for name, text in spoiled.items():
        yield Fault("tables of scores", name, _text("t.csv", text), ("verdict t.csv",), must_refuse=True)
    for key in ("index", "length", "question number", "doc_id", "time"):
        rows = [{"doc_id": i, "metric": {key: i}, "resps": [["a"]], "target": "a"} for i in range(40)]
        text = "\n".join(json.dumps(row) for row in rows)

        def inject(folder: Path, text: str = text) -> None:
            for side in "ab":
                (folder / side).mkdir()
                (folder / side / "20260101_samples_x.jsonl").write_text(text)

        yield Fault(
            "tables of scores",
            f"lmms-eval: {key}",
            inject,
            ("verdict a/20260101_samples_x.jsonl b/20260101_samples_x.jsonl",),
            must_refuse=True,
        )
    rows = "\n".join(json.dumps({"id": i, "image": "none.png", "conversations": 5}) for i in range(3))
    for name, text in {
        "rows of no conversation": rows,
        "not JSON": "x",
        "deep": "[" * 100_000,
        "empty": "",
        "a number": "5",
        "missing images": json.dumps(
            [
                {
                    "id": 1,
                    "image": "none.png",
                    "conversations": [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}],
                }
            ]
        ),
    }.items():
        yield Fault(
            "tables of scores",
            f"conversations: {name}",
            _text("c.json", text),
            ("data check c.json --images .",),
            must_refuse=True,
            statuses=(1,),
        )
