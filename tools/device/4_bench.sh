#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One MoE layer and the training step, the step beside a peer's.
# shellcheck source=tools/device/common.sh
source "$(dirname "$0")/common.sh"
usage_if_asked "Measures on the GPU: one MoE layer in bf16 in four shapes that are published for others, and the training step of five
models, OLMoE's dimensions with 8 layers and Mixtral's with 2 the largest. With PEER=/path/to/hf_step.py (a script that takes --model, --dtype, --device and prints a line of JSON) the same models
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

# step MODEL CONFIG DTYPE: the training step, and with PEER the same model through it.
step() {
  local name="step_$1_$3" words=float32
  program conclave
  LOG="$name" SHARE=60 limited "${PROGRAM[@]}" bench step "$2" --warmup 5 --steps 20 --json "$WORK/$name.json" \
    --set train.device=cuda --set train.precision="$3" --set parallel.reduction=fast
  keep "$name" "$WORK/$name.json"
  [[ -n "${PEER:-}" ]] || return 0
  [[ "$3" == fp32 ]] || words=bfloat16
  LOG="peer_$name" SHARE=60 limited python3 "$PEER" --model "${4:-$1}" --dtype "$words" --device cuda --steps 20 --warmup 5
  [[ ! -f "$WORK/peer_$name.log" ]] || tail -n 1 "$WORK/peer_$name.log" >"$WORK/peer_$name.json"
  keep "peer_$name" "$WORK/peer_$name.json"
}
# Those that fill a GPU first, should time run out.
step olmoe-8l configs/bench/olmoe-8l.yaml bf16 gpu-olmoe-8l
# The peer's script knows no slice of Mixtral.
PEER="" step mixtral-2l configs/bench/mixtral-2l.yaml bf16
step remoe-182m configs/bench/remoe-182m.yaml bf16
for dtype in fp32 bf16; do
  step small-mixtral configs/presets/small-mixtral.yaml "$dtype"
  step small-fine configs/presets/small-fine.yaml "$dtype"
done
record bench status="$result" seconds="$SECONDS" "${fields[@]}"
exit "$result"
