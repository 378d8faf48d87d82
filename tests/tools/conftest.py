import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from folders import save_hf, train_with
from scripts import ROOT, run_here

from megatron_bar.experts.branch import branch
from megatron_bar.experts.merge import merge


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("tools") / "dense", seed=1)


@pytest.fixture(scope="session")
def branched(tmp_path_factory, dense):
    return branch(dense, dense, tmp_path_factory.mktemp("tools") / "branched", router_init="normal")[0].path


@pytest.fixture(scope="session")
def expert(tmp_path_factory, branched):
    def midtrained(name: str, tensor: torch.Tensor) -> torch.Tensor:
        row = torch.tensor([[0.0], [1.0]]) if name.endswith("gate.weight") else float(".experts.1." in name)
        return tensor + row

    return train_with(
        branched, tmp_path_factory.mktemp("tools") / "expert", "midtrain", midtrained, expert="math"
    )


@pytest.fixture(scope="session")
def merged(tmp_path_factory, branched, expert):
    return merge(
        anchor=branched, experts={"math": expert}, out=tmp_path_factory.mktemp("tools") / "merged"
    ).path


@pytest.fixture
def inline(monkeypatch, capsys):
    """(exit status, stdout, stderr) of a script run in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    yield lambda tool, *arguments: run_here(
        monkeypatch, capsys.readouterr, ROOT / "tools" / f"{tool}.py", *arguments
    )
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def run(monkeypatch, capsys, inline):  # inline puts the handler of signals back
    """The same of a script by its path from the checkout's root."""
    return lambda script, *arguments: run_here(monkeypatch, capsys.readouterr, ROOT / script, *arguments)


@pytest.fixture(scope="session")
def new_place(tmp_path_factory, dense, branched, expert):
    """Makes a folder of inputs two levels below the given one, so that what climbs out of it still lands
    where it is seen."""
    sharded = save_hf(tmp_path_factory.mktemp("tools") / "sharded", experts=2, shard="9KB")
    chat = [{"role": "user", "content": "one plus"}, {"role": "assistant", "content": "two"}]

    def make(root: Path) -> Path:
        place = root / "a" / "b"
        for source in (dense, branched, expert, sharded):
            shutil.copytree(source, place / source.name)
        (place / "x.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
        (root / "elsewhere").mkdir()
        return place

    return make
