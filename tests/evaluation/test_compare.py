"""Gains by hand, the KL against transformers' log-softmax at several layouts, and what cannot be compared."""

from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from evaluation.tiny_chat import QUESTIONS, answers, save_chat_hf, write_world

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.evaluation import compare as gate
from megatron_bar.evaluation.compare import Comparison, gains, require_no_regression
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.report.bootstrap import Estimate


def results(scores: list[float], name: str = "old") -> dict:
    tests = {"math": {"hash": "h", "items": len(scores)}}
    items = [{"prompt": "", "answer": "", "score": score} for score in scores]
    return {"model": name, "suite": "toy", "limit": None, "tests": tests, "scores": {"math": items}}


def test_gains_are_paired_by_item():
    """Forty items each of which gains as much have an interval without width, whatever their scores are."""
    old = [n % 2 / 2 for n in range(40)]
    (found,) = gains(results(old), results([score + 0.25 for score in old])).values()
    assert found == Estimate(mean=25.0, low=25.0, high=25.0, seeds=1)
    (mixed,) = gains(results([0.0] * 40), results([1.0] * 10 + [0.0] * 30)).values()
    assert mixed.mean == 25.0 and 10 <= mixed.low <= 15 and 35 <= mixed.high <= 40


@pytest.mark.parametrize(
    "high, tolerance, told", [(-0.1, 0.0, True), (0.0, 0.0, False), (-2.0, 2.0, False), (-2.1, 2.0, True)]
)
def test_a_domain_regressed_where_its_whole_interval_is_below(high, tolerance, told):
    lost = Estimate(mean=-5.0, low=-9.0, high=high, seeds=1)
    found = Comparison(
        old="a",
        new="b",
        items={"math": 9, "code": 9},
        gains={"math": lost, "code": lost},
        guarded=("code",),
        divergence={"code": lost},
    )
    assert found.regressed(tolerance) == ["code"] * told  # what was changed is not guarded
    if told:
        with pytest.raises(
            ValueError,
            match=rf"b: expected no domain to lose more than .* against a, got code -5\.0 .*{high}",
        ):
            require_no_regression(found, tolerance)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models, a world, and what transformers says of them: OLD's answers, and the KL of each text."""
    root = tmp_path_factory.mktemp("compare")
    for name, seed in (("old", 7), ("new", 8)):
        save_chat_hf(root / name, seed=seed)
    said = answers(root / "old", new=64)
    write_world(root / "world", said)
    return root, said, by_transformers(root, said)


def by_transformers(root: Path, said: list[str]) -> list[float]:
    from transformers import AutoModelForCausalLM

    models = [
        AutoModelForCausalLM.from_pretrained(root / name, dtype=torch.float32) for name in ("old", "new")
    ]
    found = []
    for ids in texts(root, said):
        p, q = (model(torch.tensor([ids])).logits[0].double().log_softmax(-1) for model in models)
        found.append(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item() / len(ids))
    return found


def texts(root: Path, said: list[str]) -> list[list[int]]:
    chats = ChatFormat(load_tokenizer(root / "old"), "own")
    prompts = [chats.prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
    encode = chats.tokenizer.encode_text
    return [
        (prompt + encode(answer))[:128] for prompt, answer in zip(prompts, said, strict=True)
    ]  # the model's positions


def compared(root: Path, layout: ParallelConfig, changed: list[str]) -> Comparison:
    gate.PASS = 100  # several passes
    return gate.compare(root / "old", root / "new", root / "world", changed=changed, layout=layout, slots=4)


@pytest.mark.parametrize(
    "layout, processes",
    [
        (ParallelConfig(), 1),
        (ParallelConfig(tensor=2), 2),
        (ParallelConfig(pipeline=2), 2),
        (ParallelConfig(), 2),
    ],
    ids=["one", "tp2", "pp2", "dp2"],
)
def test_the_divergence_is_that_of_transformers(layout, processes, place):
    root, _, expected = place
    assert min(expected) > 0.01
    for found in run_distributed(compared, processes, root, layout, ["math", "code"]):
        assert list(found.divergence) == ["knowledge", "reasoning", "chat", "tool_use", "safety"]
        for estimate in found.divergence.values():
            assert estimate.mean == pytest.approx(sum(expected) / 4, rel=1e-4)
            assert min(expected) - 1e-4 <= estimate.low <= estimate.high <= max(expected) + 1e-4
        # OLD is right everywhere by the answers that are asked for.
        assert found.gains["chat"].mean == pytest.approx(-100.0) and found.regressed(99.0) == list(
            found.divergence
        )


def test_a_model_does_not_diverge_from_itself(place):
    (found,) = run_distributed(same, 1, place[0])
    assert all(kl.mean == 0 for kl in found.divergence.values()) and not found.regressed(0)


def same(root: Path) -> Comparison:
    return gate.compare(root / "old", root / "old", root / "world", limit=2)
