"""Put some four hundred faults into a small study, one by one, and count what each comes to.

::

    python tests/faults/count_faults.py --jobs 2 --out faults

Writes ``faults/table.md`` and, of what was not right, the words on the terminal (``faults/*.txt``). Exits with 1 where
a fault ended in a traceback, in a number that is silently another, or with finished results thrown away.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

from injected import damage, endings, inputs, plugins
from injected.harness import Fault, Outcome, Verdict, try_fault
from injected.sound import make_sound

COLUMNS = (*Verdict, "lost")


def all_faults() -> list[Fault]:
    """Every fault, in the order of the table."""
    parts = (
        *(endings.signals, endings.tracking, endings.disk, endings.places),
        *(damage.store, damage.books, damage.artifacts, damage.encoder, damage.exports),
        *(inputs.study_files, inputs.arguments, inputs.tracked, inputs.tables),
        plugins.faults,
    )
    return list(chain.from_iterable(part() for part in parts))


def warm_up() -> None:
    """Import once what every forked child needs."""
    os.environ.update(HF_HUB_OFFLINE="1", MLFLOW_DISABLE_TELEMETRY="true", TOKENIZERS_PARALLELISM="false")
    import lightning  # noqa: F401
    import mlflow  # noqa: F401
    import optuna  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401
    import transformers  # noqa: F401

    import fusion_workbench.reports
    import fusion_workbench.runner.experiment
    import fusion_workbench.training.probes  # noqa: F401

    torch.set_num_threads(1)


def try_all(faults: Sequence[Fault], scratch: Path) -> Iterator[Outcome]:
    """One after the other, on a study of their own."""
    study = make_sound(scratch)
    for fault in faults:
        yield try_fault(fault, study)


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each part, and their sum."""
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        row = counts.setdefault(outcome.fault.part, Counter())
        row["faults"] += 1
        row[outcome.verdict] += 1
        row["lost"] += max(0, outcome.lost)
    counts["**sum**"] = sum(counts.values(), Counter())
    lines = [f"| part | faults | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    lines += [
        f"| {part} | {row['faults']} | {' | '.join(str(row[c]) for c in COLUMNS)} |" for part, row in counts.items()
    ]
    return "\n".join(lines)


def is_bad(outcome: Outcome) -> bool:
    """What may not be: a traceback, a silent number, results thrown away."""
    return outcome.verdict in (Verdict.TRACEBACK, Verdict.SILENT) or outcome.lost > 0


def _work(faults: Sequence[int], out: Path, pipe: object) -> None:
    every = all_faults()
    with TemporaryDirectory(prefix="faults-") as scratch:
        for number, outcome in zip(faults, try_all([every[n] for n in faults], Path(scratch)), strict=True):
            if outcome.verdict is not Verdict.RIGHT or outcome.lost > 0:
                name = re.sub(r"[^\w]+", "-", f"{outcome.fault.part}-{outcome.fault.name}")[:90]
                (out / f"{name}.txt").write_text("\n".join([outcome.why, *outcome.log]), encoding="utf-8")
            pipe.send((number, outcome.verdict, outcome.lost, outcome.why))  # type: ignore[attr-defined]


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("faults"))
    parser.add_argument("--only", default="", help="a regular expression on 'part: name'")
    parser.add_argument("--list", action="store_true", help="name the faults and leave")
    options = parser.parse_args()
    every = all_faults()
    chosen = [n for n, f in enumerate(every) if re.search(options.only, f"{f.part}: {f.name}")]
    if options.list:
        print("\n".join(f"{every[n].part}: {every[n].name}" for n in chosen))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    warm_up()
    context, outcomes, workers = get_context("fork"), {}, []
    for job in range(min(options.jobs, len(chosen))):
        receive, send = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(chosen[job :: options.jobs], options.out, send))
        worker.start()
        send.close()
        workers.append((worker, receive))
    from multiprocessing.connection import wait

    open_ends = [receive for _, receive in workers]
    while open_ends:
        for end in wait(open_ends):
            try:
                number, verdict, lost, why = end.recv()  # type: ignore[union-attr]
            except EOFError:
                open_ends.remove(end)  # type: ignore[arg-type]
                continue
            outcomes[number] = Outcome(every[number], Verdict(verdict), lost, why)
            if verdict != Verdict.RIGHT or lost > 0:
                fault = every[number]
                thrown = f", {lost} lost" if lost > 0 else ""
                print(f"{verdict}{thrown}: {fault.part}: {fault.name}: {why}", flush=True)
    ordered = [outcomes[n] for n in sorted(outcomes)]
    text = table(ordered)
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    missing = len(chosen) - len(ordered)
    if missing:
        print(f"{missing} faults were not tried: a worker ended early", file=sys.stderr)
    return int(bool(missing) or any(map(is_bad, ordered)))


if __name__ == "__main__":
    sys.exit(main())
