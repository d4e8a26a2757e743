"""Training on several devices: one process per device, started by torchrun, which leaves its checkpoints to the study.

The study's own process writes down what is to be trained, starts the workers, shows their progress, and then takes up
the checkpoints of the finished stages as it would after a kill. So nothing of ledger, MLflow or Optuna is known here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.names import Status

if TYPE_CHECKING:
    from fusion_workbench.study.jobs import Job
    from fusion_workbench.study.prepare import Parts
    from fusion_workbench.training.language_callbacks import LossRow

ORDER = "order.json"
_PATIENCE = 30  # seconds that workers are given to end
_LAST = 20  # lines of a failed worker's output that are shown


@dataclass(frozen=True)
class DistributedResult:
    """How the workers ended: finished, diverged or out_of_memory; what they trained on together, and in which time;
    ``before``: the time of earlier workers whose checkpoints they took up.
    """

    status: str
    samples: int
    seconds: float
    before: float
    history: list[LossRow]


def train_distributed(
    parts: Parts,
    job: Job,
    folder: Path,
    tell: Callable[[int, LossRow], None],
    advance: Callable[[int], None],
    log: Callable[[int, LossRow], None],
) -> DistributedResult:
    """Run the stages of ``job`` that are not done, on ``training.devices`` devices; leaves checkpoints in ``folder``.

    Raises:
        WorkbenchError: a worker failed.
    """
    from fusion_workbench.config.study import to_yaml

    cell = job.variant.cell
    folder.mkdir(parents=True, exist_ok=True)
    request = {
        "study": to_yaml(parts.study),
        "workspace": str(parts.workspace.resolve()),
        "cell": cell.tracked(job.variant.lr).plain(),
        "lr": job.variant.lr,
        "training": [list(pair) for pair in job.variant.training],
        "replicate": job.replicate,
        "folder": str(folder.resolve()),
    }
    (folder / ORDER).write_text(json.dumps(request), encoding="utf-8")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        f"--nproc-per-node={parts.study.training.devices}",
        *("-m", "fusion_workbench.training.distributed", str(folder / ORDER)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        output: list[str] = []
        rows: dict[int, LossRow] = {}
        end: dict[str, Any] = {}
        try:
            for line in process.stdout:
                event = _event(line)
                if event is None:
                    output = [*output, line.rstrip()][-_LAST:]
                elif "steps" in event:
                    advance(int(event["steps"]))
                elif "status" in event:
                    end = event
                elif "step" in event:
                    log(int(event["step"]), event["row"])
                else:
                    rows[int(event["number"])] = event["row"]
                    tell(int(event["number"]), event["row"])
        except BaseException:
            process.terminate()  # torchrun ends its workers
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_PATIENCE)
            process.kill()
            raise
    if not end or (process.returncode and end["status"] != Status.OUT_OF_MEMORY):
        raise WorkbenchError(
            f"training {cell.label} on {parts.study.training.devices} devices failed: "
            + (next((line for line in reversed(output) if "Error" in line), output[-1] if output else "no output"))
        )
    samples = int(end["samples"]) * parts.study.training.devices
    history = [rows[number] for number in sorted(rows)]
    return DistributedResult(end["status"], samples, float(end["seconds"]), float(end["before"]), history)


def _event(line: str) -> dict[str, Any] | None:
    """The event that a worker reports, or None for any other output."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and event.keys() & {"steps", "step", "number", "status"} else None


def run_worker(path: Path) -> None:
    """One worker: train what ``path`` requests; the worker of rank 0 reports progress."""
    import os

    import torch

    from fusion_workbench.config.study import study_from_yaml
    from fusion_workbench.schema.records import Cell as TrackedCell
    from fusion_workbench.study.jobs import Job
    from fusion_workbench.study.prepare import prepare
    from fusion_workbench.sweeps.space import Cell, Variant
    from fusion_workbench.training.language_training import LanguageRun
    from fusion_workbench.training.probe_callbacks import quiet_lightning

    quiet_lightning()
    if torch.cuda.is_available():  # else every process would load its models onto the first device
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    request = json.loads(path.read_text(encoding="utf-8"))
    study = study_from_yaml(request["study"], str(path))
    parts = prepare(study, Path(request["workspace"]), progress=False)
    tracked = TrackedCell.read(request["cell"])
    cell = Cell(tracked.strategy, tracked.selection, tuple(sorted(tracked.options.items())), tracked.alias)
    first = os.environ.get("RANK", "0") == "0"

    def say(event: dict[str, Any]) -> None:
        if first:
            print(json.dumps(event), flush=True)

    def tell(number: int, row: LossRow) -> None:
        say({"number": number, "row": row})

    def log(step: int, row: LossRow) -> None:
        say({"step": step, "row": row})

    training = tuple((key, value) for key, value in request["training"])
    job = Job(Variant(cell, request["lr"], training), request["replicate"])
    run = LanguageRun(parts, job, Path(request["folder"]), tell, lambda steps: say({"steps": steps}), log)
    run.train()
    end = {"status": run.status, "samples": run.samples, "seconds": run.seconds, "before": run.before}
    if run.status == Status.OUT_OF_MEMORY:  # of this device, whichever it is; the others wait for it, and must be ended
        print(json.dumps(end), flush=True)
        sys.exit(1)
    say(end)


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]))
