#!/usr/bin/env bash
# What there is to check and to measure on a GPU, on a machine with torch, lightning, transformers and pytest:
#
#   bash tests/gpu/run.sh --out gpu-results                        everything, in at most eight minutes
#   bash tests/gpu/run.sh --out gpu-results --carry carry          … with what tests/gpu/carry.py put into the folder carry
#   bash tests/gpu/run.sh --out gpu-results --steps "tests suite"  some of it
#   bash tests/gpu/run.sh --out try --device cpu --tiny            whether the script itself runs
#
# Steps: environment, tests (tests/gpu), deformable, bench (workbench bench), quickstart (in bf16, two epochs), language
# (mllm_quick in bf16, a few steps of a tiny random language model), study (a sweep in bf16), suite (of the default tests
# those that train and encode, which take CUDA where there is one). Each is bounded, a failed one ends nothing, and each
# ends with a line; after --minutes (8) the rest is not begun. Left in --out: results.jsonl (a line a step and a
# measurement), a log a step, and the studies' reports.
set -u

device=cuda out=gpu-results carry="" minutes="" tiny="" workers=12
steps="environment tests deformable bench quickstart language study suite"
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --carry) carry=$2; shift 2 ;;
    --steps) steps=$2; shift 2 ;;
    --minutes) minutes=$2; shift 2 ;;
    --workers) workers=$2; shift 2 ;;
    --tiny) tiny=1; shift ;;
    *)
      echo "unknown option $1; known are --device, --out, --carry, --steps, --minutes, --workers and --tiny" >&2
      exit 2 ;;
  esac
done
if [ -n "$tiny" ]; then  # on a machine that has other work, too
  workers=0 patience=4
  export OMP_NUM_THREADS=1
else
  patience=1
fi
minutes=${minutes:-$((8 * patience))}
if [ -n "$carry" ]; then
  [ -f "$carry/assets.tar.xz" ] || { echo "$carry is no folder that tests/gpu/carry.py made" >&2; exit 2; }
  carry=$(cd "$carry" && pwd)
fi
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
end=$((SECONDS + 60 * minutes))

# bounded SECONDS STEP COMMAND…: the step's log, its line, its entry among the results
bounded() {
  local limit=$(($1 * patience)) name=$2 start=$SECONDS status=0
  shift 2
  [ $limit -le $((end - SECONDS)) ] || limit=$((end - SECONDS))
  if [ $limit -le 5 ]; then
    echo "$name: not begun, the $minutes minutes are over"
    printf '{"step": "%s", "exit": null, "seconds": 0, "last": "not begun"}\n' "$name" >>"$results"
    failed=1
    return
  fi
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
names = ("torch", "lightning", "torchmetrics", "transformers", "peft", "mlflow", "mlflow-skinny", "optuna", "omegaconf")
names += ("numpy", "deformops", "triton")
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

tests() { pytest_on 110 tests "$((workers < 8 ? workers : 8))" tests/gpu; }

suite() {
  if [ -n "$tiny" ]; then pytest_on 75 suite 0 tests/modules/test_similarity.py; return; fi
  pytest_on 170 suite "$workers" tests/modules tests/datamodules tests/workbench tests/sweeps
}

deformable() {
  local small=(--rounds 10)
  [ -n "$tiny" ] && small=(--tiny --rounds 1)
  bounded 60 deformable python3 tests/benchmarks/bench_deformable.py --device "$device" --bf16 "${small[@]}" --json "$results"
  [ -n "$tiny" ] && return
  bounded 40 deformable python3 tests/benchmarks/bench_deformable.py --device "$device" "${small[@]}" --json "$results"
}

bench() {
  local small=(bank encoder --repeats 3)
  [ -n "$tiny" ] && small=(--tiny --repeats 1)
  bounded 240 bench python3 -m fusion_workbench bench ceilings strategies --device "$device" "${small[@]}" --out "$out/bench"
}

carried() {  # unpacks what was carried; later steps find it by PYTHONPATH and WORKBENCH_ASSETS
  mkdir -p "$scratch/carried"
  bounded 90 carried bash -c 'python3 -m pip install --quiet --no-index --no-deps --no-compile --no-warn-script-location \
    --disable-pip-version-check --target "$2/site" "$1"/wheels/*.whl && python3 -m tarfile -e "$1/assets.tar.xz" "$2" &&
    du -sh "$2"' carried "$carry" "$scratch/carried"
  export PYTHONPATH=$scratch/carried/site:$PYTHONPATH WORKBENCH_ASSETS=$scratch/carried/assets
}

part() {  # part encoder|language: a tiny random one; both are made when one is first asked for
  [ -d "$scratch/parts" ] || python3 tests/gpu/tiny_parts.py "$scratch/parts" >>"$out/parts.log" 2>&1
  echo "$scratch/parts/$1"
}

sweep() {  # sweep SECONDS STEP STUDY KEY=VALUE…: a study in bf16, and its report
  local limit=$1 name=$2 study=$3 report
  shift 3
  bounded "$limit" "$name" python3 -m fusion_workbench sweep "$study" --workspace "$scratch/$name" --quiet \
    training.precision=bf16-mixed "training.accelerator=$device" "tracking.uri=sqlite:///$scratch/$name.db" "$@"
  [[ " $* " != *" --no-report "* ]] || return 0
  for report in report.md report.json; do
    find "$scratch/$name" -name $report -exec cp {} "$out/$name.${report#*.}" \; 2>/dev/null
  done
  [ -f "$out/$name.md" ] || { failed=1; echo "$name: no report"; }
}

quickstart() {
  local encoder=assets:encoder small=(training.epochs=2 'plan={confirm: [2]}')
  [ -d "$scratch/carried/encoder" ] && encoder=$scratch/carried/encoder
  if [ -n "$tiny" ]; then
    encoder=$(part encoder)
    small=('source.options={train: 24, val: 8, test: 12, size: 56}' encoder.image_size=56 'tasks=[digit]'
      'strategies=[{name: mmfuser, options: {heads: 2}}]' baselines=false 'single_layers=[]' training.epochs=1
      replicates=1 'plan={confirm: []}' 'search.learning_rates=[0.001]' training.batch_size=8 --no-report)
  fi
  sweep 120 quickstart quickstart "encoder.name=$encoder" "${small[@]}"
}

language() {  # SmolLM2-135M is too large to carry
  local encoder=assets:encoder size=480 small=()
  [ -d "$scratch/carried/encoder" ] && encoder=$scratch/carried/encoder
  if [ -n "$tiny" ]; then
    encoder=$(part encoder) size=16
    small=('strategies=[{name: mmfuser, options: {heads: 2}}]' --no-report)
  fi
  sweep 90 language mllm_quick "encoder.name=$encoder" "language_model.name=$(part language)" replicates=1 \
    "source.options={train: $size, val: 16, test: 16, size: 56, kinds: [position], instruct: false}" \
    language_model.max_length=480 "language_model.probes=''" ${small[@]+"${small[@]}"}
}

study() {
  local fused="{name: concat}, {name: average}, {name: mmfuser, options: {heads: 2}}" small=(replicates=2)
  [ -n "$tiny" ] && fused="{name: concat}" small=(replicates=1 training.epochs=1 'plan={confirm: []}')
  sweep 90 study planted "strategies=[{name: deep_only}, $fused]" 'single_layers=[]' "${small[@]}"
}

[ -n "$carry" ] && carried
for step in $steps; do
  case $step in
    environment | quickstart | language | tests | deformable | bench | study | suite) "$step" ;;
    *) echo "unknown step $step" >&2; exit 2 ;;
  esac
done
exit $failed
