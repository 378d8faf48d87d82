"""The sampler against the trainer's own forward pass and against transformers' generate, on every layout."""

import pytest
import torch
from distributed import run_distributed
from folders import save_hf

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import PackedRows
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import load_model
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.rl.sampler import Sampler

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
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=EOS, pad_token_id=PAD, use_cache=True
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
