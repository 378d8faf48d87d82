"""What a hash covers and what it does not."""

import pytest
import torch
from blake3 import blake3
from folders import copy_with

from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hashes import anchor_hash, domain_hash, folder_hash, hash_units, is_domain

ROUTER = "model.layers.1.mlp.gate.weight"


def hashes(path):
    units = hash_units(Folder.open(path))
    return anchor_hash(units), domain_hash(units), folder_hash(units)


def changed_by(moe, target, name, row):
    """Which of (anchor, domain, folder) change when the lowest bit of one row changes."""

    def flip(given, tensor):
        if given == name:
            tensor.view(torch.int32)[row] ^= 1
        return tensor

    return tuple(a != b for a, b in zip(hashes(moe), hashes(copy_with(moe, target, flip)), strict=True))


@pytest.mark.parametrize(
    "name, row, expected",
    [
        ("model.layers.0.mlp.experts.0.up_proj.weight", 3, (True, False, True)),
        ("model.layers.0.mlp.experts.1.up_proj.weight", 3, (False, True, True)),
        (ROUTER, 0, (True, False, True)),
        (ROUTER, 1, (False, True, True)),
        ("model.embed_tokens.weight", 18, (True, False, True)),
        ("model.layers.1.self_attn.k_norm.weight", 0, (True, False, True)),
    ],
)
def test_one_bit_changes_the_hash_of_its_owner_alone(moe, tmp_path, name, row, expected):
    assert changed_by(moe, tmp_path / "changed", name, row) == expected


def test_the_split_into_files_does_not_matter(sharded, tmp_path):
    single = copy_with(sharded, tmp_path / "single", lambda name, tensor: tensor)
    assert hashes(single) == hashes(sharded)


def test_a_tensor_hash_is_blake3_over_dtype_shape_and_bytes(moe):
    folder, norm, router = Folder.open(moe), "model.norm.weight", "model.layers.0.mlp.gate.weight"
    units, start = hash_units(folder), b'["float32", [16]]'
    assert units[norm] == blake3(start + folder.read(norm).numpy().tobytes()).hexdigest()
    assert units[f"{router}[1]"] == blake3(start + folder.read(router)[1].numpy().tobytes()).hexdigest()


def test_expert_ten_is_a_domain_expert():
    assert is_domain("model.layers.0.mlp.experts.10.up_proj.weight")
    assert is_domain("model.layers.0.mlp.gate.weight[10]")
    assert not is_domain("model.layers.10.mlp.gate.weight[0]")
