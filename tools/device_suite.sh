#!/usr/bin/env bash
# Ten minutes on a machine with an NVIDIA GPU become evidence.
#
#   tools/device_suite.sh OUT             tests, compute-sanitizer, benchmarks
#   tools/device_suite.sh OUT --dry-run   the same steps on a CPU, which times nothing
#
# Needs no network: ${PYTHON:-python3} has torch, triton, numpy, pytest, hypothesis, pip, setuptools.
# Leaves the checkout as it is. COMMIT names the commit where the checkout has no history.
#
# phase         at most  what it shows, and what it writes to OUT
# install          60 s  a copy of the checkout installs without dependencies      suite.log
# environment      30 s  machine, driver, versions, clocks                         environment.json
# gpu-tests        90 s  what only a GPU shows, captured graphs among it           tests.log
# backend-tests   120 s  every backend on the GPU equals the reference             tests.log
# memcheck         75 s  no kernel reads or writes where it may not                sanitizer.log
# racecheck        75 s  no kernel races in shared memory                          sanitizer.log
# benchmarks     the rest: verified, then timed, the most important cases first    suite.log
#
# Results go to OUT/results.jsonl as they are known, and OUT/summary.md is made of them at the end,
# also where a phase hung or the suite was told to stop. Ends within ten minutes whatever happens.
#
# Exit status: 0 all that ran is right; 1 something is wrong; 2 called wrongly, or there is no GPU;
# 3 nothing is wrong, but a phase was cut.
set -uo pipefail

DEADLINE=570  # seconds from the start
RESERVE=25    # of them for the summary, and for ending what does not want to end
GRACE=10      # from the signal to stop to the one that kills

phase() {  # phase NAME SECONDS LOG COMMAND...: runs it for no longer than that; returns its status
  local name=$1 seconds=$2 log=$3 left=$((DEADLINE - RESERVE - SECONDS)) begin=$SECONDS status
  shift 3
  seconds=$((seconds < left ? seconds : left))
  if ((seconds < 1)); then
    record cut "$name" "no time was left"
    return 124
  fi
  echo "== $name (at most $seconds s)" | tee -a "$log"
  timeout --signal=INT --kill-after="$GRACE" "$seconds" "$@" >>"$log" 2>&1 &
  child=$!
  # Polled, not waited for: a process stuck in the driver survives even SIGKILL.
  while kill -0 "$child" 2>/dev/null && ((SECONDS < begin + seconds + GRACE + 2)); do sleep 0.2; done
  if kill -0 "$child" 2>/dev/null; then status=137; else wait "$child"; status=$?; fi
  child=
  echo "== $name ended after $((SECONDS - begin)) s with status $status" | tee -a "$log"
  return "$status"
}

record() {  # record KIND NAME VALUE: a line of results.jsonl
  timeout 10 "$python" -m bench.device.records "$out" "$@" || echo "== not recorded: $*"
}

tests() {  # tests NAME SECONDS PYTEST-ARGUMENTS...
  local name=$1 seconds=$2 status
  shift 2
  phase "$name" "$seconds" "$out/tests.log" "$python" -m pytest -v --tb=short -p no:cacheprovider \
    -p bench.device.few_examples -o faulthandler_timeout=60 -c "$source/pyproject.toml" \
    --rootdir "$source" -m "gpu and not slow" "${pytest_options[@]}" "$@"
  status=$?
  record tests "$name" "$status"
}

sanitize() {  # sanitize TOOL SECONDS
  local cases=("$python" -m bench.device.small) status
  local command=(compute-sanitizer --tool "$1" --error-exitcode 86 --print-limit 100
    --target-processes application-only --report-api-errors no "${cases[@]}" cuda)
  if [[ $dry_run ]]; then
    echo "would run: ${command[*]}" >>"$out/sanitizer.log"
    command=(env TRITON_INTERPRET=1 "${cases[@]}" cpu)
  elif ! command -v compute-sanitizer >/dev/null; then
    command=(echo "= compute-sanitizer: not supported here, it is not on the PATH")
  fi
  # Without torch's cache every tensor is an allocation of its own, whose end the tool knows.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 phase "$1" "$2" "$out/sanitizer.log" "${command[@]}"
  status=$?
  record sanitizer "$1" "$status"
}

must() {  # must NAME SECONDS COMMAND...: a phase without which the rest means nothing
  local name=$1 seconds=$2
  shift 2
  phase "$name" "$seconds" "$out/suite.log" "$@" && return
  record error "$name" "it failed: see suite.log"
  finish
}

finish() {  # the table from whatever is there; ends the suite with the verdict
  local status
  trap '' INT TERM HUP
  [[ $child ]] && kill -TERM "$child" 2>/dev/null
  timeout --kill-after=2 10 "$python" -m bench.device.summary "$out"
  status=$?
  echo "== $out/summary.md, status $status"
  rm -rf "$work"
  exit "$status"
}

interrupted() {
  record cut suite "it was told to stop"
  finish
}

main() {
  [[ $# == 1 || ($# == 2 && $2 == --dry-run) ]] || { sed -n '2,5p' "$0"; exit 2; }
  child='' dry_run=${2:-} root=$(cd "$(dirname "$0")/.." && pwd)
  python=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)') || exit 2
  mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
  rm -f "$out"/{results.jsonl,summary.md,environment.json,{suite,tests,sanitizer}.log}
  if [[ $dry_run ]]; then
    export CUDA_VISIBLE_DEVICES=
  elif ! "$python" -c 'import torch; torch.zeros(1, device="cuda")'; then
    echo "device_suite: torch sees no GPU here; --dry-run rehearses the suite on the CPU" >&2
    exit 2
  fi

  # A copy, so that nothing is built, cached or left in the checkout.
  work=$(mktemp -d) || exit 2
  source=$work/source
  mkdir "$source"
  (cd "$root" && tar --exclude=__pycache__ --exclude='*.so' --exclude='*.egg-info' -cf - \
    bench kernels python tests tools pyproject.toml setup.py README.md LICENSE) | tar -C "$source" -xf -
  # Beside the package lies bench: found without the root of the repository on Python's path, where
  # `kernels` would stand in for Hugging Face's package of that name.
  mkdir "$work/site"
  cp -r "$source/bench" "$work/site"
  export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
  export PYTHONDONTWRITEBYTECODE=1 TRITON_CACHE_DIR=$work/triton
  export TORCHINDUCTOR_CACHE_DIR=$work/inductor HYPOTHESIS_PROFILE=device
  export TRISELECT_NATIVE=${TRISELECT_NATIVE:-0}  # the C++ kernels are for CPUs
  COMMIT=${COMMIT:-$(GIT_OPTIONAL_LOCKS=0 git -C "$root" describe --always --dirty=+ --exclude='*' 2>/dev/null)}
  export COMMIT
  trap interrupted INT TERM HUP

  must install 60 "$python" -m pip install --no-deps --no-build-isolation --no-index \
    --disable-pip-version-check --target "$work/site" "$source"
  must environment 30 "$python" -m bench.device.environment "$out" $dry_run

  cd "$source"
  pytest_options=()
  # Most of the time goes into compiling kernels, a core each.
  "$python" -c 'import xdist' 2>/dev/null && [[ ! $dry_run ]] &&
    pytest_options+=(-n "$(($(nproc) < 16 ? ($(nproc) + 1) / 2 : 8))" --dist worksteal)
  "$python" -c 'import pytest_timeout' 2>/dev/null && pytest_options+=(--timeout 80)
  local of_gpus=(tests/tools tests/kernels/*/test_triton*.py)
  tests gpu-tests 90 "${of_gpus[@]}"
  [[ $dry_run ]] || tests backend-tests 120 tests "${of_gpus[@]/#/--ignore=}"
  sanitize memcheck 75
  [[ $dry_run ]] || sanitize racecheck 75

  local left=$((DEADLINE - RESERVE - SECONDS)) status
  phase benchmarks "$left" "$out/suite.log" \
    "$python" -m bench.device.measure "$out" "$((left - 15))" $dry_run
  status=$?
  case $status in
    0) ;;
    124) record cut benchmarks "they were stopped" ;;
    *) record error benchmarks "they ended with status $status: see suite.log" ;;
  esac
  finish
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
