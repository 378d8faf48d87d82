"""Folders and files that appear when they are whole: written beside, made to reach the disk, renamed."""

import json
import os
from pathlib import Path

from megatron_bar.errors import writing


def publish(folder: Path, out: Path) -> None:
    """Fsyncs the files and the folder, then gives it its own name: the last act."""
    with writing(out):
        for file in (*folder.iterdir(), folder):
            _fsync(file)
        folder.rename(out)  # replaces an empty folder, fails on any other
        _fsync(out.parent)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears when it is whole, in a folder that is made for it."""
    beside = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        with beside.open("x", encoding="utf-8") as file:  # follows no link
            file.write(text)
        _fsync(beside)
        beside.rename(path)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
