#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# expect_exit CODE TIMES PATTERN COMMAND...: the command ends with CODE within 10 seconds, and its output is TIMES lines, all of
# which match PATTERN.
code=$1 times=$2 pattern=$3
shift 3
began=$SECONDS
output=$(timeout 60 "$@" 2>&1)
status=$?
took=$((SECONDS - began))
found=$(grep -cE "$pattern" <<<"$output")
lines=$(grep -c . <<<"$output")
if ((status != code || found != times || lines != times || took > 10)); then
  printf '%s\n' "$output"
  printf 'exit %d (expected %d) after %d s (at most 10); %d of %d lines match %s (expected %d of %d)\n' \
    "$status" "$code" "$took" "$found" "$lines" "$pattern" "$times" "$times"
  exit 1
fi
