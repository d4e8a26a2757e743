"""Fixtures that several rooms share. Heavy imports stay inside them, so that collecting tests stays quick."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Before any library reads them: no network, no display, no chatter.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    MLFLOW_DISABLE_TELEMETRY="true",
    GIT_PYTHON_REFRESH="quiet",
)

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
EXPERIMENT = "fusion-workbench"
sys.path.insert(0, str(Path(__file__).parent / "helpers"))  # small models, sources and studies that tests share


class _BareNames(MetaPathFinder):
    """Refuses the folders of the repository as packages of their own: there would be two copies of each class."""

    FOLDERS = frozenset({"workbench", "modules", "datamodules", "sweeps", "reports"})

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname in self.FOLDERS:
            raise ImportError(f"'{fullname}' is a folder of fusion_workbench; import fusion_workbench.… instead")


sys.meta_path.insert(0, _BareNames())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


# Programs that are no Python packages, by a word of the reason for which tests skip; and what Debian calls them.
PROGRAMS = {"Chromium": "chromium", "pdflatex": "texlive-latex-base texlive-latex-recommended"}


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line says which programs are missing, how many tests that cost, and what installs them."""
    terminal = config.pluginmanager.getplugin("terminalreporter")
    if terminal is None or hasattr(config, "workerinput"):
        return
    reasons = [str(report.longrepr) for report in terminal.stats.get("skipped", [])]
    counts = {word: sum(word in reason for reason in reasons) for word in PROGRAMS}
    missing = [word for word, count in counts.items() if count]
    if missing:
        terminal.write_line(
            f"{sum(counts.values())} tests were skipped for want of {' and '.join(missing)}; on Debian: "
            f"apt-get install --no-install-recommends {' '.join(PROGRAMS[word] for word in missing)}",
            yellow=True,
        )


@pytest.fixture(autouse=True)
def _mlflow_forgets_places() -> None:
    """MLflow remembers where a run's artifacts lie for as long as a process lives; no command of a user's lives on."""
    if client := sys.modules.get("mlflow.tracking._tracking_service.utils"):
        client._artifact_repos_cache.clear()


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised MLflow SQLite file: its schema takes seconds to build, a copy takes none."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    database = folder / "template.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    client.create_experiment(EXPERIMENT, artifact_location=(folder / "artifacts").as_uri())
    return database


@pytest.fixture
def mlflow_uri(mlflow_template: Path, tmp_path: Path) -> str:
    """The URI of a fresh MLflow database. All its artifacts go below ``tmp_path``."""
    database = tmp_path / "mlflow.db"
    shutil.copy(mlflow_template, database)
    artifacts = (tmp_path / "artifacts").as_uri()
    connection = sqlite3.connect(database)
    with connection:  # the template's experiments point elsewhere
        connection.execute("UPDATE experiments SET artifact_location = ? || '/' || experiment_id", [artifacts])
    connection.close()
    return f"sqlite:///{database}"


@pytest.fixture(scope="session")
def tiny_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: DINOv2 of 3 blocks, hidden size 32, patch 14, image 56."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return _save(Dinov2Model, config, tmp_path_factory.mktemp("dinov2"), "BitImageProcessor", mean, std)


@pytest.fixture(scope="session")
def tiny_dinov2_deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the depth of the embedded encoder, 12 blocks, hidden size 64."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=12, num_attention_heads=2, mlp_ratio=1, image_size=56, patch_size=14
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return _save(Dinov2Model, config, tmp_path_factory.mktemp("dinov2-deep"), "BitImageProcessor", mean, std)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: CLIP's vision tower, 3 blocks, hidden size 32, patch 14, image 56."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=32,
    )
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return _save(CLIPVisionModel, config, tmp_path_factory.mktemp("clip"), "CLIPImageProcessor", mean, std)


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: a Llama of four blocks over single characters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted({chr(code) for code in range(32, 127)} | {"\n"})
    vocabulary = {token: n for n, token in enumerate(["<pad>", "<end>", "<unk>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    folder = tmp_path_factory.mktemp("language")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=4,
                num_attention_heads=2,
                max_position_embeddings=8192,
                eos_token_id=1,
                bos_token_id=None,
                pad_token_id=0,
            )
        ).save_pretrained(folder)
    return folder


def _save(
    kind: type[PreTrainedModel],
    config: PretrainedConfig,
    folder: Path,
    processor: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):  # the caller's random state is none of a fixture's business
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    preprocessor = {
        "image_processor_type": processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 56},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 56, "width": 56},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    return folder
