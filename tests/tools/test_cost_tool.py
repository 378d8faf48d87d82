"""tools/cost.py on a real merge: the entries of every stage, and one line where there are none."""

import json
import os
import subprocess
import sys

import pytest
from folders import seal
from scripts import ENV, ROOT, refused

from megatron_bar.experts.merge import merge
from megatron_bar.weights.manifest import Cost, TrainingRecord, read_manifest


@pytest.fixture(scope="module")
def place(branched, expert, tmp_path_factory):
    root = tmp_path_factory.mktemp("cost")
    final = merge(branched, {"maths": expert}, root / "final").path
    numbers = {"tokens": 8, "loss_tokens": 4, "generated": 0, "flops": 2e6, "seconds": 3.0, "devices": 2}
    routed = Cost(step="final", stage="route", device="tests", **numbers)
    seal(final, read_manifest(final).after(TrainingRecord(stage="route"), sources=(), cost=routed))
    return final


def test_a_merged_models_stages_and_prices(place, inline):
    status, out, err = inline("cost", place, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert [(entry["step"], entry["expert"]) for entry in found["entries"]] == [
        ("expert", "maths"),
        ("final", None),
    ]
    assert found["update"]["maths"] == {"tokens": 108, "flops": 3e6, "device_seconds": 7.5}
    status, out, err = inline("cost", place, "--retrained", place, "--domains", 3)
    assert status == 0, err
    assert "as the retrained model's ledger says" in out and out.splitlines()[-1].split()[0] == "3"


def test_a_closed_pipe_ends_it_without_a_word(place):
    """What nobody reads, which is found at the first flush: the end's, as all of it fits the buffer."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, ROOT / "tools/cost.py", place, "--json"]
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, env=ENV) as tool:
        os.close(writing)
        assert (tool.stderr.read(), tool.wait()) == (b"", 1)


def test_what_cannot_be_priced_is_one_line(place, branched, expert, tmp_path, inline):
    assert "expected a merged model, got kind 'expert'" in refused(inline("cost", expert))
    assert "ledger expected with an entry for every stage, got none" in refused(inline("cost", branched))
    assert "expected a folder, got none" in refused(inline("cost", tmp_path / "nowhere"))
    assert "expected a folder, got a file" in refused(inline("cost", place / "manifest.json"))
    assert "expected a folder, got none" in refused(
        inline("cost", place, "--retrained", tmp_path / "nowhere")
    )
    assert "domains expected at least 1, got 0" in refused(inline("cost", place, "--domains", 0))
