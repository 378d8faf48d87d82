"""Length-normalised DPO against transformers and its formula, on every layout, stopped and gone on, and what
its data may be."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from folders import load_tensors, save_hf

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import PairRows
from megatron_bar.data.sources import Source
from megatron_bar.data.tokenizer import load_tokenizer, train_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.fit import Job
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.preference import DPOConfig, fit_preferences, preference_rows
from megatron_bar.training.stage import Stage
from megatron_bar.weights.hf_config import read_config
from megatron_bar.weights.manifest import Manifest

LENGTH, BETA = 24, 5.0
LAYOUTS = {
    "tp2": (ParallelConfig(tensor=2), 2),
    "pp2": (ParallelConfig(pipeline=2), 2),
    "dp2": (ParallelConfig(), 2),
    "ep2": (ParallelConfig(expert=2), 2),
}
STAGE = Stage(
    name="dpo",
    policy="rlvr",
    optim=OptimConfig(lr=1e-2, eps=1e-3),
    sequence=LENGTH,
    batch=4,
    router_z_loss=1e-3,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("preference")
    return {"two": save_hf(root / "two", experts=2), "dense": save_hf(root / "dense")}


def pairs(count: int = 12, sizes: tuple[int, ...] = (2, 3, 4, 5)) -> list[list[tuple[list[int], list[bool]]]]:
    """Prompts of three tokens, answers of different lengths: the chosen ones of the tokens 2 to 9, the others
    of 10 to 18."""
    generator = torch.Generator().manual_seed(5)

    def answer(n: int, low: int, high: int) -> list[int]:
        return torch.randint(low, high, (sizes[n % len(sizes)],), generator=generator).tolist()

    found = []
    for n in range(count):
        prompt = [2 + n % 7, 3, 4]
        both = (prompt + answer(n, 2, 10), prompt + answer(n + 1 + n % 3, 10, 19))
        found.append([(ids, [False] * 3 + [True] * (len(ids) - 3)) for ids in both])
    return found


def rows(given: list | None = None, length: int = LENGTH) -> PairRows:
    documents = in_memory(document for pair in given or pairs() for document in pair)
    return PairRows([("x", documents)], length, pad_id=0)


class Warned(PairRows):
    """Rows on whose fifth batch the process gets a SIGTERM."""

    taken = 0

    def take(self, index):
        self.taken += 1
        if self.taken == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().take(index)


def learn(source: Path, folder: Path, stage: Stage, packed: PairRows, beta: float = BETA) -> None:
    manifest = Manifest(family=read_config(source).model_type, kind="dense")
    job = Job(
        name="dpo",
        source=source,
        out=folder / "out",
        manifest=lambda *_, **__: manifest,
        logs=folder / "logs",
    )
    fit_preferences(job, stage, DPOConfig(beta=beta), packed)


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]


def logprobs(model, ids: list[int], learnt: list[bool]) -> torch.Tensor:
    """Of an answer's tokens."""
    tokens = torch.tensor([ids])
    logits = model(tokens).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0][torch.tensor(learnt[1:])]


def reference(start: Path, now: Path, given: list, beta: float) -> dict[str, float]:
    """Loss, accuracy, margin and gradient norm over the pairs: each answer by itself, unpacked, in
    transformers."""
    from transformers import AutoModelForCausalLM

    before, model = (
        AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager") for path in (start, now)
    )
    margins = []
    for pair in given:
        with torch.no_grad():
            held = [logprobs(before, *document) for document in pair]
        gains = [
            (logprobs(model, *document) - kept).mean() for document, kept in zip(pair, held, strict=True)
        ]
        margins.append(beta * (gains[0] - gains[1]))
    margin = torch.stack(margins)
    loss = torch.log1p(torch.exp(-margin)).mean()
    loss.backward()
    norm = math.sqrt(
        sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    )
    accuracy = float((margin > 0).float().mean())
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {
        "loss": loss.item(),
        "accuracy": accuracy,
        "margin": margin.mean().item(),
        "grad_norm": norm,
        "of": gradients,
    }


def test_loss_and_gradient_are_those_of_the_formula_in_transformers(folders, tmp_path):
    """Two steps over the whole set: at the second the log-ratios are no longer 0. With these betas Adam's
    update is lr * g / (|g| + eps), so it tells the gradient of every parameter."""
    packed, given = rows(), pairs()
    optim = OptimConfig(lr=5.0, eps=1e3, betas=(0.0, 0.0), clip=1e9)
    stage = replace(STAGE, policy="dense_all", optim=optim, batch=len(packed), router_z_loss=0.0)
    run_distributed(learn, 1, folders["dense"], tmp_path / "one", replace(stage, steps=1), packed)
    run_distributed(learn, 1, folders["dense"], tmp_path / "two", replace(stage, steps=2), packed)
    first = reference(folders["dense"], folders["dense"], given, BETA)
    second = reference(folders["dense"], tmp_path / "one/out", given, BETA)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and second["margin"] > 0.1
    for seen, wanted in zip(logged(tmp_path / "two"), (first, second), strict=True):
        assert {name: seen[name] for name in ("loss", "accuracy", "margin", "grad_norm")} == pytest.approx(
            {name: wanted[name] for name in ("loss", "accuracy", "margin", "grad_norm")}, rel=2e-4, abs=2e-6
        )
    before, after = load_tensors(tmp_path / "one/out"), load_tensors(tmp_path / "two/out")
    for name, gradient in second["of"].items():
        update = -optim.lr * gradient / (gradient.abs() + optim.eps)
        assert torch.allclose(after[name] - before[name], update, rtol=1e-3, atol=2e-6), name


def test_the_routers_z_loss_stays_a_mean_over_tokens(folders, tmp_path):
    """With a beta of nearly nothing it alone has a gradient. The rows are full, so no padding has a share in
    it."""
    from transformers import AutoModelForCausalLM

    given = pairs(count=6, sizes=(5,))
    packed = rows(given, length=16)
    assert packed.efficiency == 1
    stage = replace(STAGE, policy="route", sequence=16, batch=len(packed), steps=1, router_z_loss=0.1)
    run_distributed(learn, 1, folders["two"], tmp_path, stage, packed, 1e-9)
    model = AutoModelForCausalLM.from_pretrained(folders["two"], attn_implementation="eager")
    documents = [ids for pair in given for ids, _ in pair]
    squares = 0.0
    for ids in documents:
        logits = model(torch.tensor([ids]), output_router_logits=True).router_logits
        squares = squares + sum(layer.float().logsumexp(-1).square().sum() for layer in logits) / len(logits)
    (0.1 * squares / sum(map(len, documents))).backward()
    routers = [p.grad for name, p in model.named_parameters() if name.endswith("mlp.gate.weight")]
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in routers))
    assert logged(tmp_path)[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.fixture(scope="module")
def one_process(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run_distributed(learn, 1, folders["two"], folder, replace(STAGE, steps=12), rows())
    return folder


def test_what_was_chosen_becomes_likelier(one_process):
    seen = logged(one_process)
    assert seen[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert seen[0]["accuracy"] <= 0.5 and abs(seen[0]["margin"]) < 1e-5
    assert seen[-1]["accuracy"] == 1 and seen[-1]["margin"] > 1 and seen[-1]["loss"] < 0.3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_takes_the_same_steps(layout, folders, one_process, tmp_path):
    layout, processes = LAYOUTS[layout]
    run_distributed(
        learn, processes, folders["two"], tmp_path, replace(STAGE, steps=12, parallel=layout), rows()
    )
    for one, other in zip(logged(one_process), logged(tmp_path), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    before, after = load_tensors(one_process / "out"), load_tensors(tmp_path / "out")
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-4) for name in before)


def stop_and_go_on(source: Path, folder: Path, stage: Stage, warned: PairRows, packed: PairRows) -> int:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            learn(source, folder, stage, warned)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (folder / "out").exists()
    with pytest.raises(BarError, match="another objective"):
        learn(source, folder, stage, packed, BETA / 2)
    learn(source, folder, stage, packed)
    return stopped.value.code


def test_a_stopped_stage_goes_on_as_if_it_had_not_been(folders, one_process, tmp_path):
    given = in_memory(document for pair in pairs() for document in pair)
    warned = Warned([("x", given)], LENGTH, pad_id=0)
    found = run_distributed(
        stop_and_go_on, 1, folders["two"], tmp_path, replace(STAGE, steps=12), warned, rows()
    )
    assert found == [os.EX_TEMPFAIL]
    assert logged(one_process) == logged(tmp_path)
    before, after = load_tensors(one_process / "out"), load_tensors(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["one plus two is three"] * 50, folder, vocab_size=300)
    return ChatFormat(load_tokenizer(folder))


def written(folder: Path, *found: dict) -> Source:
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return Source(path=Path("x.jsonl"), kind="preference")


def preference(chosen: str, rejected: str, asked: str = "one plus two") -> dict:
    return {"messages": [{"role": "user", "content": asked}], "chosen": chosen, "rejected": rejected}


def test_rows_are_learnt_on_the_answers_alone(chats, tmp_path):
    given = [
        preference("three", "two"),
        preference("is", "is"),
        preference("one " * 300, "two"),
        preference("two", "three one"),
    ]
    # An answer of an earlier turn is a part of what was asked.
    given[0]["messages"] += [{"role": "assistant", "content": "plus"}, {"role": "user", "content": "is"}]
    said: list[str] = []
    packed = preference_rows([written(tmp_path, *given)], tmp_path, chats, 300, say=said.append)
    assert packed.pairs == 2 and packed.efficiency < 1
    assert said == [
        f"2 pairs in 1 rows of 300, {packed.efficiency:.1%} full; dropped 1 longer than a row and 1 of "
        f"equal answers"
    ]
    batch = packed.take([0])
    learnt = [batch.labels[0][(batch.documents[0] == d) & (batch.labels[0] >= 0)].tolist() for d in range(4)]
    decoded = [chats.tokenizer.decode(ids[:-1]) for ids in learnt]
    assert {tuple(decoded[:2]), tuple(decoded[2:])} == {("three", "two"), ("two", "three one")}
    assert all(ids[-1] in chats.stop_ids for ids in learnt)
    assert (
        packed.fingerprint
        != preference_rows([written(tmp_path, *given[::-1])], tmp_path, chats, 300).fingerprint
    )


@pytest.mark.parametrize(
    "row, options, message",
    [
        (preference("two", "one") | {"messages": []}, {}, r"x\.jsonl:2: chosen: the assistant speaks first"),
        (
            preference("two", "one") | {"messages": [{"role": "bot"}]},
            {},
            r"x\.jsonl:2: chosen: message 0: expected a role of",
        ),
        (
            preference("one " * 99, "two"),
            {"too_long": "error"},
            r"x\.jsonl:2: a pair of \d+ tokens; a row holds 100",
        ),
        (
            preference("one", "two"),
            {"too_long": "truncate"},
            "a pair cannot be cut; too_long expected drop or error, got trunc",
        ),
    ],
    ids=["no question", "no role", "too long", "cut"],
)
def test_bad_rows_and_options_are_named(row, options, message, chats, tmp_path):
    with pytest.raises(BarError, match=message):
        preference_rows([written(tmp_path, preference("three", "two"), row)], tmp_path, chats, 100, **options)


def test_bad_rows_are_left_out_where_asked(chats, tmp_path):
    good = [preference("three", "two"), preference("two", "three one")]
    bad = [preference("", "two"), preference("one " * 99, "two")]
    options = {"too_long": "error", "skip_bad": True}
    found = preference_rows([written(tmp_path, good[0], *bad, good[1])], tmp_path, chats, 100, **options)
    alone = preference_rows([written(tmp_path, *good)], tmp_path, chats, 100)
    assert found.fingerprint == alone.fingerprint and found.pairs == 2
    with pytest.raises(
        BarError, match=r"x\.jsonl:2: chosen: message 1: expected an answer, got an empty one"
    ):
        preference_rows([written(tmp_path, good[0], *bad)], tmp_path, chats, 100, too_long="error")


def test_another_kind_and_a_beta_of_nothing_are_refused(chats, tmp_path):
    with pytest.raises(BarError, match="expected rows of preference, got chat"):
        preference_rows([Source(path=Path("x.jsonl"), kind="chat")], tmp_path, chats, 100)
    with pytest.raises(BarError, match="dpo: beta must be positive, got 0"):
        DPOConfig(beta=0)
