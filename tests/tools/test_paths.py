"""Hostile names, wherever a name comes from: nothing is written outside the output folder."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from folders import edit_tensors, whole
from scripts import ROOT, Result

from megatron_bar.weights.folder import INDEX
from megatron_bar.weights.manifest import MANIFEST

EVIL = "../../evil"


def snapshot(root: Path, out: Path) -> dict[str, object]:
    """Everything but the output folder: links as links, files with their bytes."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path != out and out not in path.parents:
            found[str(path)] = os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
    return found


Act = Callable[[Path, Callable[..., Result]], Result]


def tensor_named(name: str) -> Act:
    def act(p, run):
        edit_tensors(p / "dense", lambda tensors: tensors.update({name: torch.ones(2)}))
        return run(
            "tools/branch_expert.py",
            "--anchor",
            p / "dense",
            "--domain-init",
            p / "dense",
            "--out",
            p / "out",
        )

    return act


def shard_named(name: str) -> Act:
    def act(p, run):
        index = json.loads((p / "sharded" / INDEX).read_text())
        first = next(iter(index["weight_map"]))
        index["weight_map"][first] = name.replace("ROOT", str(p.parent.parent))
        (p / "sharded" / INDEX).write_text(json.dumps(index))
        return run("tools/import_hf.py", "--hf", p / "sharded", "--out", p / "out")

    return act


def expert_named(name: str) -> Act:
    def act(p, run):
        name_here = name.replace("ROOT", str(p.parent.parent))
        given = ("--anchor", p / "branched", "--expert", f"{name_here}={p / 'expert'}")
        return run("tools/merge_experts.py", *given, "--out", p / "out")

    return act


def manifest_naming(**changes) -> Act:
    """What the manifest calls the expert, or where it says that the expert comes from."""

    def act(p, run):
        manifest = json.loads((p / "expert" / MANIFEST).read_text())
        manifest["experts"][1] |= changes
        manifest["sources"] = [{"role": EVIL, "name": EVIL, "hash": EVIL}]
        (p / "expert" / MANIFEST).write_text(json.dumps(manifest))
        return run(
            "tools/merge_experts.py",
            "--anchor",
            p / "branched",
            "--expert",
            f"math={p / 'expert'}",
            "--out",
            p / "out",
        )

    return act


def out_linked_to(target: str) -> Act:
    def act(p, run):
        (p / "out").symlink_to(target)
        return run(
            "tools/branch_expert.py",
            "--anchor",
            p / "dense",
            "--domain-init",
            p / "dense",
            "--out",
            p / "out",
        )

    return act


def partial_linked(p, run):
    (p / ".out.partial").symlink_to("../../elsewhere")
    return run(
        "tools/branch_expert.py", "--anchor", p / "dense", "--domain-init", p / "dense", "--out", p / "out"
    )


def tokens_to_a_link(p, run):
    (p / "out").symlink_to("../../elsewhere")
    given = (
        "--input",
        p / "x.jsonl",
        "--kind",
        "chat",
        "--tokenizer",
        p / "dense",
        "--out",
        p / "out",
        "--processes",
        1,
    )
    return run("tools/preprocess_data.py", *given)


def partial_tokens_linked(p, run):
    (p / ".out.partial").symlink_to("../../elsewhere")
    given = (
        "--input",
        p / "x.jsonl",
        "--kind",
        "chat",
        "--tokenizer",
        p / "dense",
        "--out",
        p / "out",
        "--processes",
        1,
    )
    return run("tools/preprocess_data.py", *given)


def recipe_naming(change: str) -> Act:
    def act(p, run):
        own = (f"base={p / 'dense'}", f"anchor={p / 'dense'}", f"data={p}")
        recipe = f"{ROOT / 'examples/own_data.py'}:recipe"
        return run("examples/pretrain_bar.py", recipe, "--out", p / "out", "--set", *own, change)

    return act


def checkpoint_data_elsewhere(p, run):
    assert run("tools/import_hf.py", "--hf", p / "branched", "--out", p / "checkpoint")[0] == 0
    metadata = pickle.loads((p / "checkpoint" / ".metadata").read_bytes())  # noqa: S301  of our own making
    for place in metadata.storage_data.values():
        place.relative_path = f"{EVIL}.distcp"
    (p / "checkpoint" / ".metadata").write_bytes(pickle.dumps(metadata))
    return run("tools/export_hf.py", "--checkpoint", p / "checkpoint", "--out", p / "out")


def companion_linked(p, run):
    (p / "dense" / "tokenizer.json").rename(p.parent.parent / "elsewhere" / "tokenizer.json")
    (p / "dense" / "tokenizer.json").symlink_to("../../../elsewhere/tokenizer.json")
    return run(
        "tools/branch_expert.py", "--anchor", p / "dense", "--domain-init", p / "dense", "--out", p / "out"
    )


HOSTILE: dict[str, tuple[Act, bool]] = {
    # what is named: (the name put in place and the tool run, whether that tool refuses)
    "a tensor, upwards": (tensor_named(EVIL), True),
    "a tensor, absolute": (tensor_named("/tmp/evil"), True),
    "a tensor, with NUL": (tensor_named("a\0b"), True),
    "a tensor, backslashes": (tensor_named("..\\..\\evil"), True),
    "a shard, upwards": (shard_named(f"{EVIL}.safetensors"), True),
    "a shard, absolute": (shard_named("ROOT/evil.safetensors"), True),
    "a shard, with NUL": (shard_named("evil\0.safetensors"), True),
    "a shard, backslashes": (shard_named("..\\evil.safetensors"), True),
    "an expert on the command line, upwards": (expert_named(EVIL), True),
    "an expert on the command line, absolute": (expert_named("ROOT/evil"), True),
    "an expert on the command line, dots": (expert_named(".."), True),
    "an expert on the command line, with NUL": (expert_named("a\0b"), True),
    "an expert in a manifest, upwards": (manifest_naming(name=EVIL), False),
    "an expert in a manifest, its stages": (
        manifest_naming(trained=[{"stage": EVIL, "data": {EVIL: EVIL}}]),
        False,
    ),
    "an expert in a recipe": (recipe_naming(f"experts.math.name={EVIL}"), True),
    "a recipe": (recipe_naming(f"name={EVIL}"), True),
    "a stage in a recipe": (recipe_naming(f"experts.math.sft.name={EVIL}"), True),
    "a checkpoint's data file": (checkpoint_data_elsewhere, True),
    "a folder linked as output": (out_linked_to("../../elsewhere"), True),
    "nothing, linked as output": (out_linked_to("../../elsewhere/new"), True),
    "a link where the folder is written": (partial_linked, True),
    "token files to a link": (tokens_to_a_link, True),
    "token files, the unfinished folder linked": (partial_tokens_linked, True),
    "a tokenizer linked from elsewhere": (companion_linked, True),
}


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.faults)], ids=["sample", "all"])
def test_a_hostile_name_writes_nothing_outside(every, tmp_path, new_place, run, record_property):
    problems, tried = [], list(HOSTILE.items())[::every]
    for n, (name, (act, refuses)) in enumerate(tried):
        root, before = tmp_path / str(n), []
        place = new_place(root)

        def watched(script, *arguments, root=root, place=place, before=before):
            before.append(snapshot(root, place / "out"))
            return run(script, *arguments)

        status, _, err = act(place, watched)
        kept = snapshot(root, place / "out") == before[-1]
        one_line = err.startswith("error: ") and err.count("\n") == 1
        left = (place / "out").exists() and not (place / "out").is_symlink()
        linked = any(path.is_symlink() for path in (place / "out").rglob("*"))
        if not kept or (status != 0) != refuses or one_line != refuses or left == refuses or linked:
            problems.append(f"{name}: status {status}, kept {kept}, left {left}, linked {linked}, {err}")
        if not refuses:
            whole(place / "out")
        shutil.rmtree(root)
    assert not problems, "\n".join(problems)
    assert every * len(tried) >= 15
    record_property("figure", f"path traversal: {len(tried)} names, 0 writes outside the output folder")
