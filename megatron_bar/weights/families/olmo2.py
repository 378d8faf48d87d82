"""OLMo 2 and FlexOlmo. Source: transformers models/olmo2 and models/flex_olmo; arXiv 2501.00656,
2507.07024."""

from megatron_bar.weights.family import Family, Form

_FIELDS = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0}

OLMO2 = Family(
    name="olmo2",
    dense=Form(model_type="olmo2", architecture="Olmo2ForCausalLM", fields=_FIELDS),
    mixture=Form(
        model_type="flex_olmo",
        architecture="FlexOlmoForCausalLM",
        fields=_FIELDS | {"output_router_logits": False},
        experts=("num_experts",),
    ),
    norms="after",
    casts_first=False,
    qk_norm="width",
    head_dim="derived",
)
