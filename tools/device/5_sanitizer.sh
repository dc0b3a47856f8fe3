#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The kernels under compute-sanitizer.
# shellcheck source=tools/device/common.sh
source "$(dirname "$0")/common.sh"
usage_if_asked "Runs the kernels' tests under compute-sanitizer: memory, races, uninitialised reads, synchronisation." "$@"
need_gpus 1
command -v compute-sanitizer >/dev/null ||
  fail 69 "compute-sanitizer is not on the PATH; it comes with the CUDA toolkit (cuda-sanitizer) or Nsight Compute"

result=0 fields=()
for tool in memcheck racecheck initcheck synccheck; do
  program gpu_tests
  checker=(compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 1)
  LOG="sanitizer_$tool" limited "${checker[@]}" "${PROGRAM[@]}" --gtest_brief=1
  [[ $STATUS -eq 0 ]] || result=1
  fields+=("$tool=$STATUS")
done
record sanitizer status="$result" seconds="$SECONDS" "${fields[@]}"
exit "$result"
