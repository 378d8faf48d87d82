"""Folders that transformers wrote are read bit by bit; spoiled ones are refused before anything else
happens."""

import json
import shutil

import pytest
import torch
from folders import NOT_FINITE, SPOILED, SPOILED_MOE, WORDS, edit_json, load_tensors, save_hf, whole
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megatron_bar.errors import BarError
from megatron_bar.weights.folder import INDEX, Folder, companions, is_finite, require_tokenizer
from megatron_bar.weights.hashes import hash_units
from megatron_bar.weights.manifest import has_manifest


def test_whatever_transformers_saves_is_read_bit_by_bit(dense, moe, sharded):
    assert whole(dense).dtype == "float32"
    assert whole(moe).config.num_experts == 2
    folder = whole(sharded)
    assert (folder.dtype, folder.config.num_experts) == ("bfloat16", 3)
    assert folder.nbytes == sum(tensor.nbytes for tensor in load_tensors(sharded).values())
    assert all(folder.read(name).dtype == torch.bfloat16 for name in folder.tensors)


def test_reading_parts(sharded):
    folder, name = Folder.open(sharded), "model.layers.1.mlp.experts.2.gate_proj.weight"
    tensor = load_tensors(sharded)[name]
    assert torch.equal(folder.rows(name, 5, 9), tensor[5:9])
    assert torch.equal(folder.slice(name)[5:9, 3:4], tensor[5:9, 3:4])
    assert torch.equal(torch.cat(list(folder.chunks(name))), tensor)


def test_few_files_stay_open(sharded):
    folder = Folder.open(sharded)
    files = {info.file for info in folder.tensors.values()}
    assert len(files) > 4
    for _ in range(2):
        for name in folder.tensors:
            folder.read(name)
            assert len(folder._handles) <= 4


def test_large_tensors_come_in_chunks(tmp_path):
    """4 MiB are 65,536 rows of 16 in fp32."""
    path = save_hf(tmp_path / "large", vocab_size=150_000)
    folder, name = Folder.open(path), "model.embed_tokens.weight"
    assert [len(chunk) for chunk in folder.chunks(name)] == [65_536, 65_536, 18_928]
    assert torch.equal(torch.cat(list(folder.chunks(name))), load_tensors(path)[name])


def test_the_dtype_is_what_the_tensors_are(dense, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(dense, folder)
    edit_json(folder / "config.json", dtype="bfloat16", torch_dtype="bfloat16")
    assert Folder.open(folder).config.dtype == "float32"


@pytest.mark.parametrize("spoil, message", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_spoiled_folder_is_refused_in_one_line(request, tmp_path, kind, spoil, message):
    check_refused(request.getfixturevalue(kind), tmp_path / "folder", spoil, message)


@pytest.mark.parametrize("spoil, message", SPOILED_MOE.values(), ids=SPOILED_MOE)
def test_a_spoiled_flexolmo_folder_is_refused_in_one_line(moe, tmp_path, spoil, message):
    check_refused(moe, tmp_path / "folder", spoil, message)


def check_refused(source, folder, spoil, message):
    shutil.copytree(source, folder)
    spoil(folder)
    with pytest.raises(BarError, match=message) as caught:
        Folder.open(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil, message", NOT_FINITE.values(), ids=NOT_FINITE)
def test_a_value_that_is_not_finite_is_found(dense, tmp_path, spoil, message):
    folder = tmp_path / "folder"
    shutil.copytree(dense, folder)
    hash_units(Folder.open(folder), finite=True)
    spoil(folder)
    with pytest.raises(BarError, match=message):
        hash_units(Folder.open(folder), finite=True)


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.lists(st.floats(width=16), max_size=20),
)
def test_the_fast_look_for_what_is_not_finite_sees_what_torch_sees(dtype, values):
    tensor = torch.tensor(values, dtype=dtype)
    assert is_finite(tensor) == bool(tensor.isfinite().all())


def spoil_index(sharded, folder, change):
    shutil.copytree(sharded, folder)
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"], sorted(set(index["weight_map"].values())))
    (folder / INDEX).write_text(json.dumps(index))


NORM = "model.norm.weight"
BAD_INDEX = {
    "a file that is not there": (
        lambda m, files: m.update({NORM: "none.safetensors"}),
        rf"'{NORM}' expected in none.*no such file",
    ),
    "a path upwards": (
        lambda m, files: m.update({NORM: "../x.safetensors"}),
        rf"'{NORM}': expected the name of .*'\.\./x",
    ),
    "an absolute path": (
        lambda m, files: m.update({NORM: "/etc/x.safetensors"}),
        rf"'{NORM}': expected the name of .*'/etc/x",
    ),
    "a backslash": (
        lambda m, files: m.update({NORM: "..\\x.safetensors"}),
        rf"'{NORM}': expected the name of",
    ),
    "a pickle": (
        lambda m, files: m.update({NORM: "pytorch_model.bin"}),
        rf"'{NORM}': expected the name of .*pytorch_model",
    ),
    "no string": (lambda m, files: m.update({NORM: 3}), rf"'{NORM}': expected the name of .*got 3"),
    "another shard": (
        lambda m, files: m.update({NORM: files[0]}),
        rf"index\.json: tensor '{NORM}' expected in .*, got '{'model-00001'}",
    ),
    "a tensor no shard has": (
        lambda m, files: m.update({"x": files[0]}),
        r"tensor 'x' expected \(the index says so\), got",
    ),
    "a tensor left out": (
        lambda m, files: m.pop(NORM),
        rf"index\.json: tensor '{NORM}' expected in .*, got None",
    ),
    "a name too long": (
        lambda m, files: m.update({NORM: "x" * 300 + ".safetensors"}),
        rf"'{NORM}' expected in x.*no such file",
    ),
    "nothing": (lambda m, files: m.clear(), r"index\.json: expected an object 'weight_map'"),
}


@pytest.mark.parametrize("change, message", BAD_INDEX.values(), ids=BAD_INDEX)
def test_an_index_that_lies_is_refused(sharded, tmp_path, change, message):
    spoil_index(sharded, tmp_path / "folder", change)
    with pytest.raises(BarError, match=message):
        Folder.open(tmp_path / "folder")


def test_a_tensor_in_two_shards_is_refused(sharded, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(sharded, folder)
    last = sorted(folder.glob("*.safetensors"))[-1]
    save_file(load_file(last) | {"model.embed_tokens.weight": torch.ones(19, 16).bfloat16()}, last)
    with pytest.raises(BarError, match=r"tensor 'model\.embed_tokens\.weight' expected"):
        Folder.open(folder)


def test_shards_without_index_and_left_over_shards_are_refused(sharded, dense, tmp_path):
    shutil.copytree(sharded, tmp_path / "a")
    (tmp_path / "a" / INDEX).unlink()
    with pytest.raises(BarError, match=r"expected model\.safetensors or .*index\.json, got model-00001"):
        Folder.open(tmp_path / "a")
    shutil.copytree(dense, tmp_path / "b")
    shutil.copy(next(sharded.glob("model-*.safetensors")), tmp_path / "b")
    with pytest.raises(BarError, match=r"b/model-.*surplus weights: expected only model\.safetensors"):
        Folder.open(tmp_path / "b")


def test_a_file_linked_into_the_folder_is_read(dense, tmp_path):
    """As the Hugging Face cache lays its snapshots out."""
    folder = tmp_path / "models--a--b/snapshots/1"
    shutil.copytree(dense, folder)
    (folder / "model.safetensors").rename(tmp_path / "models--a--b/blob")
    (folder / "model.safetensors").symlink_to("../../blob")
    assert hash_units(whole(folder)) == hash_units(Folder.open(dense))


def test_companions(dense, tmp_path):
    assert {file.name for file in companions(dense)} == {"tokenizer.json", "generation_config.json"}
    require_tokenizer(dense, len(WORDS))
    with pytest.raises(
        BarError, match=r"no tokenizer: expected tokenizer\.json or tokenizer\.model, got neither"
    ):
        require_tokenizer(tmp_path, 19)
    (tmp_path / "tokenizer.model").touch()  # of SentencePiece: read by whoever uses it
    require_tokenizer(tmp_path, 19)


BAD_TOKENIZERS = {
    "": "not readable as JSON",
    "{}": "expected a tokenizer with an object 'model' that has a 'vocab', got none",
    '{"model": {}}': "expected a tokenizer with an object 'model' that has a 'vocab', got none",
    '{"model": {"vocab": {"a": 0, "b": 19}}}': "token ids expected below vocab_size 19, got 19",
    '{"model": {"vocab": {"a": "0"}}}': "token ids expected below vocab_size 19, got '0'",
    '{"model": {"vocab": {"a": -1}}}': "token ids expected below vocab_size 19, got -1",
    json.dumps({"model": {"vocab": [["a", 0.0]] * 20}}): "token ids expected below vocab_size 19, got 19",
    '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 50}]}': "token ids expected below vocab_size "
    "19, got 50",
    '{"model": {"vocab": {"a": 0}}, "added_tokens": [7.5]}': "token ids expected below vocab_size 19, "
    "got 7.5",
}


@pytest.mark.parametrize("text, message", BAD_TOKENIZERS.items())
def test_what_is_no_tokenizer_of_the_model_is_refused(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BarError, match=rf"tokenizer\.json: {message}"):
        require_tokenizer(tmp_path, 19)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 60, "num_experts": 1000}, {"num_experts": 20}])
def test_more_layers_and_experts_than_tensors_are_refused_before_they_are_named(
    moe, tmp_path, monkeypatch, changes
):
    monkeypatch.setattr("megatron_bar.weights.folder.tensor_shapes", lambda config: pytest.fail("named"))
    message = r"config\.json expected \d+ layers of \d+ experts, got 33 tensors in all"
    check_refused(moe, tmp_path / "folder", lambda p: edit_json(p / "config.json", **changes), message)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_path_that_no_folder_can_have_is_refused(name):
    assert not has_manifest(name)
    with pytest.raises(BarError, match=r"config\.json: not readable"):
        Folder.open(name)
