"""tools/route.py: what it prints, and that bad input is one line."""

import json
import re

import pytest
import torch
from folders import save_hf
from scripts import process, refused

from megatron_bar.evaluation.routing.terminal import coloured
from megatron_bar.report.plot import COLOURS, expert_colour

CHAT = {"messages": [{"role": "user", "content": "one plus"}, {"role": "assistant", "content": "two is red"}]}


def test_a_text_with_its_legend(expert):
    status, out, err = process("route", expert, "one plus [bold]two")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "plus" in lines[0] and "two" in lines[0]
    assert "tokens, mean over 2 layers" in lines[1]
    rows = {cells[2].strip(): cells[3:5] for cells in (line.split("│") for line in lines) if len(cells) == 6}
    assert list(rows) == ["anchor", "math"], "the names are the manifest's"
    shares = [float(cells[0].strip().removesuffix(" %")) for cells in rows.values()]
    assert sum(shares) == pytest.approx(100, abs=0.11)


def shares(out: str) -> list[float]:
    return [
        float(line.split("│")[3].strip().removesuffix(" %"))
        for line in out.splitlines()
        if line.count("│") == 5
    ]


def test_layers_chats_and_files(inline, expert, tmp_path):
    mean = shares(inline("route", expert, "one plus two")[1])
    layers = []
    for layer in (1, 2):
        status, out, _ = inline("route", expert, "one plus two", "--layer", layer)
        assert status == 0 and f"3 tokens, layer {layer} of 2" in out
        layers.append(shares(out))
    assert layers[0] != layers[1]
    assert mean == pytest.approx([(a + b) / 2 for a, b in zip(*layers, strict=True)], abs=0.11)
    (tmp_path / "text.txt").write_text("one plus two")
    assert shares(inline("route", expert, "--file", tmp_path / "text.txt")[1]) == mean
    out = inline("route", expert, "one plus", "--chat")[1]
    assert out.startswith("<|endoftext|>"), "the template's own tokens are shown"


def test_colours_follow_the_largest_weight():
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    text = coloured(["a", "b"], weights)
    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 1, f"black on {COLOURS[0]}"),
        (1, 2, f"black on {COLOURS[-1]}"),
    ]
    assert len({expert_colour(n) for n in range(40)}) == 40


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("route")
    save_hf(root / "moe", experts=2)
    save_hf(root / "dense")
    (save_hf(root / "bare", experts=2) / "tokenizer.json").unlink()
    (root / "latin").write_bytes("é".encode("latin-1"))
    (root / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    return root


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["moe"], "expected one of a text, --file, --scan or --set-active, got none"),
        (["moe", "one", "--file", "x"], "got text and file"),
        (["moe", ""], "text: expected at least one token, got none"),
        (["moe", "one " * 33], r"text: expected at most 32 tokens \(the model's positions\), got 33"),
        (["moe", "one", "--layer", "3"], "layer: expected 1 to 2, got 3"),
        (["moe", "one", "--layer", "0"], "layer: expected 1 to 2, got 0"),
        (["moe", "one", "--chat", "--template", "own"], "no chat template of its own"),
        (["moe", "a\udcff"], r"text: expected UTF-8, got '\\udcff'"),
        (["moe", "--file", "absent"], "absent: expected UTF-8 text, got .*No such file"),
        (["moe", "--file", "latin"], "latin: expected UTF-8 text, got .*0xe9"),
        (["dense", "one"], "dense: expected a model with experts, got a dense one"),
        (["bare", "one"], r"bare/tokenizer\.json: not found"),
        (["nowhere", "one"], "nowhere"),
        (["moe", "--scan", "absent.jsonl"], "absent.jsonl"),
        (["dense", "--scan", "chats.jsonl"], "dense: active experts expected none of a dense model"),
        (
            ["moe", "--scan", "chats.jsonl", "--tolerance", "-1"],
            "tolerance: expected nats per token, at least 0, got -1",
        ),
        (["moe", "--scan", "chats.jsonl", "--mean", "3"], "mean: expected 1 to 2 experts a layer, got 3"),
        (["moe", "--scan", "chats.jsonl", "--out", "."], "expected a file to write to, got a folder"),
        (["moe", "--scan", "latin"], "latin: expected .jsonl, .jsonl.gz"),
        (["moe", "one", "--mean", "2"], "--mean: expected with --scan, got a text"),
        (["moe", "one", "--out", "x"], "--out: expected with --scan or --set-active, got a text"),
        (["moe", "--file", "latin", "--tolerance", "0.1"], "--tolerance: expected with --scan, got --file"),
        (
            ["moe", "--scan", "chats.jsonl", "--layer", "1"],
            "--layer: expected with a text or --file, got --scan",
        ),
        (["moe", "--set-active", "2", "--chat"], "--chat: expected with a text or --file, got --set-active"),
        (["moe", "--set-active", "2"], "--set-active: expected --out FOLDER, got none"),
        (["moe", "--set-active", "3", "--out", "x"], "moe: active experts expected from 1 to 2, got 3"),
        (["moe", "--set-active", "0", "--out", "x"], "moe: active experts expected from 1 to 2, got 0"),
        (
            ["moe", "--set-active", "2,1,1", "--out", "x"],
            "active experts expected one number or 2, one per layer, got 3",
        ),
        (
            ["moe", "--set-active", "two", "--out", "x"],
            "active experts expected K, K,K,... or a JSON file with a list, got 'two'",
        ),
        (
            ["moe", "--set-active", "no.json", "--out", "x"],
            "active experts expected .* got 'no.json': .*No such file",
        ),
    ],
)
def test_bad_input_is_one_line(inline, places, monkeypatch, arguments, message):
    monkeypatch.chdir(places)
    said = refused(inline("route", *arguments))
    assert re.search(message, said), said


def test_the_tools_file_is_read_by_the_tools(inline, merged, tmp_path):
    (tmp_path / "held_out.jsonl").write_text(json.dumps(CHAT) + "\n")
    out = tmp_path / "active.json"
    status, said, _ = inline(
        "route", merged, "--scan", tmp_path / "held_out.jsonl", "--tolerance", 10, "--out", out
    )
    assert status == 0 and "layer 2 of 2: 1 active" in said and "1,1" in said, said
    assert json.loads(out.read_text()) == [1, 1]
    status, said, _ = inline(
        "route", merged, "--scan", tmp_path / "held_out.jsonl", "--mean", 1.5, "--out", out
    )
    assert status == 0 and "(mean 1.50 of 2)" in said and sum(json.loads(out.read_text())) == 3
    out.write_text("[1, 1]")
    status, said, _ = inline("route", merged, "--set-active", out, "--out", tmp_path / "one")
    assert status == 0 and "1 active experts" in said
    status, said, _ = inline("route", merged, "--set-active", "2,1", "--out", tmp_path / "two")
    assert status == 0 and "2,1 active experts" in said and "transformers and vLLM know one number" in said
    config = json.loads((tmp_path / "two/config.json").read_text())
    assert (config["num_experts_per_tok"], config["num_experts_per_layer"]) == (2, [2, 1])
