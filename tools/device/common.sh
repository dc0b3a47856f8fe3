# SPDX-License-Identifier: Apache-2.0
# What the scripts of this folder share; sourced, not run. They start on a machine with an NVIDIA GPU, from a checkout that has a CUDA
# build (build/cuda) or a bundle of one (tools/dev/bundle) and end within ten minutes. $OUT (default: out) gets few and small files, since
# little may come back from such a machine: one JSON of each script, and device.log with the ends of all logs. Run folders and whatever
# else is made lie in $WORK, which goes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly SCRIPT="tools/device/$(basename "$0")"
readonly SECONDS_TO_USE=560
OUT="${OUT:-out}"
WORK=$(mktemp -d)
export WORK
readonly WORK
readonly LOG_BYTES=200000 # of each log that comes back

# Every way out takes the logs along.
collect_logs() {
  local log
  if [[ -d "$OUT" ]]; then
    for log in "$WORK"/*.log; do
      [[ -f "$log" ]] || continue
      printf '=== %s: %s\n' "$SCRIPT" "$(basename "$log" .log)"
      tail -c "$LOG_BYTES" "$log"
    done >>"$OUT/device.log"
  fi
  rm -rf "$WORK"
}
trap collect_logs EXIT
# A signal ends the script through the trap above.
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  local code=$1
  shift
  printf '%s: %s\n' "$SCRIPT" "$@" >&2
  exit "$code"
}

# usage_if_asked TEXT ARGUMENT...: every script explains itself and takes no argument.
usage_if_asked() {
  local text=$1
  shift
  [[ $# -gt 0 ]] || return 0
  printf 'Usage: %s\n\n%s\n\nWrites to $OUT (default: out). docs/cuda.md has the whole list.\n' "$SCRIPT" "$text"
  case "$1" in
    --help | -h) exit 0 ;;
    *) exit 64 ;;
  esac
}

# need_gpus COUNT: ends with code 69 where there are fewer.
need_gpus() {
  local gpus=0
  if command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true); fi
  [[ $gpus -gt 0 ]] || fail 69 "no NVIDIA GPU here: nvidia-smi finds none. This script measures a GPU; on other machines run ./launch/test"
  [[ $gpus -ge $1 ]] || fail 69 "needs $1 GPUs, and nvidia-smi finds $gpus"
  mkdir -p "$OUT"
}

# program NAME: sets PROGRAM to the words that start it.
program() {
  if [[ -x ".bundle/run" && -x ".bundle/bin/$1" ]]; then
    PROGRAM=(.bundle/run "$1")
  else
    local place
    for place in src tests tests/cuda tests/launched; do
      if [[ -x "build/cuda/$place/$1" ]]; then
        PROGRAM=("build/cuda/$place/$1")
        return 0
      fi
    done
    fail 1 "no $1: neither .bundle (tools/dev/bundle) nor build/cuda (./launch/build cuda) has it"
  fi
}

# limited COMMAND...: runs it within what is left of the ten minutes, or within $SHARE seconds of it, and keeps its output in
# $WORK/NAME.log, with $LOG as NAME. Sets STATUS.
limited() {
  local left=$((SECONDS_TO_USE - SECONDS))
  if [[ -n "${SHARE:-}" && $SHARE -lt $left ]]; then left=$SHARE; fi
  STATUS=0
  if ((left <= 5)); then
    printf '%s: no time is left for: %s\n' "$SCRIPT" "$*" >&2
    STATUS=124
    return 0
  fi
  printf '+ %s\n' "$*"
  printf '%s\n' "$*" >>"$WORK/commands"
  timeout --signal=INT --kill-after=10 "$left" "$@" >"$WORK/$LOG.log" 2>&1 || STATUS=$?
  tail -n 3 "$WORK/$LOG.log"
  [[ $STATUS -eq 0 ]] || printf '%s: exit code %s; see %s in %s\n' "$SCRIPT" "$STATUS" "$LOG" "$OUT/device.log" >&2
}

# record NAME KEY=VALUE...: writes $OUT/NAME.json with the machine, the commit and these; KEY=@FILE takes a JSON file.
record() { python3 tools/device/record.py "$OUT" "$@"; }

# must_have_run FILE: GoogleTest's JSON must hold tests that ran; none, or only skipped ones, are no success. Changes STATUS.
must_have_run() {
  local ran=0
  [[ ! -f "$1" ]] || ran=$(grep -c '"result": "COMPLETED"' "$1" || true)
  printf '%s tests ran\n' "$ran"
  if [[ $ran -eq 0 && $STATUS -eq 0 ]]; then
    printf '%s: no test ran; %s says why\n' "$SCRIPT" "$OUT/device.log" >&2
    STATUS=1
  fi
}

# The repository's own documents as tokens for configs/tiny.yaml: real text that is always at hand.
make_tokens() {
  local folder=runs/tiny-text here=$PWD
  [[ ! -f "$folder/valid.idx" ]] || return 0
  program conclave
  local -a conclave=("${PROGRAM[@]}")
  conclave[0]="$here/${conclave[0]}"
  mkdir -p "$folder"
  (
    cd "$folder"
    cat ../../README.md ../../docs/*.md >train.txt
    cat ../../docs/decisions/*.md >valid.txt
    "${conclave[@]}" data train-tokenizer train.txt --vocab-size 512 --output tokenizer.json
    "${conclave[@]}" data tokenize train.txt --tokenizer tokenizer.json --output train
    "${conclave[@]}" data tokenize valid.txt --tokenizer tokenizer.json --output valid
  ) >"$WORK/tokens.log" 2>&1 || fail 1 "could not make the tokens of configs/tiny.yaml; see tokens in $OUT/device.log"
}
