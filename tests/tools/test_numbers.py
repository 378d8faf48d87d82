"""Numbers and places that no run can have: one line that names them, at once and before anything is
written."""

import subprocess
import sys
from pathlib import Path

import pytest
from scripts import ROOT, refused


@pytest.mark.parametrize(
    "command, message",
    [
        ("tools/traffic.py olmo2_7b --world-size 0", "stage midtrain: processes expected above 0, got 0"),
        ("examples/reproduce.py --processes 0", "--processes expected above 0, got 0"),
        ("examples/reproduce.py --recipe tiny", "--recipe tiny: expected one with a study, as tiny_study"),
        (
            "examples/pretrain_bar.py tiny --out {}/file",
            "/file: expected a folder to write to, got File exists",
        ),
        (
            "examples/pretrain_bar.py tiny --out {}/file/run",
            "/file/run: expected a folder to write to, got Not a directory",
        ),
        (
            "tools/preview_data.py --input {}/rows.jsonl --tokenizer {} --length 0",
            "length expected at least 1, got 0",
        ),
    ],
)
def test_what_cannot_be_is_one_line(command, message, tmp_path):
    (tmp_path / "file").touch()
    words = [word.format(tmp_path) for word in command.split()]
    done = subprocess.run(
        [sys.executable, ROOT / words[0], *words[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert message in refused((done.returncode, done.stdout, done.stderr))
    assert list(Path(tmp_path).iterdir()) == [tmp_path / "file"]
