"""lm-eval for real, offline, on local files and a tiny folder: scores against transformers, a server."""

import json
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from evaluation.tiny_chat import QUESTIONS, answers, save_chat_hf

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.harness import LM_EVAL, run_suite
from megatron_bar.evaluation.benchmarks.table import table
from megatron_bar.evaluation.results import read_results, write_results

pytest.importorskip("lm_eval")
NEW = 64
"""Half of the model's positions: more cannot be asked for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_chat_hf(tmp_path_factory.mktemp("harness") / "model")


def write_json(path: Path, rows: list[dict]) -> dict:
    """A local test split, as an lm-eval task names it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
    }


def write_task(folder: Path, name: str, config: dict) -> None:
    (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "metadata": {"version": 1.0}} | config))


@pytest.fixture
def tasks(tmp_path, folder) -> Path:
    """gsm8k, of which two items are right by what transformers answers, and agieval_en, of single choices."""
    rows = [
        {"q": q, "a": a if n < 2 else "no"}
        for n, (q, a) in enumerate(zip(QUESTIONS, answers(folder, new=NEW), strict=True))
    ]
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    config = write_json(tmp_path / "gsm.jsonl", rows) | {
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "metric_list": [metric],
    }
    filters = {"filter_list": [{"name": "flexible-extract", "filter": [{"function": "take_first"}]}]}
    until = {"output_type": "generate_until", "generation_kwargs": {"until": ["Q:"]}}
    write_task(tmp_path, "gsm8k_cot_zeroshot", config | filters | until)
    choices = [
        {"query": q, "choices": ["blue", "red hat", "17"], "gold": n % 3} for n, q in enumerate(QUESTIONS)
    ]
    config = write_json(tmp_path / "agi.jsonl", choices) | {
        "output_type": "multiple_choice",
        "metric_list": [metric | {"metric": "acc"}],
    }
    config |= {"doc_to_text": "{{query}}", "doc_to_target": "{{gold}}", "doc_to_choice": "{{choices}}"}
    write_task(tmp_path, "agieval_en", config)
    return tmp_path


@torch.no_grad()
def likeliest(path: Path, choices: list[str]) -> list[str]:
    """Of each question's ``choices``, by transformers alone; lm-eval puts a space before a choice."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer, found = (
        AutoModelForCausalLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
        [],
    )
    for question in QUESTIONS:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        sums = []
        for choice in choices:
            start, ids = (
                tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
                for text in (chat, chat + choice)
            )
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
            sums.append(logprobs.gather(1, ids[0, 1:, None])[start.shape[1] - 1 :].sum().item())
        found.append(choices[sums.index(max(sums))])
    return found


def chats(folder: Path) -> ChatFormat:
    return ChatFormat(load_tokenizer(folder), "own")


def test_scores_are_those_of_transformers_and_the_rest_is_told(folder, tasks, tmp_path):
    found = run_suite(folder, chats(folder), LM_EVAL, names=["gsm8k", "agieval_english"], tasks_dir=tasks)
    assert [item["answer"] for item in found["scores"]["gsm8k"]] == answers(folder, new=NEW)
    assert [item["score"] for item in found["scores"]["gsm8k"]] == [1.0, 1.0, 0.0, 0.0]
    chosen = [item["answer"].strip() for item in found["scores"]["agieval_english"]]
    assert chosen == likeliest(folder, ["blue", "red hat", "17"])
    right = [float(answer == ["blue", "red hat", "17"][n % 3]) for n, answer in enumerate(chosen)]
    assert found["benchmarks"]["agieval_english"]["score"] == sum(right) / 4
    assert found["benchmarks"]["gsm8k"] | {"version": None} == {
        "category": "math",
        "score": 0.5,
        "metric": "exact_match,flexible-extract",
        "items": 4,
        "harness": "lm-eval",
        "version": None,
        "task_versions": {"gsm8k_cot_zeroshot": 1.0},
    }
    assert found["benchmarks"]["mmlu"] == {"category": "knowledge", "not_measured": "not asked for"}
    write_results(tmp_path / "r.json", found)
    assert read_results(tmp_path / "r.json") == found
    lines = table(found)
    assert ["math", "gsm8k", "50.0", "4", "exact_match,flexible-extract"] in [line.split() for line in lines]
    assert ["knowledge", "mmlu", "-", "-", "not", "asked", "for"] in [line.split() for line in lines]


def test_fewer_items_and_fewer_active_experts(folder, tasks):
    found = run_suite(
        folder, chats(folder), LM_EVAL, names=["gsm8k"], tasks_dir=tasks, limit=3, active_experts=1
    )
    assert [item["answer"] for item in found["scores"]["gsm8k"]] == answers(
        folder, new=NEW, num_experts_per_tok=1
    )[:3]
    assert (found["limit"], found["active_experts"], found["tests"]["gsm8k"]["items"]) == (3, 1, 3)


def test_what_cannot_be_loaded_or_would_run_programs_is_not_measured(folder, tasks, tmp_path):
    rows = [{"q": "p", "a": "x"}]
    config = write_json(tmp_path / "unsafe.jsonl", rows) | {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
    }
    write_task(tasks, "ifeval", config | {"doc_to_target": "{{a}}", "unsafe_code": True})
    config["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "nowhere.jsonl")
    write_task(tasks, "gpqa_main_cot_zeroshot", config | {"doc_to_target": "{{a}}"})
    found = run_suite(
        folder, chats(folder), LM_EVAL, names=["gsm8k", "ifeval", "gpqa"], tasks_dir=tasks, limit=1
    )
    reasons = {name: entry.get("not_measured", "") for name, entry in found["benchmarks"].items()}
    assert "runs model-written code of task ifeval in its own process" in reasons["ifeval"]
    assert "lm-eval cannot load task gpqa_main_cot_zeroshot: FileNotFoundError" in reasons["gpqa"]
    assert reasons["mmlu"] == "not asked for" and found["scores"].keys() == {"gsm8k"}
    with pytest.raises(
        BarError, match=r"suite bar19-lm-eval: nothing can be measured here; gpqa: lm-eval cannot"
    ):
        run_suite(folder, chats(folder), LM_EVAL, names=["ifeval", "gpqa"], tasks_dir=tasks)
    gsm = next(b for b in LM_EVAL.benchmarks if b.name == "gsm8k")
    other = replace(LM_EVAL, benchmarks=(replace(gsm, metric="exact_match,strict-match"),))
    with pytest.raises(
        BarError, match=r"metric expected exact_match,strict-match, got exact_match,flexible-extract"
    ):
        run_suite(folder, chats(folder), other, tasks_dir=tasks, limit=1)


class Completions(BaseHTTPRequestHandler):
    """As much of an OpenAI-like server as lm-eval asks for: it answers with the prompts' numbers of
    tokens."""

    def __init__(self, asked: list[dict], *args):
        self.asked = asked
        super().__init__(*args)

    def do_GET(self):
        self._send({"data": [{"id": "the-model"}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(request)
        self._send(
            {"choices": [{"index": n, "text": str(len(ids))} for n, ids in enumerate(request["prompt"])]}
        )

    def _send(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    asked: list[dict] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Completions, asked)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_a_server_answers_the_prompts_that_the_chat_template_gives(folder, tasks, server):
    url, asked = server
    found = run_suite(folder, chats(folder), LM_EVAL, names=["gsm8k"], tasks_dir=tasks, server=url)
    prompts = [chats(folder).prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
    assert sorted(ids for request in asked for ids in request["prompt"]) == sorted(prompts)
    assert {(request["model"], request["max_tokens"], request["temperature"]) for request in asked} == {
        ("the-model", NEW, 0.0)
    }
    assert [item["answer"] for item in found["scores"]["gsm8k"]] == [str(len(ids)) for ids in prompts]
    assert found["settings"] == {"through": "server", "max_new_tokens": NEW}


def test_a_server_that_is_not_there_is_told(folder, tasks):
    with pytest.raises(BarError, match=r"http://127\.0\.0\.1:9: expected an OpenAI-like server .*refused"):
        run_suite(
            folder, chats(folder), LM_EVAL, names=["gsm8k"], tasks_dir=tasks, server="http://127.0.0.1:9"
        )
