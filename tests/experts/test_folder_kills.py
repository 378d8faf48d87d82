"""SIGKILL while a branch or a merge of any kind writes its folder: run again it goes on, ends with the same
bytes and leaves nothing else.
"""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from distributed import start_process
from folders import save_hf
from kill_points import count_calls

from megatron_bar.experts.branch import branch
from megatron_bar.experts.btx import btx
from megatron_bar.experts.dense_merge import dense_merge
from megatron_bar.experts.merge import merge
from megatron_bar.weights import writer
from megatron_bar.weights.writer import WriteOptions


def make(kind: str, inputs: list[Path], out: Path) -> None:
    if kind == "branch":
        branch(*inputs, out, router_init="normal", options=WriteOptions(max_shard_bytes=12_000))
    elif kind == "btx":
        btx(dict(zip("abc", inputs, strict=True)), out, options=WriteOptions(max_shard_bytes=12_000))
    elif kind == "dense merge":
        dense_merge(dict(zip("abc", inputs, strict=True)), out, options=WriteOptions(max_shard_bytes=8_000))
    else:
        merge(
            inputs[0],
            dict(zip("abc", inputs[1:], strict=True)),
            out,
            options=WriteOptions(max_shard_bytes=12_000),
        )


def counted(kind: str, inputs: list[Path], out: Path, report: Path, kill_at: int | None) -> None:
    count_calls(writer.__file__, report, kill_at, make, kind, inputs, out)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def finished_files(out: Path) -> dict[str, int]:
    """Of what a killed run left: the file of every recorded shard, by inode."""
    home = out.with_name(f".{out.name}.partial")
    names = [path.name.removesuffix(".json") for path in home.glob("*.safetensors.json")]
    return {
        name: (home / "folder" / name).stat().st_ino for name in names if (home / "folder" / name).exists()
    }


@pytest.fixture(scope="module")
def straight(dense, other_dense, branched, experts, tmp_path_factory):
    """Per kind: its inputs, what a run leaves that nobody disturbs, and its calls."""
    root, found = tmp_path_factory.mktemp("straight"), {}
    three = [dense, other_dense, save_hf(root / "third", seed=4)]
    makes = {"branch": three[:2], "merge": [branched, *experts.values()], "btx": three, "dense merge": three}
    for kind, inputs in makes.items():
        out, report = root / kind, root / f"{kind}-calls"
        process = start_process(counted, kind, inputs, out, report, None, output=root / "output")
        process.join()
        assert process.exitcode == 0, (root / "output").read_text()
        found[kind] = (inputs, contents(out), json.loads(report.read_text()))
    return found


def kill_and_repeat(kind: str, straight, root: Path, point: int) -> int:
    """How many finished files the second run kept."""
    inputs, expected, _ = straight[kind]
    out = root / "out"
    process = start_process(counted, kind, inputs, out, root / "report", point, output=root / "output")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (root / "report").unlink()
    kept = finished_files(out)
    if out.exists():  # whole, or not there
        assert contents(out) == expected
        with pytest.raises(ValueError, match="not empty"):
            make(kind, inputs, out)
    else:
        make(kind, inputs, out)
        assert {name: inode for name, inode in kept.items() if (out / name).stat().st_ino != inode} == {}
        assert contents(out) == expected
    assert sorted(path.name for path in root.iterdir()) == ["out", "output"]
    shutil.rmtree(out)
    return len(kept)


def kills(straight, root: Path, points: int) -> tuple[int, int]:
    chance, killed, kept = random.Random(0), 0, 0
    for kind, (_, _, calls) in straight.items():
        for point in sorted(chance.sample(range(1, len(calls)), min(points, len(calls) - 1))):
            kept += kill_and_repeat(kind, straight, root, point)
            killed += 1
    return killed, kept


def test_a_killed_branch_or_merge_goes_on(straight, tmp_path):
    assert kills(straight, tmp_path, 3)[0] == 12


@pytest.mark.faults
def test_two_hundred_kills_of_branch_and_merge(straight, tmp_path, record_property):
    killed, kept = kills(straight, tmp_path, 55)
    assert killed >= 200 and kept > 100
    record_property(
        "figure",
        f"SIGKILL during branch and merge: {killed} kills, 0 unrecoverable, same bytes, {kept} finished "
        f"files kept",
    )
