"""What the benchmarks beside TRL and mergekit compare is the same work; without a peer they measure nothing."""

import random
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripts import ROOT
from transformers import AutoTokenizer

from megatron_bar.experts.dense_merge import dense_merge
from megatron_bar.experts.shared import Combination
from megatron_bar.parallel.state import distributed

sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_mergekit
import bench_peers
from bench_peers import CASES
from smollm2_shape import save_model

TINY = {"layers": 1, "vocabulary": 1000}


@pytest.mark.parametrize("bench", [bench_peers, bench_mergekit])
def test_without_the_peer_one_line_says_so_and_nothing_fails(tmp_path, monkeypatch, capsys, bench):
    monkeypatch.setattr(bench, "PACKAGES", tmp_path)  # a checkout without the peer's environment
    monkeypatch.setattr(sys, "argv", [bench.__name__])
    bench.main()
    out = capsys.readouterr().out
    assert out.startswith("nothing measured: No module named ") and out.count("\n") == 1


@pytest.mark.parametrize("length", [512, 2048])
def test_trl_gets_the_documents_and_labels_that_were_drawn(length):
    case = CASES[f"sft_dense_float32_{length}"]
    drawn = bench_peers.chats(random.Random(0), length)
    rows = bench_peers.packed_rows(case.batch)
    assert len(rows) == case.rows
    assert case.tokens == sum(len(row["input_ids"]) for row in rows) > 0.9 * bench_peers.TOKENS
    learnt = 0
    for row in rows:
        start = 0
        for size in row["seq_lengths"]:
            ids, labels = (row[name][start : start + size] for name in ("input_ids", "labels"))
            # What is first in a document is nobody's to predict.
            own = [
                [-100, *(n if mine else -100 for n, mine in zip(of[1:], learn[1:], strict=True))]
                for of, learn in drawn
                if of == ids
            ]
            assert own == [labels]
            learnt += sum(label >= 0 for label in labels)
            start += size
        assert start == len(row["input_ids"]) == len(row["labels"])
    assert learnt == case.batch.loss_tokens < 0.8 * case.tokens


def test_trl_gets_the_pairs_that_were_drawn(tmp_path):
    save_model(tmp_path, experts=0, dtype="float32", **TINY)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    drawn = bench_peers.pairs(random.Random(0), 512)
    prompts = {tuple(ids): learn.index(True) for ids, learn in drawn}
    given = bench_peers.text_pairs(CASES["dpo_dense_float32_512"].batch)
    assert len(given) > 2
    for pair in given:
        both = [tuple(tokenizer(pair["prompt"] + pair[name])["input_ids"]) for name in ("chosen", "rejected")]
        first = drawn.index((list(both[0]), [n >= prompts[both[0]] for n in range(len(both[0]))]))
        assert first % 2 == 0 and tuple(drawn[first + 1][0]) == both[1]
        assert len(tokenizer(pair["prompt"])["input_ids"]) == prompts[both[0]]


@pytest.mark.parametrize("experts", [0, 2, 5])
def test_ours_and_transformers_alone_learn_the_same(tmp_path, experts):
    name = f"{experts}_experts" if experts else "dense"
    case = CASES[f"sft_{name}_float32_512"]
    save_model(tmp_path, experts=experts, dtype="float32", **TINY)
    with distributed():
        ours = bench_peers.OurSteps(case, tmp_path)
        alone = bench_peers.TransformersSteps(case, tmp_path)
        bench_peers.require_close(case, ours.losses(), alone.losses())
        before = {name: param.detach().clone() for name, param in alone.model.named_parameters()}
        for _ in range(2):
            ours(), alone()
        bench_peers.require_close(case, ours.reported, alone.reported)
        trained = {
            op.names[0] for _, param, op in ours.trainer.model.parameters_with_ops() if param.requires_grad
        }
    assert ours.reported[1] < ours.reported[0]
    moved = {name: param != before[name] for name, param in alone.model.named_parameters()}
    if not experts:
        assert all(values.any() for values in moved.values()) and len(trained) > 8
        return
    layer, last = "model.layers.0.mlp", experts - 1
    heads = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    stacked = {f"{layer}.experts.gate_up_proj", f"{layer}.experts.down_proj"}
    assert {name for name, values in moved.items() if values.any()} == heads | stacked | {
        f"{layer}.gate.weight"
    }
    for name in stacked:
        assert [bool(values.any()) for values in moved[name]] == [False] * last + [True]
    assert not moved[f"{layer}.gate.weight"][0].any() and moved[f"{layer}.gate.weight"][last].any()
    own = {f"{layer}.experts.{last}.{part}_proj.weight" for part in ("gate", "down")}
    assert trained == heads | own | {f"{layer}.gate.weight"}


def plain_ties(base, tuned: list) -> torch.Tensor:
    """By sorting, in fp64; another program than ours."""
    kept = []
    for other in tuned:
        delta = (other.double() - base.double()).flatten()
        least = delta.abs().sort(descending=True).values[max(1, int(0.2 * delta.numel())) - 1]
        kept.append(torch.where(delta.abs() >= least, delta, 0.0))
    positive = [torch.where(delta > 0, delta, 0.0) for delta in kept]
    negative = [torch.where(delta < 0, delta, 0.0) for delta in kept]
    up = sum(positive) + sum(negative) >= 0
    chosen = [torch.where(up, *both) for both in zip(positive, negative, strict=True)]
    count = sum((delta != 0).double() for delta in chosen).clamp(min=1)
    return (base.double().flatten() + sum(chosen) / count).view(base.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merges_are_compared_value_by_value(tmp_path, dtype):
    folders = bench_mergekit.save_inputs(tmp_path, dtype, **TINY)
    read = [load_file(folder / "model.safetensors") for folder in folders.values()]
    outs = {"ours": tmp_path / "ours", "mergekit": tmp_path / "other-way"}
    outs["mergekit"].mkdir()
    ways = {
        "linear": lambda *values: sum(v.double() for v in values) / len(values),
        "ties": lambda base, *tuned: plain_ties(base, tuned),
    }
    for method, way in ways.items():
        dense_merge(folders, tmp_path / method, shared=Combination(method=bench_mergekit.OURS[method]))
        outs["ours"] = tmp_path / method
        other = {name: way(*(values[name] for values in read)).to(read[0][name].dtype) for name in read[0]}
        save_file(other, outs["mergekit"] / "model.safetensors")
        assert bench_mergekit.compare(method, dtype, folders, outs).endswith("values are the same")
        other["model.norm.weight"][7] *= 1.1
        save_file(other, outs["mergekit"] / "model.safetensors")
        with pytest.raises(AssertionError, match="1 of "):
            bench_mergekit.compare(method, dtype, folders, outs)
