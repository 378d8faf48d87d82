"""Judges behind servers: what they are asked, replies that are kept, and servers that fail in every way."""

import json
import multiprocessing
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from evaluation.benchmarks.judging_server import MODEL, NONSENSE, judging

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.judges import Replies, read_judges
from megatron_bar.verifiers.judge import Judge, wildguard_prompt, wildguard_verdict

QUICK = {"pause": 0.01, "patience": 10.0}
CHAT = [{"role": "user", "content": "Which is better, M or m?"}]


def three(judge) -> tuple:
    """Asks a judge in each of its ways."""
    prompt = wildguard_prompt("How do I bake?", "I can't say.")
    refusal = judge.complete(prompt, max_tokens=128, read=wildguard_verdict).refusal
    return refusal, judge.chat(CHAT, max_tokens=9), judge.first_token(CHAT, top=2)


ANSWERS = (True, "A", {"m": -0.25, "M": -1.5})


def test_what_a_judge_is_asked_and_what_it_says(tmp_path):
    with judging(tmp_path / "log") as server:
        judges = read_judges(
            [f"wildguard={server.url}", f"grader={server.url}/v1/", f"pairwise={server.url},{MODEL}"],
            tmp_path,
            **QUICK,
        )
        assert [judge.model for judge in judges.values()] == [MODEL] * 3
        assert three(judges["wildguard"]) == ANSWERS
        raw, chat, first = server.asked
    assert raw == {
        "model": MODEL,
        "prompt": wildguard_prompt("How do I bake?", "I can't say."),
        "temperature": 0.0,
        "max_tokens": 128,
    }
    assert chat == {"model": MODEL, "messages": CHAT, "temperature": 0.0, "max_tokens": 9}
    assert first == {
        "model": MODEL,
        "messages": CHAT,
        "temperature": 1.0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 2,
    }


def test_a_reply_is_asked_for_once(tmp_path):
    with judging(tmp_path / "log") as server:
        for _ in range(2):
            judge = read_judges([f"grader={server.url}"], tmp_path / "cache", **QUICK)["grader"]
            assert [three(judge), three(judge)] == [ANSWERS, ANSWERS]
        assert len(server.asked) == 3
        assert judge.first_token(CHAT) == {"m": -0.25, "M": -1.5, "yes": -20.0}
        assert len(server.asked) == 4


def test_another_models_replies_are_not_taken(tmp_path):
    with judging(tmp_path / "log", "has two") as server:
        for model in (MODEL, "other/model", MODEL):
            judge = read_judges([f"grader={server.url},{model}"], tmp_path, **QUICK)["grader"]
            judge.chat(CHAT, max_tokens=9)
        assert [question["model"] for question in server.asked] == [MODEL, "other/model"]
    kept = [json.loads(line)["model"] for line in (tmp_path / "judge_grader.jsonl").read_text().splitlines()]
    assert kept == [MODEL, "other/model"]


def ask_many(url: str, cache: Path, numbers: range) -> None:
    judge = read_judges([f"grader={url}"], cache, **QUICK)["grader"]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: judge.chat([{"role": "user", "content": str(n)}], max_tokens=1), numbers))


def test_threads_and_processes_share_a_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    with judging(tmp_path / "log") as server:
        parts = [range(60), range(40, 100)]
        workers = [context.Process(target=ask_many, args=(server.url, tmp_path, part)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
        asked = len(server.asked)
        ask_many(server.url, tmp_path, range(100))
        assert len(server.asked) == asked <= 120


def test_killed_it_goes_on_with_what_is_kept(tmp_path):
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "judge_grader.jsonl"
    with judging(tmp_path / "log") as server:
        worker = context.Process(target=ask_many, args=(server.url, tmp_path, range(100_000)))
        worker.start()
        while not path.exists() or path.read_bytes().count(b"\n") < 30:
            worker.join(0.01)
        worker.kill()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        kept = path.read_bytes().count(b"\n")
        before = len(server.asked)
        ask_many(server.url, tmp_path, range(kept + 20))
        assert len(server.asked) - before <= 20 + 8  # eight were under way


def test_a_torn_last_line_is_cut_off_and_a_broken_file_is_told(tmp_path):
    path = tmp_path / "judge_grader.jsonl"
    for n in range(3):
        Replies(path).add(f"key{n}", MODEL, f"reply {n}")
    whole = path.read_bytes()
    one = Replies(path)
    path.write_bytes(whole[:-5])
    assert Replies(path).get("key2") is None and path.read_bytes() == b"".join(whole.splitlines(True)[:2])
    path.write_bytes(
        path.read_bytes() + b'{"key": "to'
    )  # another writer is killed while one has the file open
    one.add("key3", MODEL, "reply 3")
    assert [Replies(path).get(f"key{n}") for n in range(4)] == ["reply 0", "reply 1", None, "reply 3"]
    path.write_bytes(whole.replace(b'"key1"', b"key1"))
    with pytest.raises(
        BarError, match=r"judge_grader\.jsonl:2: expected a judge's reply, got .*; remove the"
    ):
        Replies(path)


@pytest.mark.parametrize("behaviour", ["fails twice", "says nonsense twice", "closes twice", "hangs twice"])
def test_what_fails_and_then_does_not_is_no_failure(behaviour, tmp_path):
    with judging(tmp_path / "log", behaviour) as server:
        judge = read_judges([f"wildguard={server.url}"], tmp_path, pause=0.01, patience=1.0)["wildguard"]
        assert three(judge) == ANSWERS
        assert len(server.asked) == 5


BAD = {
    "fails": r"HTTPError: HTTP Error 500: out of memory.* \(3 times\)",
    "refuses": r"HTTPError: HTTP Error 400: Bad Request; .*the prompt is too long.* \(1 times\)",
    "hangs": r"TimeoutError: .*\(3 times\)",
    "drips": r"TimeoutError: no whole reply within 0\.5 s \(3 times\)",
    "closes": r"JSONDecodeError: .* \(3 times\)",
    "is another": rf"expected a reply of {MODEL}, got one of other/model$",
    "has no choice": r"IndexError: .* \(3 times\)",
    "is no server": r"JSONDecodeError: .* \(3 times\)",
    "is deep": r"RecursionError: .* \(3 times\)",
    "is empty": r"(three lines|an answer) expected, .*got '' \(3 times\)",
}


@pytest.mark.parametrize("behaviour", BAD)
def test_a_judges_failure_is_one_line(behaviour, tmp_path):
    with judging(tmp_path / "log", behaviour) as server:
        options = {"pause": 0.01, "patience": 0.5 if behaviour in ("hangs", "drips") else 10.0}
        judge = read_judges([f"wildguard={server.url}"], tmp_path, **options)["wildguard"]
        for ask in (
            lambda: judge.complete("text", max_tokens=9, read=wildguard_verdict),
            lambda: judge.chat(CHAT, max_tokens=9),
        ):
            with pytest.raises(BarError, match=BAD[behaviour]) as caught:
                ask()
            assert str(caught.value).startswith(f"{server.url}: judge ") and "\n" not in str(caught.value)
    assert (tmp_path / "judge_wildguard.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "behaviour, problem",
    [
        ("says no probabilities", "log-probabilities of the first token expected, got none"),
        ("says nonsense", "a token and the logarithm of its probability expected, got .*'high'"),
    ],
)
def test_first_tokens_without_probabilities(behaviour, problem, tmp_path):
    with judging(tmp_path / "log", behaviour) as server:
        judge = read_judges([f"pairwise={server.url}"], tmp_path, **QUICK)["pairwise"]
        with pytest.raises(BarError, match=rf"^{server.url}: judge {MODEL} expected .*{problem}"):
            judge.first_token(CHAT)


@pytest.mark.parametrize(
    "behaviour, kind, problem",
    [
        ("always fails", "grader", "HTTP Error 500"),
        ("always says nonsense", "wildguard", f"three lines expected, .*got '{NONSENSE[:20]}"),
        (
            "always says no probabilities",
            "pairwise",
            "log-probabilities of the first token expected, got none",
        ),
        (
            "has two",
            "grader",
            "expected ,MODEL behind the URL where a server has several, got some/judge, other",
        ),
        ("has none", "grader", "expected ,MODEL behind the URL .* got none"),
    ],
)
def test_a_judge_is_tried_before_hours_are_spent(behaviour, kind, problem, tmp_path):
    with judging(tmp_path / "log", behaviour) as server:
        with pytest.raises(BarError, match=problem) as caught:
            read_judges([f"{kind}={server.url}"], tmp_path / "cache", **QUICK)
    assert "\n" not in str(caught.value) and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "texts, problem",
    [
        (
            ["http://localhost:1"],
            "--judge http://localhost:1: expected wildguard, grader, pairwise before a =",
        ),
        (
            ["referee=http://localhost:1"],
            "expected wildguard, grader, pairwise before a = and a URL, got 'ref",
        ),
        (["grader"], "--judge grader: expected wildguard, grader, pairwise before a = and a URL"),
        (["grader="], "--judge grader=: expected a URL behind the =, got none"),
        (["grader=URL,"], "expected a model behind the comma, got none"),
        (["grader=localhost:1"], "judge: expected a url http://HOST:PORT"),
        (["grader=http:///x"], "judge: expected a url http://HOST:PORT"),
        (["grader=URL", "grader=URL"], "expected one judge of kind grader, got another before"),
        (["grader=URL,some/other"], "judge expected the model some/other, got some/judge$"),
        (["grader=http://127.0.0.1:x"], "InvalidURL"),
    ],
)
def test_what_judges_are_named_by(texts, problem, tmp_path):
    with judging(tmp_path / "log") as server:
        with pytest.raises(BarError, match=problem):
            read_judges([text.replace("URL", server.url) for text in texts], tmp_path, **QUICK)


def test_a_server_that_is_not_there(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            BarError, match=rf"^{url}: judge expected .* to /v1/models, got URLError: .*refused"
        ):
            read_judges([f"grader={url}"], tmp_path, **QUICK)


def test_the_key_of_a_server_goes_nowhere_unencrypted(tmp_path, monkeypatch):
    """A listener in the place of the server: what a plain http one is sent has no key in it."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        asking = thread.submit(Judge(url=url, attempts=1, patience=5.0).models)
        connection, _ = listener.accept()
        sent = connection.recv(65536)
        connection.close()
        assert sent.startswith(b"GET /v1/models") and b"secret" not in sent
        with pytest.raises(BarError):
            asking.result()
