"""The manifest's round trip, its strictness, and how it follows a folder through the stages."""

import json

import pytest
from folders import edit_json

from megatron_bar.errors import BarError
from megatron_bar.weights.manifest import MANIFEST, Expert, Manifest, Source, has_manifest, read_manifest

FULL = Manifest(
    family="flex_olmo",
    kind="branched",
    stage="branch",
    recipe="tiny",
    anchor_hash="aa",
    experts=(Expert(index=0, name="anchor", stages=("pretrain", "sft")), Expert(index=1, name="domain", anchor_hash="aa")),
    sources=(Source(role="anchor", name="BAR-7B", hash="bb"),),
    notes=("rope_theta differs",),
    config={"model_type": "flex_olmo"},
)


@pytest.mark.parametrize("manifest", [FULL, Manifest(family="olmo2", kind="dense")], ids=["full", "minimal"])
def test_what_is_written_is_read(tmp_path, manifest):
    assert not has_manifest(tmp_path)
    manifest.write(tmp_path)
    assert has_manifest(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert json.loads((tmp_path / MANIFEST).read_text())["format"] == "megatron_bar/1"


BAD = {
    "another format": ({"format": "megatron_bar/2"}, r"format expected 'megatron_bar/1', got 'megatron_bar/2'"),
    "no format": ({"format": None}, r"format expected 'megatron_bar/1', got None"),
    "unknown field": ({"extra": 1}, r"the manifest expected only .*got 'extra'"),
    "no family": ({"family": None}, r"the manifest: 'family' is missing"),
    "unknown family": ({"family": "llama"}, r"family expected one of olmo2, flex_olmo, got 'llama'"),
    "unknown kind": ({"kind": "big"}, r"kind expected one of dense, .*got 'big'"),
    "kind no string": ({"kind": ["dense"]}, r"kind expected str, got \['dense'\]"),
    "stage no string": ({"stage": 3}, r"stage expected str, got 3"),
    "hash no string": ({"anchor_hash": 3}, r"anchor_hash expected str, got 3"),
    "experts no list": ({"experts": {}}, r"experts expected list, got \{\}"),
    "expert no object": ({"experts": [1]}, r"experts\[0\] expected dict, got 1"),
    "expert without name": ({"experts": [{"index": 0}]}, r"experts\[0\]: 'name' is missing"),
    "expert with index true": ({"experts": [{"index": True, "name": "a"}]}, r"experts\[0\]\.index expected int, got True"),
    "expert out of order": ({"experts": [{"index": 1, "name": "a"}]}, r"experts expected with index 0, 1, .*got \[1\]"),
    "stages no strings": (
        {"experts": [{"index": 0, "name": "a", "stages": [1]}]},
        r"experts\[0\]\.stages\[0\] expected str, got 1",
    ),
    "source without hash": ({"sources": [{"role": "a", "name": "b"}]}, r"sources\[0\]: 'hash' is missing"),
    "source with a path": (
        {"sources": [{"role": "a", "name": "b", "hash": "c", "path": "d"}]},
        r"sources\[0\] expected only .*'path'",
    ),
    "notes no strings": ({"notes": [None]}, r"notes\[0\] expected str, got None"),
    "config no object": ({"config": []}, r"config expected dict, got \[\]"),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
def test_a_malformed_manifest_is_refused_in_one_line(tmp_path, changes, message):
    FULL.write(tmp_path)
    edit_json(tmp_path / MANIFEST, **changes)
    with pytest.raises(BarError, match=rf"manifest\.json: {message}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "megatron_bar/1"', "[" * 200_000, '{"format": "\\ud800"}'])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BarError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_no_manifest_is_refused(tmp_path):
    with pytest.raises(BarError, match=r"manifest\.json: not found"):
        read_manifest(tmp_path)


def test_an_expert_gathers_its_stages_and_keeps_its_anchor():
    sft = FULL.after("midtrain", recipe="r", sources=(), expert="math").after("sft", recipe="r", sources=FULL.sources)
    assert (sft.kind, sft.stage, sft.recipe, sft.anchor_hash) == ("expert", "sft", "r", "aa")
    assert sft.experts[0] == FULL.experts[0]
    assert sft.experts[1] == Expert(index=1, name="math", stages=("midtrain", "sft"), anchor_hash="aa")
    assert sft.sources == FULL.sources
    assert (sft.config, sft.notes) == (None, ())


def test_routing_belongs_to_no_expert_and_a_dense_model_to_itself():
    merged = Manifest(family="flex_olmo", kind="merged", experts=FULL.experts)
    assert merged.after("route", recipe=None, sources=()).kind == "routed"
    assert merged.after("route", recipe=None, sources=()).experts == FULL.experts
    dense = Manifest(family="olmo2", kind="dense", experts=(Expert(index=0, name="base"),))
    assert dense.after("pretrain", recipe=None, sources=()).experts[0].stages == ("pretrain",)
