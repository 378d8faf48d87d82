"""The wheel as a user installs it, in an environment and a folder that know nothing of the checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from scripts import ROOT
from test_end_to_end import SMALL

from megatron_bar import __version__
from megatron_bar.tools import COMMANDS

TORCHRUN = "python -m torch.distributed.run --standalone --nproc-per-node 2 -m megatron_bar".split()
SOURCES = ("megatron_bar", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def files_of_the_package() -> set[str]:
    """Returns those of the checkout, by their paths in a wheel."""
    files = (path for path in (ROOT / "megatron_bar").rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Made of a copy: setuptools leaves a build folder beside setup.py, and takes from it what lies there."""
    place = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, place / "source" / name)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    pip("wheel", *options, "--wheel-dir", place, place / "source")
    (made,) = place.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def installed(tmp_path_factory, wheel) -> Path:
    """Returns a fresh environment with the wheel in it; all other packages are found in the present one."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = (place / "lib").glob("python*/site-packages")
    present = [path for path in sys.path if path.endswith("-packages")]
    (packages / "present.pth").write_text("\n".join(present) + "\n")
    pip("--python", place / "bin/python", "install", "--quiet", "--no-deps", "--no-index", wheel)
    return place


def pip(*arguments) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


@pytest.fixture
def run(installed, tmp_path):
    """Runs a program of that environment, which must succeed, in an empty folder; returns what it printed."""
    env = {"PATH": f"{installed / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def call(*command) -> str:
        words = list(map(str, command))
        done = subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_the_wheel_has_every_file_of_the_package(wheel):
    with ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
    assert inside == files_of_the_package()
    assert {path for path in inside if not path.endswith(".py")} >= {
        "megatron_bar/report/page/page.css",
        "megatron_bar/report/page/page.js",
        "megatron_bar/recipes/smoke_tasks.jsonl",
    }
    assert wheel.name.startswith(f"megatron_bar-{__version__}-")


def test_the_command_works_far_from_the_checkout(installed, run, dense, tmp_path):
    where = Path(run("python", "-c", "import megatron_bar; print(megatron_bar.__file__)").strip())
    assert where.is_relative_to(installed) and not where.is_relative_to(ROOT)
    assert all((where.parents[1] / file).is_file() for file in files_of_the_package())

    listed = run("bar")
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert run("python", "-m", "megatron_bar").replace("python -m megatron_bar", "bar") == listed
    assert run("bar", "merge", "--help").startswith("usage: bar merge ")
    assert run("bar", "--version") == f"megatron_bar {__version__}\n"

    made = run("bar", "branch", "--anchor", dense, "--domain-init", dense, "--out", "two", "--seed", "3")
    assert made.endswith("bytes, verified\n")
    assert "flex_olmo, 2 experts" in run("bar", "inspect", "two")
    assert run("bar", "run", "tiny", "--dry-run").startswith("recipe tiny")


def test_its_worker_processes_start(run, dense, tmp_path):
    chat = [{"role": "user", "content": "one plus"}, {"role": "assistant", "content": "two"}]
    (tmp_path / "x.jsonl").write_text(100 * (json.dumps({"messages": chat}) + "\n"))
    options = ("--kind", "chat", "--tokenizer", dense, "--processes", "2")
    assert "tokens: 100 documents" in run(
        "bar", "preprocess", "--input", "x.jsonl", *options, "--out", "tokens"
    )


def test_a_step_of_a_recipe_runs_under_torchrun(run, dense, tmp_path):
    shutil.copy(ROOT / "examples/own_data.py", tmp_path / "mine.py")
    places = (f"base={dense}", f"anchor={dense}")
    out = run(*TORCHRUN, "run", "mine.py:recipe", "--out", "run", "--stage", "branch", "--set", *places)
    assert out == "[1/1] branched from anchor, base\n"
    assert (tmp_path / "run/branched/manifest.json").is_file()


@pytest.mark.slow
def test_a_whole_recipe_runs_under_torchrun(run, tmp_path):
    out = run(*TORCHRUN, "run", "tiny", "--out", "run", "--set", *SMALL)
    assert f"megatron_bar {__version__}" in out
    assert "- code: unknown\n" in out  # no git checkout holds an environment's packages
    assert "<style>\n:root{" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
