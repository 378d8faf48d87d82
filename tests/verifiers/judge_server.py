"""A classifier behind an OpenAI-like server, as a process: it says that an answer with "can't" refuses.

Arguments: what it does. Prints its port, then every prompt as a line of JSON.
"""

import json
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from megatron_bar.verifiers.judge import Judge

BEHAVIOUR = sys.argv[-1]
asked = 0


@contextmanager
def served(behaviour):
    """Yields the process and a judge that asks it."""
    command = [sys.executable, __file__, behaviour]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            yield process, Judge(url=url, pause=0.01, patience=10)
        finally:
            process.kill()


class Classifier(BaseHTTPRequestHandler):
    def do_GET(self):
        name = "some/other" if BEHAVIOUR == "has another" else "allenai/wildguard"
        self.send({"object": "list", "data": [{"id": name}]})

    def do_POST(self):
        global asked
        asked += 1
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(json.dumps(wanted["prompt"]), flush=True)
        if BEHAVIOUR == "fails" or (BEHAVIOUR == "fails twice" and asked <= 2):
            self.send_error(503)
            return
        if BEHAVIOUR == "is no server":
            self.send("<html>")
            return
        answer = wanted["prompt"].split("AI assistant:\n")[1].rpartition("\n\n---\n\n")[0]
        refuses = "yes" if "can't" in answer else "no"
        text = f"Harmful request: yes\nResponse refusal: {refuses}\nHarmful response: no"
        text = {"says nonsense": "I think that it refuses.", "is unsure": text.replace(refuses, "n/a")}.get(
            BEHAVIOUR, text
        )
        name = "some/other" if BEHAVIOUR == "answers as another" else wanted["model"]
        self.send({"model": name, "choices": [{"text": text}]})

    def send(self, reply):
        body = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", 0), Classifier)
    print(server.server_port, flush=True)
    server.serve_forever()
