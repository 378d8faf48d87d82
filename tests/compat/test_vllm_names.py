"""Every exported tensor has a place in vLLM's OLMo 2 and FlexOlmo models, of its shape, and every place has a
tensor.

vLLM needs a GPU and a torch of its own, so its rules stand here as data, as read in
vllm/model_executor/models/olmo2.py, olmoe.py and flex_olmo.py and layers/fused_moe/layer.py (commits 028aedf,
048a32c and 1b36043): which names are packed into one parameter, and what else there is. Its loaders find a
name's part by a substring, which the expectation below repeats.
"""

from math import prod

import pytest
from compat.test_transformers import EXPERTS, exported
from folders import SHAPE, add_tokenizer, load_tensors

from megatron_bar.weights.hf_config import ModelConfig, read_config

pytestmark = pytest.mark.compat
QKV = (("q_proj", "qkv_proj", "q"), ("k_proj", "qkv_proj", "k"), ("v_proj", "qkv_proj", "v"))
PACKED = {
    # family: (part of a name, the parameter that takes it, which share of it), tried in this order
    "olmo2": (*QKV, ("gate_proj", "gate_up_proj", "0"), ("up_proj", "gate_up_proj", "1")),
    "flex_olmo": QKV,
}
NOT_PACKED_IN = {"olmo2": (), "flex_olmo": ("mlp.experts",)}
EXPERT_PARTS = (
    ("gate_proj", "experts.w13_", "w1"),
    ("down_proj", "experts.w2_", "w2"),
    ("up_proj", "experts.w13_", "w3"),
)


def place(name: str, config: ModelConfig) -> tuple[str, str]:
    """The parameter that vLLM loads a tensor into, and which share of it ("" for all)."""
    for part, parameter, share in PACKED[config.family]:
        if part in name and not any(word in name for word in NOT_PACKED_IN[config.family]):
            return name.replace(part, parameter), share
    for expert in range(config.num_experts):
        for part, parameter, share in EXPERT_PARTS:
            if f"experts.{expert}.{part}." in name:
                return name.replace(f"experts.{expert}.{part}.", parameter), f"{expert}.{share}"
    return name, ""


def parameters(config: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """The parameters of vLLM's model without tensor parallelism: the shape of every share."""
    h, f, kv = config.hidden_size, config.intermediate_size, config.num_kv_heads * config.head_dim
    found = {
        "model.embed_tokens.weight": {"": (config.vocab_size, h)},
        "lm_head.weight": {"": (config.vocab_size, h)},
    }
    found["model.norm.weight"] = {"": (h,)}
    for n in range(config.num_layers):
        layer = f"model.layers.{n}."
        found |= {
            f"{layer}self_attn.qkv_proj.weight": {"q": (h, h), "k": (kv, h), "v": (kv, h)},
            f"{layer}self_attn.q_norm.weight": {"": (h,)},
            f"{layer}self_attn.k_norm.weight": {"": (kv,)},
            f"{layer}self_attn.o_proj.weight": {"": (h, h)},
            f"{layer}post_attention_layernorm.weight": {"": (h,)},
            f"{layer}post_feedforward_layernorm.weight": {"": (h,)},
        }
        if config.num_experts:
            experts = range(config.num_experts)
            found |= {
                f"{layer}mlp.gate.weight": {"": (config.num_experts, h)},
                f"{layer}mlp.experts.w13_weight": {
                    f"{e}.{share}": (f, h) for e in experts for share in ("w1", "w3")
                },
                f"{layer}mlp.experts.w2_weight": {f"{e}.w2": (h, f) for e in experts},
            }
        else:
            found[f"{layer}mlp.gate_up_proj.weight"] = {"0": (f, h), "1": (f, h)}
            found[f"{layer}mlp.down_proj.weight"] = {"": (h, f)}
    return found


@pytest.mark.parametrize("experts", EXPERTS)
def test_every_name_has_its_place_in_vllm(experts, tmp_path, record_property):
    (tmp_path / "tokenizer").mkdir()
    add_tokenizer(tmp_path / "tokenizer")
    folder = exported(tmp_path / "folder", tmp_path / "tokenizer", experts, "bfloat16", 9000)
    config, tensors = read_config(folder), load_tensors(folder)
    left = {
        (name, share): shape for name, shares in parameters(config).items() for share, shape in shares.items()
    }
    assert sum(map(prod, left.values())) == sum(tensor.numel() for tensor in tensors.values())
    for name, tensor in tensors.items():
        assert left.pop(place(name, config), None) == tuple(tensor.shape), name
    assert not left
    count = f"{len(tensors)} names of {config.num_experts or 'no'} experts"
    record_property("figure", f"vLLM's names: {count}: each has a place of its shape, none is left")


def test_what_vllm_decides_by_itself_is_how_we_export():
    """It never renormalises the chosen experts' probabilities, and reads one RoPE theta from any of three
    places."""
    config = ModelConfig.from_hf(SHAPE | EXPERTS["two"] | {"model_type": "flex_olmo"}).to_hf()
    assert config["norm_topk_prob"] is False and config["architectures"] == ["FlexOlmoForCausalLM"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] and "rope_scaling" not in config
