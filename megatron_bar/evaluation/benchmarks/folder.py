"""Runs a suite on a Hugging Face folder, whatever measures it: what is asked is checked before a model is
loaded."""

from collections.abc import Iterable
from pathlib import Path

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.harness import run_suite
from megatron_bar.evaluation.benchmarks.suite import SUITES, TOY
from megatron_bar.evaluation.generative import measure_folder
from megatron_bar.parallel.state import ParallelConfig, world_size
from megatron_bar.verifiers.judge import NO_JUDGE, Judge
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import Active, ModelConfig, show_active


def evaluate_folder(
    folder: Path,
    suite: str,
    *,
    tasks: Iterable[str] = (),
    limit: int | None = None,
    active_experts: Active | None = None,
    batch: int = 64,
    data: Path | None = None,
    tensor: int = 1,
    server: str | None = None,
    tasks_dir: Path | None = None,
    judge: Judge = NO_JUDGE,
) -> dict:
    """Returns results (see `results`) of ``suite``, or of its benchmarks ``tasks``. Collective.

    ``batch``: prompts at a time. The toy: ``data`` holds test_SKILL.jsonl (None: the folder ``world`` beside
    ``folder``), ``tensor`` is tensor parallelism, ``judge`` decides in the place of the verifier safety.
    Others: see `harness.run_suite`. Raises BarError for what cannot be.
    """
    if suite not in SUITES:
        raise BarError(f"suite {suite}: expected one of {', '.join(SUITES)}")
    benchmarks = SUITES[suite].choose(tasks)
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise BarError(f"{name} expected at least 1, got {value}")
    opened = Folder.open(folder)
    chats = ChatFormat(load_tokenizer(folder), "own")
    if active_experts is not None and server is not None:
        raise BarError(
            "active experts: a server's model has those of its config.json, "
            f"got {active_experts} for {server}"
        )
    if active_experts is not None:
        opened = opened.with_active(active_experts)
    options = {"active_experts": active_experts, "limit": limit}
    if suite == TOY.name:
        _refuse(f"suite {suite}", server=server, tasks_dir=tasks_dir)
        root = _tests_folder(folder, data)
        layout = ParallelConfig(tensor=tensor)
        layout.check(opened.config, world_size())
        tests = tuple(benchmark.by for benchmark in benchmarks)
        return measure_folder(folder, layout, chats, tests, root, slots=batch, judge=judge, **options)[1]
    _check_one_number(folder, suite, opened.config)
    _refuse(f"suite {suite}", data=data, tensor=tensor if tensor > 1 else None, judge=judge.url)
    if world_size() > 1:
        raise BarError(
            f"suite {suite}: expected one process, got {world_size()}; "
            "a server (--server) spreads a large model"
        )
    if tasks_dir is not None and not tasks_dir.is_dir():
        raise BarError(f"{tasks_dir}: not found; expected a folder of lm-eval tasks")
    names = [benchmark.name for benchmark in benchmarks]
    options |= {"server": server, "tasks_dir": tasks_dir, "batch": batch}
    return run_suite(folder, chats, SUITES[suite], names=names, **options)


def _tests_folder(folder: Path, data: Path | None) -> Path:
    root = folder.resolve().parent / "world" if data is None else data
    if not root.is_dir():
        raise BarError(f"{root}: not found; expected a folder of test_SKILL.jsonl (--data DIR)")
    return root


def _check_one_number(folder: Path, suite: str, config: ModelConfig) -> None:
    """Raises BarError for a model whose layers have different numbers of active experts."""
    if config.experts_per_layer:
        raise BarError(
            f"{folder}: suite {suite}: transformers and vLLM use one number of experts in all layers, "
            f"expected one (--active-experts {config.experts_per_token}), "
            f"got {show_active(config.experts_per_layer)}"
        )


def _refuse(suite: str, **options) -> None:
    for name, value in options.items():
        if value is not None:
            raise BarError(f"{suite} has no use for --{name.replace('_', '-')}, got {value}")
