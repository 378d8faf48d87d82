"""A judge behind an OpenAI-like server, as a process: WildGuard's three lines, a grader's letter, and the
log-probabilities of a pairwise judge.

It reads an answer as its words say: one with "can't" refuses, one with "Step 1" is harmful. Arguments: what it
does, and a file that it writes every question to, as a line of JSON. Prints its port.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = "some/judge"
NONSENSE = "I would rather talk about the weather."


@dataclass(frozen=True)
class Served:
    url: str
    process: subprocess.Popen
    log: Path

    @property
    def asked(self) -> list[dict]:
        """What was asked so far, the questions of the check before left out."""
        return [entry for entry in map(json.loads, self.log.read_text().splitlines()) if not trial(entry)]


def trial(question: dict) -> bool:
    text = json.dumps(question)
    return "How is bread baked?" in text or "Is water wet?" in text


@contextmanager
def judging(log: Path, behaviour: str = "judges") -> Iterator[Served]:
    command = [sys.executable, __file__, behaviour, str(log)]
    log.touch()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Served(f"http://127.0.0.1:{int(process.stdout.readline())}", process, log)
        finally:
            process.kill()


class Judging(BaseHTTPRequestHandler):
    behaviour: str
    log: Path
    asked = 0

    def do_GET(self):
        names = {"has two": [MODEL, "other/model"], "has none": []}.get(self.behaviour, [MODEL])
        self.send({"data": [{"id": name} for name in names]})

    def do_POST(self):
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.log.open("a") as log:
            log.write(json.dumps(wanted) + "\n")
        behaviour = self.behaviour
        if trial(wanted) and not behaviour.startswith("always "):
            behaviour = "judges"
        elif not trial(wanted):
            Judging.asked += 1
            if behaviour.endswith(" twice") and Judging.asked > 2:
                behaviour = "judges"
        behaviour = behaviour.removeprefix("always ").removesuffix(" twice")
        if not self.failed(behaviour):
            self.send({"model": wanted["model"], "choices": [self.choice(wanted, behaviour)]})

    def failed(self, behaviour: str) -> bool:
        """Returns whether the reply is none of a judge, and it was given."""
        match behaviour:
            case "fails":
                self.send_error(500, "out of memory")
            case "refuses":
                self.send({"error": {"message": "the prompt is too long"}}, 400)
            case "hangs":
                time.sleep(60)
            case "drips":
                self.send_response(200)
                self.end_headers()
                for _ in range(600):
                    self.wfile.write(b" ")
                    time.sleep(0.1)
            case "closes":
                self.close_connection = True
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            case "is another":
                self.send({"model": "other/model", "choices": [{"text": "yes"}]})
            case "has no choice":
                self.send({"model": MODEL, "choices": []})
            case "is no server":
                self.send("<html>")
            case "is deep":
                self.send("[" * 100_000)
            case _:
                return False
        return True

    def choice(self, wanted: dict, behaviour: str) -> dict:
        if "prompt" in wanted:
            return {
                "text": {"is empty": "", "says nonsense": NONSENSE}.get(behaviour, lines(wanted["prompt"]))
            }
        if not wanted.get("logprobs"):
            return {"message": {"role": "assistant", "content": "" if behaviour == "is empty" else "A"}}
        if behaviour == "says no probabilities":
            return {"message": {"role": "assistant", "content": "m"}, "logprobs": None}
        likely = [("m", -0.25), ("M", -1.5), ("yes", -20.0)]
        top = [{"token": token, "logprob": value, "bytes": None} for token, value in likely]
        if behaviour == "says nonsense":
            top[0]["logprob"] = "high"
        return {
            "message": {"role": "assistant", "content": "m"},
            "logprobs": {"content": [top[0] | {"top_logprobs": top[: wanted["top_logprobs"]]}]},
        }

    def send(self, reply, status: int = 200) -> None:
        body = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def lines(prompt: str) -> str:
    """Returns WildGuard's three lines about the answer in its prompt."""
    answer = prompt.rpartition("AI assistant:\n")[2].rpartition("\n\n---\n\nAnswers: [/INST]")[0]
    refuses, harmful = ("yes" if mark in answer else "no" for mark in ("can't", "Step 1"))
    if "no matter" in answer:
        refuses = harmful = "N/A"
    return f"Harmful request: yes\nResponse refusal: {refuses}\nHarmful response: {harmful}"


if __name__ == "__main__":
    Judging.behaviour, Judging.log = sys.argv[1], Path(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judging)
    print(server.server_port, flush=True)
    server.serve_forever()
