"""Llama and Mistral, both with Mixtral. Source: transformers models/llama, models/mistral, models/mixtral."""

from dataclasses import replace

from megatron_bar.weights.family import Family, Form

_FIELDS = {"hidden_act": "silu", "attention_dropout": 0.0}

LLAMA = Family(
    name="llama",
    dense=Form(
        model_type="llama",
        architecture="LlamaForCausalLM",
        fields=_FIELDS | {"attention_bias": False, "mlp_bias": False},
    ),
    mixture=Form(
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        fields=_FIELDS | {"sliding_window": None, "output_router_logits": False, "router_jitter_noise": 0.0},
        experts=("num_local_experts",),
        renormalises=True,
        renames={
            "mlp": "block_sparse_moe",
            "gate_proj": "w1",
            "up_proj": "w3",
            "down_proj": "w2",
        },
    ),
    norms="before",
    casts_first=True,
    qk_norm="none",
    head_dim="optional",
    ropes=("default", "llama3"),
)

MISTRAL = replace(
    LLAMA,
    name="mistral",
    dense=Form(
        model_type="mistral",
        architecture="MistralForCausalLM",
        fields=_FIELDS | {"sliding_window": None},
    ),
)
