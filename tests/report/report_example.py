"""A report made of numbers that no run measured, with everything in it that a report can have: for tests and
benchmarks."""

import random
from collections.abc import Sequence

from megatron_bar.report.report import (
    DIGITS,
    ClaimResult,
    CostRow,
    Curves,
    Estimate,
    Lens,
    LensText,
    Provenance,
    Report,
    RoutingShares,
    Row,
    SweepResult,
    UpgradeResult,
)

SKILLS = ("knowledge", "reasoning", "chat", "math", "code", "tool_use", "safety")
EXPERTS = ("anchor", "math", "code", "tool_use", "safety")
HOSTILE = ("</script>", "<img src=x onerror=alert(1)>", "\"'&amp;", "<!--", "\u2028", "\n", "", "\t", "é")


def score(mean: float, half: float = 0.03, seeds: int = 3) -> Estimate:
    return Estimate(mean=mean, low=mean - half, high=mean + half, seeds=seeds)


def row(model: str, group: str, means: Sequence[float], seeds: int = 3) -> Row:
    scores = {skill: score(mean, seeds=seeds) for skill, mean in zip(SKILLS, means, strict=True)}
    return Row(model=model, group=group, scores=scores, overall=score(sum(means) / len(means), 0.01, seeds))


def lens(
    tokens: int = 120, *, layers: int = 4, experts: Sequence[str] = EXPERTS, texts: int = 4, seed: int = 0
) -> Lens:
    """``tokens`` in all; the hostile ones come first in the first text."""
    rng = random.Random(seed)
    each = tokens // texts
    words = (
        "What",
        " is",
        " 3",
        " *",
        " 4",
        " +",
        " 5",
        "?",
        "\n",
        "<|assistant|>",
        " def",
        " f",
        "(x",
        "):",
        " return",
        " 42",
        ".",
    )

    def text(number: int) -> LensText:
        said = tuple(HOSTILE[:each] if number == 0 else ())
        said += tuple(rng.choice(words) for _ in range(each - len(said)))
        favoured = number % len(experts)
        mean, by_layer = [], []
        for _ in said:
            drawn = []
            for _ in range(layers):
                raw = [rng.random() + 2 * (e == favoured) for e in range(len(experts))]
                drawn.append([value / sum(raw) for value in raw])
            by_layer += [DIGITS[round(63 * weight)] for layer in drawn for weight in layer]
            for column in zip(*drawn, strict=True):
                mean.append(
                    DIGITS[round(4095 * sum(column) / layers) // 64]
                    + DIGITS[round(4095 * sum(column) / layers) % 64]
                )
        return LensText(
            domain=experts[favoured], tokens=said, weights="".join(mean), by_layer="".join(by_layer)
        )

    return Lens(experts=tuple(experts), layers=layers, texts=tuple(text(n) for n in range(texts)))


def report(tokens: int = 120, **lens_shape) -> Report:
    rows = (
        row("anchor", "start", (0.863, 0.483, 0.925, 0.0, 0.0, 0.0, 0.158)),
        row("math-rlvr", "experts", (0.824, 0.483, 0.917, 0.733, 0.0, 0.0, 0.158)),
        row("code-rlvr", "experts", (0.863, 0.567, 0.925, 0.0, 1.0, 0.0, 0.158)),
        row("BAR", "modular", (0.882, 0.592, 0.917, 0.758, 0.99, 1.0, 0.942)),
        row("retrain", "baselines", (0.882, 0.55, 0.90, 0.70, 0.95, 0.96, 0.90)),
        row("BTX <b>", "baselines", (0.70, 0.51, 0.88, 0.76, 0.9, 0.98, 0.99), seeds=1),
        row("domain-only SFT", "ablations", (0.2, 0.3, 0.4, 0.8, 0.99, 1.0, 0.99)),
    )
    curve = tuple(tuple(0.3 + 0.05 * n + 0.01 * seed for n in range(10)) for seed in range(3))
    stages = ("base", "anchor", *(f"{e}-{s}" for e in EXPERTS[1:] for s in ("sft", "rlvr")), "final")
    losses = {
        s: tuple(tuple(5 / (n + 1) + 0.1 * i + 0.02 * seed for n in range(40)) for seed in range(3))
        for i, s in enumerate(stages)
    }
    shares = {
        f"sft_{e}": tuple(tuple(0.6 if i == n else 0.1 for i in range(5)) for _ in range(4))
        for n, e in enumerate(EXPERTS)
    }
    shares["sft_math"] = (
        (0.1, 0.7, 0.1, 0.05, 0.05),
        (0.3, 0.3, 0.2, 0.1, 0.1),
        (0.2, 0.6, 0.1, 0.05, 0.05),
        (0.2, 0.4, 0.2, 0.1, 0.1),
    )
    return Report(
        title="The recipe tiny & <more>",
        provenance=Provenance(
            date="2026-01-02",
            commit="0123456789ab",
            machine="A processor, 2 cores",
            versions={"python": "3.12", "torch": "2.13"},
            seeds=(0, 1, 2),
            items=dict.fromkeys(SKILLS, 120),
        ),
        rows=rows,
        comparisons=(
            UpgradeResult(
                name="a better code expert",
                before="final-old",
                after="final",
                changed=("code",),
                gains={s: score(0.165 if s == "code" else -0.004, 0.02) for s in SKILLS},
                kl={s: score(0.011, 0.002) for s in SKILLS if s != "code"},
            ),
            UpgradeResult(
                name="RLVR",
                before="a",
                after="b",
                changed=("math",),
                gains={s: score(0.0, 0.01, 1) for s in SKILLS},
            ),
        ),
        sweeps=(
            SweepResult(
                name="active experts",
                x_label="active experts k",
                xs=tuple("12345"),
                rows={
                    name: tuple(score(0.3 + 0.1 * k + 0.02 * i) for k in range(5))
                    for i, name in enumerate(("overall", *SKILLS))
                },
            ),
            SweepResult(
                name="router data",
                x_label="share of the data, percent",
                xs=("1", "5", "100"),
                rows={
                    "overall": (score(0.444), score(0.491), score(0.476)),
                    "math": (score(0.497), None, score(0.438)),
                },
            ),
        ),
        curves=(
            Curves(title="Loss", x="part of the stage, percent", y="nats per token", series=losses),
            Curves(
                title="Reward of RLVR", x="round", y="share of answers verified", series={"math-rlvr": curve}
            ),
        ),
        routing=RoutingShares(experts=EXPERTS, domains=tuple(shares), layers=shares),
        lens=lens(tokens, **lens_shape),
        costs=(
            CostRow(domain="math", stage="sft", tokens=1_234_567, flops=3.21e12, seconds=61.5, devices=2),
            CostRow(domain="math", stage="rlvr", tokens=200_000, flops=5.5e11, seconds=30.2, devices=2),
            CostRow(domain="all", stage="route", tokens=500_000, flops=1.1e12, seconds=3700, devices=2),
        ),
        claims=(
            ClaimResult(
                text="Router training helps | the merged model",
                source="the paper",
                verdict="holds",
                evidence="+43.6 (+40 to +47)",
            ),
            ClaimResult(
                text="Merging costs next to nothing",
                source="the paper",
                verdict="does not hold",
                evidence="safety -5.8",
            ),
            ClaimResult(
                text="It scales to 7B", source="the paper", verdict="not testable here", evidence="a toy"
            ),
        ),
    )
