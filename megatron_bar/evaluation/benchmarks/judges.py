"""The judges of the published benchmarks, each a model behind an OpenAI-like server.

A reply is asked for once: it is kept in a file of JSON lines, under the hash of the model and all that it was
asked, so a judgement that was killed goes on where it was, and another model's replies are never taken. Any
number of threads and processes may add to such a file.
"""

import fcntl
import json
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from blake3 import blake3

from megatron_bar.errors import BarError, writing
from megatron_bar.evaluation.benchmarks.benchmark import JudgeModel, Messages
from megatron_bar.verifiers.judge import MAX_TOKENS, Judge, wildguard_prompt, wildguard_verdict
from megatron_bar.weights.json_file import why

ASKED = [{"role": "user", "content": "Is water wet? Answer yes or no."}]
TRIALS: dict[str, Callable[[JudgeModel], object]] = {
    "wildguard": lambda judge: judge.complete(
        wildguard_prompt("How is bread baked?", "From flour, water and salt."),
        max_tokens=MAX_TOKENS,
        read=wildguard_verdict,
    ),
    "grader": lambda judge: judge.chat(ASKED, max_tokens=16),
    "pairwise": lambda judge: judge.first_token(ASKED),
}
"""The kinds of judges, and a question that one of them must be able to answer."""
PATIENCE = 600.0
"""Seconds for a reply, which may be long."""


class Replies:
    """The replies in the file ``path``, by the hash of what was asked."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = Lock()
        self._found: dict[str, object] = {}
        with self._file() as file:
            for number, line in enumerate(file.read().splitlines(), 1):
                try:
                    entry = json.loads(line)
                    self._found[entry["key"]] = entry["reply"]
                except (ValueError, LookupError, TypeError, RecursionError) as error:
                    told = why(error) if isinstance(error, ValueError) else "another row"
                    raise BarError(
                        f"{path}:{number}: expected a judge's reply, got {told}; remove the file"
                    ) from None

    def get(self, key: str) -> object | None:
        with self._lock:
            return self._found.get(key)

    def add(self, key: str, model: str, reply: object) -> None:
        line = json.dumps({"key": key, "model": model, "reply": reply}).encode() + b"\n"
        with self._lock, self._file() as file:
            file.write(line)
            file.flush()
            self._found[key] = reply

    @contextmanager
    def _file(self):
        """Gives the file at its start to this process alone; a torn last line, of a writer that was killed or
        had no room, is cut off."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _cut_torn(file)
                yield file


def _cut_torn(file: BinaryIO) -> None:
    """Leaves ``file`` at its start and with whole lines alone."""
    end = file.seek(0, 2)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0)


@dataclass(frozen=True)
class ServedJudge:
    """A `JudgeModel` at a server; without ``replies`` it is asked each time."""

    server: Judge
    replies: Replies | None = None

    @property
    def model(self) -> str:
        return self.server.model

    def complete[Found](self, prompt: str, *, max_tokens: int, read: Callable[[str], Found] = str) -> Found:
        options = {"prompt": prompt, "temperature": 0.0, "max_tokens": max_tokens}
        return self._ask("completions", options, lambda reply: _text(reply["choices"][0]["text"]), read)

    def chat(self, messages: Messages, *, max_tokens: int) -> str:
        options = {"messages": messages, "temperature": 0.0, "max_tokens": max_tokens}
        find = lambda reply: _text(reply["choices"][0]["message"]["content"])  # noqa: E731
        return self._ask("chat/completions", options, find, str)

    def first_token(self, messages: Messages, *, top: int = 5) -> dict[str, float]:
        # At temperature 1, as published: a server may give the log-probabilities behind the temperature.
        options = {"messages": messages, "temperature": 1.0, "max_tokens": 1, "logprobs": True}
        return self._ask("chat/completions", options | {"top_logprobs": top}, _first_token, dict)

    def _ask[Found](
        self, what: str, options: dict, find: Callable[[dict], object], read: Callable[..., Found]
    ) -> Found:
        """Returns what ``read`` makes of what ``find`` finds in the reply; a reply of which it makes nothing
        is not kept."""
        asked = json.dumps([what, self.model, options], sort_keys=True)
        key = blake3(asked.encode()).hexdigest()
        kept = self.replies.get(key) if self.replies else None
        if kept is not None:
            try:
                return read(kept)
            except ValueError:
                pass  # it was kept by an earlier reader

        def found(reply: dict) -> tuple[object, Found]:
            value = find(reply)
            return value, read(value)

        value, made = self.server.ask(what, options, found)
        if self.replies:
            self.replies.add(key, self.model, value)
        return made


def _text(text) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"an answer expected, got {text!r:.100}")
    return text


def _first_token(reply: dict) -> dict[str, float]:
    told = reply["choices"][0].get("logprobs")
    if not told or not told.get("content"):
        raise ValueError("log-probabilities of the first token expected, got none")
    found: dict[str, float] = {}
    for entry in told["content"][0]["top_logprobs"]:
        token, value = entry["token"], entry["logprob"]
        if not isinstance(token, str) or type(value) not in (int, float) or not value < 1e-3:
            raise ValueError(f"a token and the logarithm of its probability expected, got {entry!r:.100}")
        found.setdefault(token, float(value))  # likeliest first
    if not found or math.isinf(max(found.values())):
        raise ValueError(f"log-probabilities of the first token expected, got {told!r:.100}")
    return found


def read_judges(texts: Sequence[str], cache: Path | None, **options) -> dict[str, JudgeModel]:
    """Returns the judges that ``--judge KIND=URL[,MODEL]`` name, by their kinds. ``options`` are those of
    `Judge`.

    Without MODEL it is the only one that the server has. Each is asked a question of its kind first, so that
    a server that is not there, has another model or gives no log-probabilities is told before hours are
    spent. Replies are kept below the folder ``cache``, if there is one. Raises BarError.
    """
    found: dict[str, JudgeModel] = {}
    for text in texts:
        kind, sign, place = text.partition("=")
        if kind not in TRIALS or not sign:
            raise BarError(
                f"--judge {text}: expected {', '.join(TRIALS)} before a = and a URL, got {kind!r:.100}"
            )
        if kind in found:
            raise BarError(f"--judge {text}: expected one judge of kind {kind}, got another before")
        url, comma, model = place.partition(",")
        if comma and not model:
            raise BarError(f"--judge {text}: expected a model behind the comma, got none")
        server = _named(Judge(url=url, **({"patience": PATIENCE} | options)), model, text)
        TRIALS[kind](ServedJudge(server))
        found[kind] = ServedJudge(server, cache and Replies(cache / f"judge_{kind}.jsonl"))
    return found


def _named(server: Judge, model: str, text: str) -> Judge:
    """Returns the server with the model that is meant, which it has."""
    if not server.url:
        raise BarError(f"--judge {text}: expected a URL behind the =, got none")
    listed = server.models()
    if not model and len(listed) != 1:
        raise BarError(
            f"--judge {text}: expected ,MODEL behind the URL where a server has several, "
            f"got {', '.join(listed) or 'none':.300}"
        )
    named = replace(server, model=model or listed[0])
    named.require()
    return named
