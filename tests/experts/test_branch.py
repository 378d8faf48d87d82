"""A branch against the dense models it is made of, as transformers runs both."""

import json
import shutil

import pytest
import torch
from folders import WORDS, add_tokenizer, copy_with, edit_json, load_tensors, save_hf, seal, whole

from megatron_bar.errors import BarError
from megatron_bar.experts.branch import branch
from megatron_bar.experts.router_start import domain_embedding
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hashes import anchor_hash, config_hash, folder_hash, hash_units, is_domain
from megatron_bar.weights.manifest import Expert, Manifest, SourceRecord, TrainingRecord, read_manifest
from megatron_bar.weights.writer import WriteOptions

ROUTERS = [f"model.layers.{n}.mlp.gate.weight" for n in range(2)]


def logits(path):
    import transformers

    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = torch.arange(2 * 15).reshape(2, 15) % model.config.vocab_size
    with torch.no_grad():
        return type(model).__name__, model.eval()(ids).logits


def texts(tmp_path):
    (tmp_path / "general.txt").write_text("red blue red is\nblue\n")
    (tmp_path / "math.txt").write_text("one plus two is two\n\none")
    return {"general_text": tmp_path / "general.txt", "domain_text": tmp_path / "math.txt"}


@pytest.mark.parametrize("router_init", ["normal", "domain", "zero", "hostile"])
def test_with_equal_ffns_it_is_the_dense_model_for_any_router(dense, tmp_path, router_init):
    options = texts(tmp_path) if router_init == "domain" else {}
    out = tmp_path / "out"
    branch(dense, dense, out, router_init="normal" if router_init == "hostile" else router_init, **options)
    if router_init == "hostile":
        out = copy_with(
            out, tmp_path / "hostile", lambda n, t: torch.randn(t.shape) * 30 if n in ROUTERS else t
        )
    (dense_class, expected), (moe_class, found) = logits(dense), logits(out)
    assert (dense_class, moe_class) == ("Olmo2ForCausalLM", "FlexOlmoForCausalLM")
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_with_another_ffn_it_is_not(dense, branched):
    assert (logits(dense)[1] - logits(branched)[1]).abs().max() > 0.01


def test_every_tensor_comes_from_where_it_should(dense, other_dense, branched):
    config = whole(branched).config
    assert (config.num_experts, config.experts_per_token, config.norm_topk_prob) == (2, 2, False)
    first, second, made = load_tensors(dense), load_tensors(other_dense), load_tensors(branched)
    for name, tensor in first.items():
        if ".mlp." in name:
            for source, expert in ((first, 0), (second, 1)):
                assert torch.equal(made.pop(name.replace(".mlp.", f".mlp.experts.{expert}.")), source[name])
        else:
            assert torch.equal(made.pop(name), tensor)
    assert sorted(made) == ROUTERS


def test_the_manifest_says_what_was_done(dense, other_dense, branched):
    manifest, units = read_manifest(branched), hash_units(Folder.open(branched))
    digest = anchor_hash(units)
    assert manifest == Manifest(
        family="flex_olmo",
        kind="branched",
        stage="branch",
        anchor_hash=digest,
        experts=(
            Expert(index=0, name="anchor", anchor_hash=digest),
            Expert(index=1, name="domain", anchor_hash=digest),
        ),
        sources=tuple(
            SourceRecord(role=role, name=path.name, hash=folder_hash(hash_units(Folder.open(path))))
            for role, path in (("anchor", dense), ("domain_init", other_dense))
        ),
        tensors=units,
        config_hash=config_hash(Folder.open(branched).config),
    )


def test_the_anchors_stages_are_carried_along(dense, tmp_path):
    anchor = copy_with(dense, tmp_path / "anchor", lambda name, tensor: tensor)
    trained = (TrainingRecord(stage="pretrain"), TrainingRecord(stage="sft"))
    seal(
        anchor,
        Manifest(family="olmo2", kind="dense", experts=(Expert(index=0, name="dense", trained=trained),)),
    )
    branch(anchor, dense, tmp_path / "out", router_init="zero")
    assert read_manifest(tmp_path / "out").experts[0].stages == ("pretrain", "sft")


def test_the_anchor_hash_is_blind_to_the_domain_init_and_to_nothing_else(
    dense, other_dense, branched, tmp_path
):
    recorded = read_manifest(branched).anchor_hash
    for n, (anchor, domain, seed, same) in enumerate(
        ((dense, dense, 3, True), (dense, other_dense, 4, False), (other_dense, dense, 3, False))
    ):
        branch(anchor, domain, tmp_path / f"{n}", router_init="normal", seed=seed)
        assert (read_manifest(tmp_path / f"{n}").anchor_hash == recorded) == same


def test_normal_rows_are_seeded_and_differ_by_row_and_layer(tmp_path):
    wide = save_hf(tmp_path / "wide", hidden_size=512, vocab_size=8, intermediate_size=4)
    made = [
        load_tensors(branch(wide, wide, tmp_path / f"{n}", router_init="normal", seed=seed)[0].path)
        for n, seed in enumerate((7, 7, 8))
    ]
    rows = [torch.cat([tensors[name] for name in ROUTERS]) for tensors in made]
    assert torch.equal(rows[0], rows[1])
    assert not torch.isclose(rows[0], rows[2]).any(dim=1).all()
    assert (rows[0] @ rows[0].t() / (512 * 0.02**2) - torch.eye(4)).abs().max() < 0.25


def test_zero_rows_are_zero(dense, tmp_path):
    tensors = load_tensors(branch(dense, dense, tmp_path / "out", router_init="zero")[0].path)
    assert not any(tensors[name].any() for name in ROUTERS)


def test_domain_rows_are_the_mean_embedding_at_norm_half_in_every_layer(dense, tmp_path):
    out = branch(dense, dense, tmp_path / "out", router_init="domain", **texts(tmp_path))[0].path
    embeddings = load_tensors(dense)["model.embed_tokens.weight"].double()
    general = 2 * embeddings[5] + 2 * embeddings[6] + embeddings[7]
    domain = 2 * embeddings[2] + embeddings[4] + 2 * embeddings[3] + embeddings[7]
    expected = torch.stack([0.5 * general / general.norm(), 0.5 * domain / domain.norm()])
    for name in ROUTERS:
        torch.testing.assert_close(load_tensors(out)[name].double(), expected, rtol=0, atol=1e-7)


def test_bfloat16_stays_bfloat16(tmp_path):
    half = save_hf(tmp_path / "half", dtype="bfloat16")
    folder = branch(
        half, half, tmp_path / "out", router_init="normal", options=WriteOptions(max_shard_bytes=2000)
    )[0]
    assert whole(folder.path).dtype == "bfloat16"
    assert read_manifest(folder.path).anchor_hash == anchor_hash(hash_units(folder))
    assert {unit for unit in hash_units(folder) if is_domain(unit)} >= {f"{ROUTERS[0]}[1]"}


def test_vocabulary_and_theta_come_from_the_anchor_and_the_user_is_told(dense, tmp_path):
    rope = {"rope_type": "default", "rope_theta": 8e6}
    domain = save_hf(
        tmp_path / "domain",
        vocab_size=23,
        rope_parameters=rope,
        rms_norm_eps=1e-5,
        max_position_embeddings=64,
    )
    folder, notes = branch(dense, domain, tmp_path / "out", router_init="normal")
    assert (folder.config.vocab_size, folder.config.rope_theta) == (19, 5000.0)
    assert notes == [
        "vocab_size differs: 19 is kept from the anchor, the domain init has 23",
        "rope_theta differs: 5000.0 is kept from the anchor, the domain init has 8000000.0",
        "rms_norm_eps differs: 1e-06 is kept from the anchor, the domain init has 1e-05",
        "max_positions differs: 32 is kept from the anchor, the domain init has 64",
    ]
    assert read_manifest(folder.path).notes == tuple(notes)


def test_it_has_positions_for_the_rows_it_will_be_trained_on_and_no_fewer(dense, tmp_path):
    longer, notes = branch(dense, dense, tmp_path / "longer", router_init="zero", positions=48)
    assert (
        longer.config.max_positions
        == json.loads((longer.path / "config.json").read_text())["max_position_embeddings"]
        == 48
    )
    assert notes == ["max_positions: 48 for the rows it will be trained on, the anchor has 32"]
    same, notes = branch(dense, dense, tmp_path / "same", router_init="zero", positions=16)
    assert (same.config.max_positions, notes) == (32, [])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_hidden_layers": 3}, r"domain: num_layers expected 2 as in .*dense, got 3"),
        ({"hidden_size": 8}, r"domain: hidden_size expected 16 .*got 8"),
        ({"intermediate_size": 25}, r"domain: intermediate_size expected 24 .*got 25"),
        ({"num_attention_heads": 2}, r"domain: num_heads expected 4 .*got 2"),
        ({"num_key_value_heads": 4}, r"domain: num_kv_heads expected 2 .*got 4"),
        ({"dtype": "bfloat16"}, r"domain: dtype expected float32 .*got bfloat16"),
        ({"experts": 2}, r"domain: branching expected a dense folder, got 2 experts"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_domain_init_of_another_shape_is_refused(dense, tmp_path, changes, message):
    domain = save_hf(tmp_path / "domain", **changes)
    check_refused(tmp_path, message, dense, domain, router_init="normal")


def check_refused(tmp_path, message, anchor, domain, **options):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BarError, match=message):
        branch(anchor, domain, tmp_path / "out", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_a_branch_is_not_branched_again(dense, branched, tmp_path):
    check_refused(
        tmp_path,
        r"branched: branching expected a dense folder, got 2 experts",
        branched,
        dense,
        router_init="zero",
    )


def test_no_tokenizer_is_refused(dense, tmp_path):
    shutil.copytree(dense, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer.json"))
    check_refused(tmp_path, r"bare: no tokenizer", tmp_path / "bare", dense, router_init="zero")
    branch(dense, tmp_path / "bare", tmp_path / "out", router_init="zero")  # the domain init needs none


def test_texts_are_checked(dense, tmp_path):
    given = texts(tmp_path)
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for changes, message in (
        ({"domain_text": None}, "expected a general text .* and a domain text"),
        ({"domain_text": tmp_path / "none"}, "none: not readable as UTF-8 text"),
        ({"domain_text": tmp_path / "binary"}, "binary: not readable as UTF-8 text"),
        ({"domain_text": tmp_path / "empty"}, "empty: expected text, got no tokens"),
        ({"router_init": "normal"}, "texts are not used with router init 'normal' in family olmo2"),
        ({"router_init": "zero"}, "texts are not used with router init 'zero'"),
    ):
        check_refused(tmp_path, message, dense, dense, **({"router_init": "domain"} | given | changes))
    check_refused(
        tmp_path,
        "router init expected normal, domain, hidden or zero, got 'big'",
        dense,
        dense,
        router_init="big",
    )


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(dense, tmp_path):
    anchor = copy_with(dense, tmp_path / "anchor", lambda name, tensor: tensor)
    add_tokenizer(anchor, (*WORDS[:2], *(f"w{n}" for n in range(16)), "red", "one"))
    check_refused(
        tmp_path,
        r"tokenizer\.json: token ids expected below vocab_size 19, got 19",
        anchor,
        dense,
        router_init="zero",
    )
    message = r"anchor: token ids expected below vocab_size 19, got 19 in .*math\.txt"
    with pytest.raises(BarError, match=message):
        domain_embedding(Folder.open(anchor), texts(tmp_path)["domain_text"])


def test_an_unreadable_tokenizer_is_refused(dense, tmp_path):
    anchor = copy_with(dense, tmp_path / "anchor", lambda name, tensor: tensor)
    (anchor / "tokenizer.json").write_text("{}")
    check_refused(tmp_path, r"tokenizer\.json: expected a tokenizer with", anchor, dense, router_init="zero")
    (anchor / "tokenizer.json").write_text('{"model": {"vocab": {"one": 0}}}')
    check_refused(
        tmp_path, r"tokenizer\.json: not a readable", anchor, dense, router_init="domain", **texts(tmp_path)
    )


def test_without_any_direction_there_is_no_domain_row(dense, tmp_path):
    anchor = copy_with(dense, tmp_path / "anchor", lambda name, tensor: tensor * ("embed" not in name))
    message = r"'model\.embed_tokens\.weight': expected rows with a mean .* got 0"
    check_refused(tmp_path, message, anchor, dense, router_init="domain", **texts(tmp_path))


@pytest.mark.parametrize("which", ["anchor", "domain"])
def test_values_that_are_not_finite_are_refused(dense, tmp_path, which):
    broken = copy_with(
        dense, tmp_path / "broken", lambda n, t: t / 0 if n == "model.layers.1.mlp.up_proj.weight" else t
    )
    inputs = (broken, dense) if which == "anchor" else (dense, broken)
    check_refused(
        tmp_path,
        r"broken/model\.safetensors: tensor 'model\.layers\.1\.mlp\.up_proj.*NaN",
        *inputs,
        router_init="zero",
    )


def test_the_shape_is_read_from_the_config_alone(dense, tmp_path):
    broken = copy_with(dense, tmp_path / "broken", lambda name, tensor: tensor)
    edit_json(broken / "config.json", num_key_value_heads=4)
    check_refused(
        tmp_path,
        r"k_proj\.weight': config\.json expected \[16, 16\], got \[8, 16\]",
        dense,
        broken,
        router_init="zero",
    )
