"""Runs a suite on a Hugging Face folder, whatever measures it: what is asked is checked before a model is
loaded."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.suite import BAR19
from megatron_bar.evaluation.benchmarks.completions import CompletionServer
from megatron_bar.evaluation.benchmarks.harness import LM_EVAL, run_suite
from megatron_bar.evaluation.benchmarks.judges import ServedJudge
from megatron_bar.evaluation.benchmarks.published import Asking, run_published
from megatron_bar.evaluation.benchmarks.suite import TOY, Suite
from megatron_bar.evaluation.generative import measure_folder
from megatron_bar.parallel.state import ParallelConfig, world_size
from megatron_bar.verifiers.judge import NO_JUDGE
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import Active, ModelConfig, show_active

SUITES: dict[str, Suite] = {suite.name: suite for suite in (TOY, BAR19, LM_EVAL)}


def evaluate_folder(
    folder: Path,
    suite: str,
    *,
    tasks: Iterable[str] = (),
    limit: int | None = None,
    active_experts: Active | None = None,
    batch: int = 64,
    tensor: int = 1,
    data: Path | None = None,
    judges: Mapping[str, ServedJudge] | None = None,
    server: str | None = None,
    requests: int | None = None,
    patience: float | None = None,
    protocol: str | None = None,
    answers: Path | None = None,
    score_only: bool = False,
    tasks_dir: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Returns results (see `results`) of ``suite``, or of its benchmarks ``tasks``. Collective.

    ``batch``: prompts at a time here, ``tensor``: tensor parallelism. ``judges``: by kind. The toy: ``data``
    holds test_SKILL.jsonl (None: the folder ``world`` beside ``folder``); a judge wildguard decides in the
    place of the verifier safety. Others: see `published.Asking` and `harness.run_suite`; ``patience`` is in
    seconds. ``say`` is told how far it is. Raises BarError for what cannot be.
    """
    if suite not in SUITES:
        raise BarError(f"suite {suite}: expected one of {', '.join(SUITES)}")
    names = [benchmark.name for benchmark in SUITES[suite].choose(tasks)]
    for name, value in (("limit", limit), ("batch", batch), ("requests", requests)):
        if value is not None and value < 1:
            raise BarError(f"{name} expected at least 1, got {value}")
    if patience is not None and not patience > 0:
        raise BarError(f"patience expected above 0 seconds, got {patience}")
    opened = Folder.open(folder)
    chats = ChatFormat(load_tokenizer(folder), "own")
    if active_experts is not None and server is not None:
        raise BarError(
            "active experts: a server's model has those of its config.json, "
            f"got {active_experts} for {server}"
        )
    if active_experts is not None:
        opened = opened.with_active(active_experts)
    layout = ParallelConfig(tensor=tensor)
    ours = {"protocol": protocol, "answers": answers, "score-only": score_only or None}
    asked = {"requests": requests, "patience": patience}
    options = {"active_experts": active_experts, "limit": limit}
    if suite == TOY.name:
        _refuse(suite, server=server, **{"tasks-dir": tasks_dir}, **asked, **ours)
        _refuse(suite, judge=next((kind for kind in judges or {} if kind != "wildguard"), None))
        judge = judges["wildguard"].server if judges else NO_JUDGE
        root = _tests_folder(folder, data)
        layout.check(opened.config, world_size())
        tests = TOY.choose(tasks)
        return measure_folder(
            folder, layout, chats, tests, root, slots=batch, judge=judge, say=say, **options
        )[1]
    if suite == LM_EVAL.name:
        _refuse(suite, data=data, tensor=tensor if tensor > 1 else None, **asked, **ours)
        _refuse(suite, judge=next(iter(judges or {}), None))
        _check_one_number(folder, suite, opened.config)
        _require_one_process(suite, server)
        if tasks_dir is not None and not tasks_dir.is_dir():
            raise BarError(f"{tasks_dir}: not found; expected a folder of lm-eval tasks")
        options |= {"server": server, "tasks_dir": tasks_dir, "batch": batch}
        return run_suite(folder, chats, LM_EVAL, names=names, say=say, **options)
    _refuse(suite, **{"tasks-dir": tasks_dir})
    served = None
    if server is not None:
        _require_one_process(suite, server)
        served = CompletionServer.at(server, **({} if patience is None else {"patience": patience}))
    else:
        _refuse(f"{suite} without --server", **asked)
        layout.check(opened.config, world_size())
    for name, value in (("data", data), ("answers", answers)):
        if value is None:
            raise BarError(f"suite {suite} expected --{name} DIR, got none")
    asking = Asking(
        data=data,
        answers=answers,
        protocol=protocol or "published",
        server=served,
        requests=requests or 32,
        slots=batch,
        layout=layout,
        score_only=score_only,
        judges=judges or {},
        **options,
    )
    return run_published(folder, chats, BAR19, asking, names=names, say=say)


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


def _require_one_process(suite: str, server: str | None) -> None:
    if world_size() > 1:
        through = f"suite {suite}" if server is None else f"suite {suite} with --server"
        raise BarError(
            f"{through}: expected one process, got {world_size()}; a server (--server) spreads a large model"
        )


def _refuse(suite: str, **options) -> None:
    for name, value in options.items():
        if value is not None:
            raise BarError(f"suite {suite} has no use for --{name}, got {value}")
