"""The sampler against the trainer's own forward pass and against transformers' generate, on every layout."""

import numpy as np
import pytest
import torch
from distributed import run_distributed
from folders import LLAMA3, save_hf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import PackedRows
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import load_model
from megatron_bar.models.drawing import uniforms
from megatron_bar.models.sampler import Sampler, draw, stop_at
from megatron_bar.parallel.state import ParallelConfig

SHAPE = {"vocab_size": 43, "experts": 4, "num_hidden_layers": 2, "max_position_embeddings": 64}
EOS, PAD, NEW = 1, 0, 12
PROMPTS = [[5, 6, 7], [9], [4, 8, 15, 16, 23, 42, 3], [11, 12], [30, 31, 32, 33, 34]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("sampler"), seed=4, **SHAPE)


def sample(folder, layout: ParallelConfig, temperature: float):
    """Completions, and their log-probabilities by the forward pass that trains."""
    model = load_model(folder, layout)
    done = Sampler(model, eos_ids={EOS}, pad_id=PAD).generate(
        PROMPTS, max_new_tokens=NEW, temperature=temperature, seed=5, slots=3
    )
    again = None
    if layout.pipeline == 1:
        again = [trainer_logprobs(model, prompt, c.ids) for prompt, c in zip(PROMPTS, done, strict=True)]
    return [(c.ids, c.logprobs, c.finished) for c in done], again


@torch.no_grad()
def trainer_logprobs(model, prompt: list[int], answer: list[int]) -> list[float]:
    length = -(-(len(prompt) + len(answer)) // 2) * 2
    document = (prompt + answer, [False] * len(prompt) + [True] * len(answer))
    rows = PackedRows([("answer", in_memory([document]))], length, pad_id=PAD)
    batch = rows.take([0])
    nll, _ = model(batch.ids, batch.positions, labels=batch.labels, documents=batch.documents)
    return (-nll[batch.labels >= 0]).tolist()


@pytest.mark.parametrize(
    "layout, processes",
    [
        (ParallelConfig(), 1),
        (ParallelConfig(), 2),
        (ParallelConfig(tensor=2), 2),
        (ParallelConfig(expert=2), 2),
        (ParallelConfig(tensor=2, expert=2), 4),
    ],
)
def test_log_probabilities_are_the_trainers(layout, processes, folder):
    for done, again in run_distributed(sample, processes, folder, layout, 1.0):
        for (ids, logprobs, _), expected in zip(done, again, strict=True):
            assert len(ids) == len(logprobs)
            torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "layout, processes",
    [
        (ParallelConfig(), 1),
        (ParallelConfig(tensor=2), 2),
        (ParallelConfig(expert=2), 2),
        (ParallelConfig(pipeline=2), 2),
        (ParallelConfig(tensor=2, pipeline=2), 4),
    ],
)
def test_greedy_is_transformers_generate(layout, processes, folder):
    compare_greedy(layout, processes, folder)


FAMILIES = {
    "qwen3": {"head_dim": 12, "num_experts_per_tok": 2},
    "llama": {"rope_parameters": LLAMA3, "num_experts_per_tok": 2},
    "qwen2": {},
}


@pytest.mark.parametrize("layout", [ParallelConfig(), ParallelConfig(tensor=2)], ids=["alone", "tensor"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_generate_in_every_family(family, layout, tmp_path):
    source = save_hf(tmp_path, seed=4, family=family, **(SHAPE | FAMILIES[family]))
    compare_greedy(layout, layout.tensor, source)


def compare_greedy(layout, processes, folder):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=PAD,
            use_cache=True,
        )
        expected.append(out[0, len(prompt) :].tolist())
    for done, _ in run_distributed(sample, processes, folder, layout, 0.0):
        assert [ids for ids, _, _ in done] == expected
        assert [finished for _, _, finished in done] == [ids[-1] == EOS for ids in expected]


def draw_many(folder) -> list[int]:
    model = load_model(folder, ParallelConfig())
    sampler = Sampler(model, eos_ids={EOS}, pad_id=PAD)
    return [c.ids[0] for c in sampler.generate([[5, 6]] * 4000, max_new_tokens=1, seed=1, slots=4000)]


def test_draws_follow_the_models_distribution(folder):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        probs = model(torch.tensor([[5, 6]])).logits[0, -1].softmax(-1).double()
    counts = torch.bincount(torch.tensor(run_distributed(draw_many, 1, folder)[0]), minlength=43).double()
    # Chi-square over the tokens expected at least five times; 99.99 % point of 42 degrees of freedom is 83.
    expected = probs * 4000
    likely = expected >= 5
    assert float(((counts - expected)[likely].square() / expected[likely]).sum()) < 83


def too_long(folder):
    model = load_model(folder, ParallelConfig())
    with pytest.raises(BarError, match="prompt 0 has 60 tokens; expected 1 to 52"):
        Sampler(model, eos_ids={EOS}, pad_id=PAD).generate([[5] * 60], max_new_tokens=NEW)


def test_a_prompt_that_leaves_no_room_is_refused(folder):
    run_distributed(too_long, 1, folder)


def same_draws(folder, layout: ParallelConfig, slots: int) -> list[list[int]]:
    model = load_model(folder, layout)
    prompts = [[2 + n % 30, 3] * (1 + n % 3) for n in range(24)]
    limits = [1 + 5 * n % 9 for n in range(24)]
    done = Sampler(model, eos_ids={EOS}, pad_id=PAD).generate(
        prompts, max_new_tokens=limits, seed=3, slots=slots
    )
    assert all(
        1 <= len(c.ids) <= limit and c.finished == (c.ids[-1] == EOS)
        for c, limit in zip(done, limits, strict=True)
    )
    assert all(len(c.ids) == limit for c, limit in zip(done, limits, strict=True) if not c.finished)
    return [c.ids for c in done]


@pytest.mark.parametrize(
    "layout, processes, slots",
    [
        (ParallelConfig(), 1, 5),
        (ParallelConfig(), 1, 24),
        (ParallelConfig(), 2, 3),
        (ParallelConfig(tensor=2), 2, 3),
        (ParallelConfig(expert=2), 2, 5),
        (ParallelConfig(pipeline=2), 2, 4),
    ],
)
def test_draws_depend_on_the_seed_alone(layout, processes, slots, folder):
    """Whatever the layout, and whichever slots are refilled when."""
    expected = run_distributed(same_draws, 1, folder, ParallelConfig(), 1)[0]
    assert all(found == expected for found in run_distributed(same_draws, processes, folder, layout, slots))


@settings(deadline=None)
@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=12), st.floats(0, 1, exclude_max=True), st.floats(0.05, 1)
)
def test_top_p_draws_from_the_smallest_likely_set(logits, uniform, top_p):
    values = torch.tensor([logits], dtype=torch.float32)
    token, logprob = (
        value.item() for value in draw(values, torch.tensor([uniform], dtype=torch.float64), 1.0, top_p)
    )
    probs = values[0].double().softmax(-1)
    more_likely = probs[probs > probs[int(token)] + 1e-6].sum().item()
    assert more_likely < top_p + 1e-5
    assert logprob == pytest.approx(probs[int(token)].log().item(), abs=1e-4)


def test_a_draw_is_the_inverse_of_the_distribution_function():
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log().repeat(6, 1)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.999], dtype=torch.float64)
    assert draw(logits, uniforms, 1.0, 1.0)[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert draw(logits, uniforms, 1.0, 0.6)[0].tolist() == [1, 1, 1, 2, 2, 2], (
        "of 0.5 and 0.3, in their places"
    )
    assert draw(logits, uniforms, 0.0, 1.0)[0].tolist() == [1] * 6


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0], ids="spread {}".format)
def test_a_draw_from_a_large_vocabulary_is_numpys(spread, top_p):
    """Nearly all, many or few tokens make the nucleus; the vocabulary is no multiple of a block."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(16, 5003)) * spread).astype(np.float32)
    uniforms = np.append(rng.random(15), np.nextafter(1.0, 0.0))
    tokens, logprobs = draw(torch.from_numpy(logits), torch.from_numpy(uniforms), 0.7, top_p)
    for row, uniform, token, logprob in zip(logits, uniforms, tokens.int(), logprobs, strict=True):
        probs = np.exp(row.astype(np.float64) / 0.7)
        probs /= probs.sum()
        assert logprob.item() == pytest.approx(np.log(probs[token]), abs=1e-5)
        order = np.argsort(-probs)
        before = np.append(0.0, probs[order].cumsum()[:-1])
        probs[order[before >= top_p]] = 0.0
        sums = probs.cumsum()
        assert token == np.searchsorted(sums, uniform * sums[-1], side="right")


def stopped(folder) -> tuple[list[int], list[int], bool]:
    sampler = Sampler(load_model(folder, ParallelConfig()), eos_ids=set(), pad_id=PAD)
    (free,) = sampler.generate([[5, 6]], max_new_tokens=NEW, seed=1)
    third = stop_at([f" {free.ids[2]} "], lambda ids: "".join(f" {n} " for n in ids))
    (cut,) = sampler.generate([[5, 6]], max_new_tokens=NEW, seed=1, stop=third)
    return free.ids, cut.ids, cut.finished


def test_a_stop_string_ends_an_answer(folder):
    free, cut, finished = run_distributed(stopped, 1, folder)[0]
    assert len(free) == NEW and finished
    assert cut == free[: free.index(free[2]) + 1]


def test_each_seed_and_prompt_has_numbers_of_its_own():
    """Rounds of RLVR differ in their seed alone."""
    seeds = [0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**40]
    numbers = [0, 1, 2, 63, 2**32 + 1, 2**48]
    drawn = {(seed, number): tuple(uniforms(seed, number, 4)) for seed in seeds for number in numbers}
    assert len(set(drawn.values())) == len(drawn)
    assert uniforms(3, 4, 9)[:5] == uniforms(3, 4, 5)
    many = np.array([uniforms(seed, 5, 1)[0] for seed in range(4000)])
    assert stats.kstest(many, "uniform").pvalue > 1e-3
