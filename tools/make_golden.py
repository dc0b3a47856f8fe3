#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/: what PyTorch and Hugging Face transformers compute, for the parity tests of the model.

    python tools/make_golden.py                              all small cases, into tests/golden/
    python tools/make_golden.py --peer small-mixtral --out DIR    first losses of a benchmark model, weights beside them

Needs PyTorch 2.11 and transformers 5.17; the files record the versions. Nothing is downloaded: weights are random.
Each family (mixtral, olmoe, qwen2_moe) gets one FAMILY.safetensors of initial weights under our tensor names and, with
and without the auxiliary loss, FAMILY[-aux].yaml (the model in our configuration language) and FAMILY[-aux].json (what
10 AdamW steps gave). units.json holds operators in fp64. Loss shift: each sequence of S tokens has S-1 targets; the
auxiliary loss counts all B*S tokens of all layers together and has no 1/k (balanced routing gives k).
"""
import argparse
import json
import math
import os
import pathlib
import re

os.environ["OMP_NUM_THREADS"] = "1"
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

STEPS, BATCH, LENGTH = 10, 4, 24
MODEL = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=LENGTH, tie_word_embeddings=False, use_cache=False, output_router_logits=True,
             pad_token_id=None, bos_token_id=None, eos_token_id=None, rms_norm_eps=1e-5, num_experts_per_tok=2,
             rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
FAMILIES = {
    "mixtral": lambda: transformers.MixtralConfig(**MODEL, intermediate_size=24, num_local_experts=8),
    "olmoe": lambda: transformers.OlmoeConfig(**MODEL, intermediate_size=24, num_experts=8, norm_topk_prob=False),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **MODEL, intermediate_size=24, moe_intermediate_size=24, shared_expert_intermediate_size=40, num_experts=8,
        norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[], qkv_bias=True),
}
EXTRA_MODEL = {"mixtral": "", "olmoe": "  qk_norm: full\n", "qwen2_moe": "  qkv_bias: true\n"}
EXTRA_MOE = {"mixtral": "", "olmoe": "", "qwen2_moe": "  num_shared_experts: 1\n  shared_hidden_size: 40\n  shared_gate: true\n"}
# Chosen among a few dozen so that no top-k decision of the run is closer than rounding could turn (least_routing_margin).
SEEDS = {"mixtral": 12, "olmoe": 24, "qwen2_moe": 30}
AUX = 0.02
OPTIMIZER = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
DECAY, CLIP = 0.1, 1.0
BATCHES = 5  # every batch is seen twice
BATCH_RECIPE = ("step % 5 = t; token(t, b, s) = ((h >> 8) % 96) * ((h >> 20) % 96) // 96 with "
                "h = (t * 1000003 + b * 10007 + s * 101 + 12345) * 2654435761 mod 2^32")


def token(step, b, s, vocab=96):
    h = (step % BATCHES * 1000003 + b * 10007 + s * 101 + 12345) * 2654435761 % 2**32
    return ((h >> 8) % vocab) * ((h >> 20) % vocab) // vocab


def randomise(model, seed):
    """Wider than transformers' initialisation; norms away from one and biases away from zero, so that a mistake in them
    shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("norm.weight"):
                p.copy_(1.0 + 0.1 * noise)
            elif name.endswith(".bias"):
                p.copy_(0.1 * noise)
            elif name.endswith("mlp.gate.weight"):
                p.copy_(0.5 * noise)
            else:
                p.copy_((0.5 if "embed" in name else 0.15) * noise)


def logical(parameters):
    """Our tensor names. transformers fuses experts: gate_up_proj [E, 2F, D] and down_proj [E, D, F]."""
    renames = [("model.embed_tokens.", "embedding."), ("model.norm.", "final_norm."), ("lm_head.", "head."),
               ("model.layers.", "layers."), (".input_layernorm.", ".attention_norm."),
               (".post_attention_layernorm.", ".ffn_norm."), (".self_attn.q_norm.", ".attention.q_norm."),
               (".self_attn.k_norm.", ".attention.k_norm."), (".self_attn.", ".attention."),
               (".mlp.gate.", ".moe.router."), (".mlp.shared_expert_gate.", ".moe.shared_gate."),
               (".mlp.shared_expert.", ".moe.shared."), (".mlp.experts.", ".moe.experts."), ("_proj.", ".")]
    out = {}
    for name, value in parameters:
        value = value.detach().clone()
        for old, new in renames:
            name = name.replace(old, new)
        if name.endswith("experts.gate_up_proj"):
            for e in range(value.shape[0]):
                gate, up = value[e].chunk(2, dim=0)
                out[name.replace("gate_up_proj", f"{e}.gate.weight")] = gate.contiguous()
                out[name.replace("gate_up_proj", f"{e}.up.weight")] = up.contiguous()
        elif name.endswith("experts.down_proj"):
            for e in range(value.shape[0]):
                out[name.replace("down_proj", f"{e}.down.weight")] = value[e].contiguous()
        else:
            out[name] = value
    return dict(sorted(out.items()))


def numbers(values):
    """Decimal that reads back exactly, and hexadecimal."""
    return {"value": [float(v) for v in values], "hex": [float(v).hex() for v in values]}


def routing_margin(router_logits, k):
    """Least distance between the last chosen and the first rejected logit: how far a flip is away."""
    top = torch.cat(router_logits).detach().topk(k + 1, dim=-1).values
    return float((top[:, k - 1] - top[:, k]).min())


def train(family, aux, experts):
    config = FAMILIES[family]()
    config.router_aux_loss_coef = aux
    config._experts_implementation = experts
    config._attn_implementation = "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    randomise(model, SEEDS[family])
    named = dict(model.named_parameters())
    plain = [p for n, p in named.items() if n.endswith("norm.weight") or n.endswith(".bias")]
    decayed = [p for n, p in named.items() if not (n.endswith("norm.weight") or n.endswith(".bias"))]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}],
                                  **OPTIMIZER, foreach=False)
    start = logical(named.items())
    ce, raw, total, norm, margin, first = [], [], [], [], math.inf, {}
    for step in range(STEPS):
        x = torch.tensor([[token(step, b, s) for s in range(LENGTH)] for b in range(BATCH)])
        out = model(input_ids=x, labels=x)
        ce.append(F.cross_entropy(out.logits[:, :-1].reshape(-1, config.vocab_size), x[:, 1:].reshape(-1)).detach())
        raw.append(out.aux_loss.detach())
        total.append(out.loss.detach())
        margin = min(margin, routing_margin(out.router_logits, config.num_experts_per_tok))
        optimizer.zero_grad()
        out.loss.backward()
        if step == 0:
            first = {n: float(g.double().norm()) for n, g in logical((n, p.grad) for n, p in named.items()).items()}
        norm.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP))
        optimizer.step()
    final = {n: {"sum": float(w.double().sum()), "norm": float(w.double().norm())}
             for n, w in logical(named.items()).items()}
    return dict(start=start, ce=ce, aux=raw, total=total, norm=norm, margin=margin, first=first, final=final)


def relative(a, b):
    return max(abs(float(x) - float(y)) / abs(float(x)) for x, y in zip(a, b))


def model_yaml(family, file):
    c = FAMILIES[family]()
    return f"""# The tiny {family} model of the parity tests; tools/make_golden.py wrote this file, {file}.safetensors and {file}.json.
model:
  vocab_size: {c.vocab_size}
  hidden_size: {c.hidden_size}
  num_layers: {c.num_hidden_layers}
  num_attention_heads: {c.num_attention_heads}
  num_key_value_heads: {c.num_key_value_heads}
  ffn_hidden_size: 24
  max_seq_len: {LENGTH}
{EXTRA_MODEL[family]}  rope_theta: 10000.0
  norm_eps: 1.0e-5
moe:
  num_experts: 8
  top_k: 2
  expert_hidden_size: 24
{EXTRA_MOE[family]}  router: {{score: softmax, score_before_topk: true, norm_topk_prob: {str(family == 'mixtral').lower()}}}
data: {{seq_len: {LENGTH}}}
optim: {{lr: 1.0e-3, min_lr: 1.0e-3, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: {DECAY}, no_decay: [norm, bias], grad_clip: {CLIP},
        schedule: constant, warmup: 0}}
train: {{steps: {STEPS}, global_batch_size: {BATCH}, micro_batch_size: {BATCH}, precision: fp32}}
"""


def aux_yaml(family):
    return f"""# {family}.yaml with the auxiliary loss, as transformers scales it. Written by tools/make_golden.py.
include: [{family}.yaml]
moe:
  balance:
    losses: [{{type: switch, coef: {AUX}, level: micro, convention: huggingface, scope: model}}]
"""


def write_family(family, out):
    for aux in (0.0, AUX):
        case = family + ("-aux" if aux else "")
        eager, grouped = train(family, aux, "eager"), train(family, aux, "grouped_mm")
        agreement = {
            "total_loss_max_relative": relative(eager["total"], grouped["total"]),
            "grad_norm_max_relative": relative(eager["norm"], grouped["norm"]),
            "final_norm_max_relative": max(abs(eager["final"][n]["norm"] / grouped["final"][n]["norm"] - 1)
                                           for n in eager["final"]),
            "note": "transformers' eager experts (the reference below) against its grouped_mm"}
        save_file(eager["start"], out / f"{family}.safetensors", metadata={"made_by": "tools/make_golden.py"})
        (out / f"{family}.safetensors").chmod(0o644)
        (out / f"{case}.yaml").write_text(aux_yaml(family) if aux else model_yaml(family, family))
        reference = {
            "made_by": "tools/make_golden.py", "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__, "family": family, "weights": f"{family}.safetensors",
            "config": f"{case}.yaml", "aux_coef": aux, "steps": STEPS,
            "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": DECAY, "grad_clip": CLIP,
                          "no_decay": "names that end in norm.weight or .bias"},
            "batch_recipe": BATCH_RECIPE,
            "tokens": [[[token(t, b, s) for s in range(LENGTH)] for b in range(BATCH)] for t in range(STEPS)],
            "ce_loss": numbers(eager["ce"]), "aux_loss": numbers(eager["aux"]), "total_loss": numbers(eager["total"]),
            "grad_norm": numbers(eager["norm"]), "first_grad_norms": eager["first"], "final_weights": eager["final"],
            "least_routing_margin": eager["margin"], "eager_vs_grouped_mm": agreement}
        write_json(out / f"{case}.json", reference)
        print(case, "loss", [round(float(v), 5) for v in eager["total"]], "margin", f"{eager['margin']:.1e}", agreement)


def write_json(path, value):
    # Innermost lists on one line.
    flat = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + " ".join(m.group(1).split()) + "]", json.dumps(value, indent=1))
    path.write_text(flat + "\n")


def leaf(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def write_units(out):
    """Operators and their gradients in fp64. Every `d_` is the gradient of sum(y * d_y)."""
    g = torch.Generator().manual_seed(7)
    units = {"made_by": "tools/make_golden.py", "torch": torch.__version__.split("+")[0], "layout": "row-major, see shape"}

    def record(name, y, inputs, **settings):
        d_y = torch.randn(y.shape, generator=g, dtype=torch.float64)
        grads = torch.autograd.grad((y * d_y).sum(), list(inputs.values()))
        pack = lambda t: {"shape": list(t.shape), "data": t.detach().reshape(-1).tolist()}
        units[name] = {**settings, **{k: pack(v) for k, v in inputs.items()}, "y": pack(y), "d_y": pack(d_y),
                       **{"d_" + k: pack(v) for k, v in zip(inputs, grads)}}

    x, w = leaf(3, 8, generator=g), leaf(8, generator=g)
    record("rms_norm", F.rms_norm(x, (8,), w, 1e-5), {"x": x, "weight": w}, eps=1e-5)
    x, theta = leaf(5, 2, 8, generator=g), 10000.0  # positions, heads, head width
    positions = torch.tensor([0, 1, 2, 7, 3], dtype=torch.float64)
    angle = positions[:, None] / theta ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    cos, sin = (torch.cat((f, f), -1)[:, None] for f in (angle.cos(), angle.sin()))
    half = torch.cat((-x[..., 4:], x[..., :4]), -1)  # rotate_half
    record("rope", x * cos + half * sin, {"x": x}, theta=theta, positions=positions.long().tolist())
    gate, up = leaf(3, 6, generator=g), leaf(3, 6, generator=g)
    record("swiglu", F.silu(gate) * up, {"gate": gate, "up": up})
    logits, targets = leaf(4, 10, generator=g), torch.tensor([3, 0, 9, 3])
    record("cross_entropy_sum", F.cross_entropy(logits, targets, reduction="sum"), {"logits": logits}, targets=targets.tolist())
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
    a, b = leaf(6, 8, generator=g), leaf(6, 8, generator=g)  # two layers
    record("load_balancing_loss", load_balancing_loss_func((a, b), 8, 2), {"logits0": a, "logits1": b}, top_k=2,
           note="sums counts and probabilities in fp32: good to 1e-6")
    write_json(out / "units.json", units)


# layers, hidden, heads, kv heads, expert width, experts, top-k, vocabulary, batch, sequence
PEERS = {"small-mixtral": (4, 256, 4, 4, 688, 8, 2, 4096, 8, 256), "small-fine": (4, 256, 4, 4, 128, 64, 8, 4096, 8, 256),
         "remoe-182m": (12, 768, 12, 4, 3072, 8, 1, 50304, 1, 1024)}
CONFIGS = {"small-mixtral": "configs/presets/small-mixtral.yaml", "small-fine": "configs/presets/small-fine.yaml",
           "remoe-182m": "configs/bench/remoe-182m.yaml"}


def write_peer(name, out):
    """First losses of a benchmark model: transformers' own initialisation, one fixed batch, five steps of plain AdamW
    (betas 0.9/0.999, decay on every tensor), auxiliary loss with transformers' default coefficient 0.001."""
    layers, d, heads, kv, width, experts, k, vocab, batch, length = PEERS[name]
    torch.manual_seed(1234)
    config = transformers.MixtralConfig(
        vocab_size=vocab, hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
        max_position_embeddings=length, tie_word_embeddings=False, output_router_logits=True, use_cache=False,
        intermediate_size=width, num_local_experts=experts, num_experts_per_tok=k)
    config._experts_implementation, config._attn_implementation = "grouped_mm", "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    save_file(logical(model.named_parameters()), out / f"{name}.safetensors")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    x = torch.randint(0, vocab, (batch, length))
    ce, losses, raw, norms = [], [], [], []
    for _ in range(5):
        result = model(input_ids=x, labels=x)
        result.loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        ce.append(F.cross_entropy(result.logits[:, :-1].reshape(-1, vocab), x[:, 1:].reshape(-1)).detach())
        losses.append(result.loss.detach())
        raw.append(result.aux_loss.detach())
    write_json(out / f"{name}.json", {
        "made_by": f"tools/make_golden.py --peer {name}", "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__, "weights": f"{name}.safetensors", "config": CONFIGS[name],
        "tokens": x.tolist(), "aux_coef": config.router_aux_loss_coef,
        "ce_loss": numbers(ce), "total_loss": numbers(losses),
        "aux_loss": numbers(raw), "grad_norm": numbers(norms)})
    print(name, [float(v) for v in losses])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "tests/golden")
    parser.add_argument("--peer", choices=PEERS, help="a benchmark model instead of the small cases; needs --out elsewhere")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.peer:
        if arguments.out == parser.get_default("out"):
            parser.error("--peer writes large weights: name a directory with --out")
        write_peer(arguments.peer, arguments.out)
        return
    for family in FAMILIES:
        write_family(family, arguments.out)
    write_units(arguments.out)


if __name__ == "__main__":
    main()
