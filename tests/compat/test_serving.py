"""The commands of docs/serving.md as they stand there, on another folder and port: vLLM's answers are
ours."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import run_distributed
from evaluation.tiny_chat import QUESTIONS, save_chat_hf
from rl.engines import VLLM, vllm
from scripts import ROOT
from test_docs import ALL

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.templates import TULU
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.evaluation.generative import load_model
from megatron_bar.evaluation.results import read_results
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import ParallelConfig

pytestmark = pytest.mark.vllm
DEMO = ROOT / "runs/tiny"
TOOLS = (
    "{{ bos_token }}{% if tools %}{{ '<|system|>\\n<functions>[' }}{% for tool in tools %}"
    "{{ {'name': tool.function.name, 'parameters': tool.function.parameters} | tojson }}"
    "{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']</functions>\\n' }}{% endif %}"
)
"""Writes the tools as the demo's rows have them in a system message."""
NEW = 40
GSM8K = "gsm8k_cot_zeroshot"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The demo's final model, else a random one, with a chat template that has a place for tools."""
    vllm()
    place = tmp_path_factory.mktemp("serving") / "model"
    if not (DEMO / "final/model.safetensors").exists():
        save_chat_hf(place, hidden_size=128, intermediate_size=96, max_position_embeddings=512)
    else:
        place.mkdir()
        for file in (DEMO / "final").resolve().iterdir():
            (place / file.name).symlink_to(file)
    settings = json.loads((place / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").unlink()
    template = TULU.replace("{{ bos_token }}", TOOLS, 1)
    (place / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    return place


def chats() -> list[dict]:
    """The demo's test items, those of tool use with their tools apart; else questions."""
    tool = {"name": "open_table", "parameters": {"animal": "string"}}
    if not (DEMO / "world").exists():
        found = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
        return found + [chat | {"tools": [{"type": "function", "function": tool}]} for chat in found]
    found = []
    for file in sorted((DEMO / "world").glob("test_*.jsonl")):
        for line in file.read_text().splitlines()[:12]:
            messages = json.loads(line)["messages"]
            chat = {"messages": messages}
            if messages[0]["content"].startswith("<functions>"):
                functions = json.loads(messages[0]["content"][len("<functions>") : -len("</functions>")])
                tools = [{"type": "function", "function": function} for function in functions]
                chat = {"messages": messages[1:], "tools": tools}
            found.append(chat)
    return found


def own_answers(folder: Path, asked: list[dict]) -> list[tuple[list[int], list[int], str]]:
    """Prompt, answer and its text, greedy."""
    form = ChatFormat(load_tokenizer(folder), "own")
    prompts = [form.prompt(chat["messages"], tools=chat.get("tools")) for chat in asked]
    model = load_model(folder, ParallelConfig())
    sampler = Sampler(model, eos_ids=form.stop_ids, pad_id=form.tokenizer.pad_id)
    done = sampler.generate(prompts, max_new_tokens=NEW, temperature=0.0, slots=64)
    return [(prompt, c.ids, form.tokenizer.decode(c.ids)) for prompt, c in zip(prompts, done, strict=True)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def command(word: str, folder: Path, port: int) -> str:
    """The page's command with that word in it, for another folder and port."""
    (found,) = [one.text for one in ALL["serving.md"] if word in one.text]
    python = found.replace(".venv-vllm/bin/python", str(VLLM)).replace(".venv/bin/python", sys.executable)
    return python.replace("runs/tiny/final", shlex.quote(str(folder))).replace("8000", str(port))


def bash(line: str) -> list[str]:
    return ["bash", "-euo", "pipefail", "-c", line]


@pytest.fixture(scope="module")
def port(folder) -> Iterator[int]:
    """Of the server, which is killed in the end; nothing that it started may be left."""
    port = free_port()
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    log = folder.with_name("server.log")
    with log.open("w") as said:
        line = command("api_server", folder, port)
        server = subprocess.Popen(bash(line), cwd=ROOT, env=env, stdout=said, stderr=said)
    try:
        wait_for(server, port, log)
        started = psutil.Process(server.pid).children(recursive=True)
        assert any("VLLM" in process.name() for process in started)
        yield port
    finally:
        started = psutil.Process(server.pid).children(recursive=True)
        server.kill()
        server.wait()
        _, left = psutil.wait_procs(started, timeout=15)
        for process in left:
            process.kill()
    assert not left


def wait_for(server: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + 300
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(log.read_text()[-3000:])


def ask(port: int, chat: dict) -> dict:
    body = json.dumps(chat | {"temperature": 0, "max_tokens": NEW, "return_token_ids": True}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_the_server_answers_as_our_sampler(folder, port, record_property):
    asked = chats()
    (own,) = run_distributed(own_answers, 1, folder, asked)
    tools = 0
    for chat, (prompt, ids, text) in zip(asked, own, strict=True):
        for choice in ({}, {"tool_choice": "none"}) if "tools" in chat else ({},):
            found = ask(port, chat | choice)
            (first,) = found["choices"]
            assert found["prompt_token_ids"] == prompt, chat
            assert first["token_ids"] == ids, chat
            # The server holds back half a character that an answer cut off ends with.
            assert first["message"]["content"].rstrip("\ufffd") == text.rstrip("\ufffd"), chat
            tools += bool(choice)
    assert len({text for *_, text in own}) > len(own) / 2 and tools >= 4
    record_property(
        "figure", f"vLLM's server: {len(own)} of {len(own)} greedy answers equal, {tools} of them with tools"
    )


def test_the_page_s_request_is_answered(folder, port):
    line = command("curl", folder, port)
    done = subprocess.run(bash(line), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    chat = json.loads(shlex.split(line)[-1])
    (own,) = run_distributed(own_answers, 1, folder, [chat])
    found = json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert found.startswith(own[0][2].rstrip("\ufffd"))


def test_the_server_is_evaluated_as_the_folder(folder, port, tmp_path):
    pytest.importorskip("lm_eval")
    if not (DEMO / "world").exists():
        pytest.skip(f"{DEMO} is not there, and hundreds of tokens of a random model end in ties: make demo")
    write_task(tmp_path)
    line = f"{command('evaluate.py', folder, port)} --tasks-dir {tmp_path}"
    scores = []
    for way in (line, line.replace(f"--server http://localhost:{port}", "--batch 8")):
        way = way.replace("runs/served.json", str(tmp_path / f"{len(scores)}.json"))
        done = subprocess.run(
            bash(way), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        scores.append(read_results(tmp_path / f"{len(scores)}.json")["scores"])
    assert scores[0] == scores[1] and len(scores[0]["gsm8k"]) >= 4


def write_task(place: Path) -> None:
    """An lm-eval task of the questions without tools, in gsm8k's place."""
    rows = [{"q": chat["messages"][-1]["content"], "a": "17"} for chat in chats() if "tools" not in chat]
    (place / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    config = {
        "task": GSM8K,
        "metadata": {"version": 1.0},
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "items.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["Q:"]},
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "metric_list": [metric],
        "filter_list": [{"name": "flexible-extract", "filter": [{"function": "take_first"}]}],
    }
    (place / f"{GSM8K}.yaml").write_text(json.dumps(config))
