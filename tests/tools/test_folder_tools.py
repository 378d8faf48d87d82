"""The command lines that work on folders: what they print, how they end, and that nothing is left behind.

The whole path runs as real processes; each bad input runs the same script in this process, which saves the
imports.
"""

import json
import re
import shutil

import pytest
from folders import NOT_FINITE, SPOILED, SPOILED_MOE, copy_with, edit_json, load_tensors, whole
from scripts import process, refused

from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hashes import anchor_hash, folder_hash, hash_units
from megatron_bar.weights.hf_config import num_parameters
from megatron_bar.weights.manifest import MANIFEST, Expert, Manifest, TrainingRecord, read_manifest

TOOLS = ("branch_expert", "merge_experts", "merge_dense", "inspect_model", "verify_frozen")


def test_branch_then_merge_then_inspect_then_verify(dense, branched, expert, tmp_path):
    out = tmp_path / "branched"
    status, stdout, stderr = process(
        "branch_expert", "--anchor", dense, "--domain-init", dense, "--out", out, "--max-shard-size", "9KB"
    )
    assert (status, stderr) == (0, "")
    assert stdout.startswith("  ✓ embedding            1 tensors  read back, equal\n")
    assert stdout.endswith(f"equal\n{out}: 2 experts, {Folder.open(out).nbytes:,} bytes, verified\n")
    assert len(list(out.glob("*.safetensors"))) > 1
    whole(out)

    merged = tmp_path / "merged"
    status, stdout, stderr = process(
        "merge_experts", "--anchor", branched, "--expert", f"math={expert}", "--out", merged
    )
    assert (status, stderr) == (0, "")
    note, *ticks, said = stdout.splitlines()
    assert len(ticks) == 8 and all(line.startswith("  ✓ ") for line in ticks)
    assert note == "note: shared tensors: mean of 2 folders, the anchor included"
    assert said == f"{merged}: 2 experts, {Folder.open(merged).nbytes:,} bytes, verified"
    assert [e.name for e in read_manifest(merged).experts] == ["anchor", "math"]

    status, stdout, stderr = process("inspect_model", merged)
    assert (status, stderr) == (0, "")
    units = hash_units(Folder.open(merged))
    for text in (
        "flex_olmo, 2 experts, float32",
        "2 layers, hidden 16, FFN 24, heads 4 (2 key/value) of 4, vocabulary 19, positions 32, RoPE theta 5000",
        f"parameters: {num_parameters(Folder.open(merged).config):,}\n",
        "  domain_expert: 2,304\n",
        "no bias; softmax over all 2 experts in float32, then top-2: all are active; the chosen "
        "probabilities are not renormal",
        "kind: merged, written by stage merge",
        "expert 0: anchor, stages: none\nexpert 1: math, stages: midtrain\n",
        "made from math: expert (hash ",
        f"hash of all tensors: {folder_hash(units)}\n",
        f"anchor and shared tensors now: {anchor_hash(units)}\n",
        f"recorded at the branch: {read_manifest(branched).anchor_hash}\n",
    ):
        assert text in stdout

    status, stdout, stderr = process("verify_frozen", branched, expert, "--stage", "midtrain", "--strict")
    assert (status, stderr) == (0, "")
    lines = {line.split()[0]: line for line in stdout.splitlines()}
    assert lines["domain_expert"].endswith("6 tensors      6 changed  trained")
    assert lines["anchor_expert"].endswith("6 tensors      0 changed  frozen, bit-identical")
    assert stdout.endswith("router row 0: frozen, bit-identical\n")


def test_a_failing_process_says_one_line_and_exits_with_1(dense, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(dense, broken)
    (broken / "model.safetensors").write_bytes((dense / "model.safetensors").read_bytes()[:-1])
    err = refused(
        process("branch_expert", "--anchor", dense, "--domain-init", broken, "--out", tmp_path / "out")
    )
    assert f"{broken}/model.safetensors: truncated: tensor" in err
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("tool", TOOLS)
def test_help_shows_an_example_that_parses(inline, tool):
    status, out, err = inline(tool, "--help")
    assert (status, err) == (0, "")
    shown = re.split(rf"examples?: python tools/{tool}\.py ", " ".join(out.split()))[1]
    example = shown.partition(f" python tools/{tool}.py")[0]  # the first of several
    # Its folders do not exist, so it ends in our own line and not in argparse's usage.
    assert "not found" in refused(inline(tool, *example.split()))


DENSE_CASES = (
    SPOILED
    | NOT_FINITE
    | {
        "no tokenizer": (lambda p: (p / "tokenizer.json").unlink(), r"no tokenizer: expected"),
        "empty tokenizer": (
            lambda p: (p / "tokenizer.json").write_text(""),
            r"tokenizer\.json: not readable as JSON",
        ),
    }
)
MOE_CASES = DENSE_CASES | SPOILED_MOE


@pytest.mark.parametrize("spoil, message", DENSE_CASES.values(), ids=DENSE_CASES)
def test_branch_refuses_a_spoiled_anchor(inline, dense, tmp_path, spoil, message):
    check_spoiled(
        inline,
        dense,
        tmp_path,
        spoil,
        message,
        "branch_expert",
        "--anchor",
        "SPOILED",
        "--domain-init",
        dense,
    )


@pytest.mark.parametrize("spoil, message", MOE_CASES.values(), ids=MOE_CASES)
def test_merge_refuses_a_spoiled_anchor(inline, branched, expert, tmp_path, spoil, message):
    check_spoiled(
        inline,
        branched,
        tmp_path,
        spoil,
        message,
        "merge_experts",
        "--anchor",
        "SPOILED",
        "--expert",
        f"math={expert}",
    )


SAME_LINE = {name: case for name, case in MOE_CASES.items() if "tokenizer" not in name}


@pytest.mark.parametrize("spoil, message", SAME_LINE.values(), ids=SAME_LINE)
def test_merge_refuses_a_spoiled_expert(inline, branched, expert, tmp_path, spoil, message):
    check_spoiled(
        inline,
        expert,
        tmp_path,
        spoil,
        message,
        "merge_experts",
        "--anchor",
        branched,
        "--expert",
        "math=SPOILED",
    )


@pytest.mark.parametrize("spoil, message", SAME_LINE.values(), ids=SAME_LINE)
def test_inspect_refuses_a_spoiled_folder(inline, branched, tmp_path, spoil, message):
    check_spoiled(inline, branched, tmp_path, spoil, message, "inspect_model", "SPOILED", out=False)


def check_spoiled(inline, source, tmp_path, spoil, message, tool, *arguments, out=True):
    """Copies the source, spoils it, runs the tool on it: one line that names it, and not a file more than
    before."""
    broken = tmp_path / "spoiled-folder"
    shutil.copytree(source, broken)
    spoil(broken)
    before = sorted(tmp_path.rglob("*"))
    arguments = [str(argument).replace("SPOILED", str(broken)) for argument in arguments]
    err = refused(inline(tool, *arguments, *(["--out", tmp_path / "out"] if out else [])))
    assert str(broken) in err
    assert_matches(message, err)
    assert sorted(tmp_path.rglob("*")) == before


def assert_matches(pattern, text):
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


def test_an_output_that_is_not_empty_is_refused_and_kept(inline, dense, branched, expert, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("kept")
    for tool, *arguments in (
        ("branch_expert", "--anchor", dense, "--domain-init", dense),
        ("merge_experts", "--anchor", branched, "--expert", f"math={expert}"),
    ):
        err = refused(inline(tool, *arguments, "--out", tmp_path / "full"))
        assert (
            f"{tmp_path}/full: expected a new or empty folder to write to, got one that is not empty" in err
        )
        err = refused(inline(tool, *arguments, "--out", tmp_path / "full" / "precious"))
        assert "got a file or link" in err
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "full",
        "full/precious",
    ]


def test_the_merge_refuses_names_given_twice(inline, branched, expert, tmp_path):
    twice = ("--expert", f"math={expert}", "--expert", f"math={branched}")
    err = refused(inline("merge_experts", "--anchor", branched, *twice, "--out", tmp_path / "out"))
    assert f"expert 'math' expected once, got {expert} and {branched}" in err


def test_a_size_that_is_none_is_refused(inline, dense, tmp_path):
    err = refused(
        inline(
            "branch_expert",
            "--anchor",
            dense,
            "--domain-init",
            dense,
            "--out",
            tmp_path / "o",
            "--max-shard-size",
            "big",
        )
    )
    assert "size expected like 5GB" in err


def test_branch_takes_every_router_init_and_prints_its_notes(inline, dense, tmp_path):
    other = copy_with(dense, tmp_path / "other", lambda name, tensor: tensor)
    edit_json(other / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 8e6})
    (tmp_path / "text").write_text("one two red")
    for options in (
        ["normal", "--seed", 5],
        ["zero"],
        ["domain", "--general-text", tmp_path / "text", "--domain-text", tmp_path / "text"],
    ):
        out = tmp_path / options[0]
        status, stdout, _ = inline(
            "branch_expert",
            "--anchor",
            dense,
            "--domain-init",
            other,
            "--out",
            out,
            "--router-init",
            *options,
        )
        assert status == 0
        assert (
            "note: rope_theta differs: 5000.0 is kept from the anchor, the domain init has 8000000.0\n"
            in stdout
        )
    norms = [
        load_tensors(tmp_path / name)["model.layers.0.mlp.gate.weight"].norm(dim=1)
        for name in ("normal", "zero", "domain")
    ]
    assert 0.01 < norms[0].min() < 0.3
    assert norms[1].max() == 0
    assert norms[2].tolist() == pytest.approx([0.5, 0.5], rel=1e-6)


def test_verify_frozen_fails_with_the_tensors_name(inline, branched, expert, tmp_path):
    err = refused(inline("verify_frozen", branched, expert, "--stage", "route"))
    assert "tensor 'model.layers.0.mlp.experts.1.gate_proj.weight' is frozen in stage route" in err
    same = copy_with(branched, tmp_path / "same", lambda name, tensor: tensor)
    status, out, _ = inline("verify_frozen", branched, same, "--stage", "midtrain")
    assert status == 0 and out.count("DID NOT MOVE") == 2
    err = refused(inline("verify_frozen", branched, same, "--stage", "midtrain", "--strict"))
    assert "got none in router, domain_expert" in err


def test_paths_that_cannot_be_are_refused(inline, dense, branched, expert, tmp_path):
    assert "not readable" in refused(inline("inspect_model", "x" * 5000))
    inputs = {
        "branch_expert": ("--anchor", dense, "--domain-init", dense),
        "merge_experts": ("--anchor", branched, "--expert", f"math={expert}"),
    }
    for tool, arguments in inputs.items():
        assert "File name too long" in refused(inline(tool, *arguments, "--out", tmp_path / ("x" * 300)))
    assert list(tmp_path.iterdir()) == []


def test_inspect_without_hashes_reads_no_data(inline, dense, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(dense, broken)
    NOT_FINITE["nan in a tensor"][0](broken)
    status, out, _ = inline("inspect_model", broken, "--no-hashes")
    assert status == 0
    assert (
        "olmo2, dense, float32" in out
        and "routing: none" in out
        and "lineage: unknown (no manifest.json)" in out
    )
    assert "hash of" not in out


def test_inspect_describes_a_checkpoint_from_its_manifest(inline, branched, tmp_path):
    config = json.loads((branched / "config.json").read_text()) | {
        "num_experts_per_tok": 1,
        "norm_topk_prob": True,
    }
    expert = Expert(index=0, name="anchor", trained=(TrainingRecord(stage="sft"),))
    Manifest(
        family="flex_olmo", kind="expert", stage="sft", recipe="tiny", experts=(expert,), config=config
    ).write(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "__0_0.distcp").touch()
    status, out, _ = inline("inspect_model", tmp_path)
    assert status == 0
    assert f"{tmp_path}: checkpoint" in out
    assert (
        "then top-1: the 1 largest of 2 are active; the chosen probabilities are renormalised to sum to 1"
        in out
    )
    assert "expert 0: anchor, stages: sft" in out
    edit_json(tmp_path / MANIFEST, config=None)
    err = refused(inline("inspect_model", tmp_path))
    assert f"{tmp_path}: a checkpoint expected config.json or a config in manifest.json, got neither" in err
