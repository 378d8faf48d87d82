"""Qwen2 (Qwen2.5) and Qwen2Moe. Source: transformers models/qwen2 and models/qwen2_moe; arXiv 2412.15115."""

from megatron_bar.weights.family import HIDDEN, Family, Form

_FIELDS = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": None,
}
_SHARED = 128
"""Width of the shared expert, which the class cannot leave out: the least that engines' kernels take."""

QWEN2 = Family(
    name="qwen2",
    dense=Form(model_type="qwen2", architecture="Qwen2ForCausalLM", fields=_FIELDS),
    mixture=Form(
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        fields=_FIELDS
        | {
            "qkv_bias": True,
            "shared_expert_intermediate_size": _SHARED,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "output_router_logits": False,
        },
        experts=("num_experts",),
        width="moe_intermediate_size",
        tensor_within_experts=True,
        # All of it zero, and not its last product alone: so none of it gets a gradient, whoever trains it.
        zeros={
            "mlp.shared_expert.gate_proj.weight": (_SHARED, HIDDEN),
            "mlp.shared_expert.up_proj.weight": (_SHARED, HIDDEN),
            "mlp.shared_expert.down_proj.weight": (HIDDEN, _SHARED),
            "mlp.shared_expert_gate.weight": (1, HIDDEN),
        },
    ),
    norms="before",
    casts_first=True,
    qk_norm="none",
    qkv_bias=True,
    head_dim="derived",
)
