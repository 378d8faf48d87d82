"""report.md: what a run measured, and what of the published claims it shows. Every number comes from the evaluations."""

from megatron_bar.evaluation.generative import interval


def _mean(items: list[dict]) -> float:
    return sum(item["score"] for item in items) / len(items)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows)])


def scores_table(found: dict[str, dict]) -> str:
    """Models by skills, in percent; the best of a column in bold."""
    skills = list(next(iter(found.values()))["scores"])
    means = {model: [_mean(result["scores"][skill]) for skill in skills] for model, result in found.items()}
    best = [max(column) for column in zip(*means.values(), strict=True)]
    rows = []
    for model, values in means.items():
        cells = [f"**{_percent(v)}**" if v == top else _percent(v) for v, top in zip(values, best, strict=True)]
        rows.append([model, _percent(sum(values) / len(values)), *cells])
    return _table(["model", "overall", *skills], rows)


def margins(before: dict, after: dict, skills: tuple[str, ...]) -> list[tuple[str, float, float, float]]:
    """(skill, mean gain, low, high): the gain per item, with its 95 % bootstrap interval."""
    found = []
    for skill in skills:
        pairs = zip(before["scores"][skill], after["scores"][skill], strict=True)
        gains = [b["score"] - a["score"] for a, b in pairs]
        found.append((skill, sum(gains) / len(gains), *interval(gains)))
    return found


def margins_table(rows: list[tuple[str, float, float, float]]) -> str:
    body = [
        [
            skill,
            f"{100 * gain:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            "yes" if low > 0 else ("lower" if high < 0 else "no"),
        ]
        for skill, gain, low, high in rows
    ]
    return _table(["skill", "gain", "95 % interval", "higher"], body)


def routing_table(result: dict) -> str:
    """Domain by expert: mean router weight over layers, in percent."""
    rows = []
    for domain, layers in result["routing"].items():
        shares = [sum(column) / len(layers) for column in zip(*layers, strict=True)]
        rows.append([domain, *map(_percent, shares)])
    return _table(["data", *result["experts"]], rows)


def _verdicts(found: dict[str, dict], experts: dict[str, str], trained: tuple[str, ...]) -> list[str]:
    """The article's claims that this run can speak to, each with holds or does not hold, by the numbers."""
    lines = []

    def claim(text: str, holds: bool, evidence: str) -> None:
        lines.append(f"- {'Holds' if holds else 'Does NOT hold'}: {text} ({evidence}).")

    gains = margins(found["anchor"], found["final"], trained)
    claim(
        "the final model beats the anchor on every trained skill",
        all(low > 0 for _, _, low, _ in gains),
        ", ".join(f"{skill} {100 * gain:+.1f}" for skill, gain, *_ in gains),
    )
    for name, model in experts.items():
        if name in trained:
            ((_, gain, low, high),) = margins(found[model], found["final"], (name,))
            claim(
                f"merging costs {name} next to nothing against its own expert", low <= 0 <= high or gain > 0, f"{100 * gain:+.1f}"
            )
    routed = margins(found["merged"], found["final"], trained)
    claim(
        "router training helps the merged model",
        sum(gain for _, gain, *_ in routed) > 0,
        ", ".join(f"{skill} {100 * gain:+.1f}" for skill, gain, *_ in routed),
    )
    general = tuple(skill for skill in found["anchor"]["scores"] if skill not in trained)
    kept = margins(found["anchor"], found["final"], general)
    claim(
        "the skills that no expert was trained for are kept",
        all(high >= 0 for *_, high in kept),
        ", ".join(f"{skill} {100 * gain:+.1f}" for skill, gain, *_ in kept),
    )
    return lines


def write_report(name: str, found: dict[str, dict], *, experts: dict[str, str], trained: tuple[str, ...]) -> str:
    """``found``: model name to its evaluation, in the order shown; ``experts``: expert name to its model."""
    items = {skill: len(rows) for skill, rows in found["final"]["scores"].items()}
    sizes = ", ".join(f"{skill} {count}" for skill, count in items.items())
    parts = [
        f"# Report of the recipe {name}",
        f"Percent of held-out items solved by greedy generation ({sizes} items; one seed).",
        scores_table(found),
        "## Final model against the anchor",
        margins_table(margins(found["anchor"], found["final"], tuple(items))),
        "## Where tokens go in the final model (mean router weight, percent)",
        routing_table(found["final"]),
        "## The published claims, on this toy",
        "\n".join(_verdicts(found, experts, trained)),
        "Not tested here: everything about real benchmarks, baselines, upgrades and fewer active experts.",
    ]
    return "\n\n".join(parts) + "\n"
