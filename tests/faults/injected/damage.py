"""Faults on disk: the store, the ledger, the journal, artifacts, exports, the encoder."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from injected.harness import Fault

Change = Callable[[Path], None]


def flip(place: float, bit: int = 3) -> Change:
    """One bit of the byte at a share of the file."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(place * len(content)), len(content) - 1)] ^= 1 << bit
        path.write_bytes(content)

    return change


def cut(share: float) -> Change:
    """The end is missing."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)]) and None


def garble(path: Path) -> None:
    """Bytes of noise, as many as there were."""
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def empty(path: Path) -> None:
    """Nothing is left in it."""
    path.write_bytes(b"")


def gone(path: Path) -> None:
    """It is deleted."""
    path.unlink()


def folder_instead(path: Path) -> None:
    """A folder of its name."""
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Change] = {
    "a bit of the first bytes": flip(0.02),
    "a bit of the middle": flip(0.5),
    "a bit of the last byte": flip(1.0),
    "cut": cut(0.6),
    "garbled": garble,
    "empty": empty,
    "gone": gone,
    "a folder instead": folder_instead,
}


def every(
    pattern: str, part: str, damages: dict[str, Change] = DAMAGES, retrained: int = 1, **more: object
) -> Iterator[Fault]:
    """Each damage to the first file that fits ``pattern``, below the study's folder."""
    for name, change in damages.items():

        def inject(folder: Path, change: Change = change) -> None:
            change(sorted(folder.glob(pattern))[0])

        yield Fault(part, f"{pattern}: {name}", inject, retrained=retrained, **more)  # type: ignore[arg-type]


def store() -> Iterator[Fault]:
    """Stored features."""
    again = ("sweep {s} replicates=3 -w {w} -q --no-report", "store verify -w {w}")
    for pattern in ("W/store/*/key.json", "W/store/*/train-*/index.json", "W/store/*/train-*/layer_02/*.safetensors"):
        yield from every(pattern, "store", commands=again, retrained=2, statuses=(1,))


def books() -> Iterator[Fault]:
    """Ledger, journal, MLflow's database, the study's folder."""
    for pattern in ("W/studies/*/ledger.db", "W/studies/*/optuna.journal", "W/mlflow.db"):
        yield from every(pattern, "ledger, journal, MLflow", retrained=4)
    for pattern in ("W/studies/*/study.yaml", "W/studies/*/lock"):
        yield from every(pattern, "ledger, journal, MLflow", {"a folder instead": folder_instead}, retrained=0)
    for number in range(12):
        place = random.Random(number).random()
        yield from every("W/studies/*/ledger.db", "ledger, journal, MLflow", {f"a bit at {place:.3f}": flip(place)}, 4)
    for name, statement in {
        "a result that is no JSON": "UPDATE entries SET result = '{' WHERE rowid = 1",
        "a result changed": "UPDATE entries SET result = replace(result, '0.', '1.') WHERE rowid = 1",
        "a result emptied": "UPDATE entries SET result = '{}' WHERE rowid = 1",
        "a status changed": "UPDATE entries SET outcome = 'diverged' WHERE rowid = 1",
        "runs exchanged": "UPDATE entries SET run_id = (SELECT run_id FROM entries WHERE rowid = 2) WHERE rowid = 1",
        "a row deleted": "DELETE FROM entries WHERE rowid = 1",
        "facts garbled": "UPDATE facts SET value = 'x{'",
        "facts of another kind": "UPDATE facts SET value = '[[1]]'",
        "facts deleted": "DELETE FROM facts",
        "another program's tables": "DROP TABLE entries; CREATE TABLE entries (a INTEGER)",
        "no tables": "DROP TABLE entries; DROP TABLE facts",
    }.items():

        def inject(folder: Path, statement: str = statement) -> None:
            with sqlite3.connect(next(folder.glob("W/studies/*/ledger.db"))) as db:
                db.executescript(statement)

        yield Fault("ledger, journal, MLflow", name, inject, retrained=4 if "tables" in name else 1)
    for name, content in {
        "torn last line": None,
        "foreign": '{"op_code": 99}\n',
        "not JSON": "hello\nworld\n",
        "a list": "[]\n",
    }.items():

        def journal(folder: Path, content: str | None = content) -> None:
            path = next(folder.glob("W/studies/*/optuna.journal"))
            path.write_text(path.read_text()[:-20] if content is None else content)

        yield Fault(
            "ledger, journal, MLflow",
            f"journal: {name}",
            journal,
            ("sweep {s} replicates=3 -w {w} -q --no-report", "sweep {s} -w {w} -q"),
            retrained=2,
        )


def artifacts() -> Iterator[Fault]:
    """What runs left in MLflow."""
    for name in ("outcomes/test.parquet", "outcomes/val.parquet", "variant.yaml"):
        yield from every(f"W/mlartifacts/*/artifacts/{name}", "artifacts")
    for name in ("fuser/model.safetensors", "fuser/config.json"):
        yield from every(
            f"W/mlartifacts/*/artifacts/{name}",
            "artifacts",
            commands=("export {n} -w {w} --no-log -o {d}/x", "sweep {s} -w {w} -q"),
        )
    for name in (
        "study.yaml",
        "passport.json",
        "source.json",
        "tasks.json",
        "plan.json",
        "variants.json",
        "similarity.json",
        "look/look.json",
    ):
        yield from every(f"W/mlartifacts/*/artifacts/{name}", "artifacts")
    for number in range(30):
        place = random.Random(100 + number).random()
        yield from every(
            "W/mlartifacts/*/artifacts/outcomes/test.parquet",
            "artifacts",
            {f"a bit at {place:.3f} ({number % 8})": flip(place, number % 8)},
        )
    for name, change in SCORES.items():

        def inject(folder: Path, change: Callable[[object], object] = change) -> None:
            import pandas as pd

            path = sorted(folder.glob("W/mlartifacts/*/artifacts/outcomes/test.parquet"))[0]
            changed = change(pd.read_parquet(path))
            changed.to_parquet(path, index=False)  # type: ignore[attr-defined]

        yield Fault("artifacts", f"scores: {name}", inject, retrained=1)


SCORES: dict[str, Callable[..., object]] = {
    "half of the rows": lambda t: t.iloc[: len(t) // 2],
    "no rows": lambda t: t.iloc[:0],
    "raised by 0.3": lambda t: t.assign(score=t.score + 0.3),
    "1e300": lambda t: t.assign(score=1e300),
    "not finite": lambda t: t.assign(score=float("nan")),
    "words": lambda t: t.assign(score="good"),
    "another task": lambda t: t.assign(task="other"),
    "rows doubled": lambda t: t.loc[t.index.repeat(2)],
    "no column of scores": lambda t: t.drop(columns="score"),
    "in another order": lambda t: t.iloc[::-1],
}


def encoder() -> Iterator[Fault]:
    """The encoder of a finished study, of which more is then asked; and of one that is new."""
    more = ("sweep {s} replicates=3 -w {w} -q --no-report",)
    for number, place in enumerate((0.0, 0.01, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)):
        yield from every(
            "enc/model.safetensors",
            "encoder weights",
            {f"a bit at {place}": flip(place, number % 8)},
            commands=more,
            retrained=2,
            must_refuse=True,
        )
    for name, change in DAMAGES.items():
        yield from every("enc/config.json", "encoder weights", {name: change}, commands=more, retrained=2)
    for name, spoil in {
        "renamed": lambda w: {f"vision_tower.{k}": v for k, v in w.items()},
        "a block is missing": lambda w: {k: v for k, v in w.items() if ".1.mlp" not in k},
        "one zero": lambda w: {"x": next(iter(w.values()))},
        "no weights": lambda w: {},
        "not a number": lambda w: {k: v * float("nan") for k, v in w.items()},
        "infinite": lambda w: {k: v * float("inf") for k, v in w.items()},
        "another shape": lambda w: {k: v[:1] for k, v in w.items()},
    }.items():

        def weights(folder: Path, spoil: Callable[..., dict[str, object]] = spoil) -> None:
            import safetensors.torch

            path = folder / "enc" / "model.safetensors"
            safetensors.torch.save_file(
                {k: v.contiguous() for k, v in spoil(safetensors.torch.load_file(path)).items()},  # type: ignore[attr-defined]
                path,
                metadata={"format": "pt"},
            )

        yield Fault(
            "encoder weights",
            name,
            weights,
            ("layers enc --image-size 56", "sweep {s} -w {w} -q"),
            fresh=True,
            must_refuse=True,
        )
    for key, value in (
        ("num_hidden_layers", 0),
        ("num_hidden_layers", "x"),
        ("num_hidden_layers", 4),
        ("num_hidden_layers", 10**7),
        ("patch_size", 0),
        ("hidden_size", None),
        ("hidden_size", 33),
        ("image_size", "x"),
        ("model_type", "none"),
        ("model_type", "timm_wrapper"),
    ):
        yield Fault(
            "encoder weights",
            f"config: {key} {value!r}",
            _config("enc/config.json", key, value),
            ("layers enc --image-size 56", "sweep {s} -w {w} -q"),
            fresh=True,
            must_refuse=True,
        )
    for key, value in (("image_std", [0, 0, 0]), ("image_std", "x"), ("image_mean", [float("nan")] * 3)):
        yield Fault(
            "encoder weights",
            f"preprocessing: {key} {value!r}",
            _config("enc/preprocessor_config.json", key, value),
            ("sweep {s} -w {w} -q",),
            fresh=True,
            must_refuse=True,
        )


def _config(name: str, key: str, value: object) -> Change:
    def inject(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {key: value}))

    return inject


def exports() -> Iterator[Fault]:
    """An exported connector, loaded again."""
    for name, change in DAMAGES.items():
        for file in ("model.safetensors", "config.json"):

            def within(change: Change = change, file: str = file) -> None:
                _load_changed(change, file)

            yield Fault(
                "exports", f"{file}: {name}", lambda folder: None, ("--version",), within=within, must_refuse=True
            )


def _load_changed(change: Change, file: str) -> None:
    """Export, damage, load; a refusal ends as the command line would end."""
    import sys

    from fusion_workbench.core.errors import WorkbenchError
    from fusion_workbench.models.connector import load_connector
    from fusion_workbench.models.export import export_run
    from fusion_workbench.study.tracking import default_uri

    out = Path("exported")
    shutil.rmtree(out, ignore_errors=True)
    export_run(default_uri(Path("W")), "sound", out, "fusion-workbench", overwrite=True, log=False, folder=Path())
    path = next(out.rglob(file))
    change(path)
    try:
        load_connector(out)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print("loaded")
    sys.exit(0)
