#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# 200 steps on real text: the GPU's losses follow the CPU's.
# shellcheck source=tools/device/common.sh
source "$(dirname "$0")/common.sh"
usage_if_asked "Trains configs/tiny.yaml for 200 steps on the CPU in fp32, and on the GPU in fp32 and bf16, and compares the losses: fp32 within
1e-4 for 20 steps and 1 % at step 200, bf16 within 2 % of the smoothed curve." "$@"
need_gpus 1

train() {
  local name=$1
  shift
  program conclave
  LOG="train_$name" limited "${PROGRAM[@]}" train configs/tiny.yaml --run "$WORK/$name" --set train.steps=200 --set eval.every=200 \
    --set checkpoint.every=200 --set parallel.reduction=fast "$@"
  [[ $STATUS -eq 0 ]] || fail "$STATUS" "training stopped; see train_$name in $OUT/device.log"
}
compare() {
  local name=$1
  shift
  python3 tools/device/compare_losses.py "$WORK/cpu/metrics.jsonl" "$WORK/$name/metrics.jsonl" --json "$WORK/losses_$name.json" "$@" ||
    result=1
}

make_tokens
result=0
train cpu --set train.device=cpu --set train.precision=fp32
train cuda_fp32 --set train.device=cuda --set train.precision=fp32
compare cuda_fp32 --first 20 1e-4 --last 0.01
train cuda_bf16 --set train.device=cuda --set train.precision=bf16
compare cuda_bf16 --smooth 20 0.02
record training status="$result" seconds="$SECONDS" fp32="@$WORK/losses_cuda_fp32.json" bf16="@$WORK/losses_cuda_bf16.json"
exit "$result"
