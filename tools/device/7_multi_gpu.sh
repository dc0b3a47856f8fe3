#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Several GPUs, one rank each.
# shellcheck source=tools/device/common.sh
source "$(dirname "$0")/common.sh"
usage_if_asked "On 2, 4 and 8 GPUs, as many as there are: the NCCL transport's conformance suite over mpirun. On 2 and 4 then 40 steps with the batch
spread over them, with experts spread over 2 of them, and with optimizer state shared as well, each compared with one GPU." "$@"
need_gpus 2

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# The launched program finds its libraries through the environment that .bundle/run sets, which mpirun passes on.
mpirun_of() {
  program "$1"
  if [[ "${PROGRAM[0]}" == .bundle/run ]]; then
    MPIRUN=(.bundle/run mpirun) STARTED=(".bundle/bin/$1")
  else
    MPIRUN=(mpirun) STARTED=("${PROGRAM[@]}")
  fi
}
train() {
  local name=$1 ranks=$2
  shift 2
  mpirun_of conclave
  LOG="multi_$name" limited "${MPIRUN[@]}" --bind-to none -n "$ranks" "${STARTED[@]}" train configs/tiny.yaml --run "$WORK/$name" \
    --set train.steps=40 --set train.device=cuda --set train.precision=fp32 --set parallel.reduction=fast "$@"
  [[ $STATUS -eq 0 ]] || result=1
}
# follow NAME RANKS SETTING...: trains so and compares the losses with one GPU's.
follow() {
  local name=$1
  train "$@"
  python3 tools/device/compare_losses.py "$WORK/one/metrics.jsonl" "$WORK/$name/metrics.jsonl" --first 40 1e-3 --json "$WORK/$name.json" ||
    result=1
  [[ ! -f "$WORK/$name.json" ]] || fields+=("$name=@$WORK/$name.json")
}

make_tokens
result=0 gpus=$(nvidia-smi --list-gpus | grep -c '^GPU') fields=()
train one 1
for ranks in 2 4 8; do
  ((ranks <= gpus)) || break
  mpirun_of launched_tests
  LOG="multi_nccl_$ranks" limited "${MPIRUN[@]}" --bind-to none -n "$ranks" "${STARTED[@]}" --gtest_filter='*Nccl*'
  # A suite that skips itself is no success here.
  if [[ $STATUS -eq 0 ]] && ! grep -q '\[       OK \].*ConformsOverGpus' "$WORK/multi_nccl_$ranks.log"; then STATUS=1; fi
  [[ $STATUS -eq 0 ]] || result=1
  fields+=("nccl_$ranks=$STATUS")
  ((ranks <= 4)) || continue # the batch of configs/tiny.yaml has four micro-batches
  follow "dp$ranks" "$ranks" --set parallel.zero=0
  follow "dp${ranks}_ep2" "$ranks" --set parallel.zero=0 --set parallel.ep=2
  follow "dp${ranks}_ep2_zero1" "$ranks" --set parallel.zero=1 --set parallel.ep=2
done
record multi_gpu status="$result" seconds="$SECONDS" gpus_used="$gpus" "${fields[@]}"
exit "$result"
