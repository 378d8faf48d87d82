"""A folder appears whole or not at all; the plan is a partition; what is written loads in transformers."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import edit_json, load_tensors, whole
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.errors import BarError
from megatron_bar.weights.folder import INDEX, Folder
from megatron_bar.weights.hashes import hash_units, units_of
from megatron_bar.weights.hf_config import ModelConfig, num_parameters, tensor_shapes
from megatron_bar.weights.locks import lock_output
from megatron_bar.weights.manifest import Manifest, read_manifest
from megatron_bar.weights.safetensors_io import ITEMSIZE
from megatron_bar.weights.writer import (
    WriteOptions,
    finish,
    parse_size,
    plan_shards,
    shard_name,
    write_folder,
    write_shard,
)


def manifest(folder: Folder, units) -> Manifest:
    return Manifest(family=folder.config.model_type, kind="dense", recipe=folder.path.name)


def copy(source: Path, out: Path, **options) -> Folder:
    folder = Folder.open(source)
    return write_folder(
        out, folder.config, folder.chunks, companions_from=source, manifest=manifest, **options
    )


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


CONFIGS = st.builds(
    lambda heads, width, layers, experts, vocab, ffn: ModelConfig(
        vocab_size=vocab,
        hidden_size=heads * width * 2,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=1,
        max_positions=8,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        num_experts=experts,
        experts_per_token=experts,
    ),
    *(
        st.integers(1, 4),
        st.integers(1, 4),
        st.integers(1, 3),
        st.sampled_from([0, 2, 5]),
        st.integers(1, 99),
        st.integers(1, 40),
    ),
)


@given(config=CONFIGS, dtype=st.sampled_from(sorted(ITEMSIZE)), limit=st.integers(1, 20_000))
def test_the_plan_is_a_partition_in_order_within_the_size(config, dtype, limit):
    shapes = tensor_shapes(config)
    size = {name: torch.Size(shape).numel() * ITEMSIZE[dtype] for name, shape in shapes.items()}
    plan = plan_shards(config, dtype, limit)
    assert [name for shard in plan for name in shard] == list(shapes)
    assert sum(map(size.get, shapes)) == num_parameters(config) * ITEMSIZE[dtype]
    for k, shard in enumerate(plan):
        assert shard
        assert sum(map(size.get, shard)) <= limit or len(shard) == 1
        if k:  # no file is closed early
            assert sum(map(size.get, plan[k - 1])) + size[shard[0]] > limit


def test_what_fits_to_the_byte_is_one_file(dense):
    folder = Folder.open(dense)
    assert [len(plan_shards(folder.config, folder.dtype, folder.nbytes - less)) for less in (0, 1)] == [1, 2]


UNITS = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}


@given(count=st.integers(1, 10**6), unit=st.sampled_from(sorted(UNITS)), space=st.sampled_from(["", " "]))
def test_sizes(count, unit, space):
    assert parse_size(f"{count}{space}{unit}") == count * UNITS[unit] == parse_size(f"{count}{unit.lower()}")


@pytest.mark.parametrize(
    "text, size", [("5GB", 5_000_000_000), ("0.5MiB", 524_288), ("1.5KB", 1500), (" 7 ", 7), ("2.50B", 2)]
)
def test_size_examples(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "0", "0.1", "5XB", "1e9", "5GBs", "1,5GB", "inf", "٣GB", "5 G B"]
)
def test_what_is_no_size(text):
    with pytest.raises(BarError, match="size expected"):
        parse_size(text)


@pytest.mark.parametrize("limit, files", [(10**9, 1), (5000, 4)])
def test_a_copy_is_bit_exact_and_whole(sharded, tmp_path, limit, files):
    out = tmp_path / "deep" / "out"
    folder = copy(sharded, out, options=WriteOptions(max_shard_bytes=limit))
    assert folder.path == out
    ours, theirs = load_tensors(out), load_tensors(sharded)
    assert all(
        torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype
        for name, tensor in theirs.items()
    )
    whole(out)
    assert len(list(out.glob("*.safetensors"))) == files
    assert (out / INDEX).exists() == (files > 1)
    assert (out / "tokenizer.json").read_bytes() == (sharded / "tokenizer.json").read_bytes()
    assert (out / "generation_config.json").read_bytes() == (sharded / "generation_config.json").read_bytes()
    # The manifest is made from the folder as it lies on the disk, before it has its name.
    assert read_manifest(out).recipe == "folder"
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("limit", [10**9, 5000])
def test_transformers_loads_what_is_written(sharded, tmp_path, limit):
    import transformers

    copy(sharded, tmp_path / "out", options=WriteOptions(max_shard_bytes=limit))
    states = []
    for path in (sharded, tmp_path / "out"):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        states.append((model.config.to_diff_dict(), model.state_dict()))
    assert states[0][1].keys() == states[1][1].keys()
    assert all(torch.equal(tensor, states[1][1][name]) for name, tensor in states[0][1].items())
    for key in (
        "eos_token_id",
        "pad_token_id",
        "bos_token_id",
        "rope_parameters",
        "num_experts_per_tok",
        "dtype",
    ):
        assert states[0][0].get(key) == states[1][0].get(key), key


def test_a_missing_generation_config_is_made_from_the_config(dense, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(dense, source)
    (source / "generation_config.json").unlink()
    edit_json(source / "config.json", eos_token_id=[1, 3])
    out = copy(source, tmp_path / "out").path
    assert (
        out / "generation_config.json"
    ).read_text().split() == '{ "eos_token_id": [ 1, 3 ], "pad_token_id": 0 }'.split()


def test_an_empty_folder_is_filled_and_others_are_refused_untouched(dense, tmp_path):
    (tmp_path / "empty").mkdir()
    copy(dense, tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    before = names(tmp_path)
    for name in ("full", "file", "link", "empty"):
        with pytest.raises(BarError, match=rf"{name}: expected a new or empty folder to write to, got"):
            copy(dense, tmp_path / name)
    assert names(tmp_path) == before
    assert names(tmp_path / "full") == ["precious"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/below"])
def test_a_target_that_no_folder_can_be_is_refused(dense, tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(BarError, match="expected a new or empty folder to write to, got "):
        copy(dense, tmp_path / name)
    assert names(tmp_path) == ["file"]


def test_what_another_job_left_is_replaced(dense, tmp_path):
    left = tmp_path / ".out.partial" / "folder"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    (left.parent / "model.safetensors.json").write_text("{}")
    copy(dense, tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_target_has_one_writer(dense, tmp_path):
    lock = lock_output(tmp_path / "out")
    with pytest.raises(
        BarError,
        match=r"out: expected to be its only writer, got another process at work in .*\.out\.partial",
    ):
        copy(dense, tmp_path / "out")
    lock.abort()
    copy(dense, tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_job_goes_on_where_it_was_killed(sharded, tmp_path):
    """Finished files are not made again; another job, or a file that nobody finished, is."""
    folder, made = Folder.open(sharded), []

    def produce(name, stop):
        made.append(name)
        if name == stop:
            raise KeyboardInterrupt
        return folder.chunks(name)

    def run(job, stop=None):
        made.clear()
        options = {
            "companions_from": sharded,
            "manifest": manifest,
            "options": WriteOptions(max_shard_bytes=5000),
            "job": job,
        }
        return write_folder(tmp_path / "out", folder.config, lambda name: produce(name, stop), **options)

    plan = plan_shards(folder.config, folder.dtype, 5000)
    with pytest.raises(KeyboardInterrupt):
        run({"of": 1}, stop=plan[2][1])
    assert made == plan[0] + plan[1] + plan[2][:2]
    assert names(tmp_path) == [".out.partial"]
    assert names(tmp_path / ".out.partial" / "folder") == [shard_name(k, plan) for k in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run({"of": 2}, stop=plan[1][0])
    assert made == plan[0] + plan[1][:1]
    run({"of": 2})
    assert made == [name for shard in plan[1:] for name in shard]
    ours, theirs = load_tensors(tmp_path / "out"), load_tensors(sharded)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert read_manifest(tmp_path / "out").tensors == hash_units(folder)
    assert names(tmp_path) == ["out"]


def test_shards_may_be_written_in_any_order_by_anyone(sharded, tmp_path):
    folder, out = Folder.open(sharded), tmp_path / "out"
    plan = plan_shards(folder.config, folder.dtype, 5000)
    lock, units = lock_output(out), {}
    for k in reversed(range(len(plan))):
        units |= write_shard(
            lock.path, folder.config, plan, k, ((name, folder.chunks(name)) for name in plan[k])
        )
    assert not out.exists()
    finish(lock, config=folder.config, plan=plan, companions_from=sharded, manifest=manifest, units=units)
    whole(out)
    assert names(tmp_path) == ["out"]


def test_a_shard_that_nobody_wrote_or_that_the_disk_spoiled_is_found(sharded, tmp_path):
    folder, out = Folder.open(sharded), tmp_path / "out"
    plan = plan_shards(folder.config, folder.dtype, 5000)
    lock, units = lock_output(out), {}
    for k in range(1, len(plan)):
        units |= write_shard(
            lock.path, folder.config, plan, k, ((name, folder.chunks(name)) for name in plan[k])
        )
    rest = {
        "config": folder.config,
        "plan": plan,
        "companions_from": sharded,
        "manifest": manifest,
        "units": units,
    }
    with pytest.raises(BarError, match=rf"expected in {shard_name(0, plan)}, got no such file"):
        finish(lock, **rest)
    units |= write_shard(lock.path, folder.config, plan, 0, ((name, folder.chunks(name)) for name in plan[0]))
    with (lock.path / shard_name(0, plan)).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    unit = units_of(plan[0][-1], folder.tensors[plan[0][-1]].shape)[-1]
    message = (
        rf"{shard_name(0, plan)}: tensor '{re.escape(unit)}' changed since it was written: expected hash"
    )
    with pytest.raises(BarError, match=message):
        finish(lock, **rest)
    assert not out.exists()
    lock.abort()
    assert names(tmp_path) == []


@pytest.mark.parametrize("limit", [100, 1500, 6000, 20_000])
def test_a_disk_that_takes_no_more_leaves_nothing(sharded, tmp_path, limit):
    """A file size limit stands in for the full disk: the same errors from the same calls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(
            BarError, match=r"/\.out\.partial/.*: could not (write \d+ bytes|be written): File too large"
        ):
            copy(sharded, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(BarError, match=rf"out: not enough space: expected {10**18} bytes free, got \d+"):
        lock_output(tmp_path / "out", 10**18)
    assert names(tmp_path) == []


def test_any_exception_leaves_nothing(dense, tmp_path):
    folder = Folder.open(dense)

    def interrupted(name):
        if name == "lm_head.weight":
            raise KeyboardInterrupt
        return [folder.read(name)]

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "out", folder.config, interrupted, companions_from=dense, manifest=manifest)
    assert names(tmp_path) == []


KILLED = """
import sys, time
from megatron_bar.cli import run
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.writer import write_folder

def produce(name):
    if name == "lm_head.weight":
        print("writing", flush=True)
        time.sleep(60)
    return folder.chunks(name)

folder = Folder.open(sys.argv[1])
run(lambda: write_folder(sys.argv[2], folder.config, produce, companions_from=sys.argv[1], manifest=None))
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_writer_leaves_no_output_and_the_next_one_cleans_up(dense, tmp_path, how):
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", KILLED, dense, out]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as child:
        assert child.stdout.readline() == "writing\n"
        assert names(tmp_path) == [".out.partial"]
        # A living writer's folder is not touched.
        with pytest.raises(BarError, match="expected to be its only writer"):
            lock_output(out)
        assert names(tmp_path / ".out.partial" / "folder") == ["model.safetensors"]
        child.send_signal(how)
        stderr = child.communicate()[1]
    if how is signal.SIGTERM:
        assert (child.returncode, stderr) == (1, "error: terminated\n")
        assert names(tmp_path) == []
    else:
        assert len(names(tmp_path)) == 1
    copy(dense, out)
    assert names(tmp_path) == ["out"]
