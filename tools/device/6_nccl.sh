#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# NCCL on one GPU.
# shellcheck source=tools/device/common.sh
source "$(dirname "$0")/common.sh"
usage_if_asked "Runs the conformance suite of the NCCL transport on one GPU: one rank, several communicators." "$@"
need_gpus 1

program base_tests
LOG=nccl limited "${PROGRAM[@]}" --gtest_filter='*NcclDevice*' --gtest_output="json:$WORK/nccl_raw.json"
must_have_run "$WORK/nccl_raw.json"
record nccl status="$STATUS" seconds="$SECONDS" tests="@$WORK/nccl_raw.json"
exit "$STATUS"
