"""A model in Megatron-Core's terms: its config, and the layer spec that its `Family` describes.

A mixture is the dense block with an MoE for the FFN; nothing here knows a family by name.
"""

import re
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_bar.conversion.parameters import DTYPES
from megatron_bar.errors import BarError
from megatron_bar.models.attention import CORES, Kernels
from megatron_bar.models.layers import KNorm, PlainResidual, PostNormResidual, QNorm, RMSNorm, SwiGLU
from megatron_bar.models.moe import AnchoredMoE, Router
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.weights.hf_config import ModelConfig


def megatron_config(config: ModelConfig, layout: ParallelConfig, *, recompute: bool) -> TransformerConfig:
    """Returns Megatron's description of the same model, in the dtype of its folder."""
    if config.dtype not in DTYPES:
        raise BarError(f"training dtype must be one of {', '.join(DTYPES)}, got {config.dtype!r}")
    dtype = DTYPES[config.dtype]
    ep, etp = layout.expert_sizes(config)
    moe = {
        "num_moe_experts": config.num_experts,
        "moe_router_topk": config.experts_per_token,  # `LanguageModel.route` says it layer by layer
        "moe_ffn_hidden_size": config.intermediate_size,
        "moe_router_load_balancing_type": "none",
        "moe_router_pre_softmax": True,  # as our router does; else Megatron refuses one active expert
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": False,  # fused experts are one parameter, no part of which can be frozen
        "add_bias_linear": False,
    }
    return TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        num_query_groups=config.num_kv_heads,
        kv_channels=config.head_dim,
        ffn_hidden_size=config.intermediate_size,
        normalization="RMSNorm",
        layernorm_epsilon=config.rms_norm_eps,
        qk_layernorm=config.block.qk_norm != "none",
        add_qkv_bias=config.block.qkv_bias,
        gated_linear_unit=True,
        activation_func=F.silu,
        use_te_activation_func=not config.num_experts,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        perform_initialization=False,  # weights come from a folder, always
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
        sequence_parallel=layout.tensor > 1,
        gradient_accumulation_fusion=has_fused_weight_gradients(),
        # Must be set before DDP is built: set later, the first gradient norm is off by the data-parallel
        # size.
        calculate_per_token_loss=True,
        **(
            {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
            if recompute
            else {}
        ),
        **(moe if config.num_experts else {"add_bias_linear": False}),
    )


def has_fused_weight_gradients() -> bool:
    """Returns whether NVIDIA apex's kernel that adds weight gradients into fp32 main gradients is there."""
    if not torch.cuda.is_available():
        return False
    import importlib.util

    return importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def block_spec(
    config: ModelConfig, megatron: TransformerConfig, layers: int, *, attention: Kernels
) -> TransformerBlockSubmodules:
    """Returns ``layers`` layers of the block that ``config.block`` describes."""
    block = config.block
    norm = partial(RMSNorm, casts_first=block.casts_first)
    query_norm, key_norm = {"none": (None, None), "head": (norm, norm), "width": (QNorm, KNorm)}[
        block.qk_norm
    ]
    linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    if config.num_experts:
        experts = partial(SequentialMLP, submodules=linears)
        router = partial(Router, norm_topk_prob=config.norm_topk_prob)
        mlp = partial(AnchoredMoE, submodules=MoESubmodules(experts=experts, router=router))
    else:
        mlp = partial(MLP.as_mlp_submodule, submodules=replace(linears, activation_func=SwiGLU))
    submodules = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=CORES[attention],
        linear_proj=RowParallelLinear,
        q_layernorm=query_norm,
        k_layernorm=key_norm,
    )
    causal = {"attn_mask_type": AttnMaskType.causal}
    attend = ModuleSpec(module=SelfAttention, params=causal, submodules=submodules)
    if block.norms == "before":
        residual = ModuleSpec(module=PlainResidual, params={"config": megatron})
        before = {"input_layernorm": norm, "pre_mlp_layernorm": norm}
    else:
        behind = {"config": megatron, "casts_first": block.casts_first}
        residual = ModuleSpec(module=PostNormResidual, params=behind)
        before = {}
    layer = TransformerLayerSubmodules(
        self_attention=attend, self_attn_bda=residual, mlp=mlp, mlp_bda=residual, **before
    )
    specs = [ModuleSpec(module=TransformerLayer, submodules=layer)] * layers
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=norm)


def global_name(name: str, *, first_layer: int, first_expert: int) -> str:
    """Returns what the parameter ``name`` of a rank's model is called in the whole one.

    The rank counts layers and experts from its first ones.
    """
    name = re.sub(r"(?<=^decoder\.layers\.)\d+", lambda n: str(int(n[0]) + first_layer), name)
    return re.sub(r"(?<=\.local_experts\.)\d+", lambda n: str(int(n[0]) + first_expert), name)
