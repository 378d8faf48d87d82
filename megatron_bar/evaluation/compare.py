"""Did an upgrade break anything? Compares two models on the same tests: what each domain gained, and how far
the others' answers moved.

Gains are NEW - OLD per item, with a 95 % bootstrap interval; where a benchmark's score is no plain mean of
its items (a mean by subject, an F1) they are that of the items all the same. KL(OLD || NEW) compares the
whole next-token distributions, in nats per token, over prompts followed by OLD's own greedy answers, the last
position included: the mean of each text, then the mean over texts. Answers are tokenised again from
their text: what no text spells (the end token) is not among them, and bytes that are not UTF-8 are read as
replacement characters. Texts longer than a model's positions are cut. Left out: models that do not fit side
by side.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_bar.cli import aligned
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.suite import TOY
from megatron_bar.evaluation.generative import Row, load_beside, load_model, measure, read_tests
from megatron_bar.evaluation.results import hash_items, require_of, require_same_tests
from megatron_bar.models.passes import through_stages
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import ParallelConfig, broadcast_from_last_stage, on_rank_zero, world_size
from megatron_bar.report.bootstrap import Estimate, mean_interval
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import Active

PASS = 2048
"""Most tokens of texts in one forward pass; a longer text has a pass of its own."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    old: str
    new: str
    items: dict[str, int]
    """Number of items, by domain."""
    gains: dict[str, Estimate]
    """Gain in points (percent), by domain."""
    guarded: tuple[str, ...]
    """The domains that were not changed."""
    divergence: dict[str, Estimate]
    """KL(OLD || NEW) in nats per token, by guarded domain; none of published benchmarks."""

    def regressed(self, tolerance: float) -> list[str]:
        """Returns the unchanged domains that lost more than ``tolerance`` points, by the whole of the
        interval."""
        return [domain for domain in self.guarded if self.gains[domain].high < -tolerance]

    def as_json(self) -> dict:
        return {
            "old": self.old,
            "new": self.new,
            "gains": self._estimates_as_json(self.gains),
            "divergence": self._estimates_as_json(self.divergence),
        }

    def _estimates_as_json(self, estimates: dict[str, Estimate]) -> dict:
        return {
            domain: {"mean": mean.mean, "low": mean.low, "high": mean.high, "items": self.items[domain]}
            for domain, mean in estimates.items()
        }


def gains(old: dict, new: dict) -> dict[str, Estimate]:
    """Returns by how many points NEW beats OLD on each test, paired by item; both are results (see `results`)
    of the same tests."""
    require_same_tests(old, new)
    by_test = {}
    for test, items in old["scores"].items():
        pairs = zip(items, new["scores"][test], strict=True)
        differences = [100.0 * (after["score"] - before["score"]) for before, after in pairs]
        by_test[test] = mean_interval([differences])
    return by_test


def divergence(old, new, texts: list[list[int]]) -> list[float]:
    """Returns the mean KL(OLD || NEW) over the positions of each text, in nats, on every rank. Collective.

    Both models have the same layout; every data-parallel rank reads every text.
    """
    passes = _passes([len(text) for text in texts])
    return [value for start, end in passes for value in _divergence(old, new, texts[start:end])]


def _passes(lengths: list[int]) -> Iterable[tuple[int, int]]:
    """Yields (start, end) of the texts that share a forward pass."""
    start = tokens = 0
    for n, length in enumerate(lengths):
        if n > start and tokens + length > PASS:
            yield start, n
            start = n
            tokens = 0
        tokens += length
    if lengths:
        yield start, len(lengths)


@torch.no_grad()
def _divergence(old, new, texts: list[list[int]]) -> list[float]:
    """Computes `divergence` of texts packed into one row, each attending to itself alone."""
    # Imported here: before megatron_bar.parallel it would warn of what a CPU lacks.
    from megatron.core import parallel_state

    tensor = parallel_state.get_tensor_model_parallel_world_size()
    device = cpu.device()
    padding = -sum(map(len, texts)) % tensor  # sequence parallelism cuts the row
    parts = [*texts, [texts[0][0]] * padding]
    ids = torch.tensor([[token for part in parts for token in part]], device=device)
    positions = torch.cat([torch.arange(len(part), device=device) for part in parts])[None]
    documents = torch.cat([torch.full((len(part),), n, device=device) for n, part in enumerate(parts)])[None]
    before, after = (through_stages(model, ids, positions, documents=documents) for model in (old, new))
    means = torch.zeros(len(texts), dtype=torch.float64, device=device)
    if before is not None:  # the last pipeline rank has the logits
        kl = _kl(before[0], after[0])[: positions.shape[1] - padding]
        means = torch.stack([part.mean() for part in kl.split([len(text) for text in texts])])
    broadcast_from_last_stage(means)
    return means.tolist()


def _kl(before: Tensor, after: Tensor) -> Tensor:
    """Returns the divergence ``[t]`` in fp64 between logits ``[t, vocabulary]``."""
    p = before.double().log_softmax(-1)
    q = after.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def compare(
    old: Path,
    new: Path,
    root: Path,
    *,
    changed: Iterable[str] = (),
    results: tuple[dict, dict] | None = None,
    limit: int | None = None,
    layout: ParallelConfig = ParallelConfig(),  # noqa: B008  a value
    slots: int = 64,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compares the model in ``new`` with the one in ``old`` on the toy's tests in ``root``. Collective.

    ``changed``: the domains that the upgrade was for; the others are guarded. ``results``: those of both
    models where they are measured already; then only the divergence is computed. ``limit``: most items of a
    test otherwise. Raises BarError for what cannot be compared.
    """
    changed = list(changed)
    chats = _shared_format(old, new)
    _check_arguments(root, limit)
    for folder in (old, new):
        layout.check(Folder.open(folder).config, world_size())
    if results is not None:
        on_rank_zero(lambda: _check_results(results, old, new))
        limit = results[0]["limit"]
    tests = TOY.choose(() if results is None else results[0]["tests"])
    guarded = _guarded([test.name for test in tests], changed)
    rows = read_tests(tests, root, limit=limit)
    if results is not None:
        _check_rows(results[0], rows, root)
    active = (None, None) if results is None else tuple(map(_active_experts, results))
    first = load_model(old, layout, active_experts=active[0])
    second = load_beside(new, layout, active_experts=active[1])
    if results is None:
        options = {"limit": limit, "slots": slots, "say": say}
        results = tuple(
            measure(folder, model, chats, tests, root, **options)
            for folder, model in ((old, first), (new, second))
        )
    answered = results[0]["scores"]
    longest = min(first.shape.max_positions, second.shape.max_positions)
    texts = {name: answered_texts(chats, rows[name], answered[name], longest) for name in guarded}
    return Comparison(
        old=str(old),
        new=str(new),
        items={name: len(scores) for name, scores in answered.items()},
        gains=gains(*results),
        guarded=tuple(guarded),
        divergence={name: mean_interval([divergence(first, second, texts[name])]) for name in guarded},
    )


def compare_results(
    old: Path, new: Path, results: tuple[dict, dict], *, changed: Iterable[str] = ()
) -> Comparison:
    """Compares two models by their results of any suite alone, item by item. Raises BarError unless those are
    of the models, and of the same items asked and judged in the same way."""
    for of_model, folder in zip(results, (old, new), strict=True):
        require_of(of_model, folder)
    require_same_tests(*results)
    for key in ("protocol", "judges"):
        asked = [of_model.get("settings", {}).get(key) for of_model in results]
        if asked[0] != asked[1]:
            raise BarError(f"{new}: expected results of the {key} {asked[0]}, as of {old}, got {asked[1]}")
    scores = results[0]["scores"]
    return Comparison(
        old=str(old),
        new=str(new),
        items={name: len(items) for name, items in scores.items()},
        gains=gains(*results),
        guarded=tuple(_guarded(list(scores), list(changed))),
        divergence={},
    )


def _active_experts(results: dict) -> Active | None:
    active = results["active_experts"]
    return tuple(active) if isinstance(active, list) else active


def _check_arguments(root: Path, limit: int | None) -> None:
    if not root.is_dir():
        raise BarError(f"{root}: not found; expected a folder of test_SKILL.jsonl")
    if limit is not None and limit < 1:
        raise BarError(f"limit expected at least 1, got {limit}")


def _shared_format(old: Path, new: Path) -> ChatFormat:
    """Returns the chat format of both models. Raises BarError unless their tokenizers are the same."""
    for folder in (old, new):
        Folder.open(folder)
    first, second = (ChatFormat(load_tokenizer(folder), "own") for folder in (old, new))
    if first.tokenizer.hash != second.tokenizer.hash:
        raise BarError(
            f"{new}: expected the tokenizer of {old}, got another: "
            "distributions over other tokens do not compare"
        )
    return first


def _check_results(results: tuple[dict, dict], old: Path, new: Path) -> None:
    for of_model, folder in zip(results, (old, new), strict=True):
        suite = of_model["suite"]
        if suite != TOY.name:
            raise BarError(f"results of {of_model['model']}: suite expected {TOY.name}, got {suite}")
        require_of(of_model, folder)
    require_same_tests(*results)


def _check_rows(results: dict, rows: dict[str, list[Row]], root: Path) -> None:
    for name, items in rows.items():
        if hash_items([row for _, row in items]) != results["tests"][name]["hash"]:
            raise BarError(f"{root}: test {name} expected the items that the results are of, got others")


def _guarded(known: list[str], changed: list[str]) -> list[str]:
    if unknown := [name for name in changed if name not in known]:
        raise BarError(f"changed domain {unknown[0]}: expected one of {', '.join(known)}")
    guarded = [name for name in known if name not in changed]
    if not guarded:
        raise BarError("changed domains: expected one at least to stay as it was, got all of them")
    return guarded


def answered_texts(chats: ChatFormat, rows: list[Row], answered: list[dict], longest: int) -> list[list[int]]:
    """Returns the token ids of every item's prompt and answer, cut to ``longest``; ``rows``: see
    `read_tests`, ``answered``: the scores of a results file."""
    encode = chats.tokenizer.encode_text
    prompts = [chats.prompt(row["messages"], tools=row.get("tools"), where=where) for where, row in rows]
    pairs = zip(prompts, answered, strict=True)
    return [(prompt + encode(item["answer"]))[:longest] for prompt, item in pairs]


def lines(comparison: Comparison, tolerance: float) -> list[str]:
    """Returns the comparison as a table for a terminal."""
    rows = [["domain", "items", "gain", "95 % interval", "KL per token", "95 % interval", ""]]
    regressed = comparison.regressed(tolerance)
    for domain, gain in comparison.gains.items():
        kl = comparison.divergence.get(domain)
        moved = ["-", "-"] if kl is None else [f"{kl.mean:.4f}", f"{kl.low:.4f} to {kl.high:.4f}"]
        moved.append("" if domain in comparison.guarded else "changed")
        if domain in regressed:
            moved[-1] = "REGRESSED"
        interval = f"{gain.low:+.1f} to {gain.high:+.1f}"
        rows.append([domain, str(comparison.items[domain]), f"{gain.mean:+.1f}", interval, *moved])
    head = f"{comparison.new} against {comparison.old}: gains in points, KL(old || new) in nats"
    table = [head, *aligned(rows)]
    return table if regressed else [*table, f"no domain surely lost more than {tolerance:g} points"]


def require_no_regression(comparison: Comparison, tolerance: float) -> None:
    """Raises BarError that names the domains that regressed, if any did."""
    if regressed := comparison.regressed(tolerance):
        losses = {domain: comparison.gains[domain] for domain in regressed}
        told = ", ".join(f"{d} {gain.mean:+.1f} (at most {gain.high:+.1f})" for d, gain in losses.items())
        raise BarError(
            f"{comparison.new}: expected no domain to lose more than {tolerance:g} points "
            f"against {comparison.old}, got {told}"
        )
