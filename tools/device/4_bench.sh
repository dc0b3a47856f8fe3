#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The training step beside a peer.
# shellcheck source=tools/device/common.sh
source "$(dirname "$0")/common.sh"
usage_if_asked "Measures the training step of two small models on the GPU in fp32 and bf16. With PEER=/path/to/hf_step.py (a script that takes --model,
--dtype, --device and prints a line of JSON) the same models through it, in the same minutes." "$@"
need_gpus 1

result=0
for model in small-mixtral small-fine; do
  for dtype in fp32 bf16; do
    name="step_${model}_$dtype"
    program conclave
    LOG="$name" limited "${PROGRAM[@]}" bench step "configs/presets/$model.yaml" --warmup 5 --steps 20 --json "$OUT/${name}_raw.json" \
      --set train.device=cuda --set train.precision="$dtype"
    ours=null peer=null
    if [[ $STATUS -eq 0 ]]; then ours="@$OUT/${name}_raw.json"; else result=1; fi
    if [[ -n "${PEER:-}" ]]; then
      [[ $dtype == fp32 ]] && words=float32 || words=bfloat16
      LOG="peer_$name" limited python3 "$PEER" --model "$model" --dtype "$words" --device cuda --steps 20 --warmup 5
      if [[ $STATUS -eq 0 ]]; then
        tail -n 1 "$OUT/peer_$name.log" >"$OUT/peer_$name.json"
        peer="@$OUT/peer_$name.json"
      fi
    fi
    record "$name" model="$model" precision="$dtype" ours="$ours" peer="$peer"
  done
done
exit "$result"
