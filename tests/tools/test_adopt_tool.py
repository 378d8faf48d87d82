"""Adopting by command line: what it prints, and what each kind of folder must and may be told."""

import shutil

import pytest
from scripts import refused

from megatron_bar.weights.manifest import MANIFEST, read_manifest


@pytest.fixture
def place(branched, expert, merged, tmp_path):
    for name, path in {"branched": branched, "math": expert, "merged": merged}.items():
        shutil.copytree(path, tmp_path / name, ignore=shutil.ignore_patterns(MANIFEST))
    return tmp_path


def test_the_three_kinds_one_after_the_other(inline, place):
    done = [
        inline("adopt_folder", place / "branched", "--as", "branched"),
        inline(
            "adopt_folder", place / "math", "--as", "expert", "--of", place / "branched", "--name", "math"
        ),
        inline(
            "adopt_folder",
            place / "merged",
            "--as",
            "merged",
            "--of",
            place / "branched",
            "--names",
            "anchor,math",
        ),
    ]
    assert [status for status, _, _ in done] == [0, 0, 0]
    for (_, out, _), name in zip(done, ("branched", "math", "merged"), strict=True):
        lines = out.splitlines()
        assert tuple(lines[:-1]) == read_manifest(place / name).notes
        assert all(line.startswith(("proven: ", "said: ")) for line in lines[:-1])
        assert lines[-1].endswith("manifest.json written")
        assert inline("inspect_model", place / name)[0] == 0
    assert "proven: the router is the merge's, bit for bit" in done[2][1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("{}/math --as expert --name math", "--as expert: expected --of, got none"),
        ("{}/math --as expert --of {}/branched", "--as expert: expected --name, got none"),
        ("{}/merged --as merged", "--as merged: expected --names, got none"),
        ("{}/branched --as branched --name x", "--as branched: expected no --name, got one"),
        ("{}/branched --as branched --moved 1", "--as branched: expected no --moved, got one"),
        ("{}/math --as expert --of {}/branched --name math --names a", "--as expert: expected no --names"),
        ("{}/math --as expert --of {}/branched --name math", "expected the manifest that bar branch writes"),
        ("{}/nowhere --as branched", "config.json: not found; expected"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(inline, place, arguments, message):
    before = sorted(place.rglob("*"))
    assert message in refused(inline("adopt_folder", *arguments.format(*[place] * 2).split()))
    assert sorted(place.rglob("*")) == before
