"""Families of base models: the names and entries on disk are transformers', and what a class cannot say is
refused by name."""

import json
import shutil

import pytest
import torch
from folders import CLASSES, LLAMA3, edit_json, edit_tensors, load_tensors, save_hf

from megatron_bar.errors import BarError
from megatron_bar.weights.families import UNSAYABLE
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import ModelConfig, read_config
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.writer import WriteOptions, write_folder

ATTENTION = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]
BIASES = ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"]
QK = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
OUT = ["self_attn.o_proj.weight"]
DENSE = ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]
EXPERTS = ["mlp.gate.weight"] + [
    f"mlp.experts.{e}.{p}_proj.weight" for e in (0, 1) for p in ("gate", "up", "down")
]
BEFORE = ["input_layernorm.weight", "post_attention_layernorm.weight"]
AFTER = ["post_attention_layernorm.weight", "post_feedforward_layernorm.weight"]
NAMES = {
    "Olmo2ForCausalLM": [*ATTENTION, *OUT, *QK, *AFTER, *DENSE],
    "FlexOlmoForCausalLM": [*ATTENTION, *OUT, *QK, *AFTER, *EXPERTS],
    "Qwen3ForCausalLM": [*ATTENTION, *OUT, *QK, *BEFORE, *DENSE],
    "Qwen3MoeForCausalLM": [*ATTENTION, *OUT, *QK, *BEFORE, *EXPERTS],
    "LlamaForCausalLM": [*ATTENTION, *OUT, *BEFORE, *DENSE],
    "MistralForCausalLM": [*ATTENTION, *OUT, *BEFORE, *DENSE],
    "MixtralForCausalLM": [
        *ATTENTION,
        *OUT,
        *BEFORE,
        "block_sparse_moe.gate.weight",
        *(f"block_sparse_moe.experts.{e}.{w}.weight" for e in (0, 1) for w in ("w1", "w2", "w3")),
    ],
    "Qwen2ForCausalLM": [*ATTENTION, *BIASES, *OUT, *BEFORE, *DENSE],
    "Qwen2MoeForCausalLM": [
        *ATTENTION,
        *BIASES,
        *OUT,
        *BEFORE,
        *EXPERTS,
        *(f"mlp.shared_expert.{p}_proj.weight" for p in ("gate", "up", "down")),
        "mlp.shared_expert_gate.weight",
    ],
}
"""What a layer's tensors are called on disk, by class."""
BOTH = [(family, experts) for family in CLASSES for experts in (0, 2)]


def again(source, out, **options):
    """The folder as we write it."""
    folder = Folder.open(source)
    return write_folder(
        out,
        folder.config,
        folder.chunks,
        companions_from=source,
        manifest=lambda *_: Manifest(family=folder.config.model_type, kind="dense"),
        **options,
    )


@pytest.mark.parametrize("family, experts", BOTH)
def test_names_and_values_on_disk_are_those_of_transformers(family, experts, tmp_path):
    source = save_hf(tmp_path / "theirs", family=family, experts=experts, num_hidden_layers=1)
    architecture = json.loads((source / "config.json").read_text())["architectures"][0]
    outside = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    expected = outside | {f"model.layers.0.{name}" for name in NAMES[architecture]}
    theirs = load_tensors(source)
    assert theirs.keys() == expected
    for name, options in {"one": {}, "many": {"options": WriteOptions(max_shard_bytes=2000)}}.items():
        ours = load_tensors(again(source, tmp_path / name, **options).path)
        assert ours.keys() == expected
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        index = tmp_path / name / "model.safetensors.index.json"
        assert not index.exists() or json.loads(index.read_text())["weight_map"].keys() == expected


@pytest.mark.parametrize("family, experts", BOTH)
def test_transformers_takes_our_folder_for_the_same_model(family, experts, tmp_path):
    import transformers

    more = {"rope_parameters": LLAMA3} if family == "llama" else {}
    source = save_hf(tmp_path / "theirs", family=family, experts=experts, **more)
    ours = again(source, tmp_path / "ours").path
    assert read_config(ours) == Folder.open(source).config
    ids = torch.arange(18)[None]
    found = {}
    for folder in (source, ours):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        found[folder] = model(ids).logits
    assert torch.equal(found[source], found[ours])


@pytest.mark.parametrize("family", CLASSES)
def test_a_mixture_is_read_as_it_was_made(family, tmp_path):
    dense = Folder.open(save_hf(tmp_path, family=family)).config
    mixture = dense.with_experts(3)
    assert ModelConfig.from_hf(mixture.to_hf()) == mixture
    assert mixture.norm_topk_prob == (family != "olmo2")
    assert mixture.with_experts(5).norm_topk_prob == mixture.norm_topk_prob


def test_the_keys_that_other_readers_want_are_written():
    qwen3 = ModelConfig(family="qwen3", own_head_dim=32, num_experts=4, experts_per_token=2, **SIZES).to_hf()
    assert qwen3["num_experts"] == qwen3["num_local_experts"] == 4
    assert (qwen3["head_dim"], qwen3["moe_intermediate_size"], qwen3["decoder_sparse_step"]) == (32, 24, 1)
    qwen2 = ModelConfig(family="qwen2", num_experts=2, experts_per_token=2, **SIZES).to_hf()
    assert qwen2["shared_expert_intermediate_size"] == 128 and qwen2["qkv_bias"] is True


SIZES = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_positions": 32,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-6,
}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0}
HALF = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
REFUSED = {
    "a family nobody knows": ("llama", 0, {"model_type": "gpt2"}, "model_type must be one of .*got 'gpt2'"),
    **{
        name: ("llama", 0, {"model_type": name}, f"model_type must be one of .*got '{name}': {why[:20]}")
        for name, why in UNSAYABLE.items()
    },
    "windows": ("mistral", 0, {"sliding_window": 8}, "sliding_window must be None in a mistral, got 8"),
    "windows of a mixture": ("llama", 2, {"sliding_window": 8}, "sliding_window must be None in a mixtral"),
    "windows in use": ("qwen2", 0, {"use_sliding_window": True}, "use_sliding_window must be False"),
    "windows by layer": (
        "qwen3",
        0,
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types must be full_attention in each of 2 layers",
    ),
    "kinds of layers that are a number": ("qwen3", 0, {"layer_types": 5}, "layer_types must be .*got 5"),
    "a layer short": (
        "llama",
        0,
        {"layer_types": ["full_attention"]},
        "layer_types must be full_attention in each of 2 layers",
    ),
    "a window of Mistral's that only Qwen could switch off": (
        "mistral",
        0,
        {"sliding_window": 8, "use_sliding_window": False},
        "sliding_window must be None in a mistral, got 8",
    ),
    "the same in a mixture": (
        "llama",
        2,
        {"sliding_window": 8, "use_sliding_window": False},
        "sliding_window must be None in a mixtral, got 8",
    ),
    **{
        f"a window {window!r}": (
            "qwen2",
            0,
            {"sliding_window": window, "use_sliding_window": False},
            "sliding_window must be None in a qwen2",
        )
        for window in ("16", True, -1, [4], 31.5)
    },
    **{
        f"RoPE {rope!r}": ("llama", 0, {"rope_scaling": rope}, "rope_scaling must be plain RoPE or llama3's")
        for rope in (
            "default",
            "llama3",
            {"factor": 2.0},
            {"full_attention": YARN},
            {"rope_type": "default", "partial_rotary_factor": True},
        )
    },
    "positions of Llama's RoPE": (
        "llama",
        0,
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16.5}},
        "rope_scaling: original_max_position_embeddings must be an integer",
    ),
    "a factor that shrinks": (
        "llama",
        0,
        {"rope_parameters": LLAMA3 | {"factor": 0.5}},
        "rope_scaling: .* factor at least 1",
    ),
    "a true part of a head": (
        "llama",
        0,
        {"partial_rotary_factor": True},
        "partial_rotary_factor must be 1, got True",
    ),
    "layers false": ("qwen3", 2, {"num_experts_per_layer": False}, "num_experts_per_layer must be a list"),
    "jitter": ("llama", 2, {"router_jitter_noise": 0.1}, "router_jitter_noise must be 0.0 in a mixtral"),
    "YaRN": ("qwen3", 0, {"rope_parameters": YARN}, "rope_parameters must be plain RoPE, got .*yarn"),
    "YaRN, Llama": (
        "llama",
        0,
        {"rope_parameters": YARN},
        "rope_parameters must be plain RoPE or llama3's, got .*yarn",
    ),
    "Llama's RoPE": ("qwen3", 0, {"rope_parameters": LLAMA3}, "rope_parameters must be plain RoPE, got"),
    "a factor that is none": (
        "llama",
        0,
        {"rope_parameters": LLAMA3 | {"factor": "4"}},
        "rope_scaling: factor must be a positive number, got '4'",
    ),
    "no factor": (
        "llama",
        0,
        {"rope_parameters": {k: v for k, v in LLAMA3.items() if k != "factor"}},
        "rope_parameters: factor is missing",
    ),
    "two scalings": (
        "llama",
        0,
        {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3 | {"factor": 8.0}},
        "rope_scaling must be .* as rope_parameters says",
    ),
    "half a head": ("llama", 0, {"rope_parameters": HALF}, "rope_parameters must be plain RoPE"),
    "half a head, outside": ("llama", 0, {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
    "biases": ("llama", 0, {"mlp_bias": True}, "mlp_bias must be False in a llama, got True"),
    "attention biases": ("qwen3", 0, {"attention_bias": True}, "attention_bias must be False in a qwen3"),
    "no biases": ("qwen2", 2, {"qkv_bias": False}, "qkv_bias must be True in a qwen2_moe, got False"),
    "dense layers": ("qwen3", 2, {"mlp_only_layers": [0]}, "mlp_only_layers must be .* got .0."),
    "every other layer": ("qwen3", 2, {"decoder_sparse_step": 2}, "decoder_sparse_step must be 1"),
    "a wide shared expert": (
        "qwen2",
        2,
        {"shared_expert_intermediate_size": 256},
        "shared_expert_intermediate_size must be 128",
    ),
    "GELU": ("mistral", 0, {"hidden_act": "gelu"}, "hidden_act must be 'silu' in a mistral, got 'gelu'"),
    "two numbers of experts": (
        "qwen3",
        2,
        {"num_experts": 2, "num_local_experts": 4},
        "num_local_experts must be 2 as num_experts says, got 4",
    ),
    "raw": ("llama", 2, {"norm_topk_prob": False}, "norm_topk_prob must be true: Mixtral"),
    "no head width": ("qwen3", 0, {"head_dim": None}, "head_dim is missing"),
    "a head of its own": (
        "qwen2",
        0,
        {"head_dim": 8},
        "head_dim must be hidden_size / .* = 4 in family qwen2",
    ),
    "tied to something": ("llama", 0, {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or"),
}


@pytest.mark.parametrize("family, experts, changes, message", REFUSED.values(), ids=REFUSED)
def test_what_a_class_cannot_say_is_refused_in_one_line(family, experts, changes, message, tmp_path):
    source = save_hf(tmp_path / "m", family=family, experts=experts)
    Folder.open(source)
    edit_json(source / "config.json", **changes)
    with pytest.raises(BarError, match=rf"config\.json: {message}") as caught:
        Folder.open(source)
    assert str(caught.value).count("config.json") == 1 and "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"sliding_window": None}, {"sliding_window": 32}])
def test_a_window_of_no_effect_is_accepted(changes, tmp_path):
    source = save_hf(tmp_path, family="mistral")
    edit_json(source / "config.json", **changes)
    assert Folder.open(source).config.to_hf()["sliding_window"] is None


def test_a_shared_expert_that_does_something_is_refused(tmp_path):
    source = save_hf(tmp_path / "m", family="qwen2", experts=2)
    for part in ("shared_expert.down_proj", "shared_expert.up_proj", "shared_expert_gate"):
        spoiled = shutil.copytree(source, tmp_path / part)
        name = f"model.layers.1.mlp.{part}.weight"
        edit_tensors(spoiled, lambda tensors, name=name: tensors[name][0, 0].fill_(1e-30))
        with pytest.raises(BarError, match=rf"tensor '{name}': expected zeros"):
            Folder.open(spoiled)
    edit_tensors(source, lambda tensors: tensors.pop("model.layers.0.mlp.shared_expert_gate.weight"))
    with pytest.raises(BarError, match=r"shared_expert_gate.weight': expected zeros .*got no such tensor"):
        Folder.open(source)


@pytest.mark.parametrize("family", CLASSES)
def test_a_tied_head_is_the_embedding_and_no_other(family, tmp_path):
    source = save_hf(tmp_path / "m", family=family, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_tensors(source)
    folder = Folder.open(source)
    assert "tied" in folder.notes[0]
    written = again(source, tmp_path / "untied")
    assert written.notes == ()
    tensors = load_tensors(written.path)
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert not json.loads((written.path / "config.json").read_text())["tie_word_embeddings"]
    edit_json(written.path / "config.json", tie_word_embeddings=True)
    assert Folder.open(written.path).notes  # its head is the embedding once more
    edit_tensors(written.path, lambda tensors: tensors["lm_head.weight"][3, 3].add_(1))
    with pytest.raises(BarError, match=r"'lm_head.weight': expected that of 'model.embed_tokens.weight'"):
        Folder.open(written.path)


def test_errors_name_tensors_as_they_are_called_in_the_file(tmp_path):
    source = save_hf(tmp_path / "m", family="llama", experts=2)
    w1 = "model.layers.1.block_sparse_moe.experts.1.w1.weight"
    edit_tensors(source, lambda tensors: tensors.update({w1: tensors[w1][:-1].clone()}))
    with pytest.raises(BarError, match=rf"tensor '{w1}': config.json expected \[24, 16\], got \[23, 16\]"):
        Folder.open(source)
    edit_tensors(source, lambda tensors: tensors.pop(w1))
    with pytest.raises(BarError, match=rf"tensor '{w1}' is missing"):
        Folder.open(source)
