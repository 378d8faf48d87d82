"""Suites of benchmarks as values: TOY, by our own sampler and verifiers, and BAR19, the published nineteen by
public harnesses.

BAR19 (arXiv 2604.18473): a category is the mean of its benchmarks, Overall the mean of the categories;
decoding is greedy, zero-shot, with the chat template and at most 4096 new tokens. The published numbers come
from Ai2's own runner (oe-eval; its public part: olmes), whose prompts and extraction of answers are its own:
these are the nearest public ones, and what differs is said beside each. The score of a benchmark that is a
group of tasks is their plain mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.data.world import SKILLS
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.tasks import HUMANEVAL_PLUS, MATH, MBPP_PLUS
from megatron_bar.evaluation.generative import TestSet


@dataclass(frozen=True, kw_only=True)
class LmEval:
    """A task or group of EleutherAI's lm-evaluation-harness, or several."""

    tasks: tuple[str | dict, ...]
    """Ids of lm-eval's tasks, or configurations of our own (tasks.py)."""
    metric: str
    """Metric and filter, as lm-eval names them."""
    differs: str = ""
    """Difference from what was published."""


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A benchmark that is not run from here."""

    harness: str
    task: str
    why: str = "lm-eval has no such task"

    def __str__(self) -> str:
        return f"{self.why}; measure it with {self.harness}: {self.task}"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    name: str
    category: str
    by: TestSet | LmEval | Elsewhere
    """Test set or harness that measures it."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    name: str
    benchmarks: tuple[Benchmark, ...]
    max_new_tokens: int = 4096
    """Longest answer to lm-eval's tasks; a test set has its own."""

    def choose(self, names: Iterable[str]) -> tuple[Benchmark, ...]:
        """Returns the benchmarks called ``names``; none named: all. Raises BarError for an unknown name, with
        the known ones."""
        names = list(names)
        known = [benchmark.name for benchmark in self.benchmarks]
        if unknown := [name for name in names if name not in known]:
            raise BarError(f"task {unknown[0]}: expected one of suite {self.name}'s: {', '.join(known)}")
        return tuple(benchmark for benchmark in self.benchmarks if not names or benchmark.name in names)


@dataclass(frozen=True, kw_only=True)
class Average:
    """The mean of what was measured of a category, or of the categories."""

    mean: float | None
    measured: int
    of: int
    partial: bool
    """Whether anything in it was not measured."""


def category_means(suite: Suite, scores: dict[str, float]) -> dict[str, Average]:
    """Returns the mean of every category; ``scores``: by name, of the benchmarks that were measured."""
    names: dict[str, list[str]] = {}
    for benchmark in suite.benchmarks:
        names.setdefault(benchmark.category, []).append(benchmark.name)
    means = {}
    for category, members in names.items():
        values = [scores[name] for name in members if name in scores]
        means[category] = _average(values, len(members), partial=len(values) < len(members))
    return means


def overall(categories: dict[str, Average]) -> Average:
    values = [average.mean for average in categories.values() if average.mean is not None]
    return _average(values, len(categories), partial=any(average.partial for average in categories.values()))


def _average(values: list[float], of: int, *, partial: bool) -> Average:
    mean = sum(values) / len(values) if values else None
    return Average(mean=mean, measured=len(values), of=of, partial=partial)


def _extracted(task: str) -> LmEval:
    """Returns a task whose answer lm-eval extracts from the text by a rule of its own."""
    differs = "oe-eval asks for an answer in words of its own and extracts that"
    return LmEval(tasks=(task,), metric="exact_match,flexible-extract", differs=differs)


def _olmes(task: str, why: str = "lm-eval has no such task") -> Elsewhere:
    return Elsewhere(harness="olmes (github.com/allenai/olmes)", task=task, why=why)


def _safety(task: str) -> Elsewhere:
    why = "lm-eval has no such task, and a classifier (WildGuard, or HarmBench's) judges the answers"
    return Elsewhere(harness="Ai2's safety-eval (github.com/allenai/safety-eval)", task=task, why=why)


def _benchmark(category: str, name: str, by: TestSet | LmEval | Elsewhere) -> Benchmark:
    return Benchmark(category=category, name=name, by=by)


TOY = Suite(
    name="toy",
    benchmarks=tuple(
        _benchmark(skill, skill, TestSet(name=skill, path=Path(f"test_{skill}.jsonl"), max_new_tokens=64))
        for skill in SKILLS
    ),
)
BFCL = Elsewhere(
    harness="bfcl-eval (in a container)",
    task="REMOTE_OPENAI_BASE_URL=URL/v1 bfcl generate --model NAME --skip-server-setup "
    "--local-model-path HF, then bfcl evaluate",
    why="bfcl-eval passes what a model wrote to Python's eval in its own process; "
    "here only the sandbox runs such code",
)
BAR19 = Suite(
    name="bar19",
    benchmarks=(
        _benchmark("knowledge", "mmlu", _extracted("mmlu_flan_cot_zeroshot")),
        _benchmark("knowledge", "popqa", _olmes("popqa::hamish_zs_reasoning_deepseek")),
        _benchmark(
            "knowledge",
            "simpleqa",
            _olmes("simpleqa::tulu-thinker_deepseek", "a language model judges the answers"),
        ),
        _benchmark("reasoning", "bbh", _extracted("bbh_cot_zeroshot")),
        _benchmark("reasoning", "gpqa", _extracted("gpqa_main_cot_zeroshot")),
        _benchmark("reasoning", "zebralogic", _olmes("zebralogic::hamish_zs_reasoning_deepseek")),
        _benchmark(
            "reasoning",
            "agieval_english",
            LmEval(
                tasks=("agieval_en",),
                metric="acc,none",
                differs="lm-eval compares the choices' likelihoods, oe-eval lets the model reason; "
                "other subsets too",
            ),
        ),
        _benchmark(
            "chat",
            "alpaca_eval",
            Elsewhere(
                harness="alpaca_eval (length-controlled win rate), or olmes",
                task="alpaca_eval_v3::hamish_zs_reasoning_deepseek",
                why="a language model judges the answers",
            ),
        ),
        _benchmark("chat", "ifeval", LmEval(tasks=("ifeval",), metric="prompt_level_loose_acc,none")),
        _benchmark("math", "math", LmEval(tasks=MATH, metric="math,none")),
        _benchmark("math", "gsm8k", _extracted("gsm8k_cot_zeroshot")),
        _benchmark("code", "humaneval_plus", LmEval(tasks=(HUMANEVAL_PLUS,), metric="pass_at_1,none")),
        _benchmark("code", "mbpp_plus", LmEval(tasks=(MBPP_PLUS,), metric="pass_at_1,none")),
        _benchmark("tool_use", "bfcl", BFCL),
        _benchmark("safety", "do_anything_now", _safety("do_anything_now:default")),
        _benchmark("safety", "harmbench", _safety("harmbench:default")),
        _benchmark("safety", "trustllm_jailbreaktrigger", _safety("trustllm_jailbreaktrigger:default")),
        _benchmark("safety", "wildguardtest", _safety("wildguardtest:default")),
        _benchmark("safety", "wildjailbreak_benign", _safety("wildjailbreak:benign")),
    ),
)
SUITES = {suite.name: suite for suite in (TOY, BAR19)}
