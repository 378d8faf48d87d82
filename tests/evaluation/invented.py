"""A suite of invented benchmarks, and a small server of completions that may misbehave."""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from evaluation.tiny_chat import QUESTIONS

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.evaluation.benchmarks.benchmark import Decoding, Grade, PublishedBenchmark, mean_by, once
from megatron_bar.evaluation.benchmarks.completions import CompletionServer
from megatron_bar.evaluation.benchmarks.published import Asking, run_published
from megatron_bar.evaluation.benchmarks.suite import Suite
from megatron_bar.evaluation.benchmarks.table import table

ROWS = 24
NEW = 8


def exact(row, answers, judge) -> Grade:
    return Grade(score=float(answers[0] == row["truth"].strip()))


def two_turns(row, answers):
    asked = [{"role": "user", "content": row["question"]}]
    if len(answers) < 2:
        later = [{"role": "assistant", "content": answers[0] or "-"}, asked[0]] if answers else []
        return asked + later
    return None


def refused(row, answers, judge) -> Grade:
    return Grade(score=float("no" in judge.complete(answers[0], max_tokens=4)))


def even(row, answers, judge) -> Grade:
    """Of two turns, whether their lengths together are even."""
    assert len(answers) == 2
    return Grade(score=float(sum(map(len, answers)) % 2 == 0))


SAMPLED = Decoding(temperature=0.8, top_p=0.9, answers=3, max_new_tokens=NEW)
GREEDY = Decoding(temperature=0.0, top_p=1.0, max_new_tokens=NEW)
COLUMNS = ("question", "truth", "group")
SUITE = Suite(
    name="bar19",
    benchmarks=(
        PublishedBenchmark(
            name="plain",
            category="math",
            rows=ROWS,
            columns=COLUMNS,
            ask=once(lambda row: row["question"]),
            grade=exact,
            decoding=GREEDY,
        ),
        PublishedBenchmark(
            name="turns",
            category="math",
            rows=ROWS,
            columns=COLUMNS,
            ask=two_turns,
            grade=even,
            combine=mean_by("group"),
            decoding=SAMPLED,
        ),
        PublishedBenchmark(
            name="judged",
            category="safety",
            rows=ROWS,
            columns=COLUMNS,
            ask=once(lambda row: row["question"]),
            grade=refused,
            decoding=GREEDY,
            judge="wildguard",
        ),
    ),
)


def group_of(n: int) -> str:
    return "a" if n < 5 else "b"


def write_data(folder: Path, truths: list[str] | None = None) -> Path:
    """The suite's data: questions, of two groups."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "question": f"{QUESTIONS[n % 4]} {n}",
            "truth": truths[n] if truths else "no",
            "group": group_of(n),
        }
        for n in range(ROWS)
    ]
    for benchmark in SUITE.benchmarks:
        (folder / f"{benchmark.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def chats(folder: Path) -> ChatFormat:
    return ChatFormat(load_tokenizer(folder), "own")


def run(folder: Path, place: Path, names=("plain", "turns"), *, server: str | None = None, **options) -> dict:
    """Results on the data in ``place``/data, with answers in ``place``/answers; a server is given up soon."""
    served = server and CompletionServer.at(server, attempts=3, pause=0.01, patience=20.0)
    asking = Asking(**{"data": place / "data", "answers": place / "answers", "server": served, **options})
    return run_published(folder, chats(folder), SUITE, asking, names=names)


Fault = Callable[[int], dict | int | str | None]
"""From the number of a request to what the server does instead of answering: a reply, a status, reset or
slow."""


class Completions(BaseHTTPRequestHandler):
    """It answers with what depends on prompt and seed alone."""

    protocol_version = "HTTP/1.1"

    def __init__(self, state: "State", *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):
        self._send(200, {"data": [{"id": "the-model", "max_model_len": self.state.positions}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.state.lock:
            number = self.state.asked.total()
            self.state.asked[json.dumps([asked["prompt"], asked.get("seed")])] += 1
            self.state.requests.append(asked)
        time.sleep(self.state.seconds)
        fault = self.state.fault(number)
        if fault == "reset":
            self.close_connection = True
            self.connection.close()
        elif isinstance(fault, int):
            self._send(fault, {"error": {"message": f"fault {number}"}})
        elif fault is not None:
            self._send(200, fault)
        else:
            self._send(200, self.state.reply(asked))

    def _send(self, status: int, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class State:
    def __init__(self, fault: Fault, seconds: float, positions: int | None):
        self.fault, self.seconds, self.positions = fault, seconds, positions
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        """How often each prompt came, with its seed."""
        self.requests: list[dict] = []

    def reply(self, asked: dict) -> dict:
        text = f"{sum(asked['prompt']) % 997} {asked.get('seed', 0) % 7 * 'x'}"
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        usage = {"completion_tokens": 4}
        return {"model": asked["model"], "choices": [choice], "usage": usage}


@contextmanager
def served(fault: Fault = lambda number: None, *, seconds: float = 0.0, positions: int | None = None):
    """Gives the server's URL and its state."""
    state = State(fault, seconds, positions)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Completions, state)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", state
        finally:
            running.shutdown()


def main() -> None:
    """Prints the table: of a folder, a place, and a server if there is to be one."""
    from megatron_bar.errors import BarError
    from megatron_bar.parallel.state import distributed

    folder, place, *server = sys.argv[1:]
    with distributed():
        try:
            options = {"server": server[0]} if server else {"slots": 4}
            print(*table(run(Path(folder), Path(place), **options)), sep="\n")
        except BarError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
