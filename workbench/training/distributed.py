"""Teaching on several devices: a process a device, started by torchrun, that leaves its checkpoints to the study.

The study's own process writes down what is to be trained, starts the workers, shows their progress, and then takes up
the checkpoints of the finished stages as it would after a kill. So nothing of ledger, MLflow or Optuna is known here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.names import Status

if TYPE_CHECKING:
    from fusion_workbench.study.jobs import Job
    from fusion_workbench.study.prepare import Parts
    from fusion_workbench.training.language_run import LossRow

ORDER = "order.json"
_LAST = 20  # lines of a failed worker's words that are shown


@dataclass(frozen=True)
class DistributedResult:
    """How the workers ended: finished, diverged or out_of_memory; what they trained on together, and in which time;
    ``before``: the time of earlier workers whose checkpoints they took up.
    """

    outcome: str
    samples: int
    seconds: float
    before: float
    history: list[LossRow]


def train_distributed(
    parts: Parts, job: Job, folder: Path, tell: Callable[[int, LossRow], None], advance: Callable[[int], None]
) -> DistributedResult:
    """Run the stages of ``job`` that are not done, on ``training.devices`` devices; leaves checkpoints in ``folder``.

    Raises:
        WorkbenchError: a worker failed.
    """
    from fusion_workbench.config.study import to_yaml

    cell = job.variant.cell
    folder.mkdir(parents=True, exist_ok=True)
    order = {
        "study": to_yaml(parts.study),
        "workspace": str(parts.workspace.resolve()),
        "cell": cell.tracked(job.variant.lr).plain(),
        "lr": job.variant.lr,
        "training": [list(pair) for pair in job.variant.training],
        "replicate": job.replicate,
        "folder": str(folder.resolve()),
    }
    (folder / ORDER).write_text(json.dumps(order), encoding="utf-8")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        f"--nproc-per-node={parts.study.training.devices}",
        *("-m", "fusion_workbench.training.distributed", str(folder / ORDER)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said: list[str] = []
        rows: dict[int, LossRow] = {}
        end: dict[str, Any] = {}
        try:
            for line in process.stdout:
                event = _event(line)
                if event is None:
                    said = [*said, line.rstrip()][-_LAST:]
                elif "steps" in event:
                    advance(int(event["steps"]))
                elif "outcome" in event:
                    end = event
                else:
                    rows[int(event["number"])] = event["row"]
                    tell(int(event["number"]), event["row"])
        except BaseException:
            process.terminate()
            raise
    if not end or (process.returncode and end["outcome"] != Status.OUT_OF_MEMORY):
        raise WorkbenchError(
            f"teaching {cell.label} on {parts.study.training.devices} devices failed: "
            + (next((line for line in reversed(said) if "Error" in line), said[-1] if said else "no word was said"))
        )
    samples = int(end["samples"]) * parts.study.training.devices
    history = [rows[number] for number in sorted(rows)]
    return DistributedResult(end["outcome"], samples, float(end["seconds"]), float(end["before"]), history)


def _event(line: str) -> dict[str, Any] | None:
    """What a worker tells, or None for any other output."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and event.keys() & {"steps", "number", "outcome"} else None


def work(path: Path) -> None:
    """One worker: train what ``path`` orders; the first of the workers tells how far it is."""
    import os

    import torch

    from fusion_workbench.config.study import study_from_yaml
    from fusion_workbench.schema.study import Cell as TrackedCell
    from fusion_workbench.study.jobs import Job
    from fusion_workbench.study.prepare import prepare
    from fusion_workbench.sweeps.space import Cell, Variant
    from fusion_workbench.training.callbacks import quiet_lightning
    from fusion_workbench.training.language_run import LanguageRun

    quiet_lightning()
    if torch.cuda.is_available():  # else every process would load its models onto the first device
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    order = json.loads(path.read_text(encoding="utf-8"))
    study = study_from_yaml(order["study"], str(path))
    parts = prepare(study, Path(order["workspace"]), progress=False)
    named = TrackedCell.read(order["cell"])
    cell = Cell(named.strategy, named.selection, tuple(sorted(named.options.items())), named.alias)
    first = os.environ.get("RANK", "0") == "0"

    def say(event: dict[str, Any]) -> None:
        if first:
            print(json.dumps(event), flush=True)

    def tell(number: int, row: LossRow) -> None:
        say({"number": number, "row": row})

    training = tuple((key, value) for key, value in order["training"])
    job = Job(Variant(cell, order["lr"], training), order["replicate"])
    run = LanguageRun(parts, job, Path(order["folder"]), tell, lambda steps: say({"steps": steps}))
    run.train()
    end = {"outcome": run.outcome, "samples": run.samples, "seconds": run.seconds, "before": run.before}
    if (
        run.outcome == Status.OUT_OF_MEMORY
    ):  # of this device, whichever it is; the others wait for it, and must be ended
        print(json.dumps(end), flush=True)
        sys.exit(1)
    say(end)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
