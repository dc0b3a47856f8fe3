#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The kernels under compute-sanitizer.
# shellcheck source=tools/device/common.sh
source "$(dirname "$0")/common.sh"
usage_if_asked "Runs the tests of our own kernels under compute-sanitizer: memory, races, uninitialised reads, synchronisation." "$@"
need_gpus 1
command -v compute-sanitizer >/dev/null ||
  fail 69 "compute-sanitizer is not on the PATH; it comes with the CUDA toolkit (cuda-sanitizer) or Nsight Compute"

# LibTorch gives out pieces of large blocks: what reads or writes past its tensor would stay inside of one, and what was never written
# would look written by whoever had the piece before. So every tensor gets memory of its own.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
# Whole layers and steps spend their time in the libraries' kernels, which are not ours to check.
readonly OURS='-DeviceStages*:DeviceStep*:DeviceProducts*:DeviceAttention*'

# checked TOOL FILTER GTEST_ARGUMENT...: 99 is no exit code of GoogleTest, so that findings and failed tests can be told apart.
checked() {
  limited compute-sanitizer --tool "$1" --target-processes all --error-exitcode 99 "${PROGRAM[@]}" --gtest_brief=1 --gtest_filter="$2" \
    "${@:3}"
}
program gpu_tests

# A machine may lend its GPU and not what the sanitizer needs of its driver: it then ends early, or runs the program unwatched.
LOG=sanitizer_probe SHARE=90 checked memcheck 'DeviceRowsTest.RopeAndItsInverse'
grep -q 'ERROR SUMMARY' "$WORK/sanitizer_probe.log" ||
  fail 69 "compute-sanitizer cannot watch a program on this machine: $(grep -m 1 '=========' "$WORK/sanitizer_probe.log" || tail -n 1 "$WORK/sanitizer_probe.log")"

result=0 fields=()
for tool in memcheck racecheck initcheck synccheck; do
  raw="$WORK/sanitizer_$tool.json"
  LOG="sanitizer_$tool" SHARE=$(((SECONDS_TO_USE - 60) / 4)) checked "$tool" "$OURS" --gtest_output="json:$raw"
  must_have_run "$raw"
  [[ $STATUS -eq 0 ]] || result=1
  fields+=("$tool=$STATUS")
done
record sanitizer status="$result" seconds="$SECONDS" "${fields[@]}"
exit "$result"
