"""import_hf and export_hf: bit-exact there and back on any layout, nothing executed, nothing left of a failure."""

import io
import json
import multiprocessing.process
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from folders import NOT_FINITE, SPOILED, SPOILED_MOE, edit_json, load_tensors, save_hf, whole
from megatron.core.dist_checkpointing.strategies import filesystem_async
from scripts import process, refused

from megatron_bar.models import convert
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.weights.folder import Folder, companions
from megatron_bar.weights.manifest import MANIFEST, read_manifest

SHAPES = {
    "dense": {},
    "two": {"experts": 2, "dtype": "bfloat16"},
    "five": {"experts": 5, "num_experts_per_tok": 3, "dtype": "bfloat16", "shard": "9KB"},
    "five-fp32": {"experts": 5, "num_key_value_heads": 4},
}
ONE = ParallelConfig()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_hf(tmp_path_factory.mktemp("hf") / name, seed=len(made), **SHAPES[name])
        return made[name]

    return folder


@pytest.fixture(scope="module")
def checkpoint(folders, tmp_path_factory):
    """Of the folder "two"."""
    out = tmp_path_factory.mktemp("ckpt") / "two"
    run_distributed(convert.import_folder, 1, folders("two"), out, layout=ONE)
    return out


@pytest.mark.parametrize(
    "name, there, back",
    [
        ("dense", (ParallelConfig(tensor=2), 2), (ONE, 1)),
        ("two", (ParallelConfig(expert=2), 2), (ParallelConfig(tensor=2), 2)),
        ("five", (ONE, 1), (ParallelConfig(pipeline=2), 2)),
        ("five-fp32", (ParallelConfig(tensor=2), 2), (ONE, 2)),
    ],
)
def test_there_and_back_on_other_layouts_is_bit_exact(name, there, back, folders, tmp_path):
    source = folders(name)
    run_distributed(convert.import_folder, there[1], source, tmp_path / "ckpt", layout=there[0])
    options = {"layout": back[0], "verify": "logits", "max_shard_bytes": 9000}
    figures = run_distributed(convert.export_checkpoint, back[1], tmp_path / "ckpt", tmp_path / "back", **options)
    print(f"\nlogits {name}: {figures[0]:.1e}")
    assert 0 < figures[0] <= 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "ckpt"]
    assert equal(load_tensors(source), load_tensors(tmp_path / "back"))
    assert whole(tmp_path / "back").config == Folder.open(source).config
    for file in companions(source):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


def test_the_command_lines(inline, branched, tmp_path):
    status, out, _ = inline("import_hf", "--hf", branched, "--out", tmp_path / "ckpt")
    assert (status, out) == (0, f"{tmp_path}/ckpt: checkpoint of {branched}, verified bit for bit\n")
    status, out, _ = inline("inspect_model", tmp_path / "ckpt")
    for text in ("ckpt: checkpoint", "flex_olmo, 2 experts, float32", "kind: branched", "expert 0: anchor", "then top-2: all"):
        assert text in out
    for verify, said in (
        ("none", "not verified"),
        ("weights", "verified"),
        ("logits", "verified, logits within [0-9.e-]+ of those of transformers"),
    ):
        status, out, _ = inline("export_hf", "--checkpoint", tmp_path / "ckpt", "--out", tmp_path / verify, "--verify", verify)
        assert status == 0
        assert_matches(f"^{tmp_path}/{verify}: {said}", out)
        assert equal(load_tensors(branched), load_tensors(tmp_path / verify))
        assert read_manifest(tmp_path / verify) == read_manifest(branched)
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt", "none", "weights", "logits"}


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
BAD_FOLDERS = {name: case for name, case in (SPOILED | SPOILED_MOE | NOT_FINITE | NO_TOKENIZER).items() if name != "mixed dtypes"}


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
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def metadata(ckpt: Path):
    return pickle.loads((ckpt / ".metadata").read_bytes())  # noqa: S301  of our own making


def edit_metadata(ckpt: Path, change) -> None:
    value = metadata(ckpt)
    change(value)
    (ckpt / ".metadata").write_bytes(pickle.dumps(value))


def drop_tensor(value) -> None:
    del value.state_dict_metadata["decoder.final_layernorm.weight"]


def add_tensor(value) -> None:
    value.state_dict_metadata["decoder.layers.2.mlp.router.weight"] = value.state_dict_metadata["decoder.final_layernorm.weight"]


def lose_part(value) -> None:
    value.state_dict_metadata["embedding.word_embeddings.weight"].chunks.clear()


def point_elsewhere(value) -> None:
    index = next(index for index in value.storage_data if index.fqn == "output_layer.weight")
    value.storage_data[index].relative_path = "../other/__0_0.distcp"


def not_finite(ckpt: Path) -> None:
    """Rewrites one norm's bytes in place, as torch.save wrote it."""
    place = next(p for index, p in metadata(ckpt).storage_data.items() if index.fqn == "decoder.final_layernorm.weight")
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
    "no config": (lambda p: edit_json(p / MANIFEST, config=None), r"expected config\.json or a config in manifest\.json, got"),
    "no tokenizer": NO_TOKENIZER["no tokenizer"],
    "no metadata": (lambda p: (p / ".metadata").unlink(), r"\.metadata: not found; expected a checkpoint"),
    "empty metadata": (lambda p: os.truncate(p / ".metadata", 0), r"\.metadata: refused: Ran out of input"),
    "truncated metadata": (lambda p: os.truncate(p / ".metadata", 3000), r"\.metadata: refused: "),
    "metadata of text": (lambda p: (p / ".metadata").write_text("{}"), r"\.metadata: refused: "),
    "a pickled list": (lambda p: (p / ".metadata").write_bytes(pickle.dumps([1])), r"\.metadata: refused: expected .* got list"),
    "no data": (lambda p: (p / DATA).unlink(), rf"\.metadata: refused: '[\w./]+' expected in {DATA}, got no such file"),
    "truncated data": (lambda p: os.truncate(p / DATA, 9000), rf"{DATA} is truncated: .* expected up to byte \d+, got 9000"),
    "zeros for data": (lambda p: (p / DATA).write_bytes(bytes((p / DATA).stat().st_size)), r"could not be read: "),
    "not finite": (not_finite, r"tensor 'model\.norm\.weight': expected finite values, got NaN"),
    "data elsewhere": (lambda p: edit_metadata(p, point_elsewhere), r"'output_layer\.weight': expected in .* got '\.\./other/"),
    "half a tensor": (lambda p: edit_metadata(p, lose_part), r"'embedding\.word_embeddings\.weight': expected 304 values, got 0"),
    "missing tensor": (lambda p: edit_metadata(p, drop_tensor), r"expected tensor 'decoder\.final_layernorm\.weight', got no"),
    "surplus tensor": (lambda p: edit_metadata(p, add_tensor), r"expected no tensor 'decoder\.layers\.2\.mlp\.router\.weight'"),
    "fewer layers": (config(num_hidden_layers=1), r"another model's checkpoint: expected no tensor 'decoder\.layers\.1\."),
    "fewer experts": (config(num_experts=3), r"another model's checkpoint: expected tensor '.*experts\.2\..*', got no such"),
    "wider": (config(intermediate_size=32), r"tensor '.*linear_fc\d\.weight.*': expected .*32.* got .*24"),
    "larger vocabulary": (config(vocab_size=20), r"tensor '.*weight': expected \(\[20, 16\], .*\), got \(\[19, 16\]"),
    "smaller vocabulary": (config(vocab_size=17), r"tensor '.*weight': expected \(\[17, 16\], .*\), got \(\[19, 16\]"),
    "another dtype": (config(dtype="float32"), r"expected \(.*torch\.float32\), got \(.*torch\.bfloat16\)"),
    "unknown family": (config(model_type="llama"), r"manifest\.json: config: model_type must be"),
}


@pytest.mark.parametrize("spoil, message", BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS)
def test_export_refuses_a_spoiled_checkpoint(inline, checkpoint, tmp_path, spoil, message):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    spoil(broken)
    err = refused(inline("export_hf", "--checkpoint", broken, "--out", tmp_path / "out"))
    assert str(broken) in err
    assert_matches(message, err)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_pickle_in_the_metadata_is_not_executed(inline, checkpoint, tmp_path):
    broken, marker = shutil.copytree(checkpoint, tmp_path / "broken"), tmp_path / "executed"
    edit_metadata(broken, lambda value: setattr(value, "planner_data", Evil(marker)))
    err = refused(inline("export_hf", "--checkpoint", broken, "--out", tmp_path / "out"))
    assert f"{broken}/.metadata: refused: it refers to posix.system" in err
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
    metadata(broken)
    assert marker.exists(), "the pickle is harmless, so this test shows nothing"


def test_a_pickle_among_the_data_is_not_executed(inline, checkpoint, folders, tmp_path):
    """Megatron's own load reads an object beside the tensors, without any restriction."""
    from megatron.core.dist_checkpointing.serialization import load_common_state_dict

    broken, marker = shutil.copytree(checkpoint, tmp_path / "broken"), tmp_path / "executed"
    data = broken / DATA
    start = data.stat().st_size
    with data.open("ab") as file:
        torch.save([Evil(marker)], file)

    def point_to_it(value) -> None:
        place = next(p for index, p in value.storage_data.items() if index.fqn.startswith("common_state"))
        place.offset, place.length = start, data.stat().st_size - start

    edit_metadata(broken, point_to_it)
    assert inline("export_hf", "--checkpoint", broken, "--out", tmp_path / "out")[0] == 0
    assert not marker.exists()
    assert equal(load_tensors(folders("two")), load_tensors(tmp_path / "out"))
    load_common_state_dict(str(broken))
    assert marker.exists(), "the pickle is harmless, so this test shows nothing"


@pytest.mark.parametrize("tool", ["import_hf", "export_hf"])
def test_an_output_that_is_not_empty_or_a_layout_that_does_not_divide_is_refused(inline, folders, checkpoint, tmp_path, tool):
    source = ("--hf", folders("two")) if tool == "import_hf" else ("--checkpoint", checkpoint)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("kept")
    err = refused(inline(tool, *source, "--out", tmp_path / "full"))
    assert f"{tmp_path}/full: expected a new or empty folder to write to, got one that is not empty" in err
    err = refused(inline(tool, *source, "--out", tmp_path / "out", "--tensor", 2))
    assert "tensor 2 x pipeline 1 = 2 does not divide the 1 processes" in err
    err = refused(inline(tool, *source, "--out", tmp_path / "out", "--expert", 0))
    assert "parallel.expert must be a positive integer, got 0" in err
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["full", "full/precious"]


def test_logits_that_differ_leave_no_folder(inline, checkpoint, tmp_path, monkeypatch):
    """No two implementations agree to the last bit: a tolerance of nothing fails."""
    monkeypatch.setattr(convert, "LOGITS_TOLERANCE", 0.0)
    err = refused(inline("export_hf", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--verify", "logits"))
    assert_matches(r"out: logits expected within 0 of those of transformers .*, in fp32\), got \d", err)
    assert list(tmp_path.iterdir()) == []


def test_writing_starts_no_process_that_would_outlive_a_kill(inline, folders, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", lambda process: started.append(process))
    assert inline("import_hf", "--hf", folders("two"), "--out", tmp_path / "out")[0] == 0
    assert started == []


@pytest.mark.parametrize("raised", [KeyboardInterrupt, lambda: SystemExit("error: terminated")])
def test_an_interrupted_import_says_one_line_and_leaves_nothing(inline, folders, tmp_path, monkeypatch, raised):
    """While Megatron writes, where torch turns whatever is raised into an exception of its own."""

    def stop(*args, **kwargs):
        raise raised()

    monkeypatch.setattr(filesystem_async, "_write_item", stop)
    err = refused(inline("import_hf", "--hf", folders("two"), "--out", tmp_path / "out"))
    assert "interrupt" in err.lower() or "terminated" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_under_torchrun(folders, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    source, out = folders("five"), tmp_path / "ckpt"
    status, stdout, stderr = process("import_hf", "--hf", source, "--out", out, "--tensor", 2, launcher=torchrun)
    assert (status, stdout) == (0, f"{out}: checkpoint of {source}, verified bit for bit\n"), stderr
    back = ("--checkpoint", out, "--out", tmp_path / "hf", "--pipeline", 2)
    status, stdout, stderr = process("export_hf", *back, launcher=torchrun)
    assert (status, stdout) == (0, f"{tmp_path}/hf: verified\n"), stderr
    assert equal(load_tensors(source), load_tensors(tmp_path / "hf"))
    status, stdout, stderr = process("export_hf", "--checkpoint", tmp_path, "--out", tmp_path / "x", launcher=torchrun)
    assert status != 0 and f"error: {tmp_path}/manifest.json: not found" in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "hf"]
