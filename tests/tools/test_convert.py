"""import_hf and export_hf: bit-exact there and back and with Megatron's own checkpoints of any layout;
nothing executed, nothing left of a failure."""

import builtins
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed import run_distributed
from folders import NOT_FINITE, SPOILED, SPOILED_MOE, copy_with, edit_json, load_tensors, save_hf, whole
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.serialization import load_common_state_dict
from megatron_writer import save_weights
from scripts import ROOT, process, refused
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from megatron_bar.conversion import convert, dist_files
from megatron_bar.conversion.parameters import weight_ops
from megatron_bar.errors import BarError
from megatron_bar.models import logits, torch_dist
from megatron_bar.models.build import build_model
from megatron_bar.models.shards import load_folder
from megatron_bar.parallel.state import ParallelConfig, set_layout
from megatron_bar.weights.folder import Folder, companions
from megatron_bar.weights.manifest import MANIFEST, read_manifest
from megatron_bar.weights.writer import WriteOptions

SHAPES = {
    "dense": {},
    "two": {"experts": 2, "dtype": "bfloat16"},
    "five": {"experts": 5, "num_experts_per_tok": 3, "dtype": "bfloat16", "shard": "9KB"},
    "five-fp32": {"experts": 5, "num_key_value_heads": 4},
}
LAYOUTS = {
    "TP1": ("five", ParallelConfig(), 1),
    "TP2": ("two", ParallelConfig(tensor=2), 2),
    "TP2 dense": ("dense", ParallelConfig(tensor=2), 2),
    "TP2, no groups": ("five-fp32", ParallelConfig(tensor=2), 2),
    "PP2": ("five", ParallelConfig(pipeline=2), 2),
    "EP2": ("two", ParallelConfig(expert=2), 2),
    "DP2": ("dense", ParallelConfig(), 2),
}
each_layout = pytest.mark.parametrize("name, layout, ranks", LAYOUTS.values(), ids=LAYOUTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_hf(tmp_path_factory.mktemp("hf") / name, seed=len(made), **SHAPES[name])
        return made[name]

    return folder


@pytest.fixture(scope="module")
def checkpoints(folders, tmp_path_factory):
    made = {}

    def checkpoint(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("ckpt") / name
            convert.import_folder(folders(name), made[name])
        return made[name]

    return checkpoint


@pytest.fixture
def checkpoint(checkpoints):
    return checkpoints("two")


def loaded_model(source: Path, layout: ParallelConfig):
    opened = Folder.open(source)
    set_layout(layout, opened.config, seed=0)
    model = build_model(opened.config, layout)
    load_folder(model, opened)
    return model


def save_by_megatron(source: Path, out: Path, layout: ParallelConfig) -> None:
    model = loaded_model(source, layout)
    if layout == ParallelConfig():
        assert {name for name, _ in model.named_parameters()} == weight_ops(model.shape).keys()
    save_weights(model, out)


def load_both_ways(source: Path, checkpoint: Path, layout: ParallelConfig) -> None:
    """By `load_weights`, and by Megatron's own load: what the source holds, padding too."""
    model = loaded_model(source, layout)
    expected = {name: param.clone() for name, param in model.named_parameters()}
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(3.0)
    torch_dist.load_weights(model, checkpoint)
    assert equal(expected, dict(model.named_parameters()))
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(3.0)
    loaded, missing, surplus = dist_checkpointing.load(
        torch_dist.weights_state(model), str(checkpoint), strict="return_all"
    )
    assert (missing, surplus) == (set(), set())
    assert equal(expected, {name: loaded[name] for name in expected})
    dist.barrier()


@each_layout
def test_a_checkpoint_that_megatron_writes_exports_bit_exact(
    name, layout, ranks, folders, checkpoints, tmp_path
):
    shutil.copytree(
        checkpoints(name),
        tmp_path / "ckpt",
        ignore=shutil.ignore_patterns("*.distcp", ".metadata", "metadata.json"),
    )
    (tmp_path / "megatron").mkdir()
    run_distributed(save_by_megatron, ranks, folders(name), tmp_path / "megatron", layout)
    shutil.copytree(tmp_path / "megatron", tmp_path / "ckpt", dirs_exist_ok=True)
    _, figure = convert.export_checkpoint(
        tmp_path / "ckpt",
        tmp_path / "back",
        check=logits.compare_logits,
        options=WriteOptions(max_shard_bytes=9000),
    )
    print(f"\nlogits {name}: {figure:.1e}")
    assert 0 < figure <= 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "ckpt", "megatron"]
    assert equal(load_tensors(folders(name)), load_tensors(tmp_path / "back"))
    assert whole(tmp_path / "back").config == Folder.open(folders(name)).config
    for file in companions(folders(name)):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


@each_layout
def test_an_imported_checkpoint_loads_on_every_layout(name, layout, ranks, folders, checkpoints):
    run_distributed(load_both_ways, ranks, folders(name), checkpoints(name), layout)


@pytest.mark.parametrize("name", SHAPES)
def test_an_imported_checkpoint_holds_what_megatron_writes(name, folders, checkpoints, tmp_path):
    run_distributed(save_by_megatron, 1, folders(name), tmp_path, ParallelConfig())
    ours, theirs = metadata(checkpoints(name)), metadata(tmp_path)
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    assert (checkpoints(name) / "metadata.json").read_text() == (tmp_path / "metadata.json").read_text()
    assert load_common_state_dict(str(checkpoints(name))) == load_common_state_dict(str(tmp_path))
    for index in theirs.storage_data:
        if not index.fqn.startswith("common_state"):
            assert torch.equal(item(checkpoints(name), index), item(tmp_path, index)), index


def item(ckpt: Path, index) -> torch.Tensor:
    """As torch alone reads it."""
    place = metadata(ckpt).storage_data[index]
    data = (ckpt / place.relative_path).read_bytes()[place.offset :][: place.length]
    return torch.load(io.BytesIO(data), weights_only=True)


def test_of_a_view_only_what_it_shows_is_written(tmp_path):
    file = tmp_path / "data"
    items = dist_files.write_items(file, [("key", torch.ones(100, 1000)[3:5])], common=False)
    assert file.stat().st_size < 2 * 1000 * 4 + 5000
    assert items == {"key": [0, file.stat().st_size]}
    assert torch.equal(torch.load(file, weights_only=True), torch.ones(2, 1000))


def anonymous() -> int:
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_conversion_holds_one_tensor_at_a_time(tmp_path, record_property):
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
    source = save_hf(tmp_path / "hf", experts=8, dtype="bfloat16", **wide)
    nbytes, peak = Folder.open(source).nbytes, anonymous()
    before = peak

    class Watch:
        def __init__(self, what, total):
            pass

        def __enter__(self):
            return self

        def __call__(self, count):
            nonlocal peak
            peak = max(peak, anonymous())

        def __exit__(self, *_):
            pass

    convert.import_folder(source, tmp_path / "ckpt", progress=Watch)
    convert.export_checkpoint(tmp_path / "ckpt", tmp_path / "back", options=WriteOptions(progress=Watch))
    record_property(
        "figure",
        f"anonymous memory of import and export: {(peak - before) / 1e6:.0f} MB for {nbytes / 1e6:.0f} MB",
    )
    assert peak - before < nbytes / 4


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


def test_the_command_lines(inline, branched, tmp_path):
    status, out, _ = inline("import_hf", "--hf", branched, "--out", tmp_path / "ckpt")
    assert status == 0
    assert out.startswith(
        "  ✓ embedding            1 tensors  read back, equal\n  ✓ attention           12 tensors  read back"
    )
    assert out.endswith(
        f"  ✓ lm_head              1 tensors  read back, equal\n{tmp_path}/ckpt: checkpoint of {branched}, "
        f"verified bit for bit\n"
    )
    status, out, _ = inline("import_hf", "--hf", branched, "--out", tmp_path / "unread", "--verify", "none")
    assert (status, out) == (0, f"{tmp_path}/unread: checkpoint of {branched}, not verified\n")
    assert (tmp_path / "unread" / ".metadata").read_bytes() == (tmp_path / "ckpt" / ".metadata").read_bytes()
    status, out, _ = inline("inspect_model", tmp_path / "ckpt")
    for text in (
        "ckpt: checkpoint",
        "flex_olmo, 2 experts, float32",
        "kind: branched",
        "expert 0: anchor",
        "then top-2: all",
    ):
        assert text in out
    for verify, said in (
        ("none", "{out}: not verified\n"),
        ("weights", "  ✓ embedding .* equal\n{out}: verified\n"),
        (
            "logits",
            "  ✓ embedding .* equal\n  ✓ logits within [0-9.e-]+ of those of transformers .*\n{out}: "
            "verified\n",
        ),
    ):
        status, out, _ = inline(
            "export_hf", "--checkpoint", tmp_path / "ckpt", "--out", tmp_path / verify, "--verify", verify
        )
        assert status == 0
        assert re.fullmatch(said.format(out=tmp_path / verify), out, re.DOTALL), out
        assert equal(load_tensors(branched), load_tensors(tmp_path / verify))
        assert read_manifest(tmp_path / verify) == read_manifest(branched)
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt", "unread", "none", "weights", "logits"}


def assert_matches(pattern, text):
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


def test_another_dtype_and_shard_size(inline, folders, tmp_path):
    source = folders("dense")
    assert inline("import_hf", "--hf", source, "--out", tmp_path / "ckpt")[0] == 0
    status, out, _ = inline(
        *("export_hf", "--checkpoint", tmp_path / "ckpt", "--out", tmp_path / "hf", "--dtype", "bfloat16"),
        *("--max-shard-size", "2KB", "--verify", "logits"),
    )
    assert status == 0 and "limit 1e-05, fp32" in out
    rounded = {name: tensor.bfloat16() for name, tensor in load_tensors(source).items()}
    assert equal(rounded, load_tensors(tmp_path / "hf"))
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 3
    assert whole(tmp_path / "hf").config.dtype == "bfloat16"


@pytest.mark.parametrize("tool", ["import_hf", "export_hf"])
def test_help_shows_an_example_that_parses(inline, tool):
    status, out, err = inline(tool, "--help")
    assert (status, err) == (0, "")
    example = " ".join(out.split()).rpartition(f"example: python tools/{tool}.py ")[2]
    assert "not found" in refused(inline(tool, *example.split()))


NO_TOKENIZER = {"no tokenizer": (lambda p: (p / "tokenizer.json").unlink(), r"no tokenizer: expected")}
BAD_FOLDERS = {
    name: case
    for name, case in (SPOILED | SPOILED_MOE | NOT_FINITE | NO_TOKENIZER).items()
    if name != "mixed dtypes"
}


@pytest.mark.parametrize("spoil, message", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_import_refuses_a_spoiled_folder(inline, branched, tmp_path, spoil, message):
    broken = shutil.copytree(branched, tmp_path / "broken")
    spoil(broken)
    err = refused(inline("import_hf", "--hf", broken, "--out", tmp_path / "out"))
    assert str(broken) in err
    assert_matches(message, err)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def overwrite(path: Path, data: bytes, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


class Evil:
    """Unpickled, it is a call."""

    def __init__(self, function, arguments: tuple):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def metadata(ckpt: Path):
    return pickle.loads((ckpt / ".metadata").read_bytes())  # noqa: S301  of our own making


def edit_metadata(ckpt: Path, change) -> None:
    value = metadata(ckpt)
    change(value)
    (ckpt / ".metadata").write_bytes(pickle.dumps(value))


def drop_tensor(value) -> None:
    del value.state_dict_metadata["decoder.final_layernorm.weight"]


def add_tensor(value) -> None:
    key, like = "decoder.layers.2.mlp.router.weight", "decoder.final_layernorm.weight"
    value.state_dict_metadata[key] = value.state_dict_metadata[like]
    value.storage_data[MetadataIndex(key, torch.Size([0]))] = value.storage_data[place_of(value, like)]


def lose_part(value) -> None:
    value.state_dict_metadata["embedding.word_embeddings.weight"].chunks.clear()


def point_elsewhere(value) -> None:
    value.storage_data[place_of(value, "output_layer.weight")].relative_path = "../other/__0_0.distcp"


def split_over(value) -> None:
    """Two parts of as many values as the tensor has, one row of them twice and one never."""
    parts = value.state_dict_metadata["embedding.word_embeddings.weight"].chunks
    parts[:] = [
        ChunkStorageMetadata(torch.Size([at, 0]), torch.Size([rows, 16])) for at, rows in ((0, 10), (9, 54))
    ]


def outside(value) -> None:
    value.state_dict_metadata["embedding.word_embeddings.weight"].chunks[0].offsets = torch.Size([-1, 0])


def scalar(value) -> None:
    described = value.state_dict_metadata["output_layer.weight"]
    described.size, described.chunks = torch.Size([]), [ChunkStorageMetadata(torch.Size([]), torch.Size([]))]
    place = value.storage_data[place_of(value, "output_layer.weight")]
    value.storage_data[MetadataIndex("output_layer.weight", torch.Size([]))] = place


def describe(**changes):
    return lambda value: vars(value.state_dict_metadata["output_layer.weight"]).update(changes)


def lose_place(value) -> None:
    del value.storage_data[place_of(value, "output_layer.weight")]


def place_of(value, key: str):
    return next(index for index in value.storage_data if index.fqn == key)


def take_another(value) -> None:
    """The bytes of another tensor, of another shape."""
    value.storage_data[place_of(value, "output_layer.weight")] = value.storage_data[
        place_of(value, "decoder.layers.0.mlp.router.weight")
    ]


def set_place(**changes):
    def change(value) -> None:
        vars(value.storage_data[place_of(value, "output_layer.weight")]).update(changes)

    return change


def not_finite(ckpt: Path) -> None:
    """Rewrites one norm's bytes in place, as torch.save wrote it."""
    place = next(
        p for index, p in metadata(ckpt).storage_data.items() if index.fqn == "decoder.final_layernorm.weight"
    )
    data = (ckpt / place.relative_path).read_bytes()[place.offset :][: place.length]
    tensor = torch.load(io.BytesIO(data), weights_only=True)
    buffer = io.BytesIO()
    tensor[3] = float("nan")
    torch.save(tensor, buffer)
    assert len(buffer.getvalue()) == place.length
    overwrite(ckpt / place.relative_path, buffer.getvalue(), place.offset)


def config(**changes):
    def change(ckpt: Path) -> None:
        value = json.loads((ckpt / MANIFEST).read_text())
        value["config"] |= changes
        (ckpt / MANIFEST).write_text(json.dumps(value))

    return change


DATA = "__0_0.distcp"
BAD_CHECKPOINTS = {
    "no manifest": (lambda p: (p / MANIFEST).unlink(), r"manifest\.json: not found"),
    "no config": (
        lambda p: edit_json(p / MANIFEST, config=None),
        r"expected config\.json or a config in manifest\.json, got",
    ),
    "no tokenizer": NO_TOKENIZER["no tokenizer"],
    "no metadata": (lambda p: (p / ".metadata").unlink(), r"\.metadata: not found; expected a checkpoint"),
    "empty metadata": (
        lambda p: os.truncate(p / ".metadata", 0),
        r"\.metadata: refused: expected a whole pickle of at most \d+ opcodes, got no end",
    ),
    "truncated metadata": (lambda p: os.truncate(p / ".metadata", 3000), r"\.metadata: refused: "),
    "metadata of text": (lambda p: (p / ".metadata").write_text("{}"), r"\.metadata: refused: "),
    "a pickled list": (
        lambda p: (p / ".metadata").write_bytes(pickle.dumps([1])),
        r"\.metadata: refused: expected a torch\..*\.Metadata, got list",
    ),
    "no data": (
        lambda p: (p / DATA).unlink(),
        rf"\.metadata: refused: '[\w./]+' expected in {DATA}, got no such file",
    ),
    "truncated data": (
        lambda p: os.truncate(p / DATA, 9000),
        rf"{DATA} is truncated: .* expected up to byte \d+, got 9000",
    ),
    "zeros for data": (
        lambda p: (p / DATA).write_bytes(bytes((p / DATA).stat().st_size)),
        r"could not be read: ",
    ),
    "not finite": (not_finite, r"tensor 'model\.norm\.weight': expected finite values, got NaN"),
    "data elsewhere": (
        lambda p: edit_metadata(p, point_elsewhere),
        r"'output_layer\.weight': expected in .* got '\.\./other/",
    ),
    "half a tensor": (
        lambda p: edit_metadata(p, lose_part),
        r"'embedding\.word_embeddings\.weight': expected 1024 values, got 0",
    ),
    "missing tensor": (
        lambda p: edit_metadata(p, drop_tensor),
        r"expected tensor 'decoder\.final_layernorm\.weight', got no",
    ),
    "surplus tensor": (
        lambda p: edit_metadata(p, add_tensor),
        r"expected no tensor 'decoder\.layers\.2\.mlp\.router\.weight'",
    ),
    "fewer layers": (
        config(num_hidden_layers=1),
        r"another model's checkpoint: expected no tensor 'decoder\.layers\.1\.",
    ),
    "fewer experts": (
        config(num_experts=3),
        r"another model's checkpoint: expected tensor '.*experts\.2\..*', got no such",
    ),
    "wider": (config(intermediate_size=32), r"tensor '.*linear_fc\d\.weight.*': expected .*32.* got .*24"),
    "larger vocabulary": (
        config(vocab_size=65),  # one more than a rank of 16 bit pads it to
        r"tensor '.*weight': expected \(\[128, 16\], .*\), got \(\[64, 16\]",
    ),
    "smaller vocabulary": (
        config(vocab_size=17),  # padded to as many rows, so by the receipts
        r"tensor 'model\.embed_tokens\.weight' changed since",
    ),
    "another dtype": (config(dtype="float32"), r"expected \(.*torch\.float32\), got \(.*torch\.bfloat16\)"),
    "parts that overlap": (
        lambda p: edit_metadata(p, split_over),
        r"'embedding\.\S+': expected parts side by side, got",
    ),
    "a part outside": (
        lambda p: edit_metadata(p, outside),
        r"'embedding\.\S+': expected parts within \[64, 16\], got",
    ),
    "a part nowhere": (
        lambda p: edit_metadata(p, lose_place),
        r"'output_layer\.weight': expected the bytes of its part",
    ),
    "a scalar": (
        lambda p: edit_metadata(p, scalar),
        r"'output_layer\.weight': expected \(\[64, 16\], .* got \(\[\]",
    ),
    "no properties": (
        lambda p: edit_metadata(p, describe(properties=None)),
        r"'\S+': expected properties with a dtype out of .*, got none",
    ),
    "a size of text": (
        lambda p: edit_metadata(p, describe(size=(64.0, 16))),
        r"expected sizes and offsets of tensors, got other values",
    ),
    "another's data": (
        lambda p: edit_metadata(p, take_another),
        r"'output_layer\.weight' could not be read: .*64.*2, 16",
    ),
    "before the file": (
        lambda p: edit_metadata(p, set_place(offset=-9)),
        r"'output_layer\.weight' expected at some bytes of .* from -9",
    ),
    "compressed": (
        lambda p: edit_metadata(p, set_place(transform_descriptors=["zstd"])),
        r"save writes it, got it transformed",
    ),
    "a thousand layers": (
        config(num_hidden_layers=1000),
        r"expected 1000 layers of 2 experts, got 29 tensors",
    ),
    "float16": (config(dtype="float16"), r"dtype expected one of float32, bfloat16, got 'float16'"),
    "unknown family": (config(model_type="gpt2"), r"manifest\.json: config: model_type must be"),
}


@pytest.mark.parametrize("spoil, message", BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS)
def test_export_refuses_a_spoiled_checkpoint(inline, checkpoint, tmp_path, spoil, message):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    spoil(broken)
    err = refused(inline("export_hf", "--checkpoint", broken, "--out", tmp_path / "out"))
    assert str(broken) in err
    assert_matches(message, err)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def resave(ckpt: Path, key: str, value) -> None:
    """Another item in the place of one, at the end of the file."""
    start = (ckpt / DATA).stat().st_size
    with (ckpt / DATA).open("ab") as file:
        torch.save(value, file)

    def point_to_it(described) -> None:
        place = described.storage_data[place_of(described, key)]
        place.offset, place.length = start, (ckpt / DATA).stat().st_size - start

    edit_metadata(ckpt, point_to_it)


NORM = "decoder.final_layernorm.weight"
PLACES_OF_A_PICKLE = {
    "alone": lambda p, evil: (p / ".metadata").write_bytes(pickle.dumps(evil)),
    "planner data": lambda p, evil: edit_metadata(p, lambda value: setattr(value, "planner_data", evil)),
    "a size": lambda p, evil: edit_metadata(
        p, lambda value: setattr(value.state_dict_metadata[NORM], "size", evil)
    ),
    "a file name": lambda p, evil: edit_metadata(p, set_place(relative_path=evil)),
    "a key": lambda p, evil: edit_metadata(p, lambda value: value.state_dict_metadata.update({evil: None})),
    "a tensor's data": lambda p, evil: resave(p, NORM, evil),
    "in a list of data": lambda p, evil: resave(
        p, "output_layer.weight", [torch.ones(64, 16).bfloat16(), evil]
    ),
}
CALLS = {
    "system": lambda marker: (os.system, (f"touch {marker}",)),
    "exec": lambda marker: (builtins.exec, (f"open({str(marker)!r}, 'w')",)),
    "open": lambda marker: (builtins.open, (str(marker), "w")),
    "Popen": lambda marker: (subprocess.Popen, (["touch", str(marker)],)),
}


def test_no_pickle_is_executed(checkpoint, tmp_path, record_property):
    for what, call in CALLS.items():
        data = pickle.dumps(Evil(*call(tmp_path / what)))
        subprocess.run([sys.executable, "-c", f"import pickle; pickle.loads({data!r})"], check=True)
    while not all((tmp_path / what).exists() for what in CALLS):  # hostile indeed; nobody waits for Popen's
        time.sleep(0.01)
    for what in CALLS:
        (tmp_path / what).unlink()
    executed = tried = 0
    for place, put in PLACES_OF_A_PICKLE.items():
        for call in CALLS.values():
            broken, marker = shutil.copytree(checkpoint, tmp_path / "broken"), tmp_path / "executed"
            put(broken, Evil(*call(marker)))
            with pytest.raises(BarError, match=r"refused: |could not be read: it refers to") as error:
                convert.export_checkpoint(broken, tmp_path / "out")
            assert str(broken) in str(error.value) and "\n" not in str(error.value), place
            executed, tried = executed + marker.exists(), tried + 1
            shutil.rmtree(broken)
    record_property("figure", f"pickles executed: {executed} of {tried} hostile ones")
    assert executed == 0
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_beside_the_tensors_is_not_executed(checkpoint, folders, tmp_path):
    """Megatron's own load reads it, without any restriction."""
    broken, marker = shutil.copytree(checkpoint, tmp_path / "broken"), tmp_path / "executed"
    resave(broken, "common_state/shard_0_1", [Evil(*CALLS["system"](marker))])
    convert.export_checkpoint(broken, tmp_path / "out")
    assert not marker.exists()
    assert equal(load_tensors(folders("two")), load_tensors(tmp_path / "out"))
    load_common_state_dict(str(broken))
    assert marker.exists(), "the pickle is harmless, so this test shows nothing"


@pytest.mark.parametrize("tool", ["import_hf", "export_hf"])
def test_an_output_that_is_not_empty_is_refused(inline, folders, checkpoint, tmp_path, tool):
    source = ("--hf", folders("two")) if tool == "import_hf" else ("--checkpoint", checkpoint)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("kept")
    err = refused(inline(tool, *source, "--out", tmp_path / "full"))
    assert f"{tmp_path}/full: expected a new or empty folder to write to, got one that is not empty" in err
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "full",
        "full/precious",
    ]


def test_logits_that_differ_leave_no_folder(checkpoint, tmp_path):
    """No two implementations agree to the last bit: a tolerance of nothing fails, but not at the
    embedding."""
    message = (
        r"out: logits expected within 0 of those of transformers .*, got \d.*; the first block that "
        r"differs is layer 0 \("
    )
    with pytest.raises(BarError, match=message):
        convert.export_checkpoint(
            checkpoint, tmp_path / "out", check=partial(logits.compare_logits, tolerance=0.0)
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tensor, block",
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.mlp.gate.weight", "layer 0"),
        ("model.layers.1.self_attn.o_proj.weight", "layer 1"),
        ("model.norm.weight", "final_norm"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_the_first_block_that_differs_is_named(tensor, block, folders, checkpoint, tmp_path):
    other = copy_with(
        folders("two"), tmp_path / "other", lambda name, value: value * 1.5 if name == tensor else value
    )
    with pytest.raises(
        BarError, match=rf"/out: logits expected .*; the first block that differs is {block} \("
    ):
        logits.compare_logits(checkpoint, Folder.open(other).config, Folder.open(other), tmp_path / "out")


@contextmanager
def at(stage: str, act):
    """A progress that calls ``act`` as the stage of that name begins."""

    @contextmanager
    def progress(what, total):
        if what.startswith(stage):
            act()
        yield lambda count: None

    yield progress


def test_a_tensor_that_reads_back_differently_is_named(folders, tmp_path):
    def lose_a_bit():
        [file] = tmp_path.glob(".out.partial/folder/*.distcp")
        data = bytearray(file.read_bytes())
        row = (
            Folder.open(folders("two"))
            .read("model.layers.0.mlp.gate.weight")[1]
            .view(torch.uint8)
            .numpy()
            .tobytes()
        )
        data[data.index(row) + 6] ^= 1
        file.write_bytes(data)

    message = r"/out: tensor 'model\.layers\.0\.mlp\.gate\.weight\[1\]' read back differs: expected hash \w+"
    with at("verifying", lose_a_bit) as progress, pytest.raises(BarError, match=message):
        convert.import_folder(folders("two"), tmp_path / "out", progress=progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("raised", [KeyboardInterrupt, lambda: SystemExit("error: terminated")])
def test_an_import_that_is_stopped_before_a_file_is_finished_leaves_nothing(folders, tmp_path, raised):
    def stop():
        raise raised()

    with at("writing", stop) as progress, pytest.raises((KeyboardInterrupt, SystemExit)):
        convert.import_folder(folders("two"), tmp_path / "out", progress=progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, 2000, 20_000])
def test_a_disk_that_takes_no_more_is_told_and_leaves_nothing(inline, folders, tmp_path, limit):
    """A file size limit stands in for the full disk: the same errors from the same calls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    folders("two")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        err = refused(inline("import_hf", "--hf", folders("two"), "--out", tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search(r"\.out\.partial/.*: File too large", err)
    assert list(tmp_path.iterdir()) == []


def test_an_import_goes_on_where_it_was_killed(folders, tmp_path):
    """Finished data files are kept as they are, and the checkpoint is that of one run."""
    source, out, home = folders("five"), tmp_path / "out", tmp_path / ".out.partial"
    made = []

    @contextmanager
    def stopping(what, total):
        def advance(count):
            made.append(count)
            if what.startswith("writing") and len(list(home.glob("*.distcp.json"))) == 3:
                raise KeyboardInterrupt

        yield advance

    with pytest.raises(KeyboardInterrupt):
        convert.import_folder(source, out, max_file_bytes=5000, progress=stopping)
    kept = {path.name: path.stat().st_ino for path in (home / "folder").glob("*.distcp")}
    assert len(kept) == 4 and not out.exists()
    convert.import_folder(source, out, max_file_bytes=5000)
    again = {name: (out / name).stat().st_ino for name in sorted(kept)[:3]}
    assert again == {name: kept[name] for name in again} and len(list(out.glob("*.distcp"))) > 4
    convert.import_folder(source, tmp_path / "straight", max_file_bytes=5000)
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "straight" / path.name).read_bytes(), path.name
    convert.export_checkpoint(out, tmp_path / "back", check=logits.compare_logits)
    assert equal(load_tensors(source), load_tensors(tmp_path / "back"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "out", "straight"]


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from megatron_bar.conversion.convert import import_folder

@contextmanager
def killing(what, total):
    done = 0
    def advance(count):
        nonlocal done
        done += count
        if what.startswith(sys.argv[3]) and done > total / 2:
            os.kill(os.getpid(), signal.SIGKILL)
    yield advance

import_folder(sys.argv[1], sys.argv[2], progress=killing)
"""


@pytest.mark.faults
@pytest.mark.parametrize("during", ["writing", "verifying"])
def test_a_killed_import_is_not_taken_for_whole(during, folders, tmp_path, record_property):
    out = tmp_path / "out"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, folders("two"), out, during], env=env, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tmp_path.iterdir())) == 1 and not out.exists()
    convert.import_folder(folders("two"), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    convert.export_checkpoint(out, tmp_path / "back")
    assert equal(load_tensors(folders("two")), load_tensors(tmp_path / "back"))
    record_property(
        "figure", f"import killed while {during}: nothing taken for whole, the next run leaves no rest"
    )


@pytest.mark.slow
def test_as_processes(folders, tmp_path):
    source, out = folders("five"), tmp_path / "ckpt"
    status, stdout, stderr = process("import_hf", "--hf", source, "--out", out)
    assert (status, stderr) == (0, "") and stdout.endswith(
        f"{out}: checkpoint of {source}, verified bit for bit\n"
    )
    status, stdout, stderr = process("export_hf", "--checkpoint", out, "--out", tmp_path / "hf")
    assert (status, stderr) == (0, "") and stdout.endswith(f"{tmp_path}/hf: verified\n")
    assert equal(load_tensors(source), load_tensors(tmp_path / "hf"))
    status, stdout, stderr = process("export_hf", "--checkpoint", tmp_path, "--out", tmp_path / "x")
    assert (status, stdout) == (1, "") and stderr.startswith(f"error: {tmp_path}/manifest.json: not found")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "hf"]
