"""Public benchmarks on a Hugging Face folder by EleutherAI's lm-evaluation-harness, in transformers or on an
OpenAI-like server: seven of the nineteen, to compare our own with.

Every benchmark gets an entry: a score, or why there is none (its data cannot be reached, its task needs a
package). Decoding is greedy, zero-shot, with the folder's chat template; prompts and what is taken for the
answer are lm-eval's own, so scores are near the published ones, and no category is averaged. What a model
wrote is never run in this process: tasks that lm-eval marks as unsafe are left out. Offline, tasks come from
a folder of YAML files; they take the place of those of the same name. Everything runs in one process; lm-eval
is imported when it is used, since it is an optional part.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_bar.data.chat import ChatFormat
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.completions import CompletionServer
from megatron_bar.evaluation.benchmarks.suite import Suite
from megatron_bar.evaluation.results import hash_items, new_results
from megatron_bar.parallel import cpu
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.receipts import Proven

MAX_NEW_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class LmEvalBenchmark:
    name: str
    category: str
    task: str
    """Id of lm-eval's task or group of tasks; its score is their plain mean."""
    metric: str
    """Metric and filter, as lm-eval names them."""


EXTRACTED = "exact_match,flexible-extract"
LM_EVAL = Suite(
    name="bar19-lm-eval",
    benchmarks=tuple(
        LmEvalBenchmark(category=category, name=name, task=task, metric=metric)
        for category, name, task, metric in (
            ("knowledge", "mmlu", "mmlu_flan_cot_zeroshot", EXTRACTED),
            ("reasoning", "bbh", "bbh_cot_zeroshot", EXTRACTED),
            ("reasoning", "gpqa", "gpqa_main_cot_zeroshot", EXTRACTED),
            ("reasoning", "agieval_english", "agieval_en", "acc,none"),
            ("chat", "ifeval", "ifeval", "prompt_level_loose_acc,none"),
            ("math", "math", "hendrycks_math", "exact_match,none"),
            ("math", "gsm8k", "gsm8k_cot_zeroshot", EXTRACTED),
        )
    ),
)


def run_suite(
    folder: Path,
    chats: ChatFormat,
    suite: Suite[LmEvalBenchmark],
    *,
    names: Iterable[str] = (),
    limit: int | None = None,
    server: str | None = None,
    tasks_dir: Path | None = None,
    active_experts: int | None = None,
    batch: int = 32,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Returns results (see `results`) of ``suite`` on ``folder``, with an entry for each benchmark (scores
    from 0 to 1).

    ``names``: only these benchmarks; none: all. ``limit``: most items of every lm-eval task, so of every part
    of a group. ``server``: http://HOST:PORT, which serves this folder; None: transformers here, on ``batch``
    prompts at a time.
    ``tasks_dir``: lm-eval tasks that take the place of those of the same name. Raises BarError where nothing
    could be measured.
    """
    require_lm_eval()
    config = Folder.open(folder).config
    results = new_results(folder, suite.name, active_experts=active_experts, limit=limit)
    served = CompletionServer.at(server) if server else None
    # A prompt needs room too: OLMo 2's 4096 positions are as many as an answer may have.
    new_tokens = min(MAX_NEW_TOKENS, config.max_positions // 2)
    entries = {b.name: {"category": b.category, "not_measured": "not asked for"} for b in suite.benchmarks}
    chosen = suite.choose(names)
    with redirect_stdout(sys.stderr):  # lm-eval's tasks print
        manager = _manager(tasks_dir, chosen)
        tasks = _load_all(suite, chosen, manager, entries)
        if served:
            model = _server(served, folder, config.max_positions)
        else:
            model = _transformers(folder, chats, batch, active_experts)
        for benchmark in chosen:
            name = benchmark.name
            if name not in tasks:
                continue
            evaluated = _evaluate(model, tasks[name], manager, limit, new_tokens, server)
            entry, docs, items = _score(benchmark, evaluated)
            results["tests"][name] = {"hash": hash_items(docs), "items": len(items)}
            results["scores"][name] = items
            entries[name] |= entry
            say(f"  {name}: {100 * entry['score']:.1f} % of {entry['items']} items")
    settings = {"through": "server" if server else "transformers", "max_new_tokens": new_tokens}
    return results | {"settings": settings, "benchmarks": entries}


def require_lm_eval() -> None:
    if find_spec("lm_eval") is None:
        raise BarError(
            "lm-eval is not installed; expected it for this suite: "
            "pip install -e '.[eval]' -c constraints.txt"
        )


def _manager(tasks_dir: Path | None, chosen: tuple[LmEvalBenchmark, ...]):
    """Returns lm-eval's index of tasks. Its own are thousands of files, read only where ``tasks_dir`` lacks
    some of ``chosen``."""
    from lm_eval.tasks import TaskManager

    wanted = {benchmark.task for benchmark in chosen}
    folder = str(tasks_dir) if tasks_dir else None
    few = TaskManager(include_path=folder, include_defaults=False)
    return few if wanted <= set(few.all_tasks) else TaskManager(include_path=folder)


def _load_all(suite: Suite, chosen: tuple[LmEvalBenchmark, ...], manager, entries: dict[str, dict]) -> dict:
    """Returns the lm-eval tasks of each benchmark that can be measured here; ``entries`` says of the others
    why not. Raises BarError where there is none."""
    tasks = {}
    for benchmark in chosen:
        try:
            tasks[benchmark.name] = _load(benchmark, manager)
            del entries[benchmark.name]["not_measured"]
        except BarError as reason:
            entries[benchmark.name]["not_measured"] = str(reason)
    if not tasks:
        name = chosen[0].name
        why = entries[name]["not_measured"]
        raise BarError(f"suite {suite.name}: nothing can be measured here; {name}: {why}")
    return tasks


def _load(benchmark: LmEvalBenchmark, manager) -> list:
    """Returns the lm-eval tasks of a benchmark, their data loaded."""
    try:
        loaded = manager.load([benchmark.task])["tasks"]
    except Exception as error:  # noqa: BLE001  a task's own Python: data or a package may be missing
        told = next(iter(str(error).splitlines()), "")
        raise BarError(f"lm-eval cannot load task {benchmark.task}: {type(error).__name__}: {told}") from None
    if unsafe := [task for task, value in loaded.items() if value.config.unsafe_code]:
        raise BarError(
            f"lm-eval runs model-written code of task {unsafe[0]} in its own process; "
            "here only the sandbox runs such code"
        )
    return list(loaded.values())


def _evaluate(model, tasks: list, manager, limit, max_new_tokens: int, server: str | None) -> dict:
    """Returns what lm-eval measured on ``tasks``: its results and samples by task."""
    from lm_eval import simple_evaluate

    try:
        return simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=manager,
            num_fewshot=0,
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=True,
            gen_kwargs={"max_gen_toks": max_new_tokens, "do_sample": False, "temperature": 0.0},
        )
    except OSError as error:
        if server is None:
            raise
        raise BarError(f"{server}: expected completions, got {type(error).__name__}: {error}") from None


def _score(by: LmEvalBenchmark, evaluated: dict) -> tuple[dict, list, list[dict]]:
    """Returns the benchmark's entry, what its test's hash is of, and the score of every item."""
    metric, filtered = by.metric.split(",")
    means = []
    docs = []
    items = []
    for task in sorted(evaluated["samples"]):
        samples = [sample for sample in evaluated["samples"][task] if sample["filter"] == filtered]
        if not samples or metric not in samples[0]:
            offered = sorted(key for key in evaluated["results"][task] if "," in key)
            raise BarError(f"lm-eval's task {task}: metric expected {by.metric}, got {', '.join(offered)}")
        samples.sort(key=lambda sample: sample["doc_id"])
        scores = [float(sample[metric]) for sample in samples]
        means.append(sum(scores) / len(scores))
        hashes = ("doc_hash", "prompt_hash", "target_hash")
        docs += [[task, *(sample[name] for name in hashes)] for sample in samples]
        items += [_item(sample, score) for sample, score in zip(samples, scores, strict=True)]
    return (
        {
            "score": sum(means) / len(means),
            "metric": by.metric,
            "items": len(items),
            "harness": "lm-eval",
            "version": version("lm_eval"),
            "task_versions": {task: evaluated["versions"].get(task) for task in sorted(evaluated["samples"])},
        },
        docs,
        items,
    )


def _item(sample: dict, score: float) -> dict:
    """Returns prompt, answer and score; the answer to a question with choices is the likeliest choice."""
    arguments = sample["arguments"]
    answer = sample["resps"][0][0]
    if not isinstance(answer, str):
        likelihoods = [responses[0][0] for responses in sample["resps"]]
        answer = arguments[likelihoods.index(max(likelihoods))][1]
    return {"prompt": arguments[0][0], "answer": answer, "score": score}


def _transformers(folder: Path, chats: ChatFormat, batch: int, active_experts: int | None):
    """Loads the folder in transformers, its tensors compared with their receipts."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    opened = Folder.open(folder)
    Proven.open(opened).prove()
    changes = {} if active_experts is None else {"num_experts_per_tok": active_experts}
    options = {"dtype": opened.dtype, "local_files_only": True} | changes
    with TemporaryDirectory() as place:
        opened.link_to(Path(place))
        model = AutoModelForCausalLM.from_pretrained(place, **options).to(cpu.device()).eval()
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    model.generation_config.eos_token_id = sorted(chats.stop_ids)
    positions = opened.config.max_positions
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=positions)


def _server(server: CompletionServer, folder: Path, max_positions: int):
    """Returns a server's completions as a model; prompts are laid out and tokenised here, by the folder's
    tokenizer."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model=server.model,
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        max_length=max_positions,
        num_concurrent=16,
    )
