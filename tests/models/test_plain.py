"""The plain pass of sampling against the forward pass that trains, logit by logit."""

from dataclasses import replace

import pytest
import torch
from distributed import run_distributed
from folders import save_hf

from megatron_bar.evaluation.generative import load_model
from megatron_bar.models.build import LanguageModel, build_model, evaluating
from megatron_bar.models.plain import PlainModel
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import ParallelConfig, distributed, set_layout
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.rope import Llama3Rope

DENSE = ModelConfig(
    vocab_size=43,
    hidden_size=48,
    intermediate_size=40,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    max_positions=64,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    dtype="float32",
)
FIVE = DENSE.with_experts(5)
MORE = {
    "qwen3": {"own_head_dim": 16},
    "llama": {
        "own_head_dim": 20,
        "rope_scaling": Llama3Rope(
            factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
        ),
    },
}
PROMPTS = [[5, 6, 7], [9], [4, 8, 15, 16, 23, 42, 3]]
SLOTS = [3, 0, 1]
"""Of the prompts in a cache of five rows; a fourth answer, moved into the gap, follows below."""
MOVED = [30, 31, 32, 33]


@pytest.fixture(scope="module", autouse=True)
def alone():
    with distributed():
        yield


def made(shape: ModelConfig) -> LanguageModel:
    set_layout(ParallelConfig(), shape, seed=0)
    model = build_model(shape, ParallelConfig())
    generator = torch.Generator().manual_seed(1)
    for name, param in model.named_parameters():
        # Norms away from 1, so that one left out is seen.
        param.data.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return model


@torch.no_grad()
def parted(model: LanguageModel, *, look_up: int = 0, tokens: int = 6) -> float:
    """The largest difference of logits over prompts read into slots out of order and ``tokens`` more of each,
    as part of the largest logit."""
    rows = len(PROMPTS) + 1
    texts = [[*prompt, *range(10, 10 + tokens)] for prompt in [*PROMPTS, MOVED]]
    expected = [model(torch.tensor([t]), torch.arange(len(t))[None])[0].float() for t in texts]
    cache = model.new_cache(rows=5, max_length=16, dtype=torch.float32)
    cache.keys.fill_(1e4)  # of answers before these
    cache.values.fill_(1e4)
    plain = PlainModel(model, 16, look_up=look_up)
    lengths = [len(prompt) for prompt in [*PROMPTS, MOVED]]
    ids = torch.tensor([p + [0] * (7 - len(p)) for p in PROMPTS])
    found = plain.read(ids, torch.tensor(lengths[:3]), torch.tensor(SLOTS), cache)
    plain.read(torch.tensor([MOVED]), torch.tensor([4]), torch.tensor([4]), cache)
    for buffer in (cache.keys, cache.values):
        buffer[:, 2] = buffer[:, 4]
    differences = [found - torch.stack([e[n - 1] for e, n in zip(expected, lengths[:3], strict=False)])]
    order = [1, 2, 3, 0]  # of the texts, by slot
    for step in range(tokens):
        ids_r = torch.tensor([texts[n][lengths[n] + step] for n in order])
        positions_r = torch.tensor([lengths[n] + step for n in order])
        found = plain.go_on(ids_r, positions_r, cache)
        assert found.shape == (rows, DENSE.vocab_size) and found.dtype is torch.float32
        differences.append(found - torch.stack([expected[n][lengths[n] + step] for n in order]))
    largest = max(float(logits.abs().max()) for logits in expected)
    return max(float(d.abs().max()) for d in differences) / largest


@pytest.mark.parametrize(
    "shape, active",
    [
        (DENSE, None),
        (replace(DENSE, num_kv_heads=4), None),
        (replace(DENSE, num_kv_heads=1), None),
        (FIVE, 5),
        (FIVE, 2),
        (FIVE, 1),
        (replace(FIVE, norm_topk_prob=True), 2),
        *(
            (shape, active)
            for family in ("qwen3", "llama", "qwen2")
            for dense in [replace(DENSE, family=family, **MORE.get(family, {}))]
            for shape, active in ((dense, None), (dense.with_experts(5), 5), (dense.with_experts(5), 2))
        ),
    ],
)
def test_logits_are_the_trainers(shape, active):
    model = made(shape)
    if active is not None:
        model.route(replace(model.routing, active=(active,) * shape.num_layers))
    with evaluating(model):
        assert parted(model) < 1e-5


def test_each_layer_has_its_own_number_of_experts_and_disabled_ones_none():
    model = made(FIVE)
    with evaluating(model):
        # By the tokens that chose an expert, all experts by their weights, and either, by the pass's tokens.
        for look_up in (0, 10**9, 200_000):
            model.route(replace(model.routing, active=(1, 5, 3), disabled=()))
            assert parted(model, look_up=look_up) < 1e-5
            model.route(replace(model.routing, active=(2, 5, 3), disabled=(0, 3)))
            assert parted(model, look_up=look_up) < 1e-5


def test_a_watch_sees_every_pass():
    model = made(FIVE)
    seen = []
    model.route(replace(model.routing, watch=lambda layer, probs_te: seen.append((layer, len(probs_te)))))
    with torch.no_grad():
        cache = model.new_cache(rows=2, max_length=4, dtype=torch.float32)
        PlainModel(model, 16).read(torch.tensor([[1, 2, 3]]), torch.tensor([3]), torch.tensor([0]), cache)
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("shape", [DENSE, FIVE])
def test_in_16_bit_it_is_as_near_as_rounding_lets_it(shape):
    model = made(replace(shape, dtype="bfloat16"))
    with evaluating(model):
        assert parted(model) < 0.03


def test_what_it_multiplies_by_is_the_weights_as_they_were():
    """Weights change between two calls of the sampler and never within one."""
    model = made(FIVE)
    before = PlainModel(model, 16)
    cache = model.new_cache(rows=1, max_length=4, dtype=torch.float32)
    given = (torch.tensor([[1, 2, 3]]), torch.tensor([3]), torch.tensor([0]), cache)
    with torch.no_grad():
        old = before.read(*given)
        for param in model.parameters():
            param.mul_(1.5)
        new = PlainModel(model, 16).read(*given)
        assert not torch.allclose(new, old, atol=1e-2)
        (answer,) = Sampler(model, eos_ids=set(), pad_id=0).generate([[1, 2, 3]], max_new_tokens=1)
        assert answer.logprobs == pytest.approx([new.log_softmax(-1)[0, answer.ids[0]].item()], abs=1e-5)


def both_ways(folder, active: int, read: int) -> list[list]:
    """Answers by plain passes, which read ``read`` tokens of prompts at once, and by those of training, drawn
    and greedy, with slots refilled and given up."""
    model = load_model(folder, ParallelConfig())
    model.route(replace(model.routing, active=(active,) * model.shape.num_layers))
    prompts = [[2 + n % 30, 3] * (1 + n % 3) for n in range(21)]
    limits = [1 + 7 * n % 23 for n in range(21)]
    answers = []
    for plain in (True, False):
        sampler = Sampler(model, eos_ids={1}, pad_id=0, plain=plain, read=read if plain else 9)
        for temperature in (1.0, 0.0):
            options = {"max_new_tokens": limits, "temperature": temperature, "slots": 6, "seed": 2}
            answers.append(sampler.generate(prompts, **options))
    return answers


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("active, read", [(2, 1), (4, 4096)])
def test_answers_are_the_same_by_both_passes(active, read, processes, tmp_path):
    """However unequally data-parallel ranks are at work: plain passes are each rank's own."""
    folder = save_hf(tmp_path, seed=4, vocab_size=43, experts=4, num_hidden_layers=2)
    for drawn, greedy, drawn_again, greedy_again in run_distributed(
        both_ways, processes, folder, active, read
    ):
        for found, expected in ((drawn, drawn_again), (greedy, greedy_again)):
            assert [c.ids for c in found] == [c.ids for c in expected]
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(
                    torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=0, atol=1e-5
                )
