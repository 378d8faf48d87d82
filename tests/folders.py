"""Tiny real model folders, written by transformers, and ways to spoil them."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from megatron_bar.weights.folder import INDEX, SINGLE, Folder
from megatron_bar.weights.hashes import config_hash, hash_units
from megatron_bar.weights.hf_config import read_config, tensor_shapes
from megatron_bar.weights.manifest import (
    MANIFEST,
    Cost,
    Manifest,
    TrainingRecord,
    has_manifest,
    read_manifest,
)

WORDS = ("<|pad|>", "<|endoftext|>", "one", "two", "plus", "red", "blue", "is")
SHAPE = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}


def add_tokenizer(path: Path, words: tuple[str, ...] = WORDS, special: int = 2) -> None:
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<|pad|>"))
    tokenizer.add_special_tokens(list(words[:special]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))


CLASSES = {
    "olmo2": ("Olmo2", "FlexOlmo"),
    "qwen3": ("Qwen3", "Qwen3Moe"),
    "llama": ("Llama", "Mixtral"),
    "mistral": ("Mistral", "Mixtral"),
    "qwen2": ("Qwen2", "Qwen2Moe"),
}
"""The classes of transformers for each family: dense, and the mixture."""
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def save_hf(
    path: Path,
    *,
    family: str = "olmo2",
    experts: int = 0,
    seed: int = 0,
    dtype: str = "float32",
    shard: str = "5GB",
    **changes,
) -> Path:
    """A folder as transformers writes it, every parameter random (norms and biases too), with a tokenizer."""
    import transformers

    name = CLASSES[family][experts > 0]
    if name in ("Qwen3", "Qwen3Moe"):
        changes = {"head_dim": 4} | changes
    if experts:
        counts = {"num_experts": experts, "num_local_experts": experts, "num_experts_per_tok": experts}
        changes = counts | {"norm_topk_prob": family != "olmo2"} | changes
        width = (SHAPE | changes)["intermediate_size"]
        changes = {"moe_intermediate_size": width, "shared_expert_intermediate_size": 128} | changes
    known = SHAPE | {"bos_token_id": None} | changes
    if name == "Mixtral":
        del known["norm_topk_prob"]
    config = getattr(transformers, f"{name}Config")(**known)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for full_name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.dim() == 1))
            if "shared_expert" in full_name:  # which Qwen2Moe cannot leave out
                parameter.zero_()
    transformers.utils.logging.disable_progress_bar()  # tests read stderr
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=shard)
    add_tokenizer(path)
    return path


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors by the safetensors library alone, copied off the file."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= {name: tensor.clone() for name, tensor in load_file(file).items()}
    return tensors


def copy_with(source: Path, target: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy in one file with other values."""
    shutil.copytree(source, target)
    tensors = {name: change(name, tensor).contiguous() for name, tensor in load_tensors(source).items()}
    for file in (*target.glob("*.safetensors"), target / INDEX):
        file.unlink(missing_ok=True)
    save_file(tensors, target / SINGLE, metadata={"format": "pt"})
    if has_manifest(target):
        seal(target, read_manifest(target))
    return target


def seal(path: Path, manifest: Manifest) -> None:
    """Writes the manifest with the receipts of the folder as it is."""
    folder = Folder.open(path)
    replace(manifest, tensors=hash_units(folder), config_hash=config_hash(folder.config)).write(path)


def train_with(
    source: Path,
    target: Path,
    stage: str,
    change: Callable[[str, torch.Tensor], torch.Tensor],
    *,
    policy: str | None = None,
    expert: str | None = None,
) -> Path:
    """As a training stage leaves a folder: other values and a manifest that says so; ``policy`` is called
    like the stage."""
    copy_with(source, target, change)
    training = TrainingRecord(stage=stage, policy=policy or stage, recipe="tests")
    numbers = {"tokens": 100, "loss_tokens": 50, "generated": 0, "flops": 1e6, "seconds": 1.5}
    cost = Cost(step=target.name, stage=stage, devices=1, device="tests", **numbers)
    seal(target, read_manifest(source).after(training, sources=(), expert=expert, cost=cost))
    return target


def files_but_seconds(folder: Path) -> dict[str, bytes]:
    """Every file of a folder; of the manifest all but how long its stages took."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(files[MANIFEST])
    for cost in manifest["ledger"]:
        del cost["seconds"]
    return files | {MANIFEST: json.dumps(manifest).encode()}


def edit_json(path: Path, **changes) -> None:
    """Sets fields of a JSON file; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes the tensors of a single-file folder in place."""
    tensors = load_tensors(path)
    change(tensors)
    save_file(tensors, path / SINGLE, metadata={"format": "pt"})


def _first_router(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if name.endswith("mlp.gate.weight"))


def _truncate(path: Path) -> None:
    with (path / SINGLE).open("r+b") as file:
        file.truncate((path / SINGLE).stat().st_size - 5)


def _down(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(name for name in tensors if name.endswith("down_proj.weight"))[0]


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    # name: (what is done to a single-file folder, what the one line must match)
    "missing tensor": (
        lambda p: edit_tensors(p, lambda t: t.pop("model.norm.weight")),
        r"model\.norm\.weight.*expected \[16\].*got",
    ),
    "surplus tensor": (
        lambda p: edit_tensors(p, lambda t: t.update({"../../evil": torch.ones(2)})),
        r"model\.safetensors.*\.\./\.\./evil.*expected none.*got \[2\]",
    ),
    "bias nobody reads": (
        lambda p: edit_tensors(
            p, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)})
        ),
        r"model\.safetensors.*q_proj\.bias.*expected none.*got \[16\]",
    ),
    "wrong shape": (
        lambda p: edit_tensors(p, lambda t: t.update({"model.norm.weight": torch.ones(17)})),
        r"model\.safetensors.*model\.norm\.weight.*expected \[16\], got \[17\]",
    ),
    "transposed": (
        lambda p: edit_tensors(p, lambda t: t.update({_down(t): t[_down(t)].t().contiguous()})),
        r"model\.safetensors.*down_proj.*expected \[16, 24\], got \[24, 16\]",
    ),
    "padded vocabulary": (
        lambda p: edit_tensors(p, lambda t: t.update({"model.embed_tokens.weight": torch.ones(20, 16)})),
        r"model\.safetensors.*embed_tokens.*expected \[19, 16\], got \[20, 16\]",
    ),
    "mixed dtypes": (
        lambda p: edit_tensors(
            p, lambda t: t.update({"model.norm.weight": torch.ones(16, dtype=torch.float16)})
        ),
        r"model\.safetensors.*expected (bfloat16|float32|float16).*got (float16|bfloat16|float32)",
    ),
    "unsupported dtype": (
        lambda p: edit_tensors(
            p, lambda t: t.update({"model.norm.weight": torch.ones(16, dtype=torch.float64)})
        ),
        r"model\.safetensors.*model\.norm\.weight.*expected one of.*got 'F64'",
    ),
    "truncated": (_truncate, r"model\.safetensors: truncated: tensor .* expected .* got \d+ bytes"),
    "empty file": (
        lambda p: os.truncate(p / SINGLE, 0),
        r"model\.safetensors: not a whole safetensors file: expected at least \d+ bytes, got 0",
    ),
    "no weights": (
        lambda p: (p / SINGLE).unlink(),
        r"expected model\.safetensors or .*got no safetensors files",
    ),
    "no config": (lambda p: (p / "config.json").unlink(), r"config\.json: not found; expected"),
    "config not JSON": (lambda p: (p / "config.json").write_text("{"), r"config\.json: not readable as JSON"),
    "unknown model_type": (
        lambda p: edit_json(p / "config.json", model_type="gpt2"),
        r"config\.json: model_type must be .*got 'gpt2'",
    ),
    "one layer too many": (
        lambda p: edit_json(p / "config.json", num_hidden_layers=3),
        r"model\.layers\.2\.self_attn\.q_proj\.weight.*expected \[16, 16\], got",
    ),
    "one layer too few": (
        lambda p: edit_json(p / "config.json", num_hidden_layers=1, layer_types=None),
        r"model\.safetensors.*model\.layers\.1\..*expected none, got",
    ),
    "layers = -1": (
        lambda p: edit_json(p / "config.json", num_hidden_layers=-1),
        r"config\.json: num_layers must .*got -1",
    ),
    "wrong vocabulary size": (
        lambda p: edit_json(p / "config.json", vocab_size=18),
        r"model\.safetensors.*embed_tokens.*expected \[18, 16\], got \[19, 16\]",
    ),
    "wrong FFN width": (
        lambda p: edit_json(p / "config.json", intermediate_size=23),
        r"model\.safetensors.*_proj\.weight.*expected \[.*23.*\], got \[.*24.*\]",
    ),
    "single file and index": (
        lambda p: (p / INDEX).write_text(
            json.dumps({"weight_map": {"model.norm.weight": "other.safetensors"}})
        ),
        r"index\.json: tensor 'model\.norm\.weight' expected in other\.safetensors, got no such file",
    ),
}
SPOILED_MOE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing router": (
        lambda p: edit_tensors(p, lambda t: t.pop(_first_router(t))),
        r"model\.layers\.0\.mlp\.gate\.weight.*expected \[2, 16\].*got",
    ),
    "router of one expert": (
        lambda p: edit_tensors(p, lambda t: t.update({_first_router(t): torch.ones(1, 16)})),
        r"model\.safetensors.*mlp\.gate\.weight.*expected \[2, 16\], got \[1, 16\]",
    ),
    "one expert too many": (
        lambda p: edit_json(p / "config.json", num_experts=3),
        r"mlp\.experts\.2\.gate_proj\.weight.*expected \[24, 16\]|mlp\.gate\.weight.*expected \[3, 16\]",
    ),
    "more active than there": (
        lambda p: edit_json(p / "config.json", num_experts_per_tok=3),
        r"config\.json: num_experts_per_tok must be between 1 and num_experts 2, got 3",
    ),
    "said to be dense": (
        lambda p: edit_json(p / "config.json", model_type="olmo2"),
        r"model\.layers\.0\.mlp\.gate_proj\.weight.*expected \[24, 16\], got",
    ),
}
NOT_FINITE: dict[str, tuple[Callable[[Path], None], str]] = {
    f"{value} in a tensor": (
        lambda p, value=value: edit_tensors(p, lambda t: t[_down(t)].view(-1).__setitem__(40, value)),
        r"model\.safetensors: tensor '.*down_proj\.weight': expected finite values, got NaN or infinity in "
        r"row 1",
    )
    for value in (float("nan"), float("inf"), -float("inf"))
}


def whole(path: Path) -> Folder:
    """Opens a folder and compares it with what the safetensors library and its config say."""
    folder = Folder.open(path)
    tensors = load_tensors(path)
    assert list(folder.tensors) == list(tensor_shapes(read_config(path)))
    assert tensors.keys() == folder.tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(folder.read(name), tensor)
    return folder
