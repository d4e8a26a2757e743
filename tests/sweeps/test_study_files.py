"""Every bundled study file: valid on real encoders' depths, and run from end to end on a tiny one."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fusion_workbench.config.study import bundled, load_study
from fusion_workbench.modules.language.connector import ConnectorConfig, build_connector
from fusion_workbench.runner.experiment import Experiment
from fusion_workbench.study.prepare import prepare, strategy_traits
from fusion_workbench.study.progress import Display
from fusion_workbench.sweeps.space import Cell, build_space

ENCODERS = {"the embedded encoder": (12, 384), "CLIP-L": (24, 1024)}  # depth, dim
OF_ONE = {  # files whose layers are numbers, and the depth they are numbers of
    **dict.fromkeys(("quickstart", "finescenes", "mllm_quick", "mllm_probes", "mllm_finescenes"), 12),
    "mmfuser_llava_7b": 24,
}
SMALL = (
    "encoder.precision=float32",
    "source.options.train=16",
    "source.options.val=8",
    "source.options.test=8",
    "training.epochs=1",
    "training.batch_size=8",
    "training.head_hidden=16",
    "training.bank_size=32",
    "search.learning_rates=[0.003]",
    "replicates=1",
    "plan.confirm=[]",
)


def cells(name: str, depth: int) -> tuple[Cell, ...]:
    study = load_study(name)
    return build_space(study, depth, strategy_traits(study.language_model is not None)).listed


@pytest.mark.parametrize("name", bundled())
def test_a_file_says_first_what_it_asks(name: str) -> None:
    comment = [line for line in bundled()[name].read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert comment, "a study file opens with what it mirrors or asks"
    assert load_study(name).question.endswith("?")
    assert load_study(name).name == name


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", bundled())
def test_a_file_builds_on_real_encoders(name: str, encoder: str) -> None:
    depth, dim = ENCODERS[encoder]
    if name in OF_ONE and OF_ONE[name] != depth:
        pytest.skip("its layers are numbers of another encoder's")
    found = cells(name, depth)
    assert found
    with torch.device("meta"):
        for cell in found:
            connector = build_connector(
                ConnectorConfig(cell.strategy, cell.selection, dim, 576, 30, dict(cell.options))
            )
            assert set(connector.uses) <= set(range(depth + 1))


def test_the_papers_layers_come_back_on_an_encoder_of_24_blocks() -> None:
    """CLIP-L's published sets, in transformers' numbering."""

    def selections(name: str, strategy: str) -> list[tuple[tuple[int, ...], int]]:
        found = [cell for cell in cells(name, 24) if cell.strategy == strategy and not cell.baselines]
        return list(dict.fromkeys((cell.selection.levels, cell.selection.query) for cell in found))

    published = ((3, 8, 13, 18), 23)
    assert selections("mmfuser_table1", "mmfuser") == [published]
    assert selections("mmfuser_table7", "mmfuser") == [published]
    assert selections("mmfuser_table8", "mmfuser") == [published]
    assert selections("mmfuser_table6", "mmfuser") == [
        ((1, 3, 5, 7), 23),
        ((9, 11, 13, 15), 23),
        ((16, 18, 20, 24), 23),
        ((5, 8, 11, 20), 23),
        published,
    ]
    assert selections("dense_connector", "sci") == [((8, 16), 24)]
    assert selections("shallow_middle_deep", "concat") == [((18,), 23), ((3, 18), 23)]
    halves = [tuple(range(2, 11, 2)), tuple(range(14, 23, 2))]  # of each twelve layers five, the query never twice
    grouped = [((*halves[0],), 23), ((*halves[1],), 23), ((*halves[0], *halves[1]), 23)]
    assert selections("shallow_middle_deep", "dci") == grouped
    assert selections("shallow_middle_deep", "mmfuser") == [((18,), 23), ((3, 18), 23), *grouped]
    assert [len(levels) for levels, _ in selections("how_many_layers", "mmfuser")] == [1, 2, 3, 5, 11]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """One for all studies, so that a tiny encoder encodes each source once."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("studies")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=12, num_attention_heads=2, mlp_ratio=1, image_size=112, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder / "encoder")
    numbers = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    preprocessor = {"image_processor_type": "BitImageProcessor", **numbers}
    (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


PROBES = [name for name in bundled() if load_study(name).language_model is None]


@pytest.mark.parametrize("name", [name for name in PROBES if name != "planted"])  # whose encoder is its own
def test_a_file_runs_to_its_report(name: str, workspace: Path) -> None:
    from fusion_workbench.reports import write_report

    uri = f"sqlite:///{workspace / 'mlflow.db'}"
    study = load_study(name, [*SMALL, f"encoder.name={workspace / 'encoder'}", f"tracking.uri={uri}"])
    parts = prepare(study, workspace, progress=False)
    result = Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()
    assert result.failed == 0
    assert result.cells == len(parts.space.listed)
    page = write_report(uri, result.study_id, workspace / "reports" / name, study.tracking.experiment).html
    assert parts.space.listed[0].label in page.read_text(encoding="utf-8")
