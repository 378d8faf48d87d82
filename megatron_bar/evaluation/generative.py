"""Scores by generation: greedy answers to held-out prompts, judged by the verifiers that RLVR uses."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.sources import ANSWERED, Source, read_rows
from megatron_bar.errors import BarError, require_at_least
from megatron_bar.evaluation.results import hash_items, new_results
from megatron_bar.models.build import LanguageModel, build_model
from megatron_bar.models.sampler import Sampler
from megatron_bar.models.shards import load_folder
from megatron_bar.parallel.state import ParallelConfig, is_set, on_rank_zero, set_layout
from megatron_bar.verifiers import check_task, verify_many, with_prompt
from megatron_bar.verifiers.judge import NO_JUDGE, Judge
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import Active
from megatron_bar.weights.manifest import read_manifest

Row = tuple[str, dict]
"""Place of a row (file:line), and its values."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    name: str
    """Skill that it measures."""
    path: Path
    """File of JSONL: messages, verifier and truth."""
    max_new_tokens: int

    def __post_init__(self):
        require_at_least(f"test set {self.name}", self, 1, "max_new_tokens")


def load_model(
    folder: Path,
    layout: ParallelConfig,
    *,
    active_experts: Active | None = None,
    disabled: tuple[str, ...] = (),
) -> LanguageModel:
    """Loads a folder's model for inference. Collective.

    ``active_experts``: how many experts a token uses; None: as the folder says. ``disabled`` names experts of
    the manifest that the router never chooses; a folder whose experts are all active then uses all that are
    left.
    """
    opened, slots = _opened(folder, active_experts, disabled)
    set_layout(layout, opened.config, seed=0)
    return _loaded(opened, layout, slots)


def load_beside(
    folder: Path,
    layout: ParallelConfig,
    *,
    active_experts: Active | None = None,
    disabled: tuple[str, ...] = (),
) -> LanguageModel:
    """Loads a second model beside one that has set ``layout`` already; see `load_model`. Collective."""
    opened, slots = _opened(folder, active_experts, disabled)
    config = opened.config
    if not is_set(layout, config):
        raise BarError(
            f"{folder}: with {config.experts_per_token} of {config.num_experts} experts active, expert "
            f"parallelism {layout.expert} spreads them in another way than those of the model beside it; "
            "compare them with expert 1"
        )
    return _loaded(opened, layout, slots)


def _opened(
    folder: Path, active_experts: Active | None, disabled: tuple[str, ...]
) -> tuple[Folder, tuple[int, ...]]:
    """Returns the folder with its active experts set, and the slots of the disabled ones."""
    opened = Folder.open(folder)
    slots = _disabled_slots(opened, disabled, active_experts)
    return (opened if active_experts is None else opened.with_active(active_experts)), slots


def _loaded(folder: Folder, layout: ParallelConfig, disabled: tuple[int, ...]):
    model = build_model(folder.config, layout)
    load_folder(model, folder)
    model.route(replace(model.routing, disabled=disabled))
    return model.eval()


def _disabled_slots(folder: Folder, names: tuple[str, ...], active_experts: Active | None) -> tuple[int, ...]:
    if not names:
        return ()
    total = folder.config.num_experts
    active = folder.config.experts_per_token
    if not total:
        raise BarError(
            f"{folder.path}: experts to disable expected none of a dense model, got {', '.join(names)}"
        )
    slots = {expert.name: expert.index for expert in read_manifest(folder.path).experts}
    for name in names:
        if name not in slots:
            raise BarError(
                f"{folder.path}: expert to disable expected one of {', '.join(slots)}, got {name!r}"
            )
        if names.count(name) > 1:
            raise BarError(
                f"{folder.path}: expert to disable expected once, got {name!r} {names.count(name)} times"
            )
    few = max(active_experts) if isinstance(active_experts, tuple) else active_experts
    left = total - len(names)
    wanted = few or (1 if active == total else active)
    if left < wanted:
        raise BarError(
            f"{folder.path}: expected at least {wanted} of the {total} experts to be left, got {left}"
        )
    return tuple(slots[name] for name in names)


def read_tests(tests: tuple[TestSet, ...], root: Path, *, limit: int | None = None) -> dict[str, list[Row]]:
    """Returns the checked rows of every test set, at most ``limit`` of each, in file order."""
    by_test = {}
    for test in tests:
        rows = read_rows(Source(path=test.path, kind="task"), root)[:limit]
        for where, row in rows:
            check_task(row["verifier"], row["truth"], where)
        by_test[test.name] = rows
    return by_test


def measure_folder(
    folder: Path,
    layout: ParallelConfig,
    chats: ChatFormat,
    tests: tuple[TestSet, ...],
    root: Path,
    *,
    active_experts: Active | None = None,
    limit: int | None = None,
    slots: int = 64,
    judge: Judge = NO_JUDGE,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[LanguageModel, dict]:
    """Loads a folder's model (`load_model`) and measures it (`measure`); returns both. Collective."""
    if judge.url:
        on_rank_zero(judge.require)
    model = load_model(folder, layout, active_experts=active_experts)
    return model, measure(folder, model, chats, tests, root, limit=limit, slots=slots, judge=judge, say=say)


def measure(
    folder: Path,
    model,
    chats: ChatFormat,
    tests: tuple[TestSet, ...],
    root: Path,
    *,
    limit: int | None = None,
    slots: int = 64,
    judge: Judge = NO_JUDGE,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Returns results (see `results`) on at most ``limit`` items of each test; ``folder``: where ``model`` is
    from; ``judge`` decides in the place of the verifier safety. Collective."""
    active = model.shape.experts_per_layer or model.shape.experts_per_token or None
    results = on_rank_zero(lambda: new_results(folder, "toy", active_experts=active, limit=limit))
    rows_by_test = read_tests(tests, root, limit=limit)
    results["tests"] = {
        name: {"hash": hash_items([row for _, row in rows]), "items": len(rows)}
        for name, rows in rows_by_test.items()
    }
    if judge.url:
        results["judge"] = judge.model
    sampler = Sampler(model, eos_ids=chats.stop_ids, pad_id=chats.tokenizer.pad_id)
    scores = results["scores"]
    for test in tests:
        scores[test.name] = _answer(sampler, chats, test, rows_by_test[test.name], slots, judge)
        solved = sum(item["score"] for item in scores[test.name])
        answered = sum(ANSWERED in row for _, row in rows_by_test[test.name])
        more = f"; {answered:,} rows end with an answer, which no prompt showed" if answered else ""
        say(f"  {test.name}: {solved:g} of {len(scores[test.name])} solved{more}")
    return results


def _answer(
    sampler: Sampler, chats: ChatFormat, test: TestSet, rows: list[Row], slots: int, judge: Judge
) -> list[dict]:
    """Returns prompt, answer and score of every row."""
    prompts = [chats.prompt(row["messages"], tools=row.get("tools"), where=where) for where, row in rows]
    done = sampler.generate(prompts, max_new_tokens=test.max_new_tokens, temperature=0.0, slots=slots)
    answers = [chats.tokenizer.decode(completion.ids) for completion in done]
    answered = [(row, answer) for (_, row), answer in zip(rows, answers, strict=True)]
    to_verify = [
        (row["verifier"], answer, with_prompt(row["verifier"], row["truth"], row["messages"]))
        for row, answer in answered
    ]
    scores = on_rank_zero(lambda: verify_many(to_verify, judge=judge))
    return [
        {"prompt": row["messages"][-1]["content"], "answer": answer, "score": score}
        for (row, answer), score in zip(answered, scores, strict=True)
    ]
