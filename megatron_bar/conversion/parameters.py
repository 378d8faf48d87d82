"""Which tensors of a folder every parameter of Megatron's model is cut from.

The names are those of the model that models/block.py builds, in its order; a parameter without a place here
is an error there.
"""

import torch

from megatron_bar.conversion.ops import Columns, GateUp, QueryKeyValue, VocabularyRows, WeightOp, Whole
from megatron_bar.weights.family import Family
from megatron_bar.weights.hf_config import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Dtypes that Megatron trains in."""
VOCABULARY_UNIT = {"float32": 1, "bfloat16": 64}
"""Divisor of a rank's rows of the vocabulary: products in 16 bit want rows of whole 16 bytes. On an H200
(torch 2.11) one with 100,278 rows takes 2.4 times as long as one with 100,352."""


def weight_ops(config: ModelConfig) -> dict[str, WeightOp]:
    """Returns how every parameter of the whole model is cut from the folder's tensors; layers and experts are
    counted globally."""
    block = config.block
    before = block.norms == "before"
    heads = {
        "groups": config.num_kv_heads,
        "per_group": config.num_heads // config.num_kv_heads,
        "width": config.head_dim,
    }
    vocabulary = {"total": config.vocab_size, "unit": VOCABULARY_UNIT.get(config.dtype, 1)}
    ops: dict[str, WeightOp] = {
        "embedding.word_embeddings.weight": VocabularyRows("model.embed_tokens.weight", **vocabulary)
    }
    for n in range(config.num_layers):
        layer = f"decoder.layers.{n}"
        theirs = f"model.layers.{n}"
        if before:
            ops[f"{layer}.input_layernorm.weight"] = Whole(f"{theirs}.input_layernorm.weight")
        ops |= _attention_ops(f"{layer}.self_attention", f"{theirs}.self_attn", heads, block)
        middle = "pre_mlp_layernorm" if before else "self_attn_bda.norm"
        ops[f"{layer}.{middle}.weight"] = Whole(f"{theirs}.post_attention_layernorm.weight")
        ffn = f"{theirs}.mlp"
        if config.num_experts:
            ops[f"{layer}.mlp.router.weight"] = Whole(f"{ffn}.gate.weight")
            for e in range(config.num_experts):
                ops |= _ffn_ops(f"{layer}.mlp.experts.local_experts.{e}", f"{ffn}.experts.{e}")
        else:
            ops |= _ffn_ops(f"{layer}.mlp", ffn)
        if not before:
            ops[f"{layer}.mlp_bda.norm.weight"] = Whole(f"{theirs}.post_feedforward_layernorm.weight")
    ops["decoder.final_layernorm.weight"] = Whole("model.norm.weight")
    ops["output_layer.weight"] = VocabularyRows("lm_head.weight", **vocabulary)
    return ops


def _attention_ops(ours: str, theirs: str, heads: dict[str, int], block: Family) -> dict[str, WeightOp]:
    ops = {f"{ours}.linear_proj.weight": Columns(f"{theirs}.o_proj.weight")}
    for kind in ("weight", "bias") if block.qkv_bias else ("weight",):
        qkv = (f"{theirs}.{p}_proj.{kind}" for p in "qkv")
        ops[f"{ours}.linear_qkv.{kind}"] = QueryKeyValue(*qkv, **heads)
    for p in "qk" if block.qk_norm != "none" else "":
        ops[f"{ours}.{p}_layernorm.weight"] = Whole(f"{theirs}.{p}_norm.weight")
    return ops


def _ffn_ops(ours: str, theirs: str) -> dict[str, WeightOp]:
    return {
        f"{ours}.linear_fc1.weight": GateUp(f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight"),
        f"{ours}.linear_fc2.weight": Columns(f"{theirs}.down_proj.weight"),
    }
