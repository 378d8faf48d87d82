"""Public benchmarks on a Hugging Face folder by EleutherAI's lm-evaluation-harness: in transformers, or on an
OpenAI-like server.

Every benchmark of a suite gets an entry: a score, or why there is none (its data cannot be reached, its task
needs a package, it is measured elsewhere). Decoding is greedy, zero-shot, with the folder's chat template.
What a model wrote is never run in this process: tasks that lm-eval marks as unsafe are left out. Offline,
tasks come from a folder of YAML files; they take the place of those of the same name. Everything runs in one
process; lm-eval is imported when it is used, since it is an optional part.
"""

import json
import sys
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_bar.data.chat import ChatFormat
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.suite import Benchmark, LmEval, Suite, category_means, overall
from megatron_bar.evaluation.results import hash_items, new_results
from megatron_bar.parallel import cpu
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.receipts import Proven


def run_suite(
    folder: Path,
    chats: ChatFormat,
    suite: Suite,
    *,
    names: Iterable[str] = (),
    limit: int | None = None,
    server: str | None = None,
    tasks_dir: Path | None = None,
    active_experts: int | None = None,
    batch: int = 32,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Returns results (see `results`) of ``suite`` on ``folder``, with benchmarks, categories and overall
    (scores from 0 to 1).

    ``names``: only these benchmarks; none: all. The averages are those of the whole suite, and say what is
    missing. ``limit``: most items of every lm-eval task, so of every part of a group. ``server``:
    http://HOST:PORT, which serves this folder; None: transformers here, on ``batch`` prompts at a time.
    ``tasks_dir``: lm-eval tasks that take the place of those of the same name. Raises BarError where nothing
    could be measured.
    """
    require_lm_eval()
    config = Folder.open(folder).config
    results = new_results(folder, suite.name, active_experts=active_experts, limit=limit)
    served = _served_model(server) if server else None
    # A prompt needs room too: OLMo 2's 4096 positions are as many as an answer may have.
    new_tokens = min(suite.max_new_tokens, config.max_positions // 2)
    entries = {b.name: {"category": b.category, "not_measured": "not asked for"} for b in suite.benchmarks}
    chosen = suite.choose(names)
    with redirect_stdout(sys.stderr):  # lm-eval's tasks print
        manager = _manager(tasks_dir, chosen)
        tasks = _load_all(suite, chosen, manager, entries)
        if server:
            model = _server(server, served, folder, config.max_positions)
        else:
            model = _transformers(folder, chats, batch, active_experts)
        for benchmark in chosen:
            name = benchmark.name
            if name not in tasks:
                continue
            evaluated = _evaluate(model, tasks[name], manager, limit, new_tokens, server)
            entry, docs, items = _score(benchmark.by, evaluated)
            results["tests"][name] = {"hash": hash_items(docs), "items": len(items)}
            results["scores"][name] = items
            entries[name] |= entry
            say(f"  {name}: {100 * entry['score']:.1f} of {entry['items']} items")
    scores = {name: entry["score"] for name, entry in entries.items() if "score" in entry}
    categories = category_means(suite, scores)
    return results | {
        "settings": {"through": "server" if server else "transformers", "max_new_tokens": new_tokens},
        "benchmarks": entries,
        "categories": {name: asdict(average) for name, average in categories.items()},
        "overall": asdict(overall(categories)),
    }


def require_lm_eval() -> None:
    if find_spec("lm_eval") is None:
        raise BarError(
            "lm-eval is not installed; expected it for this suite: "
            "pip install -e '.[eval]' -c constraints.txt"
        )


def _named(benchmark: Benchmark) -> dict[str, str | dict]:
    """Returns the benchmark's lm-eval tasks by name."""
    tasks = benchmark.by.tasks if isinstance(benchmark.by, LmEval) else ()
    return {task if isinstance(task, str) else task["task"]: task for task in tasks}


def _manager(tasks_dir: Path | None, chosen: tuple[Benchmark, ...]):
    """Returns lm-eval's index of tasks. Its own are thousands of files, read only where ``tasks_dir`` lacks
    some of ``chosen``."""
    from lm_eval.tasks import TaskManager

    wanted = {
        name for benchmark in chosen for name, task in _named(benchmark).items() if isinstance(task, str)
    }
    folder = str(tasks_dir) if tasks_dir else None
    few = TaskManager(include_path=folder, include_defaults=False)
    return few if wanted <= set(few.all_tasks) else TaskManager(include_path=folder)


def _load_all(suite: Suite, chosen: tuple[Benchmark, ...], manager, entries: dict[str, dict]) -> dict:
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


def _load(benchmark: Benchmark, manager) -> list:
    """Returns the lm-eval tasks of a benchmark, their data loaded."""
    if not isinstance(benchmark.by, LmEval):
        raise BarError(str(benchmark.by))
    named = _named(benchmark)
    # One of ours has given way to one of the same name too, if there is one.
    wanted = [name if name in manager.all_tasks else task for name, task in named.items()]
    try:
        loaded = manager.load(wanted)["tasks"]
    except Exception as error:  # noqa: BLE001  a task's own Python: data or a package may be missing
        told = next(iter(str(error).splitlines()), "")
        raise BarError(
            f"lm-eval cannot load task {next(iter(named))}: {type(error).__name__}: {told}"
        ) from None
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


def _score(by: LmEval, evaluated: dict) -> tuple[dict, list, list[dict]]:
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
    entry = {
        "score": sum(means) / len(means),
        "metric": by.metric,
        "items": len(items),
        "harness": "lm-eval",
        "version": version("lm_eval"),
        "task_versions": {task: evaluated["versions"].get(task) for task in sorted(evaluated["samples"])},
    }
    return entry | ({"differs": by.differs} if by.differs else {}), docs, items


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


def _served_model(url: str) -> str:
    """Returns the name of the model that the server has."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/v1/models", timeout=30) as answer:
            return json.load(answer)["data"][0]["id"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BarError(
            f"{url}: expected an OpenAI-like server that lists its model at /v1/models, got {error}"
        ) from None


def _server(url: str, name: str, folder: Path, max_positions: int):
    """Returns a server's completions as a model; prompts are laid out and tokenised here, by the folder's
    tokenizer."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{url.rstrip('/')}/v1/completions",
        model=name,
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        max_length=max_positions,
        num_concurrent=16,
    )
