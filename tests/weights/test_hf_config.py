"""config.json that anyone may have written: what transformers would compute differently, or we not at all, is
refused."""

import json

import pytest
import transformers
from folders import edit_json

from megatron_bar.errors import BarError
from megatron_bar.weights.hf_config import ModelConfig, read_config

PLAIN = {
    "model_type": "flex_olmo",
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000,
    "num_experts": 2,
    "num_experts_per_tok": 2,
}
LINEAR = {"rope_type": "linear", "factor": 8.0}
DEFAULT = {"rope_type": "default", "rope_theta": 5000.0}
BAD = {
    "scaling beside plain RoPE": (
        {"rope_parameters": DEFAULT, "rope_scaling": LINEAR},
        r"rope_scaling must be plain RoPE, got \{.*'linear'",
    ),
    "parameters beside plain RoPE": (
        {"rope_parameters": LINEAR, "rope_scaling": DEFAULT},
        r"rope_parameters must be plain RoPE",
    ),
    "an old type": ({"rope_scaling": {"type": "linear"}}, r"rope_scaling must be plain RoPE"),
    "two types": (
        {"rope_scaling": {"rope_type": "default", "type": "linear"}},
        r"rope_scaling must be plain RoPE",
    ),
    "a type no string": ({"rope_scaling": {"type": ["default"]}}, r"rope_scaling must be plain RoPE"),
    "RoPE no object": ({"rope_parameters": []}, r"rope_parameters must be plain RoPE, got \[\]"),
    "two thetas": (
        {"rope_parameters": DEFAULT | {"rope_theta": 10.0}},
        r"rope_parameters\.rope_theta must be 5000 as rope_theta says, got 10\.0",
    ),
    "two thetas elsewhere": (
        {"rope_theta": None, "rope_parameters": DEFAULT, "rope_scaling": {"rope_theta": 1e4}},
        r"rope_scaling\.rope_theta must be 5000\.0 as rope_parameters\.rope_theta says, got 10000\.0",
    ),
    "no theta": ({"rope_theta": None}, r"rope_theta is missing"),
    "a theta beyond float": (
        {"rope_theta": 10**400},
        r"rope_theta must be a positive number that float32 holds",
    ),
    "a theta of text": ({"rope_theta": "1e4"}, r"rope_theta must be a positive number .*got '1e4'"),
    "an infinite epsilon": (
        {"rms_norm_eps": float("inf")},
        r"rms_norm_eps must be a positive number .*got inf",
    ),
    "an epsilon beyond float32": (
        {"rms_norm_eps": 1e300},
        r"rms_norm_eps must be a positive number .*got 1e\+300",
    ),
    "an epsilon of nothing": (
        {"rms_norm_eps": float("nan")},
        r"rms_norm_eps must be a positive number .*got nan",
    ),
    "model_type a list": ({"model_type": ["olmo2"]}, r"model_type must be one of .*got \['olmo2'\]"),
    "layers without end": (
        {"num_hidden_layers": 10**18},
        r"num_layers must be an integer from 1 to 1024, got 10{18}",
    ),
    "experts without end": ({"num_experts": 10**18}, r"num_experts must be from 2 to 1024, got 10{18}"),
    "one expert": ({"num_experts": 1}, r"num_experts must be from 2 to 1024, got 1"),
    "layers true": ({"num_hidden_layers": True}, r"num_layers must be an integer from 1 to 1024, got True"),
    "renormalised by text": (
        {"norm_topk_prob": "false"},
        r"norm_topk_prob must be true or false, got 'false'",
    ),
    "renormalised by number": ({"norm_topk_prob": 1}, r"norm_topk_prob must be true or false, got 1"),
    "pad of text": ({"pad_token_id": "1"}, r"pad_token_id must be below vocab_size 19 or null, got '1'"),
    "pad too large": ({"pad_token_id": 19}, r"pad_token_id must be below vocab_size 19 or null, got 19"),
    "pad negative": ({"pad_token_id": -1}, r"pad_token_id must be below vocab_size 19 or null, got -1"),
    "two paddings": (
        {"pad_token_id": [1, 2]},
        r"pad_token_id must be below vocab_size 19 or null, got \[1, 2\]",
    ),
    "begin true": ({"bos_token_id": True}, r"bos_token_id must be below vocab_size 19 or null, got True"),
    "end an object": ({"eos_token_id": {}}, r"eos_token_id must be below vocab_size 19 or null, got \{\}"),
    "one end too large": (
        {"eos_token_id": [1, 19]},
        r"eos_token_id must be below vocab_size 19 or null, got \(1, 19\)",
    ),
    "ends in a list": (
        {"eos_token_id": [[1]]},
        r"eos_token_id must be below vocab_size 19 or null, got \(\[1\],\)",
    ),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
def test_a_config_that_is_not_computed_is_refused_in_one_line(tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(PLAIN))
    assert read_config(tmp_path).rope_theta == 5000
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(BarError, match=rf"config\.json: {message}") as caught:
        read_config(tmp_path)
    assert str(caught.value).count("config.json") == 1 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, "not readable as JSON"),
        ("[]", "expected a JSON object, got list"),
        (
            '{"num_experts": 2, "a": 0, "num_experts": 5}',
            "not readable as JSON: 'num_experts' expected once, got it 2 times",
        ),
        ('{"a": {"b": 0, "b": 0}}', "not readable as JSON: 'b' expected once, got it 2 times"),
    ],
    ids=["deep", "list", "twice", "twice below"],
)
def test_what_is_no_json_object_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BarError, match=rf"config\.json: {message}"):
        read_config(tmp_path)


@pytest.mark.parametrize("eos", [None, 3, [1, 3]])
def test_every_place_of_theta_and_every_form_of_eos_is_read_as_transformers_does(tmp_path, eos):
    rest = {key: value for key, value in PLAIN.items() if key != "rope_theta"} | {
        "eos_token_id": eos,
        "pad_token_id": None,
    }
    for place in (
        {"rope_theta": 77},
        {"rope_parameters": DEFAULT | {"rope_theta": 77.0}},
        {"rope_scaling": {"rope_theta": 77.0}},
    ):
        ours = ModelConfig.from_hf(rest | place)
        theirs = transformers.FlexOlmoConfig.from_dict(rest | place)
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"] == 77
        assert ours.to_hf()["eos_token_id"] == theirs.eos_token_id == eos
    assert (
        ours.norm_topk_prob is False
        and ModelConfig.from_hf(rest | place | {"norm_topk_prob": True}).norm_topk_prob
    )
