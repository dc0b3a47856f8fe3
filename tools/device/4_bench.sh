#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One MoE layer and the training step, the step beside a peer's.
# shellcheck source=tools/device/common.sh
source "$(dirname "$0")/common.sh"
usage_if_asked "Measures on the GPU: one MoE layer in bf16 in four shapes that are published for others, and the training step of two small models in
fp32 and bf16. With PEER=/path/to/hf_step.py (a script that takes --model, --dtype, --device and prints a line of JSON) the same models
through it, in the same minutes." "$@"
need_gpus 1

result=0 fields=()
# keep KEY FILE: the figures of a command that went well, null of one that did not.
keep() {
  if [[ $STATUS -eq 0 ]]; then fields+=("$1=@$2"); else result=1 fields+=("$1=null"); fi
}

# layer NAME TOKENS WIDTH EXPERT_WIDTH EXPERTS TOP_K
layer() {
  program conclave
  LOG="layer_$1" SHARE=60 limited "${PROGRAM[@]}" bench layer configs/bench/layer.yaml --json "$WORK/layer_$1.json" \
    --set train.device=cuda --set train.precision=bf16 --set data.seq_len="$2" --set model.max_seq_len="$2" --set model.hidden_size="$3" \
    --set moe.expert_hidden_size="$4" --set moe.num_experts="$5" --set moe.top_k="$6"
  keep "layer_$1" "$WORK/layer_$1.json"
}
layer t32768_d4096_n1024_e64_k4 32768 4096 1024 64 4
layer t32768_d4096_n256_e256_k16 32768 4096 256 256 16
layer t24576_d1536_n256_e128_k8 24576 1536 256 128 8
layer t24576_d1536_n1024_e32_k2 24576 1536 1024 32 2

for model in small-mixtral small-fine; do
  for dtype in fp32 bf16; do
    name="step_${model}_$dtype"
    program conclave
    LOG="$name" SHARE=60 limited "${PROGRAM[@]}" bench step "configs/presets/$model.yaml" --warmup 5 --steps 20 --json "$WORK/$name.json" \
      --set train.device=cuda --set train.precision="$dtype"
    keep "$name" "$WORK/$name.json"
    [[ -n "${PEER:-}" ]] || continue
    [[ $dtype == fp32 ]] && words=float32 || words=bfloat16
    LOG="peer_$name" SHARE=60 limited python3 "$PEER" --model "$model" --dtype "$words" --device cuda --steps 20 --warmup 5
    [[ ! -f "$WORK/peer_$name.log" ]] || tail -n 1 "$WORK/peer_$name.log" >"$WORK/peer_$name.json"
    keep "peer_$name" "$WORK/peer_$name.json"
  done
done
record bench status="$result" seconds="$SECONDS" "${fields[@]}"
exit "$result"
