#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every CUDA kernel against its reference.
# shellcheck source=tools/device/common.sh
source "$(dirname "$0")/common.sh"
usage_if_asked "Runs the test suites of what computes on a GPU: each kernel against its reference, on the GPU itself." "$@"
need_gpus 1

program gpu_tests
LOG=kernel_tests limited "${PROGRAM[@]}" --gtest_output="json:$WORK/kernel_tests_raw.json"
must_have_run "$WORK/kernel_tests_raw.json"
record kernel_tests status="$STATUS" seconds="$SECONDS" tests="@$WORK/kernel_tests_raw.json"
exit "$STATUS"
