"""GRPO's parts against plain arithmetic: the clipped loss, the advantages, the packing of rollouts, the
choice of prompts."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_bar.data.packing import NO_LOSS, Batch
from megatron_bar.errors import BarError
from megatron_bar.models.sampler import Completion
from megatron_bar.rl.advantage import centred, dr_grpo, informative, standardised
from megatron_bar.rl.engine import SamplingParams
from megatron_bar.rl.grpo import Group, GRPOConfig, verify_groups
from megatron_bar.rl.loss import ClippedPolicyGradient
from megatron_bar.rl.prompts import Prompts, Task, pack_rollouts
from megatron_bar.rl.rollouts import Rollouts

LOW, HIGH = 0.2, 0.272


def batch_of(labels, old, advantages, dtype=torch.float64) -> Batch:
    labels = torch.tensor(labels)
    extras = {"logprobs": torch.tensor(old, dtype=dtype), "advantages": torch.tensor(advantages, dtype=dtype)}
    return Batch(ids=labels, positions=labels, labels=labels, documents=None, extras=extras)


def plain(nll: list[float], labels, old, advantages) -> tuple[float, dict[str, float]]:
    """The published objective, one token after the other."""
    sums = {"loss": 0.0, "clip_low": 0, "clip_high": 0, "kl_to_sampler": 0.0, "kl_to_start": 0.0}
    for value, label, before, advantage in zip(nll, labels, old, advantages, strict=True):
        if label < 0:
            continue
        ratio = math.exp(-value - before)
        held = min(max(ratio, 1 - LOW), 1 + HIGH)
        sums["loss"] -= min(ratio * advantage, held * advantage)
        if ratio * advantage > held * advantage:
            sums["clip_low" if ratio < 1 else "clip_high"] += 1
        sums["kl_to_sampler"] += ratio - 1 - math.log(ratio)
    return sums["loss"], sums


REAL = st.floats(-5, 5, allow_subnormal=False)
TOKEN = st.tuples(st.floats(0, 6), st.integers(-1, 9), st.floats(-0.6, 0.6), REAL)
"""Its nll, its label, the logarithm of its ratio, its advantage."""


@given(st.lists(TOKEN, min_size=1, max_size=12))
def test_the_loss_is_that_of_a_plain_loop(tokens):
    nll, labels, ratios, advantages = map(list, zip(*tokens, strict=True))
    old = [-value - ratio for value, ratio in zip(nll, ratios, strict=True)]
    expected, sums = plain(nll, labels, old, advantages)
    objective = ClippedPolicyGradient(low=LOW, high=HIGH)
    loss, found = objective(
        torch.tensor([nll], dtype=torch.float64), None, batch_of([labels], [old], [advantages])
    )
    assert float(loss) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert dict(zip(objective.names, found.tolist(), strict=True)) == pytest.approx(sums, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    "ratio, advantage, factor",
    [
        # A better answer counts up to 1.272 times, a worse one down to 0.8 times; beyond, nothing more is to
        # be had.
        (1.0, 2.0, 1.0),
        (1.25, 2.0, 1.25),  # within the higher clip, outside a symmetric one of 0.2
        (1.3, 2.0, None),
        (0.5, 2.0, 0.5),
        (1.0, -2.0, 1.0),
        (0.85, -2.0, 0.85),
        (0.75, -2.0, None),
        (1.5, -2.0, 1.5),
        (1.1, 0.0, 0.0),
    ],
)
def test_the_gradient_on_both_sides_of_both_clips(ratio, advantage, factor):
    """d loss / d nll = ratio * advantage where the ratio is free, 0 where it is held; and by finite
    difference."""
    objective = ClippedPolicyGradient(low=LOW, high=HIGH)
    start, step = 1.3, 1e-6
    batch = batch_of([[4]], [[-start - math.log(ratio)]], [[advantage]])

    def loss(value: float) -> tuple[torch.Tensor, torch.Tensor]:
        nll = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
        return objective(nll, None, batch)[0], nll

    value, nll = loss(start)
    value.backward()
    expected = 0.0 if factor is None else factor * advantage
    assert float(nll.grad) == pytest.approx(expected, abs=1e-12)
    difference = (loss(start + step)[0].item() - loss(start - step)[0].item()) / (2 * step)
    assert float(nll.grad) == pytest.approx(difference, abs=1e-6)


def test_masked_tokens_do_not_matter_even_where_they_overflow():
    objective = ClippedPolicyGradient()
    nll = torch.tensor([[1.0, 0.0, 0.5]], requires_grad=True)
    batch = batch_of([[3, NO_LOSS, 5]], [[-1.0, -1e9, -0.5]], [[1.0, 7.0, -1.0]], torch.float32)
    loss, sums = objective(nll, None, batch)
    loss.backward()
    assert nll.grad.tolist() == [[1.0, 0.0, -1.0]]
    assert sums.tolist() == pytest.approx([0.0] * 5)


def test_kl_to_the_start_is_k3_and_has_its_gradient():
    """Beside the policy gradient: beta * (exp(r) - 1 - r), r = start - new; d / d nll = beta * (exp(r) -
    1)."""
    nll = torch.tensor([[1.2, 0.7]], dtype=torch.float64, requires_grad=True)
    batch = batch_of([[3, NO_LOSS]], [[-1.2, 0.0]], [[0.0, 0.0]])
    batch.extras["start_logprobs"] = torch.tensor([[-0.9, 5.0]], dtype=torch.float64)
    loss, sums = ClippedPolicyGradient(kl=0.5)(nll, None, batch)
    loss.backward()
    r = -0.9 + 1.2
    assert loss.item() == pytest.approx(0.5 * (math.exp(r) - 1 - r)) and sums[-1].item() == pytest.approx(
        math.exp(r) - 1 - r
    )
    assert nll.grad.tolist() == [[pytest.approx(0.5 * (math.exp(r) - 1)), 0.0]]
    measured, _ = ClippedPolicyGradient()(nll, None, batch)
    assert measured.item() == 0.0, "without a weight it is measured only"


@pytest.mark.parametrize(
    "sampled, weight", [(-1.0, 1.0), (-1.5, math.exp(0.5)), (-9.0, 2.0), (-0.5, math.exp(-0.5))]
)
def test_truncated_importance_sampling_weighs_by_trainer_over_sampler(sampled, weight):
    """The ratio is to the trainer's own probability, here 1; the sampler's enters by the weight, 2 at
    most."""
    nll = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    batch = batch_of([[3]], [[sampled]], [[3.0]])
    batch.extras["trainer_logprobs"] = torch.tensor([[-1.0]], dtype=torch.float64)
    loss, _ = ClippedPolicyGradient(importance_cap=2.0)(nll, None, batch)
    loss.backward()
    assert loss.item() == pytest.approx(-3.0 * weight) and nll.grad.item() == pytest.approx(3.0 * weight)


LENGTHS = [2, 4, 6, 8]


@given(st.lists(REAL, min_size=1, max_size=8))
def test_advantages_are_centred_and_not_scaled(rewards):
    advantages = centred(rewards, LENGTHS, 8)
    assert sum(advantages) == pytest.approx(0, abs=1e-9)
    for a, b in zip(rewards, advantages, strict=True):
        assert b - advantages[0] == pytest.approx(a - rewards[0], abs=1e-9)
    assert informative(rewards) == (len(set(rewards)) > 1)


def test_centred_by_hand():
    assert centred([10.0, 0.0, 0.0, 10.0], LENGTHS, 8) == [5.0, -5.0, -5.0, 5.0]
    assert centred([10.0, 0.0, 0.0, 0.0], LENGTHS, 8) == [7.5, -2.5, -2.5, -2.5]
    assert standardised([10.0, 0.0, 0.0, 10.0], LENGTHS, 8) == pytest.approx([1, -1, -1, 1], abs=1e-5)
    # 20 tokens in 4 answers of at most 8: the sum over tokens times 20 / 32, over 20 tokens, is the sum over
    # 4 * 8.
    assert dr_grpo([10.0, 0.0, 0.0, 10.0], LENGTHS, 8) == pytest.approx(
        [5 * 5 / 8, -5 * 5 / 8, -5 * 5 / 8, 5 * 5 / 8]
    )
    assert informative([0.0, 0.0, 1.0]) and not informative([1.0, 1.0])


@st.composite
def rollouts(draw):
    """Tasks, groups of two answers, rewards; every token and every log-probability is one of a kind."""
    count = draw(st.integers(1, 4))
    sizes = st.integers(1, 5)
    tasks, groups, rewards, token = [], [], [], 1
    for _ in range(count):
        prompt, group = list(range(token, token + draw(sizes))), []
        token += len(prompt)
        for _ in range(2):
            ids = list(range(token, token + draw(sizes)))
            token += len(ids)
            group.append(Completion(ids=ids, logprobs=[-n / 8 for n in ids], finished=True))
        tasks.append(Task(prompt=prompt, verifier="exact", truth=""))
        groups.append(group)
        rewards.append([draw(st.sampled_from([0.0, 10.0])), draw(st.sampled_from([0.0, 10.0]))])
    return tasks, groups, rewards


@given(rollouts(), st.integers(10, 16))
def test_what_an_answer_had_lies_beside_its_labels(made, length):
    tasks, groups, rewards = made
    packed = pack_rollouts(tasks, groups, rewards, length=length, pad_id=0, longest=9)
    rows = packed.take(range(len(packed)))
    logprobs, advantages = rows.extras["logprobs"], rows.extras["advantages"]
    expected = {
        token: (logprob, advantage)
        for group, scores in zip(groups, rewards, strict=True)
        for answer, advantage in zip(group, centred(scores, [], 9), strict=True)
        for token, logprob in zip(answer.ids, answer.logprobs, strict=True)
    }
    labels = rows.labels[rows.labels >= 0].tolist()
    assert sorted(labels) == sorted(expected), (
        "every token of every answer is learnt once, and no token of a prompt"
    )
    for row, column in (rows.labels >= 0).nonzero().tolist():
        values = (logprobs[row, column].item(), advantages[row, column].item())
        assert values == pytest.approx(expected[int(rows.labels[row, column])])
    assert not logprobs[rows.labels < 0].any() and not advantages[rows.labels < 0].any()
    # An answer follows its own prompt.
    prompts = {
        answer.ids[0]: task.prompt for task, group in zip(tasks, groups, strict=True) for answer in group
    }
    for first, prompt in prompts.items():
        ((row, column),) = (rows.labels == first).nonzero().tolist()
        assert rows.ids[row, column + 1 - len(prompt) : column + 1].tolist() == prompt
        assert rows.positions[row, column] == len(prompt) - 1


def test_a_rollout_that_does_not_fit_is_refused():
    task = Task(prompt=[1, 2, 3], verifier="exact", truth="")
    answers = [Completion(ids=[4, 5], logprobs=[0.0, 0.0], finished=False)] * 2
    with pytest.raises(BarError, match="a rollout of 5 tokens does not fit the sequence length 4"):
        pack_rollouts([task], [answers], [[0.0, 10.0]], length=4, pad_id=0, longest=9)


def test_rows_that_fill_up_a_batch_carry_no_loss():
    task = Task(prompt=[1], verifier="exact", truth="")
    answers = [Completion(ids=[4, 5], logprobs=[-1.0, -2.0], finished=True)] * 2
    rows = pack_rollouts([task], [answers], [[0.0, 10.0]], length=3, pad_id=0, longest=9)
    batch = rows.take([1, -1, 0])
    assert batch.labels.tolist() == [[4, 5, NO_LOSS], [NO_LOSS] * 3, [4, 5, NO_LOSS]]
    assert {values.dtype for values in batch.extras.values()} == {torch.float32}
    assert batch.extras["advantages"][[0, 2]].sum().item() == 0 and batch.loss_tokens == 4


def test_answers_cut_off_can_be_left_out_of_the_loss():
    task = Task(prompt=[1], verifier="exact", truth="")
    answers = [Completion(ids=[4, 5], logprobs=[-1.0, -2.0], finished=done) for done in (True, False)]
    options = {"length": 3, "pad_id": 0, "longest": 2}
    for truncated, tokens in (("score", 4), ("mask", 2)):
        rows = pack_rollouts([task], [answers], [[0.0, 10.0]], truncated=truncated, **options)
        assert rows.take([0, 1]).loss_tokens == tokens


TASKS = [Task(prompt=[n], verifier="exact", truth=str(n)) for n in range(12)]


@settings(max_examples=30)
@given(st.integers(0, 3), st.integers(0, 5), st.integers(1, 15), st.sets(st.integers(0, 11), max_size=11))
def test_prompts_are_drawn_without_repetition_from_those_still_open(seed, number, count, solved):
    prompts = Prompts(TASKS, seed=seed, solved=0.875)
    for n in range(12):
        prompts.record(n, 0.875 if n in solved else 0.874)
    drawn = prompts.draw(number, count)
    assert len(drawn) == len(set(drawn)) == min(count, 12 - len(solved))
    assert not set(drawn) & solved
    again = Prompts(TASKS, seed=seed, solved=0.875)
    again.open = set(prompts.open)
    assert again.draw(number, count) == drawn, "a restart draws the same"


def test_rounds_and_seeds_draw_differently():
    draws = {
        tuple(Prompts(TASKS, seed=seed, solved=1.0).draw(number, 6))
        for seed in range(3)
        for number in range(3)
    }
    assert len(draws) == 9


def test_without_prompts_there_is_nothing_to_draw():
    with pytest.raises(BarError, match="RLVR needs at least one prompt"):
        Prompts([], seed=0, solved=0.5)
    prompts = Prompts(TASKS[:2], seed=0, solved=0.5)
    prompts.record(0, 1.0)
    prompts.record(1, 0.5)
    with pytest.raises(BarError, match="every one of the 2 prompts is solved at least 50% of the time"):
        prompts.draw(0, 1)


class Echo:
    """An engine whose answer to a prompt is the prompt and how many answers it gave before."""

    def sync(self):
        pass

    def start(self, prompts, params, *, seed):
        self.params, self.seed = params, seed
        return lambda: [
            Completion(ids=[*prompt, n], logprobs=[0.0, 0.0], finished=True)
            for n, prompt in enumerate(prompts)
        ]


def test_every_prompt_gets_its_group_and_every_answer_its_own_score():
    config = GRPOConfig(
        rounds=1, group=3, prompts=2, max_new_tokens=9, temperature=0.7, slots=5, stop=("end",)
    )
    engine, trainer = Echo(), SimpleNamespace(stage=SimpleNamespace(seed=11))
    rollouts = Rollouts(
        trainer, engine, TASKS[3:5], Prompts(TASKS[3:5], seed=0, solved=1.0), config, pad_id=0
    )
    rollouts.begin(0)
    groups = sorted(rollouts.pending.groups(), key=lambda group: group[0].ids[0])
    one, two = (3, 0) if rollouts.pending.drawn == [1, 0] else (0, 3)
    expected = [[[3, one + n] for n in range(3)], [[4, two + n] for n in range(3)]]
    assert [[answer.ids for answer in group] for group in groups] == expected
    assert (
        engine.params == SamplingParams(max_new_tokens=9, temperature=0.7, stop=("end",), slots=5)
        and engine.seed == 11
    )
    tokenizer = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
    seen = []

    def grade(items):
        seen.extend(items)
        return [float(answer.split()[1]) for _, answer, _ in items]

    asked = [Group(number=n, task=TASKS[3 + n], answers=groups[n]) for n in range(2)]
    assert verify_groups(asked, tokenizer, grade) == [
        [float(number) for _, number in group] for group in expected
    ]
    assert seen[1] == ("exact", f"3 {one + 1}", "3") and seen[3] == ("exact", f"4 {two}", "4")
