"""BAR19 against the published list and against the installed lm-eval; averages as published."""

import pytest

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.paper import COLUMNS, PUBLISHED
from megatron_bar.evaluation.benchmarks.bar19.suite import BAR19
from megatron_bar.evaluation.benchmarks.harness import LM_EVAL
from megatron_bar.evaluation.benchmarks.suite import TOY, category_means, overall
from megatron_bar.evaluation.benchmarks.table import table
from megatron_bar.report.bootstrap import mean_interval

SIZES = {"knowledge": 3, "reasoning": 4, "chat": 2, "math": 2, "code": 2, "tool_use": 1, "safety": 5}
"""arXiv 2604.18473, section 5."""


def test_the_published_nineteen_in_seven_categories():
    names = [benchmark.name for benchmark in BAR19.benchmarks]
    assert len(names) == len(set(names)) == 19
    assert {c: sum(b.category == c for b in BAR19.benchmarks) for c in SIZES} == SIZES
    assert len(TOY.benchmarks) == 7
    assert sum(benchmark.rows for benchmark in BAR19.benchmarks) == 57_907
    assert {b.name: b.category for b in LM_EVAL.benchmarks}.items() <= {
        b.name: b.category for b in BAR19.benchmarks
    }.items()


def test_the_published_overall_is_the_mean_of_the_published_categories():
    assert COLUMNS[1:] == tuple(SIZES) and len(PUBLISHED) == 8
    for name, (whole, *categories) in PUBLISHED.items():
        assert whole == pytest.approx(sum(categories) / 7, abs=0.06), name


def test_lm_eval_has_the_tasks_and_their_metrics():
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = TaskManager()

    def leaves(task) -> list[dict]:
        config = (
            task
            if isinstance(task, dict)
            else load_yaml(manager.task_index[task].yaml_path, resolve_func=False)
        )
        if isinstance(config["task"], str):
            return [config]
        members = [m if isinstance(m, str) else m["task"] for m in config["task"]]
        flat = [name for m in members for name in ([m] if isinstance(m, str) else m)]
        tagged = [name for tag in flat for name in ((manager.task_index[tag].tags and [tag]) or [tag])]
        return [leaf for name in tagged for leaf in leaves_of(name)]

    def leaves_of(name: str) -> list[dict]:
        entry = manager.task_index[name]
        if entry.yaml_path is not None:
            return leaves(name)
        return [
            leaf for one, other in manager.task_index.items() if name in other.tags for leaf in leaves(one)
        ]

    counts = {}
    for benchmark in LM_EVAL.benchmarks:
        metric, filtered = benchmark.metric.split(",")
        found = leaves(benchmark.task)
        counts[benchmark.name] = len(found)
        for leaf in found:
            filters = [one["name"] for one in leaf.get("filter_list", [{"name": "none"}])]
            metrics = [one["metric"] for one in leaf["metric_list"]]
            assert filtered in filters and metric in metrics, (benchmark.name, leaf["task"], filters, metrics)
    expected = {"mmlu": 57, "bbh": 27, "gpqa": 1, "agieval_english": 10, "ifeval": 1, "math": 7, "gsm8k": 1}
    assert counts == expected


def test_a_category_is_the_mean_of_its_benchmarks_and_overall_of_the_categories():
    scores = {benchmark.name: 0.01 * n for n, benchmark in enumerate(BAR19.benchmarks)}
    categories = category_means(BAR19.benchmarks, scores)
    assert {name: average.mean for name, average in categories.items()} == pytest.approx(
        {
            "knowledge": 0.01,
            "reasoning": 0.045,
            "chat": 0.075,
            "math": 0.095,
            "code": 0.115,
            "tool_use": 0.13,
            "safety": 0.16,
        }
    )
    assert overall(categories).mean == pytest.approx((0.01 + 0.045 + 0.075 + 0.095 + 0.115 + 0.13 + 0.16) / 7)
    assert not overall(categories).partial and not any(average.partial for average in categories.values())


def test_what_is_missing_is_told_and_not_averaged_as_zero():
    categories = category_means(BAR19.benchmarks, {"mmlu": 0.6, "popqa": 0.2, "math": 0.3, "gsm8k": 0.5})
    knowledge, math, code = (categories[name] for name in ("knowledge", "math", "code"))
    assert (knowledge.mean, knowledge.measured, knowledge.of, knowledge.partial) == (
        pytest.approx(0.4),
        2,
        3,
        True,
    )
    assert (math.mean, math.partial) == (0.4, False) and (code.mean, code.measured, code.partial) == (
        None,
        0,
        True,
    )
    assert (overall(categories).mean, overall(categories).measured, overall(categories).partial) == (
        pytest.approx(0.4),
        2,
        True,
    )


def test_unknown_tasks_are_refused_with_the_known():
    assert [b.name for b in BAR19.choose(["gsm8k", "mmlu"])] == ["mmlu", "gsm8k"] and BAR19.choose(
        []
    ) == BAR19.benchmarks
    with pytest.raises(BarError, match=r"task cooking: expected one of suite toy's: knowledge, .*safety"):
        TOY.choose(["math", "cooking"])


def test_the_toys_table():
    items = {"math": [1.0, 0.0, 1.0, 1.0], "code": [0.0] * 4}
    scores = {name: [{"score": score} for score in values] for name, values in items.items()}
    results = {"model": "m", "suite": "toy", "active_experts": 2, "limit": 4, "tests": {}, "scores": scores}
    lines = table(results)
    found = mean_interval([items["math"]])
    low, high = 100 * found.low, 100 * found.high
    assert lines[0] == "m: suite toy, 2 active experts, at most 4 items of each task"
    assert lines[2].split() == ["math", "4", "75.0", f"{low:.1f}", "to", f"{high:.1f}"]
    assert lines[3].split() == ["code", "4", "0.0", "0.0", "to", "0.0"] and lines[4].startswith(
        "partial: 2 of 7"
    )
    assert lines[4].split()[4:6] == ["8", "37.5"]
