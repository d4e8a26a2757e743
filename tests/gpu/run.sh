#!/usr/bin/env bash
# What there is to check and to measure on a GPU, on a machine with torch, lightning, transformers and pytest:
#
#   bash tests/gpu/run.sh --out gpu-results                        everything, about seven minutes on an H200
#   bash tests/gpu/run.sh --out gpu-results --steps "tests suite"  some of it
#   bash tests/gpu/run.sh --out try --device cpu --tiny            whether the script itself runs
#
# Steps: environment, tests (tests/gpu), deformable, bench (workbench bench), study (a sweep in bf16), suite (of the default
# tests those that train and encode, which take CUDA where there is one). Each is bounded, a failed one ends nothing, and
# each ends with a line. Left in --out: results.jsonl (a line a step and a measurement), and a log a step.
set -u

device=cuda out=gpu-results steps="environment tests deformable bench study suite" tiny="" workers=12
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --steps) steps=$2; shift 2 ;;
    --workers) workers=$2; shift 2 ;;
    --tiny) tiny=1; shift ;;
    *) echo "unknown option $1; known are --device, --out, --steps, --workers and --tiny" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
package=$scratch/links/fusion_workbench  # as it is imported, where nothing is installed
mkdir -p "$package"
ln -s "$PWD"/workbench/* "$PWD"/{modules,datamodules,sweeps,reports} "$package"
export PYTHONPATH=$scratch/links${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg MLFLOW_DISABLE_TELEMETRY=true GIT_PYTHON_REFRESH=quiet
results=$out/results.jsonl
: >"$results"
failed=0

# bounded SECONDS STEP COMMAND…: the step's log, its line, its entry among the results
bounded() {
  local limit=$1 name=$2 start=$SECONDS status=0
  shift 2
  timeout -s INT -k 10 "$limit" "$@" >>"$out/$name.log" 2>&1 || status=$?
  [ $status -eq 0 ] || failed=1
  local last
  last=$(grep -v '^[[:space:]]*$' "$out/$name.log" | tail -1 | cut -c1-300)
  printf '%s: exit %d after %d s: %s\n' "$name" $status $((SECONDS - start)) "$last"
  python3 -c 'import json, sys; n, s, t, l = sys.argv[1:]; print(json.dumps({"step": n, "exit": int(s), "seconds": int(t), "last": l}))' \
    "$name" $status $((SECONDS - start)) "$last" >>"$results"
}

pytest_on() {  # pytest_on SECONDS STEP WORKERS WHAT…
  local limit=$1 name=$2 processes=$3 each=()
  shift 3
  python3 -c 'import pytest_timeout' 2>/dev/null && each=(--timeout 90)
  OMP_NUM_THREADS=1 bounded "$limit" "$name" python3 -m pytest -q --tb=short --durations=8 \
    -n "$processes" --dist worksteal ${each[@]+"${each[@]}"} -m "not long" "$@"
}

environment() {
  bounded 60 environment python3 - "$results" <<'PYTHON'
import importlib.metadata, json, platform, sys
import torch
names = ("torch", "lightning", "torchmetrics", "transformers", "peft", "mlflow", "optuna", "numpy")
facts = {"python": platform.python_version(), "cuda": torch.version.cuda}
for name in names:
    try:
        facts[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        facts[name] = None
if torch.cuda.is_available():
    facts |= {"gpu": torch.cuda.get_device_name(), "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1)}
facts["bf16"] = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
with open(sys.argv[1], "a") as file:
    file.write(json.dumps({"environment": facts}) + "\n")
print(json.dumps(facts))
PYTHON
}

tests() { pytest_on 110 tests 8 tests/gpu; }

suite() {
  if [ -n "$tiny" ]; then pytest_on 300 suite 1 tests/modules/test_tasks.py; return; fi
  pytest_on 170 suite "$workers" tests/modules tests/datamodules tests/workbench tests/sweeps
}

deformable() {
  local small=(--rounds 10)
  [ -n "$tiny" ] && small=(--tiny --rounds 1)
  bounded 60 deformable python3 tests/benchmarks/bench_deformable.py --device "$device" --bf16 "${small[@]}" --json "$results"
  bounded 40 deformable python3 tests/benchmarks/bench_deformable.py --device "$device" "${small[@]}" --json "$results"
}

bench() {
  local small=(--repeats 3)
  [ -n "$tiny" ] && small=(--tiny --repeats 1)
  bounded 240 bench python3 -m fusion_workbench bench ceilings strategies bank encoder --device "$device" "${small[@]}" --out "$out/bench"
}

study() {
  bounded 90 study python3 -m fusion_workbench sweep planted \
    --workspace "$scratch/workspace" training.precision=bf16-mixed "training.accelerator=$device" \
    'strategies=[{name: deep_only}, {name: concat}, {name: average}, {name: mmfuser, options: {heads: 2}}]' \
    'single_layers=[]' "tracking.uri=sqlite:///$scratch/mlflow.db" "replicates=${tiny:-2}" ${tiny:+training.epochs=1}
  local report
  report=$(find "$scratch/workspace" -name report.md | head -1)
  [ -n "$report" ] && cp "$report" "$out/study.md" || { failed=1; echo "study: no report"; }
}

for step in $steps; do
  case $step in
    environment | tests | deformable | bench | study | suite) "$step" ;;
    *) echo "unknown step $step" >&2; exit 2 ;;
  esac
done
exit $failed
