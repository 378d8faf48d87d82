"""The manifest's round trip, its strictness, and how it follows a folder through the stages."""

import json
import math
from dataclasses import replace

import pytest
from folders import edit_json

from megatron_bar.errors import BarError
from megatron_bar.weights.manifest import (
    MANIFEST,
    Certificate,
    Cost,
    Expert,
    Manifest,
    SourceRecord,
    TrainingRecord,
    has_manifest,
    read_manifest,
    union,
)

SFT = TrainingRecord(stage="sft", policy="sft", recipe="r", data={"sft_math.jsonl": "dd"})
NUMBERS = {"tokens": 9, "loss_tokens": 5, "generated": 3, "flops": 1e18, "seconds": 2.5, "devices": 2}
COST = {"step": "math-sft", "stage": "sft", "device": "GPU"} | NUMBERS
FULL = Manifest(
    family="flex_olmo",
    kind="branched",
    stage="branch",
    recipe="tiny",
    anchor_hash="aa",
    experts=(
        Expert(index=0, name="anchor", trained=(TrainingRecord(stage="pretrain"), SFT)),
        Expert(
            index=1, name="domain", anchor_hash="aa", folder="math-rlvr", folder_hash="00", shared_hash="11"
        ),
    ),
    sources=(SourceRecord(role="anchor", name="BAR-7B", hash="bb"),),
    notes=("rope_theta differs",),
    tensors={"model.norm.weight": "cc"},
    config_hash="ee",
    frozen=Certificate(policy="sft", units=3, hash="ff"),
    shared={"method": "mean"},
    router_stale=True,
    config={"model_type": "flex_olmo"},
    ledger=(Cost(**COST | {"step": "anchor"}), Cost(**COST, expert="math")),
)


@pytest.mark.parametrize("manifest", [FULL, Manifest(family="olmo2", kind="dense")], ids=["full", "minimal"])
def test_what_is_written_is_read(tmp_path, manifest):
    assert not has_manifest(tmp_path)
    manifest.write(tmp_path)
    assert has_manifest(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert json.loads((tmp_path / MANIFEST).read_text())["format"] == "megatron_bar/1"


BAD = {
    "another format": (
        {"format": "megatron_bar/2"},
        r"format expected 'megatron_bar/1', got 'megatron_bar/2'",
    ),
    "no format": ({"format": None}, r"format expected 'megatron_bar/1', got None"),
    "unknown field": ({"extra": 1}, r"the manifest expected only .*got 'extra'"),
    "no family": ({"family": None}, r"the manifest: 'family' is missing"),
    "unknown family": ({"family": "gpt2"}, r"family expected one of flex_olmo, .*, got 'gpt2'"),
    "unknown kind": ({"kind": "big"}, r"kind expected one of dense, .*got 'big'"),
    "kind no string": ({"kind": ["dense"]}, r"kind expected str, got \['dense'\]"),
    "stage no string": ({"stage": 3}, r"stage expected str, got 3"),
    "hash no string": ({"anchor_hash": 3}, r"anchor_hash expected str, got 3"),
    "experts no list": ({"experts": {}}, r"experts expected list, got \{\}"),
    "expert no object": ({"experts": [1]}, r"experts\[0\] expected dict, got 1"),
    "expert without name": ({"experts": [{"index": 0}]}, r"experts\[0\]: 'name' is missing"),
    "expert with index true": (
        {"experts": [{"index": True, "name": "a"}]},
        r"experts\[0\]\.index expected int, got True",
    ),
    "expert out of order": (
        {"experts": [{"index": 1, "name": "a"}]},
        r"experts expected with index 0, 1, .*got \[1\]",
    ),
    "training no object": (
        {"experts": [{"index": 0, "name": "a", "trained": [1]}]},
        r"experts\[0\]\.trained\[0\] expected dict, got 1",
    ),
    "data no hashes": (
        {"experts": [{"index": 0, "name": "a", "trained": [{"stage": "sft", "data": {"x": 1}}]}]},
        r"experts\[0\]\.trained\[0\]\.data\['x'\] expected str, got 1",
    ),
    "tensors no hashes": ({"tensors": {"x": None}}, r"tensors\['x'\] expected str, got None"),
    "certificate without hash": ({"frozen": {"policy": "sft", "units": 1}}, r"frozen: 'hash' is missing"),
    "staleness no truth value": ({"router_stale": 1}, r"router_stale expected bool, got 1"),
    "source without hash": ({"sources": [{"role": "a", "name": "b"}]}, r"sources\[0\]: 'hash' is missing"),
    "source with a path": (
        {"sources": [{"role": "a", "name": "b", "hash": "c", "path": "d"}]},
        r"sources\[0\] expected only .*'path'",
    ),
    "notes no strings": ({"notes": [None]}, r"notes\[0\] expected str, got None"),
    "ledger no list": ({"ledger": {}}, r"ledger expected list, got \{\}"),
    "cost no object": ({"ledger": [1]}, r"ledger\[0\] expected dict, got 1"),
    "cost without seconds": ({"ledger": [{"step": "a"}]}, r"ledger\[0\]: 'stage' is missing"),
    "cost with more": ({"ledger": [COST | {"price": 1}]}, r"ledger\[0\] expected only .*got 'price'"),
    "cost of a numbered expert": (
        {"ledger": [COST | {"expert": 1}]},
        r"ledger\[0\]\.expert expected str, got 1",
    ),
    "cost in half tokens": (
        {"ledger": [COST | {"tokens": 1.5}]},
        r"ledger\[0\]\.tokens expected int, got 1\.5",
    ),
    "cost of no time": (
        {"ledger": [COST, COST | {"seconds": "2"}]},
        r"ledger\[1\]\.seconds expected float, got '2'",
    ),
    "cost below nothing": (
        {"ledger": [COST | {"flops": -1.0}]},
        r"ledger\[0\]: flops expected a number from 0, got -1\.0",
    ),
    "cost without end": (
        {"ledger": [COST | {"flops": math.inf}]},
        r"ledger\[0\]: flops expected a number from 0, got inf",
    ),
    "cost that is no number": (
        {"ledger": [COST | {"seconds": math.nan}]},
        r"ledger\[0\]: seconds expected .*got nan",
    ),
    "config no object": ({"config": []}, r"config expected dict, got \[\]"),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
def test_a_malformed_manifest_is_refused_in_one_line(tmp_path, changes, message):
    FULL.write(tmp_path)
    edit_json(tmp_path / MANIFEST, **changes)
    with pytest.raises(BarError, match=rf"manifest\.json: {message}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"format": "megatron_bar/1"', "[" * 200_000, '{"format": "\\ud800"}']
)
def test_what_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BarError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_no_manifest_is_refused(tmp_path):
    with pytest.raises(BarError, match=r"manifest\.json: not found"):
        read_manifest(tmp_path)


def test_an_expert_gathers_its_stages_and_keeps_its_anchor():
    midtrain = TrainingRecord(stage="midtrain", policy="midtrain")
    sft = FULL.after(midtrain, sources=(), expert="math").after(SFT, sources=FULL.sources)
    assert (sft.kind, sft.stage, sft.recipe, sft.anchor_hash) == ("expert", "sft", "r", "aa")
    assert sft.experts[0] == FULL.experts[0]
    assert sft.experts[1] == replace(FULL.experts[1], name="math", trained=(midtrain, SFT))
    assert sft.sources == FULL.sources
    assert (sft.config, sft.notes) == (None, ())


def test_routing_belongs_to_no_expert_and_a_dense_model_to_itself():
    merged = Manifest(family="flex_olmo", kind="merged", experts=FULL.experts, router_stale=True)
    routed = merged.after(TrainingRecord(stage="route"), sources=())
    assert (routed.kind, routed.experts, routed.router_stale) == ("routed", FULL.experts, False)
    dense = Manifest(family="olmo2", kind="dense", experts=(Expert(index=0, name="base"),))
    assert dense.after(TrainingRecord(stage="pretrain"), sources=()).experts[0].stages == ("pretrain",)


def test_the_ledger_goes_on_and_joins_each_entry_once():
    new = Cost(**COST | {"step": "final"})
    assert FULL.after(SFT, sources=(), cost=new).ledger == (*FULL.ledger, new)
    assert FULL.after(SFT, sources=()).ledger == FULL.ledger
    assert union(FULL.ledger, (new,), FULL.ledger) == (*FULL.ledger, new)
