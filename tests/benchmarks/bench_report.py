"""Time, memory and size of the report of a large study: `python tests/benchmarks/bench_report.py`.

A synthetic study of 100 cells x 5 replicates x 2,000 test examples is written into a real MLflow (minutes, once: it is
kept in ``--cache``), then reported in a process of its own, so that its peak memory is the report's alone. Where there
is a Chromium, the page is opened too.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "helpers"))

from synthetic_study import MIDDLE, Synthetic, copy_database  # noqa: E402

SINGLES, STRATEGIES = 13, 3


def study(cells: int, replicates: int, examples: int) -> Synthetic:
    """As many selections as make about so many cells: 13 layers alone, and three strategies on each selection."""
    triples = [(levels, 12) for levels in combinations(range(1, 12, 2), 3)] + [
        (levels, 11) for levels in combinations(range(0, 11, 2), 3)
    ]
    chosen = [MIDDLE, *triples][: max(1, (cells - SINGLES) // STRATEGIES)]
    return Synthetic(name="large", selections=tuple(chosen), replicates=replicates, examples=examples)


def prepare(cache: Path, cells: int, replicates: int, examples: int) -> str:
    """The study's MLflow, written unless it lies in the cache."""
    folder = cache / f"{cells}x{replicates}x{examples}"
    done = folder / "done"
    if not done.exists():
        from mlflow.tracking import MlflowClient

        start = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        template = folder / "template.db"
        template.unlink(missing_ok=True)
        client = MlflowClient(tracking_uri=f"sqlite:///{template}")
        client.create_experiment("fusion-workbench", artifact_location=(folder / "artifacts").as_uri())
        study(cells, replicates, examples).write(copy_database(template, folder))
        done.touch()
        print(f"study written in {time.perf_counter() - start:.0f} s, kept in {folder}")
    return f"sqlite:///{folder / 'mlflow.db'}"


def report(uri: str, out: str) -> None:
    """In a process of its own: write the report, print what it took."""
    from fusion_workbench.reports import write_report

    start = time.perf_counter()
    paths = write_report(uri, "large", Path(out))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": peak, "html": str(paths.html)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--replicates", type=int, default=5)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fusion-workbench-bench-report")
    parser.add_argument("--profile", type=Path, help="write cProfile's statistics of the report here")
    chosen = parser.parse_args()
    uri = prepare(chosen.cache, chosen.cells, chosen.replicates, chosen.examples)
    out = chosen.cache / "report"
    profiler = ["-m", "cProfile", "-o", str(chosen.profile)] if chosen.profile else []
    command = [sys.executable, *profiler, str(HERE), "--worker", uri, str(out)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    page = Path(found["html"])
    print(f"{chosen.cells} cells x {chosen.replicates} replicates x {chosen.examples} test examples")
    print(f"report written in {found['seconds']:.1f} s, peak memory {found['peak'] / 2**30:.2f} GiB")
    if (opened := seconds_to_open(page)) is not None:
        print(f"opened and laid out in {opened:.2f} s")
    print(f"report.html {page.stat().st_size / 1e6:.2f} MB, the folder {_size(out) / 1e6:.2f} MB")


def seconds_to_open(page: Path) -> float | None:
    """In a Chromium that is already running, until everything is laid out; None where there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        window = browser.new_page()
        window.goto("about:blank")
        start = time.perf_counter()
        window.goto(page.as_uri())
        window.evaluate("document.body.offsetHeight")
        seconds = time.perf_counter() - start
        browser.close()
    return seconds


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        report(*sys.argv[2:4])
    else:
        main()
