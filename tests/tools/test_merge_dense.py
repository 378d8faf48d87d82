"""tools/merge_dense.py: what it prints, and its one-line errors."""

import pytest
from folders import save_hf
from scripts import refused

from megatron_bar.weights.folder import Folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("merge_dense") / "other", seed=5)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("merge_dense") / "wide", hidden_size=32)


@pytest.mark.parametrize(
    "options, note, size",
    [
        (["--how", "mean"], "every tensor: mean of anchor, math", "dense"),
        (
            ["--how", "mean", "--shared", "task-arithmetic", "--scale", "0.3"],
            "every tensor: task-arithmetic with scale 0.3 of anchor, math",
            "dense",
        ),
        (
            ["--how", "btx"],
            "BTX of independent dense models; shared tensors: mean of all; router rows: normal, seed 0",
            "2 experts",
        ),
        (
            ["--how", "btx", "--shared-from", "math", "--seed", "3"],
            "BTX of independent dense models; shared tensors: those of math; router rows: normal, seed 3",
            "2 experts",
        ),
    ],
    ids=["mean", "task arithmetic", "btx", "btx from one"],
)
def test_both_ways(inline, dense, other, tmp_path, options, note, size):
    given = ("--expert", f"anchor={dense}", "--expert", f"math={other}", "--out", tmp_path / "out")
    status, out, err = inline("merge_dense", *given, *options)
    assert (status, err) == (0, "")
    first, *_, last = out.splitlines()
    assert first == f"note: {note}"
    assert last == f"{tmp_path}/out: {size}, {Folder.open(tmp_path / 'out').nbytes:,} bytes, verified"


def test_what_it_refuses_is_one_line(inline, dense, branched, other, wide, tmp_path):
    anchor = f"anchor={dense}"
    for options, message in (
        (["--expert", anchor, "--how", "mean"], "expected at least two models NAME=FOLDER, got anchor"),
        (["--expert", anchor, "--expert", anchor, "--how", "mean"], "expert 'anchor' expected once"),
        (
            ["--expert", anchor, "--expert", f"m={branched}", "--how", "btx"],
            "expected a dense folder, got one of 2 experts",
        ),
        (["--expert", anchor, "--expert", f"m={wide}", "--how", "btx"], "hidden_size expected 16"),
        (["--expert", anchor, "--expert", f"m={tmp_path}/none", "--how", "mean"], "none"),
        (
            ["--expert", anchor, "--expert", f"m={other}", "--how", "mean", "--shared-from", "m"],
            "--shared-from expected with --how",
        ),
        (
            ["--expert", anchor, "--expert", f"m={other}", "--how", "btx", "--shared-from", "x"],
            "shared_from expected one of anchor",
        ),
    ):
        assert message in refused(inline("merge_dense", *options, "--out", tmp_path / "out"))
    assert not list(tmp_path.iterdir())
