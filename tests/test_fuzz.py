"""What describes a folder, broken in thousands of ways: it opens as one consistent folder or is refused in
one line.

Through what `bar inspect` calls, which reads, and through the merge, which writes; the files are of a real
branch, so fields that the manifest gains are broken too.
"""

import json
import os
import resource
import shutil
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import transformers
from folders import load_tensors, save_hf, train_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated_bytes, mutated_tree, read, text

from megatron_bar.errors import BarError
from megatron_bar.experts.branch import branch
from megatron_bar.experts.merge import merge
from megatron_bar.weights.describe import describe
from megatron_bar.weights.folder import INDEX, Folder
from megatron_bar.weights.hashes import hash_units
from megatron_bar.weights.hf_config import tensor_shapes
from megatron_bar.weights.manifest import MANIFEST, read_manifest
from megatron_bar.weights.writer import WriteOptions

SHARD = "model-00001-of-00002.safetensors"
SECONDS, BYTES = 20, 1 << 30
"""More than any case may take, on a busy machine too."""


@pytest.fixture(scope="module")
def branched(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    dense = save_hf(root / "dense")
    folder = branch(
        dense, dense, root / "branched", router_init="normal", options=WriteOptions(max_shard_bytes=20_000)
    )[0].path
    assert (folder / SHARD).is_file()
    train_with(
        folder,
        root / "expert",
        "midtrain",
        lambda name, tensor: tensor + (".experts.1." in name),
        expert="math",
    )
    return folder


@pytest.fixture(scope="module")
def limited():
    """Memory that is asked for beyond what a few kilobytes need is not there."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def mutations(file: Path):
    """Of the file's bytes, and of its JSON with the rest of the file as it should be."""
    data = file.read_bytes()
    if file.suffix == ".json":
        return mutated_bytes(data) | mutated_tree(read(data)).map(lambda tree: text(tree).encode())
    end = 8 + int.from_bytes(data[:8], "little")

    def whole(header: bytes, length: int | None = None) -> bytes:
        return (len(header) if length is None else length).to_bytes(8, "little") + header + data[end:]

    trees = mutated_tree(read(data[8:end])).map(lambda tree: text(tree).encode())
    lengths = st.integers(0, 2**64 - 1).map(lambda length: whole(data[8:end], length))
    return mutated_bytes(data) | trees.map(whole) | mutated_bytes(data[8:end]).map(whole) | lengths


@pytest.mark.parametrize("number", [str(2**31), str(2**40), "1" + 30 * "0", 5000 * "9"], ids=len)
def test_a_config_that_asks_for_more_than_there_is_gets_no_memory(number, branched, limited, tmp_path):
    """The last one has more digits than Python reads."""
    folder = shutil.copytree(branched, tmp_path / "broken")
    config = json.loads((branched / "config.json").read_text())
    for key, value in config.items():
        if type(value) is int:
            changed = json.dumps(config | {key: "HERE"}).replace('"HERE"', number)
            (folder / "config.json").write_text(changed)
            opened = outcome(lambda: describe(folder), folder)
            assert opened is None or (key, number) == ("max_position_embeddings", str(2**31)), key


def outcome(act, folder: Path):
    """What ``act`` returns, or None where it says in one printable line what is wrong in ``folder``."""
    try:
        return act()
    except BarError as error:
        line = str(error)
        assert len(line.splitlines()) == 1 and len(line) < 10_000, line[:1000]
        assert line.encode() and str(folder) in line, line
        return None


def check_opened(folder: Path, lines: list[str]) -> None:
    """It is one folder for every reader."""
    "\n".join(lines).encode()
    opened, tensors = Folder.open(folder), load_tensors(folder)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == tensor_shapes(opened.config)
    assert read_manifest(folder).family in ("olmo2", "flex_olmo")
    try:
        theirs = transformers.FlexOlmoConfig.from_dict(json.loads((folder / "config.json").read_text()))
    except Exception:  # noqa: BLE001  of fields that change no number; it checks their types with exceptions of its own
        return
    ours = opened.config
    renamed = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "experts_per_token": "num_experts_per_tok",
    }
    for mine, name in renamed.items():
        assert getattr(ours, mine) == getattr(theirs, name), name
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "rms_norm_eps",
        "num_experts",
        "norm_topk_prob",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize("count", [100, pytest.param(2600, marks=pytest.mark.faults)])
@pytest.mark.parametrize("name", ["config.json", INDEX, MANIFEST, SHARD])
def test_every_mutation_opens_or_is_refused_in_one_line(
    name, count, branched, limited, tmp_path_factory, record_property
):
    root = tmp_path_factory.mktemp("cases")
    folder = shutil.copytree(branched, root / "broken")
    file, out, beside = folder / name, root / "out", {"broken"}
    names, results = sorted(os.listdir(folder)), Counter()

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(data=mutations(branched / name))
    def each(data):
        file.write_bytes(data)
        began = time.monotonic()
        lines = outcome(lambda: describe(folder), folder)
        merged = outcome(lambda: merge(folder, {"math": branched.parent / "expert"}, out), root)
        assert time.monotonic() - began < SECONDS
        if lines is not None:
            check_opened(folder, lines)
        assert lines is not None or merged is None, "the merge took what does not open"
        assert (
            set(os.listdir(root)) == beside | ({"out"} if merged else set())
            and sorted(os.listdir(folder)) == names
        )
        if merged:
            hash_units(Folder.open(out), finite=True)
            shutil.rmtree(out)
        results["opened" if lines else "refused"] += 1
        results["merged"] += merged is not None

    each()
    assert results["opened"] + results["refused"] >= count and results["refused"] > results["opened"], results
    assert results["opened"] or name == SHARD, "no mutation was harmless; of tensors the receipts leave none"
    cases = f"{count:,} cases of {'a safetensors header' if name == SHARD else name}"
    record_property(
        "figure",
        f"fuzz: {cases}: {results['refused']:,} refused in one line, the others opened, 0 left anything",
    )
