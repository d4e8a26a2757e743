"""The words that a study and its reader share: tags, artifacts, metrics, phases, statuses, baselines, versions.

Each stands here once. Members of the enums are strings, equal to what is on disk and in MLflow.
"""

from __future__ import annotations

from enum import StrEnum

# --- versions of what is written ------------------------------------------------------------------------------------

TRACKING_SCHEMA = "1"  # of a study's runs in MLflow, as the tag of its parent run
TOKEN_MAPS_SCHEMA = 1  # of look/look.json
LAYERS_SCHEMA = 1  # of similarity.json and importance.json
REPORT_SCHEMA = 2  # of report.json: raised when a key goes away or changes its meaning, not when one is added

# --- runs -----------------------------------------------------------------------------------------------------------


class Tag(StrEnum):
    """Tags of MLflow runs."""

    NUMERICS = "workbench.numerics"  # of a parent run: "1", or "1, 2" where its rows are mixed; of a child: its own
    KIND = "workbench.kind"  # of every run: a RunKind
    SHA256 = "workbench.sha256"  # of every run: of its artifacts, in pieces; see schema/checksums.py

    # Of a study's parent run.
    STUDY = "workbench.study"
    SCHEMA = "workbench.schema"
    FOLDER = "workbench.folder"  # machine and folder that the study is kept in; child runs have none
    QUESTION = "workbench.question"
    COMMAND = "workbench.command"
    COMMIT = "workbench.commit"
    VERSIONS = "workbench.versions"  # JSON: package → version
    DEVICE = "workbench.device"
    PLAN = "workbench.plan"  # the hash of the plan that stood before the first run

    # Of child runs; the study's id also of the parent.
    STUDY_ID = "workbench.study_id"
    CELL = "workbench.cell"
    VARIANT = "workbench.variant"
    PHASE = "workbench.phase"
    REPLICATE = "workbench.replicate"
    STATUS = "workbench.outcome"  # a Status: what became of it
    METRICS = "workbench.metrics"  # 16 hex digits over the last values of its metrics; see schema/checksums.py
    ERROR = "workbench.error"  # what it broke off with, and where; of those that failed or ran out of memory

    DEPENDENCIES = "workbench.dependencies"  # 12 hex digits over the fingerprints that it was trained under
    ENVIRONMENT = "workbench.environment"  # JSON: what it was trained with and on, short
    CODE = "workbench.code"  # of a plug-in's cells: JSON, strategy → hash of its code
    RESTORED = "workbench.restored"  # the run that it was before, where MLflow had lost that, or had it elsewhere

    PARENT = "mlflow.parentRunId"  # MLflow's own


class RunKind(StrEnum):
    """What an MLflow run is of."""

    STUDY = "study"
    VARIANT_REPLICATE = "variant-replicate"


class Phase(StrEnum):
    """The part of a study that a variant-replicate belongs to."""

    SEARCH = "search"  # learning rates and cells are chosen; on a replicate of the same name, never reported
    FINAL = "final"  # the study's replicates 0, 1, …
    CONFIRM = "confirm"  # fresh replicates c0, c1, …, on which the winner is judged


SEARCH_REPLICATE = "search"


def fresh_replicate(number: int) -> str:
    """The name of a fresh replicate."""
    return f"c{number}"


class LedgerState(StrEnum):
    """How far the ledger knows a variant-replicate to be."""

    RUNNING = "running"
    DONE = "done"


class RunStatus(StrEnum):
    """MLflow's own statuses of a run."""

    RUNNING = "RUNNING"
    SCHEDULED = "SCHEDULED"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"

    @classmethod
    def of_error(cls, error: BaseException) -> RunStatus:
        """Of a run that ``error`` ended."""
        return cls.FAILED if isinstance(error, Exception) else cls.KILLED  # what asks a process to end is no Exception


OPEN = (RunStatus.RUNNING, RunStatus.SCHEDULED)  # as MLflow takes it, the run still goes on


class Status(StrEnum):
    """How a variant-replicate ended. A study writes the first three; the rest is what a reader finds."""

    FINISHED = "finished"  # trained to the end
    DIVERGED = "diverged"  # the loss left the finite numbers
    OUT_OF_MEMORY = "out_of_memory"
    PRUNED = "pruned"  # stopped early by the search, which no study does today: old ones are read
    FAILED = "failed"  # broke off with an error
    KILLED = "killed"  # stopped from outside
    UNREADABLE = "unreadable"  # finished, but its scores cannot be read
    RUNNING = "running"
    MISSING = "missing"  # not started yet

    @classmethod
    def read(cls, run_status: str, written: str, parent_status: str) -> Status:
        """The status of a child run.

        Args:
            run_status: MLflow's own, of the run.
            written: the tag that the study set; empty where it set none.
            parent_status: MLflow's own, of the parent run: nothing goes on where the study does not.
        """
        if run_status == RunStatus.FINISHED and written == cls.FINISHED:
            return cls.FINISHED
        if written in {*cls} - {cls.FINISHED}:
            return cls(written)
        if run_status in OPEN:
            return cls.RUNNING if parent_status == RunStatus.RUNNING else cls.KILLED
        return cls.KILLED if run_status == RunStatus.KILLED else cls.FAILED


def closing_status(status: str | None) -> RunStatus:
    """What MLflow is told of a variant-replicate that ended with ``status``."""
    return RunStatus.FINISHED if status in (Status.FINISHED, Status.PRUNED) else RunStatus.FAILED


# --- artifacts ------------------------------------------------------------------------------------------------------


class Artifact(StrEnum):
    """Paths of a run's artifacts."""

    # Of the parent run.
    STUDY = "study.yaml"  # the configuration, resolved
    ENCODER = "passport.json"
    SOURCE = "source.json"
    TASKS = "tasks.json"
    PLAN = "plan.json"
    DEPENDENCIES = "dependencies.json"  # fingerprints of all that its numbers depend on, with every accepted change
    CELLS = "variants.json"
    CONTENDERS = "contenders.json"
    LANGUAGE_MODEL = "language_model.json"
    SIMILARITY = "similarity.json"
    IMPORTANCE = "importance.json"
    TOKEN_MAPS = "look/look.json"

    # Of child runs.
    VARIANT = "variant.yaml"
    ANSWERS = "outcomes/answers.parquet"
    INSIDE = "inside.safetensors"
    FUSER = "fuser/model.safetensors"
    FUSER_CONFIG = "fuser/config.json"


def scores_file(split: str) -> str:
    """Per-example scores of a split, of a child run."""
    return f"outcomes/{split}.parquet"


def token_map_file(name: str) -> str:
    """A picture beside ``look/look.json``."""
    return f"look/{name}"


def model_file(name: str) -> str:
    """A file of the folder that a trained language model is kept in, of a child run."""
    return f"model/{name}"


def statistic_column(name: str) -> str:
    """The column of a file of scores that holds a statistic of each example."""
    return f"stat.{name}"


KEPT_WEIGHTS = "weights"  # a param: in which type those of a language model that was trained in full are kept; or none


# --- metrics --------------------------------------------------------------------------------------------------------

OBJECTIVE = "val/objective"  # the mean of the tasks on validation, more is better: what the search goes by
OVERALL = "overall"  # the measure: the mean of the tasks, each turned so that more is better
TRAIN_LOSS = "train/loss"
LOSS = "loss"  # of a split, as on_validation and on_test take it
FALLING = "loss_still_falling"  # relative drop of the training loss an epoch, at the end
CONVERGED = "converged"  # 1 or 0
GATES_OPENED = "gates_opened"  # 1 or 0
GATE = "gate/"  # begins the metrics of gates, and their names in inside.safetensors
ATTENTION_SHARE = "attention_share/layer_"  # begins the metrics of attention, before the number of a layer
OFFSET_RMS = "sampling_offset_rms_cells"  # how far deformable attention looks
TOKENS_RMS = "tokens_rms"  # root mean square of the image tokens that a language model is given
INJECTED_RMS = "injected_rms/block_"  # the same of what is added at a decoder block, before its number


COST = "cost/"  # begins the metrics of cost; report.json leaves it out


class CostMetric(StrEnum):
    """Metrics of what a training or a forward pass takes."""

    PARAMETERS = "cost/parameters"
    PARAMETERS_FUSER = "cost/parameters_fuser"
    PARAMETERS_HEADS = "cost/parameters_heads"
    PARAMETERS_TRAINED = "cost/parameters_trained"
    FLOPS = "cost/flops_per_image"
    FORWARD_MS = "cost/ms_per_image_forward"
    SECONDS = "cost/seconds"
    THROUGHPUT = "cost/samples_per_second"
    PEAK_MEMORY = "cost/peak_memory_mb"
    MFU = "cost/mfu"  # model FLOP utilisation


class StepMetric(StrEnum):
    """Metrics of a few steps of a language model's training; nothing is read from them but by people."""

    LOSS = "step/loss"
    LR = "step/lr"
    GRADIENT_NORM = "step/gradient_norm"  # before it is clipped
    POSITIONS = "step/positions_per_second"
    MEMORY = "step/memory_mb"  # the most so far


# How the others begin, and those that stand alone.
_OWN_METRICS = ("train/", "val/", "test/", "control/", GATE, "attention_share/", "injected_rms/", COST)
_OWN_NAMES = ("lr", FALLING, CONVERGED, GATES_OPENED, OFFSET_RMS, TOKENS_RMS)


def is_own_metric(name: str) -> bool:
    """Whether a metric is one that a study writes, not one that was added to its run."""
    return name.startswith(_OWN_METRICS) or name in _OWN_NAMES


def task_metric(task: str, metric: str) -> str:
    """A task's metric, as :func:`on_validation` and :func:`on_test` take it."""
    return f"{task}/{metric}"


def on_validation(name: str) -> str:
    """A metric on the validation split."""
    return f"val/{name}"


def on_test(name: str) -> str:
    """A metric on the test split."""
    return f"test/{name}"


def gate_metric(gate: str) -> str:
    """Root mean square of a gate."""
    return f"{GATE}{gate}_rms"


def no_image_metric(control_name: str, task: str) -> str:
    """A task's metric on test, of questions asked without their images."""
    return f"control/{control_name}/{task}"


# --- what a cell is in a comparison ---------------------------------------------------------------------------------


class Baseline(StrEnum):
    """What cells are compared with. The best single layer is picked on validation, a measure each."""

    DEEPEST = "deepest layer"
    PENULTIMATE = "penultimate layer"
    BEST_SINGLE = "best single layer"
    MIDDLE = "middle concat"


SINGLE_LAYER = "single layer"  # what a study marks a cell with of which the best single layer may be picked
BASELINES = tuple(Baseline)


class Role(StrEnum):
    """Why validation has a cell trained again on fresh replicates."""

    WINNER = "winner"  # the best
    FUSION = "fusion"  # the best that reads several layers


class Budget(StrEnum):
    """What a budget-matched control has in common with the best fusion."""

    PARAMETERS = "parameters"
    FLOPS = "flops"

    @property
    def control_name(self) -> str:
        """What comparisons call the control."""
        return SAME_PARAMETERS if self is Budget.PARAMETERS else SAME_FLOPS


SAME_PARAMETERS, SAME_FLOPS = "one layer, same parameters", "one layer, same FLOPs"
MATCHED_CONTROLS = (SAME_PARAMETERS, SAME_FLOPS)  # of the best fusion; trained on fresh replicates only
MATCHED_STRATEGY = "matched"  # the strategy of the controls


class Verdict(StrEnum):
    """What a comparison shows."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    SAME = "not distinguishable"
    NONE = "no verdict"
    ITSELF = "the baseline itself"


class NoImage(StrEnum):
    """How test questions are asked without their image: the no-image baselines."""

    BLANK = "blank"
    SHUFFLED = "shuffled"


NO_IMAGE_KINDS = tuple(NoImage)


class ExampleKind(StrEnum):
    """Why a test image is among those with token maps."""

    RANDOM = "random"
    HARDEST = "hardest"
    IMPROVED = "improved"
    WORSENED = "worsened"
