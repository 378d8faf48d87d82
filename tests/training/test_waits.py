"""No wait of the host for its GPU inside a layer, at most three in a step, one for a sampled token: counted
on the CPU (see waits.py)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from distributed import run_distributed
from folders import save_hf
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from test_stages import LENGTH, ROWS, stage, stream
from waits import Waits

from megatron_bar.evaluation.generative import load_model
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.rl.loss import ClippedPolicyGradient
from megatron_bar.training.objective import LanguageModelling, Objective
from megatron_bar.training.trainer import Trainer

AT_MOST = 3
LAYERS = (1, 3)
ALONE = ParallelConfig()
NEW = 6
STEPS = {
    # name: (experts, policy, objective, layout, processes)
    "sft": (2, "sft", LanguageModelling(1e-4), ALONE, 1),
    "sft, recomputed": (2, "sft", LanguageModelling(), ALONE, 1),
    "route": (5, "route", LanguageModelling(), ALONE, 1),
    "rlvr": (2, "rlvr", ClippedPolicyGradient(), ALONE, 1),
    "dense": (0, "dense_all", LanguageModelling(), ALONE, 1),
    "two data ranks": (2, "sft", LanguageModelling(), ALONE, 2),
    "two tensor ranks": (2, "sft", LanguageModelling(), ParallelConfig(tensor=2), 2),
}
WAITS: dict[str, Callable] = {
    "item": lambda x: x.sum().item(),
    "a comparison": lambda x: bool(x.isfinite().all()),
    "float": lambda x: float(x.sum()),
    "tolist": lambda x: x.sum(-1).tolist(),
    "cpu": lambda x: x.detach().cpu(),
    "to cpu": lambda x: x.detach().to("cpu"),
    "numpy": lambda x: x.detach().numpy(),
    "nonzero": lambda x: (x > 0).nonzero(),
    "a mask": lambda x: x[x > 0],
    "set by a mask": lambda x: x.detach().clone().__setitem__(x > 0, x.detach().sum()),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: (x > 0).unique(),
    "a copy into the host's": lambda x: torch.empty(x.shape).copy_(x.detach()),
    "a slice": lambda x: x[: (x > 0).sum()],
}
NO_WAITS: dict[str, Callable] = {
    "of the host's": lambda x: torch.arange(5).sum().item(),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "a number set by a mask": lambda x: x.detach().clone().__setitem__(x > 0, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "by numbers": lambda x: x.flatten()[torch.zeros(2, dtype=torch.int64, device=x.device)],
    "of its host's shape": lambda x: torch.zeros(x.shape, device=torch.zeros(1).device).sum().item(),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("waits")
    made = {}
    for layers in LAYERS:
        for experts in (0, 2, 5):
            path = root / f"{experts}_{layers}"
            made[experts, layers] = save_hf(path, experts=experts, vocab_size=61, num_hidden_layers=layers)
    return made


def waits_of_a_step(
    source, policy: str, objective: Objective, layout: ParallelConfig, *, recompute=False, inside=None
) -> Counter[str]:
    """Where a step waits. It is the second one: the first looks for gradients that are missing."""
    MoEAuxLossAutoScaler.main_loss_backward_scale = None  # of a run before, whose device is forgotten
    waits = Waits()
    with waits:
        trainer = Trainer(source, stage(policy, layout, recompute=recompute), steps=4)
        batches = stream(trainer)
        rows = [next(batches) for _ in range(2)]
        if isinstance(objective, ClippedPolicyGradient):
            rows = [[replace(row, extras=answered(row)) for row in step] for step in rows]
        trainer.step(rows[0], objective)
        if inside is not None:
            for layer in trainer.model.decoder.layers:
                layer.mlp.register_forward_hook(lambda _, __, out: one_more(inside, out[0]))
        waits.places.clear()
        trainer.step(rows[1], objective)
        return Counter(waits.places)


def one_more(inside: str, out: torch.Tensor) -> None:
    (WAITS | NO_WAITS)[inside](out)


def answered(row) -> dict[str, torch.Tensor]:
    ones = torch.ones(1, LENGTH)
    return {"logprobs": -ones, "advantages": ones}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_waits_three_times_at_most_and_never_in_a_layer(name, folders, record_property):
    experts, policy, objective, layout, processes = STEPS[name]
    found = {}
    for layers in LAYERS:
        found[layers] = run_distributed(
            waits_of_a_step,
            processes,
            folders[experts, layers],
            policy,
            objective,
            layout,
            recompute="recomputed" in name,
        )
    shallow, deep = (found[layers] for layers in LAYERS)
    assert deep == shallow
    for places in deep:
        assert 0 < places.total() <= AT_MOST, places
    record_property("figure", f"waits for a GPU in a step, {name}: {deep[0].total()}, none in a layer")


@pytest.mark.parametrize("inside", WAITS | NO_WAITS)
def test_one_that_is_put_into_every_layer_is_counted(inside, folders):
    given = (folders[2, LAYERS[-1]], "sft", LanguageModelling(), ALONE)
    (usual,) = run_distributed(waits_of_a_step, 1, *given)
    (found,) = run_distributed(waits_of_a_step, 1, *given, inside=inside)
    more = found.total() - usual.total()
    assert more == (LAYERS[-1] * ROWS if inside in WAITS else 0), found


def waits_of_answers(source) -> tuple[Counter[str], int]:
    """Where drawing waits, and how many tokens each slot drew."""
    waits = Waits()
    with waits:
        # Plain passes are a CPU's alone: what a GPU waits for is in the others.
        sampler = Sampler(load_model(source, ALONE), eos_ids=set(), pad_id=0, plain=False)
        prompts = [[5, 6, 7], [9], [11, 12]]
        sampler.generate(prompts, max_new_tokens=2, slots=3)
        waits.places.clear()
        answers = sampler.generate(prompts, max_new_tokens=NEW, top_p=0.9, slots=3)
    return Counter(waits.places), len(answers[0].ids)


@pytest.mark.parametrize("layers", LAYERS)
def test_a_token_of_all_slots_waits_once(layers, folders):
    ((places, tokens),) = run_distributed(waits_of_answers, 1, folders[2, layers])
    assert tokens == NEW
    assert places.total() == NEW and len(places) == 1, places
