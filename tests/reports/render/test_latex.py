"""LaTeX tables: everything is text, and they compile."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_study import Synthetic, copy_database, tiny

from fusion_workbench.core.text import slug
from fusion_workbench.reports import write_report
from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.render.latex import latex
from fusion_workbench.reports.words.tex import escape

HARSH = "a_b % & # ~ ^ \\ { } $ → ± ≈ − ² é ñ ł ß Å γ λ 中 🙂 <script> | \"q\" `x` 'y' [z] *w*"
# A math pair's or a known command's characters may stand; anything else that TeX would act on may not.
ACTIVE = re.compile(r"(?<!\\)[&%$#_~^]")

needs_tex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, with booktabs")


def compiled(tex: str, folder: Path) -> str:
    """The log of a document that sets ``tex``."""
    (folder / "tables.tex").write_text(tex, encoding="utf-8")
    document = (
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n.\\input{tables}\n\\end{document}\n"
    )
    (folder / "doc.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "doc.tex"]
    result = subprocess.run(command, cwd=folder, capture_output=True, timeout=3600, check=False)
    log = result.stdout.decode("latin-1")
    assert result.returncode == 0, log[-2000:]
    return log


def test_escape() -> None:
    assert escape("a_b 5%") == r"a\_b 5\%"
    assert escape("x → 12") == r"x \ensuremath{\rightarrow} 12"
    assert escape("\\input{x}") == r"\textbackslash{}input\{x\}"
    assert escape("é ł") == r"\'{e} \l{}"
    assert escape("中\x00") == "{[}U+4E2D{]}{[}U+0000{]}"
    assert escape(" two\n lines ") == "two lines"
    assert slug("My study, 2! Ä") == "my-study-2-a"


@given(st.text(max_size=40))
def test_nothing_that_acts_is_left(text: str) -> None:
    shown = escape(text)
    assert shown.isascii()
    assert shown.isprintable() or not shown
    bare = re.sub(r"\\ensuremath\{(?:[^{}]|\{[^{}]*\})*\}|\\[\"'`^~=.uvrHc]\{[A-Za-z]\}", "", shown)
    assert not ACTIVE.search(bare)
    assert not shown.startswith(("[", "*"))
    assert shown.replace(r"\{", "").replace(r"\}", "").count("{") == shown.replace(r"\{", "").replace(r"\}", "").count(
        "}"
    )


def test_tables_of_a_study(small_uri: str) -> None:
    analysis = Analysis(read_study(small_uri, "synthetic"))
    tex = latex(analysis, answer(analysis))
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 3
    for label in ("tab:synthetic-read", "tab:synthetic-digit", "tab:synthetic-recommended"):
        assert rf"\label{{{label}}}" in tex
    assert tex.isascii()
    assert r"\textbf{" in tex
    assert "not distinguishable" in tex
    assert "Conditional on the 4 photographs of the test images." in tex
    cell = next(c for c in analysis.record.cells if c.strategy == "average" and c.query == 12)
    e = analysis.means[cell.id, "read"]
    assert f"{100 * e.mean:.1f} & {100 * e.half:.1f}" in tex


@needs_tex
def test_they_compile(small_uri: str, tmp_path: Path) -> None:
    paths = write_report(small_uri, "synthetic", tmp_path / "report")
    log = compiled(paths.tex.read_text(encoding="utf-8"), tmp_path)
    wide = [float(size) for size in re.findall(r"Overfull \\hbox \(([0-9.]+)pt", log)]
    assert not wide or max(wide) < 2


@needs_tex
def test_every_word_from_outside_compiles(mlflow_template: Path, tmp_path: Path) -> None:
    uri = copy_database(mlflow_template, tmp_path / "harsh")
    many = tuple(((a, a + 1), 12) for a in range(1, 8))  # seven selections: two panels
    study = tiny(name=HARSH, group_name=HARSH, groups=(HARSH,), selections=many, replicates=1, errors=("read",))
    study.write(uri)
    paths = write_report(uri, HARSH, tmp_path / "report")
    tex = paths.tex.read_text(encoding="utf-8")
    assert tex.count(r"\addlinespace[1ex]\midrule") == 2
    compiled(tex, tmp_path)
    compiled(f"{escape(HARSH)} {escape(''.join(chr(c) for c in range(0xA1, 0x250)))}\n", tmp_path)


@needs_tex
def test_a_study_without_numbers_compiles(mlflow_template: Path, tmp_path: Path) -> None:
    uri = copy_database(mlflow_template, tmp_path / "begun")
    Synthetic(status="RUNNING", singles=(), selections=(), planned=False, rates=()).write(uri)
    paths = write_report(uri, "synthetic", tmp_path / "report")
    compiled(paths.tex.read_text(encoding="utf-8"), tmp_path)
