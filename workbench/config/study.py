"""The study's configuration: what a YAML file may say, with its defaults.

One file is one study (``sweeps/*.yaml``). The dataclasses below are the schema; OmegaConf checks keys and types,
:meth:`StudyConfig.check` checks values. Anything wrong is answered in one line with the nearest right word, before
any work starts.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fusion_workbench.config.aliases import rename_keys
from fusion_workbench.config.history import (
    VERSIONS,
    KeyPath,
    defaults_before,
    keep_meaning,
    language_defaults,
    newest,
    path_of,
    places,
)
from fusion_workbench.config.language import (
    LanguageConfig,
    LoraSettings,
    StageConfig,
    StageSourceConfig,
    check_language,
)
from fusion_workbench.config.limits import check_limits
from fusion_workbench.config.overrides import apply_override, check_repeats, explain, refuse_unquoted
from fusion_workbench.config.plan import FamilyConfig, PlanConfig, check_plan
from fusion_workbench.config.references import check_references
from fusion_workbench.core.errors import WorkbenchError, nearest, reason
from fusion_workbench.core.parse import dump_yaml, parse_yaml
from fusion_workbench.system.files import read_small
from fusion_workbench.system.mlflow_uri import without_password

PRECISIONS = ("auto", "float32", "bf16")
TRAINING_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
SAMPLERS = ("auto", "exhaustive", "tpe", "random")
SCOPES = ("cell", "strategy")
MOST_BYTES = 1_000_000  # of a study file


@dataclass
class EncoderConfig:
    """The frozen vision encoder."""

    name: str = "assets:encoder"  # assets:encoder, a folder, or a Hugging Face name
    revision: str | None = None  # commit of a Hugging Face name
    image_size: Any = 112  # pixels, a multiple of the patch size: of a square, or [height, width]
    batch_size: int = 64  # images a forward pass
    precision: str = "auto"  # auto: bf16 where the hardware gains from it


@dataclass
class SourceConfig:
    """Where samples come from; ``options`` are the source's own."""

    name: str = "finescenes"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SelectionConfig:
    """One selection: ``levels`` (shallow layers) and ``query`` (default: the deepest layer)."""

    levels: list[Any] = field(default_factory=list)
    query: Any = None


@dataclass
class SpaceConfig:
    """A space of selections: every set of ``count`` levels out of ``layers``."""

    count: list[int] = field(default_factory=lambda: [3])  # how many levels: any of these
    layers: list[Any] = field(default_factory=list)  # candidates; empty: every layer below the query
    queries: list[Any] = field(default_factory=list)  # empty: the deepest layer; several: free among them


@dataclass
class StrategyConfig:
    """One fusion strategy; ``options`` are fixed, ``choices`` are lists that are all tried."""

    name: str = "???"
    options: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, list[Any]] = field(default_factory=dict)
    selections: list[SelectionConfig] = field(default_factory=list)  # its own; empty: the study's
    alias: str = ""  # salts identity and initialisation, for A/A studies


@dataclass
class SearchConfig:
    """How configurations are found. Every strategy gets the same budget and the same learning rates."""

    sampler: str = "auto"  # auto: exhaustive where the space fits the budget, else tpe
    budget: int = 60  # cells a strategy; a space that fits is enumerated whole
    keep: int = 8  # of a sampled space, cells a strategy that go on to the replicates
    learning_rates: list[float] = field(default_factory=lambda: [1e-3, 3e-3])
    scope: str = "cell"  # the learning rate is searched for each cell, or once for each strategy
    seed: int = 0


@dataclass
class TrainingConfig:
    """How every variant is trained: the same steps for all."""

    epochs: int = 8
    batch_size: int = 16
    projector: str = "linear"
    width: int = 0  # of the projected tokens; 0: the encoder's
    head_hidden: int = 384
    gates_lr_scale: float = 100.0  # rates of the parts, times the variant's; 1 with a language_model (config.history)
    fuser_lr_scale: float = 1.0
    projector_lr_scale: float = 1.0
    head_lr_scale: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the steps
    gradient_clip: float = 1.0  # norm, each member its own; 0: none
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    bank_size: int = 16  # variants trained side by side; never changes a result
    live: bool = False  # encode every batch anew instead of reading the feature store
    num_workers: int | None = None  # processes that load batches; null: 4 for live images on a GPU, else none


@dataclass
class TrackingConfig:
    """Where MLflow writes; an empty ``uri`` is an SQLite file in the workspace."""

    uri: str = ""
    experiment: str = "fusion-workbench"


@dataclass
class StudyConfig:
    """One ablation study."""

    name: str = "???"
    question: str = ""
    schema: int = field(default_factory=newest)  # the version of the study file that it was begun under
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    tasks: list[str] = field(default_factory=lambda: ["read", "digit"])
    strategies: list[StrategyConfig] = field(default_factory=list)
    selections: list[SelectionConfig] = field(default_factory=list)
    space: SpaceConfig | None = None
    single_layers: list[Any] = field(default_factory=list)  # deep-only variants; ["all"]: every layer
    baselines: bool = True  # deepest, penultimate, best single layer, middle concat
    replicates: int = 5
    plan: PlanConfig = field(default_factory=PlanConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    language_model: LanguageConfig | None = None  # given: the cells are multimodal language models, not probes


def bundled() -> dict[str, Path]:
    """The study files that come with the workbench, by name."""
    folder = Path(str(resources.files("fusion_workbench.sweeps")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_study(name_or_path: str, overrides: Sequence[str] = (), schema: int | None = None) -> StudyConfig:
    """Read a study by bundled name or path, apply ``key=value`` overrides, check it.

    ``schema``: as for :func:`study_from_yaml`.

    Raises:
        WorkbenchError: no such file, unreadable YAML, a wrong key, type or value.
    """
    path = bundled().get(name_or_path, Path(name_or_path))
    try:
        text = read_small(path, MOST_BYTES).decode()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            word = name_or_path if len(name_or_path) <= 100 else f"{name_or_path[:100]}…"
            raise WorkbenchError(
                f"no study '{word}': neither a file nor one of the bundled studies.{nearest(word, bundled())}"
            ) from None
        raise WorkbenchError(f"{path} cannot be read as a study file: {reason(error)}.") from None
    except UnicodeDecodeError as error:
        raise WorkbenchError(f"{path} cannot be read as a study file: {error}.") from None
    return study_from_yaml(text, where=str(path), overrides=overrides, default_name=path.stem, schema=schema)


def study_from_yaml(
    text: str, where: str, overrides: Sequence[str] = (), default_name: str = "study", schema: int | None = None
) -> StudyConfig:
    """A checked study from YAML ``text``; ``where`` names it in errors. Raises WorkbenchError.

    ``schema`` is the version whose defaults stand in for what is not written (None: the newest), unless the study names
    one itself. :func:`study.identity.as_begun` finds the one that a study was begun under.
    """
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict):
        raise WorkbenchError(f"{where}: a study file is a mapping of keys such as name, strategies, selections.")
    raw.setdefault("name", default_name)
    check_references(raw, where)
    rename_keys(raw, where)
    _check_keys(raw, StudyConfig, where)
    refuse_unquoted(StudyConfig, raw, where)
    check_repeats(overrides)
    defaults: DictConfig = OmegaConf.structured(StudyConfig)
    try:
        config = OmegaConf.merge(defaults, OmegaConf.create(raw))
    except OmegaConfBaseException as error:
        raise WorkbenchError(explain(error, where)) from None
    written: set[KeyPath] = set()
    _note(written, (), raw)
    typed: dict[KeyPath, KeyPath] = {}
    for override in overrides:
        key, value = apply_override(config, override)
        _note(written, path_of(key), value)
        name = path_of(override.partition("=")[0])
        if typed.setdefault(path_of(key), name) != name:
            raise WorkbenchError(f"override '{override}': '{key}' is given by its old name too; give one of the two.")
    _begin_under(config, written, schema or newest(), where)
    try:
        study = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise WorkbenchError(explain(error, where)) from None
    assert isinstance(study, StudyConfig)
    for number, strategy in enumerate(study.strategies):
        for plain in (strategy.options, strategy.choices):
            rename_keys(plain, f"{where}: strategies[{number}]", strategy.name)
    check(study, where)
    return study


def _note(written: set[KeyPath], path: KeyPath, value: Any) -> None:
    """Add the keys that ``value`` at ``path`` gives to ``written``; all but a mapping replaces what was there."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _note(written, (*path, str(key)), inner)
        return
    written -= {known for known in written if known[: len(path)] == path}
    written.add(path)
    for number, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, dict):
            _note(written, (*path, str(number)), item)


def _begin_under(config: Any, written: set[KeyPath], schema: int, where: str) -> None:
    """Give ``config`` the defaults of a version of the schema, its own or ``schema``, for all that is not written.

    Words that meant something else then are said as today.
    """
    config.schema = config.schema if ("schema",) in written else schema
    if config.schema not in VERSIONS:
        raise WorkbenchError(
            f"{where}: schema is {config.schema}; this workbench knows {', '.join(map(str, sorted(VERSIONS)))}."
        )
    defaults = defaults_before(config.schema)
    if config.language_model is not None:
        defaults |= language_defaults(config.schema)
    for key, value in defaults.items():
        for place, holder in places(config, path_of(key)):
            if not any(known[: len(place)] == place for known in written):
                holder[place[-1]] = copy.deepcopy(value)
    keep_meaning(config, config.schema)


def _check_keys(raw: Any, schema: type, where: str, prefix: str = "") -> None:
    """Unknown keys of a YAML mapping, found before OmegaConf sees it, so that the nearest right one can be named."""
    if not isinstance(raw, dict):
        raise WorkbenchError(f"{where}: '{prefix.rstrip('.')}' must be a mapping, and is {raw!r}.")
    schema_fields = {f.name: f for f in fields(schema)}
    for key, value in raw.items():
        if str(key) not in schema_fields:
            raise WorkbenchError(f"{where}: unknown key '{prefix}{key}'.{nearest(str(key), schema_fields)}")
        part = _PARTS.get((schema, str(key)))
        if part is None or value is None:
            continue
        if part[1]:
            if not isinstance(value, list):
                raise WorkbenchError(f"{where}: '{prefix}{key}' must be a list, and is {value!r}.")
            for number, item in enumerate(value):
                _check_keys(item, part[0], where, f"{prefix}{key}[{number}].")
        else:
            _check_keys(value, part[0], where, f"{prefix}{key}.")


_PARTS: dict[tuple[type, str], tuple[type, bool]] = {
    (StudyConfig, "encoder"): (EncoderConfig, False),
    (StudyConfig, "source"): (SourceConfig, False),
    (StudyConfig, "strategies"): (StrategyConfig, True),
    (StrategyConfig, "selections"): (SelectionConfig, True),
    (StudyConfig, "selections"): (SelectionConfig, True),
    (StudyConfig, "space"): (SpaceConfig, False),
    (StudyConfig, "plan"): (PlanConfig, False),
    (PlanConfig, "families"): (FamilyConfig, True),
    (StudyConfig, "search"): (SearchConfig, False),
    (StudyConfig, "training"): (TrainingConfig, False),
    (StudyConfig, "tracking"): (TrackingConfig, False),
    (StudyConfig, "language_model"): (LanguageConfig, False),
    (LanguageConfig, "stages"): (StageConfig, True),
    (LanguageConfig, "lora"): (LoraSettings, False),
    (StageConfig, "source"): (StageSourceConfig, False),
}


def check(study: StudyConfig, where: str = "study") -> None:
    """Values that types cannot express. Raises WorkbenchError for the first that is wrong."""

    def one_of(key: str, value: str, allowed: Iterable[str]) -> None:
        if value not in allowed:
            raise WorkbenchError(f"{where}: {key} is '{value}'.{nearest(value, allowed)}")

    one_of("encoder.precision", study.encoder.precision, PRECISIONS)
    one_of("training.precision", study.training.precision, TRAINING_PRECISIONS)
    one_of("search.sampler", study.search.sampler, SAMPLERS)
    one_of("search.scope", study.search.scope, SCOPES)
    check_limits(study, where)
    if study.training.warmup >= 1:
        raise WorkbenchError(
            f"{where}: training.warmup is {study.training.warmup}; it is a share of the steps, below 1."
        )
    if not study.tasks:
        raise WorkbenchError(f"{where}: tasks is empty; name at least one, such as [read, digit].")
    if not study.strategies:
        raise WorkbenchError(f"{where}: strategies is empty; name at least one, such as - name: concat.")
    check_plan(study.plan, study.tasks, study.replicates, where)
    if study.language_model is not None:
        check_language(study.language_model, where)
        if study.training.width:
            raise WorkbenchError(
                f"{where}: training.width is {study.training.width}; before a language model tokens are as wide as its "
                "embeddings, so leave it at 0."
            )
        _check_unread(study, where)
    if not study.name or any(not (c.isalnum() or c in "-_.") for c in study.name) or study.name.startswith("."):
        raise WorkbenchError(
            f"{where}: name '{study.name}' must be letters, digits, '-', '_' and '.', as it names a folder."
        )
    if study.training.precision == "16-mixed" and study.training.bank_size > 1:
        raise WorkbenchError(
            f"{where}: training.precision 16-mixed scales gradients, which couples the members of a bank; "
            "set training.bank_size=1, or use bf16-mixed."
        )


# Settings of the training of probes, and what stands in their place before a language model.
_UNREAD = dict.fromkeys(("epochs", "weight_decay", "warmup"), "set {name} of each of language_model.stages")
_UNREAD |= dict.fromkeys(("head_hidden", "head_lr_scale"), "leave it out, since a language model has no heads")


def _check_unread(study: StudyConfig, where: str) -> None:
    """What a study of language models would not read is not let pass as if it did."""
    before = defaults_before(study.schema)
    for name, instead in _UNREAD.items():
        value = getattr(study.training, name)
        if value != before.get(f"training.{name}", getattr(type(study.training), name)):
            raise WorkbenchError(
                f"{where}: training.{name} is {value}, which is of probes alone; {instead.format(name=name)}."
            )


def to_dict(study: StudyConfig) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers, passwords of ``tracking.uri`` too: for use in memory alone."""
    plain = OmegaConf.to_container(OmegaConf.structured(study), resolve=True)
    assert isinstance(plain, dict)
    if plain["language_model"] is None:
        del plain["language_model"]  # a study of probes is what it was before there were others
    return {str(key): value for key, value in plain.items()}


def to_track(study: StudyConfig) -> dict[str, Any]:
    """:func:`to_dict` as it may be written down: without passwords."""
    plain = to_dict(study)
    plain["tracking"] = {**plain["tracking"], "uri": without_password(study.tracking.uri)}
    return plain


def to_yaml(study: StudyConfig) -> str:
    """The whole resolved study, ready to run again; of ``tracking.uri`` the password has to be given anew."""
    return dump_yaml(to_track(study))


def digest(value: Any) -> str:
    """16 hex digits of the canonical JSON of ``value``."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
