"""A package of somebody's own, installed as a user would: each of the six kinds is found, and a study runs on them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import DATA, DOCS, ROOT
from wheels import build_wheel, unpack_wheel

PLUGIN = DATA / "plugin"
PAGE = DOCS / "extending.md"
EACH_IS_FOUND = """
import json
from fusion_workbench.datamodules.build import SOURCES, build_source
from fusion_workbench.modules.answers import METRICS, find_metric
from fusion_workbench.modules.encoders.families import FAMILIES
from fusion_workbench.modules.fusion import STRATEGIES
from fusion_workbench.modules.fusion.contract import check
from fusion_workbench.modules.language import INJECTIONS
from fusion_workbench.modules.language.contract import check_injection
from fusion_workbench.modules.tasks import TASKS, build_task
from fusion_workbench.core.errors import WorkbenchError

try:
    build_source("halfs", {})
except WorkbenchError as error:
    misspelt = str(error)
source = build_source("halves", {"train": 6})
task = build_task("side", source.classes(), source.targets("train"))
found = [STRATEGIES.find("largest").cls, INJECTIONS.find("last_block").cls, TASKS["side"], SOURCES["halves"]]
print(json.dumps({
    "from": [*(cls.__module__ for cls in found), type(METRICS["first_word"]).__module__],
    "broken": [str(f) for f in (*check("largest"), *check_injection("last_block")) if not f.kept],
    "family": FAMILIES["vit_msn"].model_class,
    "score": find_metric("first_word").score("Yes, two", ["yes, one"]),
    "chance": task.chance,
    "misspelt": misspelt,
}))
"""

STUDY = """
name: theirs
question: Do all of theirs work together?
encoder: {{name: {encoder}, image_size: 56, precision: float32}}
source: {{name: halves, options: {{train: 16, val: 8, test: 12}}}}
tasks: [side]
strategies: [{{name: deep_only}}, {{name: largest, options: {{scale: 0.5}}}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 2
plan: {{confirm: []}}
search: {{learning_rates: [0.01]}}
training: {{epochs: 2, batch_size: 8, head_hidden: 16, bank_size: 4}}
tracking: {{uri: "{uri}"}}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the plug-in as an installer leaves it: built to a wheel, unpacked. No network, no pip."""
    folder = tmp_path_factory.mktemp("plugin")
    sources = shutil.copytree(PLUGIN, folder / "sources", ignore=shutil.ignore_patterns("__pycache__"))
    return unpack_wheel(build_wheel(sources, folder), folder / "site")


@pytest.fixture(scope="module")
def tiny_msn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of the family that the plug-in brings: three blocks, hidden size 32, patch 14."""
    import torch
    from transformers import ViTMSNConfig, ViTMSNModel

    folder = tmp_path_factory.mktemp("msn")
    config = ViTMSNConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=56, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTMSNModel(config).save_pretrained(folder)
    numbers = {"image_processor_type": "BitImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
    return folder


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, into which the plug-in is installed."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_of_the_six_kinds_is_found_by_name(site: Path) -> None:
    result = python(site, "-c", EACH_IS_FOUND)
    assert result.returncode == 0, result.stderr
    assert "left out" not in result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    kinds = ("strategy", "injection", "task", "source", "metric")
    assert found == {
        "from": [f"my_package.{kind}" for kind in kinds],
        "broken": [],
        "family": "ViTMSNModel",
        "score": 1.0,
        "chance": 0.5,
        "misspelt": "unknown source 'halfs'. Did you mean 'halves'?",
    }


def test_a_study_of_theirs_runs_from_end_to_end(site: Path, tiny_msn: Path, mlflow_uri: str, tmp_path: Path) -> None:
    """Encoder family, source, task and strategy of the plug-in: swept and reported."""
    study, workspace = tmp_path / "theirs.yaml", tmp_path / "workspace"
    study.write_text(STUDY.format(encoder=tiny_msn, uri=mlflow_uri))
    result = python(site, "-m", "fusion_workbench.cli.main", "sweep", str(study), "--workspace", str(workspace))
    assert result.returncode == 0, result.stdout + result.stderr
    page = next((workspace / "reports").rglob("*.html")).read_text(encoding="utf-8")
    assert "largest(scale=0.5) [1,2]→3" in page
    assert "which half of the image is the brighter one" in page


# --- the page -------------------------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("kind", ["strategy", "injection", "task", "source", "family", "metric"])
def test_the_page_shows_what_is_tested(kind: str) -> None:
    code = (PLUGIN / "my_package" / f"{kind}.py").read_text(encoding="utf-8")
    assert code in blocks("python"), f"put tests/data/plugin/my_package/{kind}.py into docs/extending.md as it is"


def test_the_page_shows_nothing_else() -> None:
    assert len(blocks("python")) == 6


def test_the_page_shows_the_entry_points_that_are_tested() -> None:
    (shown,) = blocks("toml")
    assert shown in (PLUGIN / "pyproject.toml").read_text(encoding="utf-8")
    assert shown.count("[project.entry-points.") == 6
