"""tools/route.py: what it prints, and that bad input is one line."""

import re

import pytest
import torch
from folders import save_hf
from scripts import process, refused

from megatron_bar.evaluation.plot import COLOURS, expert_colour
from megatron_bar.evaluation.route import coloured


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
    return [float(line.split("│")[3].strip().removesuffix(" %")) for line in out.splitlines() if line.count("│") == 5]


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
    return root


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["moe"], "text: expected it as an argument or by --file, got neither"),
        (["moe", "one", "--file", "x"], "got both"),
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
    ],
)
def test_bad_input_is_one_line(inline, places, monkeypatch, arguments, message):
    monkeypatch.chdir(places)
    said = refused(inline("route", *arguments))
    assert re.search(message, said), said
