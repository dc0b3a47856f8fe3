#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checkpoints move between CPU and GPU.
# shellcheck source=tools/device/common.sh
source "$(dirname "$0")/common.sh"
usage_if_asked "Trains configs/tiny.yaml for 40 steps on each device, then goes on from the other's checkpoint of step 20; the losses of steps 21 to 40
must be those of the run that was not interrupted." "$@"
need_gpus 1

# train NAME DEVICE ARGUMENT...
train() {
  local name=$1 device=$2
  shift 2
  program conclave
  LOG="resume_$name" limited "${PROGRAM[@]}" train configs/tiny.yaml --run "$WORK/$name" --set train.steps=40 --set checkpoint.every=20 \
    --set checkpoint.keep_last=3 --set parallel.reduction=fast --set train.precision=fp32 --set train.device="$device" "$@"
  [[ $STATUS -eq 0 ]] || fail "$STATUS" "training stopped; see resume_$name in $OUT/device.log"
}
compare() {
  python3 tools/device/compare_losses.py "$WORK/$1/metrics.jsonl" "$WORK/$2/metrics.jsonl" --from 21 --first 20 1e-3 --json "$WORK/$2.json" ||
    result=1
}

make_tokens
result=0
train whole_cpu cpu
train whole_cuda cuda
train cpu_then_cuda cuda --set checkpoint.resume="$WORK/whole_cpu/checkpoints/step-0000000020"
train cuda_then_cpu cpu --set checkpoint.resume="$WORK/whole_cuda/checkpoints/step-0000000020"
compare whole_cpu cpu_then_cuda
compare whole_cuda cuda_then_cpu
record resume status="$result" seconds="$SECONDS" cpu_then_cuda="@$WORK/cpu_then_cuda.json" cuda_then_cpu="@$WORK/cuda_then_cpu.json"
exit "$result"
