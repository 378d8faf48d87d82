"""The weights of the lens against transformers' router logits at every layout that it works on, and their
compact form."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distributed import run_distributed
from folders import save_hf
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import load_model
from megatron_bar.evaluation.routing.lens import digits, expert_names, show, token_texts, token_weights
from megatron_bar.parallel.state import ParallelConfig, distributed
from megatron_bar.report.report import DIGITS

IDS = [3, 7, 11, 2, 5, 18, 4]
"""An odd number, which two tensor ranks cannot cut evenly."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("lens") / "moe", experts=4, seed=5)


def of_transformers(folder: Path) -> torch.Tensor:
    import transformers

    model = transformers.FlexOlmoForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([IDS]), output_router_logits=True).router_logits
    return torch.stack([layer.softmax(-1) for layer in logits], dim=1)


def of_ours(folder: Path, layout: ParallelConfig) -> torch.Tensor:
    model = load_model(folder, layout)
    found = token_weights(model, IDS)
    assert model.routing.watch is None
    return found


@pytest.mark.parametrize("tensor, expert, processes", [(1, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 4)])
def test_weights_are_those_of_transformers(folder, tensor, expert, processes):
    expected = of_transformers(folder)
    assert expected.shape == (7, 2, 4)
    assert expected.std(0).min() > 0.01, "the tokens are told apart"
    for found in run_distributed(of_ours, processes, folder, ParallelConfig(tensor=tensor, expert=expert)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_weights_are_those_before_experts_are_left_out(tmp_path):
    source = save_hf(tmp_path / "moe", experts=4, seed=6, num_experts_per_tok=2)
    expected = of_transformers(source)
    with distributed():
        torch.testing.assert_close(of_ours(source, ParallelConfig()), expected, atol=1e-5, rtol=0)


def on_two_pipeline_ranks(folder: Path) -> str:
    with pytest.raises(BarError) as error:
        token_weights(load_model(folder, ParallelConfig(pipeline=2)), IDS)
    return str(error.value)


def test_pipeline_ranks_are_refused(folder):
    assert (
        run_distributed(on_two_pipeline_ranks, 2, folder)
        == ["routing: expected a model on 1 pipeline rank, got 2"] * 2
    )


@pytest.mark.parametrize("ids", [[], [2] * 33])
def test_too_few_and_too_many_tokens(folder, ids):
    with (
        distributed(),
        pytest.raises(BarError, match=rf"expected 1 to 32 tokens \(the model's positions\), got {len(ids)}"),
    ):
        token_weights(load_model(folder, ParallelConfig()), ids)


def test_a_dense_model_has_no_weights(tmp_path):
    with distributed(), pytest.raises(BarError, match="expected a model with experts, got a dense one"):
        token_weights(load_model(save_hf(tmp_path / "dense"), ParallelConfig()), IDS)


def read(text: str, places: int) -> torch.Tensor:
    """Digits back to fractions, one by one."""
    numbers = [[DIGITS.index(c) for c in text[n : n + places]] for n in range(0, len(text), places)]
    return torch.tensor(
        [sum(v * 64**p for p, v in enumerate(reversed(n))) / (64**places - 1) for n in numbers]
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.sampled_from([1, 2]))
def test_digits_keep_a_weight_to_half_a_step(values, places):
    text = digits(torch.tensor(values), places)
    assert len(text) == places * len(values)
    assert (read(text, places) - torch.tensor(values)).abs().max() <= 0.5 / (64**places - 1) + 1e-6


WORDS = SimpleNamespace(special={"<|endoftext|>": 1}, decode=lambda ids: " ".join(f"w{n}" for n in ids))
"""A tokenizer of whole words, which spaces part."""


def test_a_lens_holds_the_weights(folder):
    with distributed():
        model = load_model(folder, ParallelConfig())
        weights = token_weights(model, IDS)
        texts = [("math", IDS), ("code", IDS[:2])]
        made = show(model, texts, WORDS, ("anchor", "a", "b", "c"))
        short = show(model, texts, WORDS, ("anchor", "a", "b", "c"), most_digits=9 * 2 * 4 - 1)
    assert (made.experts, made.layers) == (("anchor", "a", "b", "c"), 2)
    assert [(text.domain, len(text.tokens)) for text in made.texts] == [("math", 7), ("code", 2)]
    torch.testing.assert_close(read(made.texts[0].weights, 2), weights.mean(1).flatten(), atol=2e-4, rtol=0)
    torch.testing.assert_close(read(made.texts[0].by_layer, 1), weights.flatten(), atol=8.1e-3, rtol=0)
    assert [text.by_layer for text in short.texts] == ["", ""], (
        "what would make the page too large is left out"
    )
    assert [text.weights for text in short.texts] == [text.weights for text in made.texts]


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory):
    """One that spells what it has not learnt byte by byte."""
    return train_tokenizer(
        ["one plus two is three"] * 5, tmp_path_factory.mktemp("lens") / "tokenizer", vocab_size=300
    )


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_token_texts_join_to_the_text(bytes_tokenizer, text):
    ids = bytes_tokenizer.encode_text(text)
    found = token_texts(bytes_tokenizer, ids)
    assert len(found) == len(ids) and "".join(found) == text


def test_special_tokens_have_their_names_and_words_their_spaces(bytes_tokenizer):
    ids = [bytes_tokenizer.eos_id, *bytes_tokenizer.encode_text("é"), bytes_tokenizer.pad_id]
    assert token_texts(bytes_tokenizer, ids) == ("<|endoftext|>", "", "é", "<|pad|>")
    assert token_texts(WORDS, [5, 6, 1, 7]) == ("w5", " w6", "<|endoftext|>", "w7")


def test_names_come_from_the_manifest_or_are_numbers(folder):
    assert expert_names(folder, 4) == ("expert 0", "expert 1", "expert 2", "expert 3")
