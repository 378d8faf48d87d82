"""The schedule against its formula and Megatron's AdamW against the paper's, one number at a time."""

import math

import pytest
import torch
from distributed import run_distributed
from folders import save_hf
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_bar.data.packing import Batch
from megatron_bar.errors import BarError
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig, build_scheduler
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.groups import POLICIES


def rates(optim: OptimConfig, steps: int) -> list[float]:
    """As the trainer uses it: the schedule moves before each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=123.0)
    scheduler = build_scheduler(optimizer, optim, steps)
    found = []
    for _ in range(steps):
        scheduler.step(1)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def formula(optim: OptimConfig, steps: int) -> list[float]:
    """Linear warmup to the peak at its last step, then the fall, which would end one step after the last."""
    warm = min(steps, round(optim.warmup if optim.warmup >= 1 else optim.warmup * steps))
    low, found = optim.lr * optim.final_lr_ratio, []
    for n in range(1, steps + 1):
        done = (n - warm) / (steps + 1 - warm)
        fall = {"constant": 1, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[
            optim.schedule
        ]
        found.append(optim.lr * n / warm if n <= warm else low + (optim.lr - low) * fall)
    return found


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    steps=st.integers(1, 60),
    warmup=st.sampled_from([0.0, 0.03, 0.5, 1.0, 7.0, 100.0]),
    final=st.sampled_from([0.0, 0.1, 1.0]),
)
@example(schedule="linear", steps=66, warmup=0.03, final=0.0)  # router training as published
def test_the_schedule_is_its_formula_and_no_step_is_in_vain(schedule, steps, warmup, final):
    optim = OptimConfig(lr=3e-4, schedule=schedule, warmup=warmup, final_lr_ratio=final)
    found = rates(optim, steps)
    assert found == pytest.approx(formula(optim, steps), rel=1e-12)
    assert all(0 < rate <= optim.lr * (1 + 1e-12) for rate in found)


def test_a_schedule_by_hand():
    optim = OptimConfig(lr=1.0, schedule="linear", warmup=2, final_lr_ratio=0.2)
    assert rates(optim, 5) == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4])
    assert rates(OptimConfig(lr=2.0, schedule="cosine"), 3) == pytest.approx(
        [2 * 0.8535534, 1.0, 2 * 0.1464466]
    )


def test_a_restart_continues_the_schedule():
    optim = OptimConfig(lr=1.0, schedule="cosine", warmup=3, final_lr_ratio=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=123.0)
    scheduler = build_scheduler(optimizer, optim, 20)
    scheduler.step(11)  # Trainer.resume_at
    scheduler.step(1)
    assert optimizer.param_groups[0]["lr"] == rates(optim, 20)[11]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"lr": 0.0}, r"optim\.lr must be positive, got 0\.0"),
        ({"lr": -1e-4}, r"optim\.lr must be positive, got -0\.0001"),
        ({"lr": 1e-4, "warmup": -1.0}, r"optim\.warmup -1\.0 must not be negative"),
        ({"lr": 1e-4, "final_lr_ratio": 1.5}, r"final_lr_ratio 1\.5 within 0 and 1"),
    ],
)
def test_wrong_numbers_are_refused(wrong, message):
    with pytest.raises(BarError, match=message):
        OptimConfig(**wrong)


@pytest.mark.parametrize(
    "policy", [policy for policy in POLICIES.values() if policy.anchor_row_frozen], ids=lambda p: p.name
)
def test_weight_decay_would_move_a_masked_row_and_is_refused(policy):
    message = "stage x: weight_decay must be 0 where the router's anchor row is frozen, got 0.1"
    with pytest.raises(BarError, match=message):
        Stage(name="x", policy=policy.name, optim=OptimConfig(lr=1e-3, weight_decay=0.1), sequence=8, batch=2)


OPTIM = OptimConfig(lr=1e-2, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, clip=0.5, warmup=2.0)


def two_steps(source) -> list[dict]:
    """Every parameter before and after a step, its gradient as the step left it (clipped), and what the step
    reported."""
    stage = Stage(name="test", policy="dense_all", optim=OPTIM, sequence=8, batch=2, micro_batch=2)
    trainer = Trainer(source, stage, steps=10)
    generator, found = torch.Generator().manual_seed(0), []
    positions = torch.arange(8).expand(2, 8)
    for _ in range(2):
        ids = torch.randint(19, (2, 9), generator=generator)
        batch = Batch(ids=ids[:, :-1], positions=positions, labels=ids[:, 1:], documents=None)
        before = {name: param.detach().clone() for name, param in trainer.model.named_parameters()}
        values = trainer.step([batch], LanguageModelling())
        after = {
            name: (param.detach().clone(), param.main_grad.clone())
            for name, param in trainer.model.named_parameters()
        }
        found.append({name: (before[name], *after[name]) for name in before} | {"values": values})
    return found


def test_two_steps_are_adamws(tmp_path):
    """Loshchilov and Hutter 2019 (algorithm 2) with clipping by the global norm; norm weights do not
    decay."""
    steps = run_distributed(two_steps, 1, save_hf(tmp_path / "dense"))[0]
    moments = {}
    for number, step in enumerate(steps, 1):
        values = step.pop("values")
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for _, _, gradient in step.values()))
        assert values["grad_norm"] > 2 * OPTIM.clip and norm == pytest.approx(OPTIM.clip, rel=1e-5)
        assert values["lr"] == pytest.approx(OPTIM.lr * number / 2)
        for name, (before, after, gradient) in step.items():
            gradient, (b1, b2) = gradient.double(), OPTIM.betas
            m, v = moments.get(name, (0.0, 0.0))
            m, v = moments[name] = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
            decay = OPTIM.weight_decay if before.dim() > 1 else 0.0
            update = m / (1 - b1**number) / ((v / (1 - b2**number)).sqrt() + OPTIM.eps)
            expected = before.double() * (1 - values["lr"] * decay) - values["lr"] * update
            assert torch.allclose(after.double(), expected, rtol=1e-5, atol=1e-7), name
