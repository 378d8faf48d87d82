"""The certificate: each policy lets its groups move and catches one bit anywhere else."""

import pytest
import torch
from folders import copy_with, edit_json, save_hf

from megatron_bar.errors import BarError
from megatron_bar.experts.proof import verify_frozen
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import DENSE_ALL, MIDTRAIN, POLICIES, RLVR, ROUTE, SFT, ParamGroup, classify
from megatron_bar.weights.safetensors_io import tensor_bytes

MOE_POLICIES = [policy for policy in POLICIES.values() if policy is not DENSE_ALL]
GROUP_SAMPLES = {
    ParamGroup.EMBEDDING: ("model.embed_tokens.weight", 18),
    ParamGroup.LM_HEAD: ("lm_head.weight", 4),
    ParamGroup.FINAL_NORM: ("model.norm.weight", 15),
    ParamGroup.ATTENTION: ("model.layers.1.self_attn.q_norm.weight", 2),
    ParamGroup.BLOCK_NORM: ("model.layers.0.post_feedforward_layernorm.weight", 0),
    ParamGroup.ROUTER: ("model.layers.1.mlp.gate.weight", 1),
    ParamGroup.ANCHOR_EXPERT: ("model.layers.0.mlp.experts.0.down_proj.weight", 7),
    ParamGroup.DOMAIN_EXPERT: ("model.layers.1.mlp.experts.1.gate_proj.weight", 23),
}


def flip_bit(name, row):
    def change(given, tensor):
        if given == name:
            tensor.view(torch.int32)[row] ^= 1
        return tensor

    return change


def verify(before, after, policy, **options):
    rows = verify_frozen(Folder.open(before), Folder.open(after), policy, **options)
    return {row.group: row for row in rows}


@pytest.mark.parametrize("group", GROUP_SAMPLES, ids=str)
def test_one_bit_is_seen_and_allowed_only_where_the_policy_trains(branched, tmp_path, group):
    name, row = GROUP_SAMPLES[group]
    after = copy_with(branched, tmp_path / "after", flip_bit(name, row))
    for policy in MOE_POLICIES:
        if group in policy.trains:
            rows = verify(branched, after, policy)
            assert {g: r.changed for g, r in rows.items()} == {g: int(g is group) for g in GROUP_SAMPLES}
            assert {g for g, r in rows.items() if r.stuck} == policy.trains - {group}
        else:
            message = (
                rf"after/model\.safetensors: tensor '{name}' is frozen in stage {policy.name}: .*got "
                rf"a change in row {row}"
            )
            with pytest.raises(BarError, match=message):
                verify(branched, after, policy)


@pytest.mark.parametrize("policy", MOE_POLICIES, ids=lambda policy: policy.name)
def test_the_anchors_router_row(branched, tmp_path, policy):
    after = copy_with(branched, tmp_path / "after", flip_bit("model.layers.0.mlp.gate.weight", 0))
    if policy.anchor_row_frozen:
        with pytest.raises(BarError, match=r"layers\.0\.mlp\.gate\.weight' is frozen in .* row 0"):
            verify(branched, after, policy)
    else:
        assert verify(branched, after, policy)[ParamGroup.ROUTER].changed == 1


def test_counts_cover_every_tensor_once(branched, experts):
    rows = verify(branched, experts["math"], RLVR)
    assert sum(row.tensors for row in rows.values()) == len(Folder.open(branched).tensors)
    assert {group: row.changed for group, row in rows.items()} == {
        group: row.tensors if group in RLVR.trains else 0 for group, row in rows.items()
    }
    assert rows[ParamGroup.ANCHOR_EXPERT].tensors == 6
    assert rows[ParamGroup.ATTENTION].tensors == 12


def test_strict_wants_every_trained_group_to_move(branched, experts, tmp_path):
    verify(branched, experts["math"], RLVR, strict=True)
    after = copy_with(branched, tmp_path / "after", lambda n, t: t + 1 if ".experts.1." in n else t)
    rows = verify(branched, after, MIDTRAIN)
    assert rows[ParamGroup.ROUTER].stuck and not rows[ParamGroup.DOMAIN_EXPERT].stuck
    with pytest.raises(
        BarError, match="midtrain expected a change in every trained group, got none in router"
    ):
        verify(branched, after, MIDTRAIN, strict=True)


def test_bits_are_compared_and_not_values(branched, tmp_path):
    zero = copy_with(branched, tmp_path / "zero", lambda n, t: t * 0 if n == "model.norm.weight" else t)
    minus = copy_with(zero, tmp_path / "minus", lambda n, t: -t if n == "model.norm.weight" else t)
    with pytest.raises(BarError, match=r"'model\.norm\.weight' is frozen"):
        verify(zero, minus, MIDTRAIN)
    nan = copy_with(zero, tmp_path / "nan", lambda n, t: t / 0 if n == "model.norm.weight" else t)
    again = copy_with(nan, tmp_path / "again", lambda n, t: t)
    assert not any(row.changed for row in verify(nan, again, MIDTRAIN).values())


def test_a_stage_of_another_kind_of_model_matches_nothing(dense, other_dense, branched, experts):
    with pytest.raises(
        BarError,
        match="stage sft expected a model with the groups it trains, got no tensor of domain_expert, router",
    ):
        verify(dense, other_dense, SFT)
    with pytest.raises(BarError, match=r"stage dense_all expected .* got no tensor of ffn"):
        verify(branched, experts["math"], DENSE_ALL)
    rows = verify(dense, other_dense, DENSE_ALL, strict=True)
    assert all(row.changed == row.tensors for row in rows.values())


def test_folders_that_cannot_be_compared(dense, branched, tmp_path):
    with pytest.raises(BarError, match=r"num_experts expected 2 as in .*branched, got 0"):
        verify(branched, dense, MIDTRAIN)
    with pytest.raises(BarError, match="expected two folders to compare, got the same one twice"):
        verify(branched, branched.parent / branched.name, ROUTE)
    other = copy_with(branched, tmp_path / "other", lambda name, tensor: tensor)
    edit_json(other / "config.json", rms_norm_eps=0.1)
    with pytest.raises(BarError, match=r"other: rms_norm_eps expected 1e-06"):
        verify(branched, other, MIDTRAIN)


def test_a_change_beyond_the_first_block_is_found_at_its_row(tmp_path):
    """A block of 4 MiB has 65,536 rows of 16 in fp32."""
    before = save_hf(tmp_path / "before", experts=2, vocab_size=70_000)
    after = copy_with(before, tmp_path / "after", flip_bit("model.embed_tokens.weight", 69_998))
    with pytest.raises(BarError, match=r"got a change in row 69998$"):
        verify(before, after, MIDTRAIN)


def test_the_bytes_compared_are_the_tensors(branched):
    folder = Folder.open(branched)
    name = next(name for name in folder.tensors if classify(name) is ParamGroup.ROUTER)
    assert bytes(tensor_bytes(folder.read(name))) == folder.read(name).numpy().tobytes()
