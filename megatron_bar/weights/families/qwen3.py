"""Qwen3 and Qwen3Moe. Source: transformers models/qwen3 and models/qwen3_moe; arXiv 2505.09388."""

from megatron_bar.weights.family import Family, Form

_FIELDS = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": None,
}

QWEN3 = Family(
    name="qwen3",
    dense=Form(model_type="qwen3", architecture="Qwen3ForCausalLM", fields=_FIELDS),
    mixture=Form(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        fields=_FIELDS | {"decoder_sparse_step": 1, "mlp_only_layers": [], "output_router_logits": False},
        # transformers 5 says num_local_experts; vLLM, SGLang and transformers 4 read num_experts.
        experts=("num_experts", "num_local_experts"),
        width="moe_intermediate_size",
        tensor_within_experts=True,
    ),
    norms="before",
    casts_first=True,
    qk_norm="head",
    head_dim="needed",  # 128 by the dense class, hidden size / heads by most readers of the mixture
)
