"""Makes what 0.1.0 leaves behind: a workspace with three studies, an export, a logged model, and what it said of them.

Historical: it ran at commit 4bccf75 (version 0.1.0) and runs against that version alone, from a clone at a neutral
place, since MLflow keeps the path of the code that it logs::

    git clone . /tmp/fusion-0.1.0-source && git -C /tmp/fusion-0.1.0-source checkout 4bccf75
    OMP_NUM_THREADS=1 PYTHONPATH=/tmp/fusion-0.1.0-source python tests/data/v0_1_0/make.py

It writes ``workspace.tar.xz`` and ``expected.json`` beside itself. Later versions are held against both by
``tests/upgrade``; neither is ever made again, since no other version can say what 0.1.0 wrote.

Everything lies below :data:`ROOT`, so that no path of a real machine is stored; whoever unpacks it elsewhere replaces
that prefix, and works from there: encoder and language model are named relative to it, as ids depend on their names.

::

    encoder/, language/      transformers folders: a DINOv2 of four blocks and a Llama of two, random and tiny
    layers.yaml              probes: six cells, two learning rates, five replicates, five fresh ones
    earlier.yaml             the other side of ``report --against``: the same images, trained half as long
    words.yaml               two language models of the planted encoder
    picture.png              what the exported model is asked about
    workspace/               MLflow with artifacts and a logged model, studies, feature stores, exports
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import os
import platform
import shutil
import sqlite3
import sys
import tarfile
from pathlib import Path
from typing import Any

ROOT = Path("/tmp/fusion-0.1.0")
HERE = Path(__file__).resolve().parent
SOURCE = Path("/tmp/fusion-0.1.0-source")
COMMIT = "4bccf75615c3070748349d77bcfeb66b67fc3cda"

LAYERS = """\
name: layers
question: Which layers of a tiny encoder tell the classes apart?
encoder: {name: encoder, image_size: 8, precision: float32}
source: {name: planted, options: {train: 256, val: 64, test: 128}}
tasks: [digit]
strategies:
  - name: deep_only
  - name: concat
  - name: average
  - {name: mmfuser, options: {heads: 2}}
selections: [{levels: [1, 2]}]
replicates: 5
plan: {confirm: [5]}
search: {learning_rates: [0.003, 0.01]}
training: {epochs: 12, batch_size: 16, head_hidden: 16}
"""
EARLIER = """\
name: earlier
question: What did half the training give?
encoder: {name: encoder, image_size: 8, precision: float32}
source: {name: planted, options: {train: 256, val: 64, test: 128}}
tasks: [digit]
strategies:
  - name: deep_only
  - name: concat
selections: [{levels: [1, 2]}]
baselines: false
replicates: 5
plan: {confirm: []}
search: {learning_rates: [0.01]}
training: {epochs: 6, batch_size: 16, head_hidden: 16}
"""
WORDS = """\
name: words
question: Does a tiny language model read planted layers?
encoder: {name: "planted:depth=4,dim=16,signal=1+3,strength=8.0", image_size: 8}
source: {name: planted_questions, options: {train: 96, val: 12, test: 24}}
tasks: [first, second]
strategies: [{name: deep_only}, {name: concat}]
selections: [{levels: [1], query: 3}]
baselines: false
replicates: 5
plan: {confirm: []}
search: {learning_rates: [0.01]}
training: {batch_size: 16, projector: mlp2x_gelu}
language_model:
  name: language
  weights: float32
  max_new_tokens: 1
  stages: [{name: align, epochs: 6}]
"""
STUDIES = {"layers": LAYERS, "earlier": EARLIER, "words": WORDS}
FUSED = "layers:mmfuser(heads=2) [1,2]→4"
# Of a report what is no number, verdict or id: sentences, papers' tables, and the settings of the study file.
LEFT_OUT = {
    "headline", "text", "config", "caveats", "checks", "what_it_would_take", "budgets", "title", "notes", "note",
    "reason", "word", "place", "environment", "published", "question", "questions",
}  # fmt: skip


def main() -> None:
    """Make everything anew."""
    import workbench.version

    assert workbench.version.__version__ == "0.1.0", "this fixture is of 0.1.0, and here is another version"
    assert Path(workbench.version.__file__).is_relative_to(SOURCE), f"run it with PYTHONPATH={SOURCE}"
    platform.node = lambda: "fixture"  # no machine's name is kept, and no user's
    os.environ |= {"LOGNAME": "fixture", "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    os.chdir(ROOT)
    make_encoder(Path("encoder"))
    make_language(Path("language"))
    for name, text in STUDIES.items():
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")
        run("sweep", f"{name}.yaml", "--quiet", "--no-report")
    run("export", "layers", "--out", "workspace/exports/recommended")
    run("export", FUSED, "--out", "workspace/exports/mmfuser", "--no-log")
    run("export", "words:concat [1]→3", "--out", "workspace/exports/model")
    reports = {name: report(name) for name in STUDIES}
    against = report("layers", "--against", "earlier")["against"]
    shutil.rmtree("reports")
    expected = {
        "version": "0.1.0",
        "commit": COMMIT,
        "root": str(ROOT),
        "reports": reports,
        "layers against earlier": against,
        "ledgers": {name: ledger(name) for name in STUDIES},
        "scores": {name: scores(name) for name in STUDIES},
        "tokens": {name: tokens(Path("workspace/exports", name)) for name in ("recommended", "mmfuser")},
        "answers": [answer(f"The {letter} letter?") for letter in ("first", "second")],
    }
    text = json.dumps(expected, indent=1, ensure_ascii=False, sort_keys=True)
    (HERE / "expected.json").write_text(text + "\n", encoding="utf-8")
    pack()


def run(*words: str) -> None:
    """A command line, run here; ``workbench.command`` is read from ``sys.argv``."""
    from workbench.cli import app

    sys.argv = ["workbench", *words]
    app(list(words), standalone_mode=False)


# --- what it said ---------------------------------------------------------------------------------------------------


def report(study: str, *words: str) -> dict[str, Any]:
    """The numbers, verdicts and ids of a study's ``report.json``."""
    run("report", study, "--out", "reports", *words)
    plain: dict[str, Any] = without_prose(json.loads(Path("reports/report.json").read_text(encoding="utf-8")))
    return plain


def without_prose(value: Any) -> Any:
    """Nested dicts and lists without the keys of :data:`LEFT_OUT`."""
    if isinstance(value, dict):
        return {key: without_prose(part) for key, part in value.items() if key not in LEFT_OUT}
    return [without_prose(part) for part in value] if isinstance(value, list) else value


def ledger(study: str) -> list[list[str]]:
    """Variant, replicate, state, outcome and MLflow run of each row, in order."""
    (path,) = Path("workspace/studies").glob(f"{study}-*/ledger.db")
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT variant, replicate, state, outcome, run_id FROM entries ORDER BY 1, 2").fetchall()
    connection.close()
    return [list(row) for row in rows]


def scores(study: str) -> dict[str, str]:
    """``cell task split phase`` → sha256 over replicates, examples and float64 scores, as the report reads them."""
    from reports.query import read_study

    record = read_study(f"sqlite:///{ROOT}/workspace/mlflow.db", study)
    found = {}
    for phase, outcomes in (("final", record.outcomes), ("confirm", record.confirmed)):
        for (cell, task, split), one in outcomes.items():
            sha = hashlib.sha256("|".join([*one.replicates, *one.examples]).encode())
            sha.update(one.scores.astype("<f8").tobytes())
            found[f"{cell} {task} {split} {phase}"] = sha.hexdigest()
    return found


def tokens(folder: Path) -> list[Any]:
    """What an exported connector makes of :func:`pictures`: ``[2, tokens, width]``."""
    import torch

    from workbench.export import load_connector

    with torch.inference_mode():
        made: list[Any] = load_connector(folder, device="cpu")(pictures()).tolist()
    return made


def answer(question: str) -> str:
    """What the exported model answers about the first of :func:`pictures`."""
    from PIL import Image

    Image.fromarray(pictures()[0]).save("picture.png")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run("ask", question, "--model", "workspace/exports/model", "--image", "picture.png", "--max-new-tokens", "1")
    return said.getvalue()


def pictures() -> list[Any]:
    """Two uint8 images ``[8, 8, 3]``."""
    import numpy as np

    return [(np.arange(8 * 8 * 3, dtype=np.int64) * step % 251).astype(np.uint8).reshape(8, 8, 3) for step in (7, 13)]


# --- the archive ----------------------------------------------------------------------------------------------------


def pack() -> None:
    """Everything below :data:`ROOT`, in one order, without times and owners."""
    for path in ROOT.rglob("*.db"):
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("VACUUM")
        connection.close()
    with (
        lzma.open(HERE / "workspace.tar.xz", "wb", preset=9 | lzma.PRESET_EXTREME) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(ROOT.rglob("*")):
            if path.suffix in (".lock", ".db-shm", ".db-wal") or path.name == "lock":
                continue
            member = archive.gettarinfo(path, str(path.relative_to(ROOT)))
            member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
            member.mode = 0o755 if path.is_dir() else 0o644
            if path.is_dir():
                archive.addfile(member)
                continue
            with path.open("rb") as content:
                archive.addfile(member, content)


# --- models ---------------------------------------------------------------------------------------------------------


def make_encoder(folder: Path) -> None:
    """A random DINOv2 that reads a planted image's class well in its first blocks and worse in its last."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    model: Any = Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=8, patch_size=4
        )
    )
    with torch.no_grad():
        projection = model.embeddings.patch_embeddings.projection
        projection.weight *= 10
        projection.weight[:, 0, 0, 0] *= 600  # the class, which is at most 8 of 255
        projection.bias.normal_()
        for block in model.encoder.layer:
            for name, parameter in block.named_parameters():
                if name.endswith("weight") and parameter.ndim == 2:
                    parameter *= 40
    model.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "BitImageProcessor",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2), encoding="utf-8")


def make_language(folder: Path) -> None:
    """A random Llama of two blocks over single characters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted({chr(code) for code in range(32, 127)} | {"\n"})
    vocabulary = {token: n for n, token in enumerate(["<pad>", "<end>", "<unk>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8192,
            eos_token_id=1,
            bos_token_id=None,
            pad_token_id=0,
            initializer_range=0.3,
        )
    )
    with torch.no_grad():
        answers = [vocabulary[token] for token in ("<end>", *"abcxyz")]
        rows = torch.full((len(vocabulary), 1), 0.1)
        rows[answers] = 1.0
        model.lm_head.weight *= rows
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
