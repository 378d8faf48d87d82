"""An OpenAI-like server that goes on with prompts, given as token ids."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from threading import Event

from megatron_bar.errors import BarError, require_at_least
from megatron_bar.evaluation.benchmarks.answers import Turn
from megatron_bar.evaluation.benchmarks.benchmark import Decoding
from megatron_bar.evaluation.benchmarks.items import Prompt

ENDED = {"stop": True, "length": False, None: True}
"""Reasons that a server gives for the end of an answer, and whether it ended by itself."""
AGAIN = (408, 409, 425, 429)
"""Refusals, below 500, that may be none a moment later."""


class NotNow(Exception):
    """A reply without an answer, which the next attempt may give."""


@dataclass(frozen=True, kw_only=True)
class CompletionServer:
    url: str
    """http://HOST:PORT"""
    model: str
    """Name that the server has for the model."""
    positions: int | None = None
    """Positions that the server gives the model; None: it did not say."""
    attempts: int = 6
    """Times that an answer is asked for before the server is given up."""
    pause: float = 1.0
    """Seconds before it is asked again; twice as many each time."""
    patience: float = 600.0
    """Seconds for one reply."""

    def __post_init__(self):
        require_at_least("server", self, 1, "attempts")
        require_at_least("server", self, 0, "pause")

    @classmethod
    def at(cls, url: str, **options) -> "CompletionServer":
        """Returns the server at ``url`` with the model that it lists first."""
        url = url.rstrip("/").removesuffix("/v1")
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
                first = json.load(answer)["data"][0]
            model = first["id"]
            positions = first.get("max_model_len")
            if not isinstance(model, str) or type(positions) not in (int, type(None)):
                raise ValueError(f"unexpected entry {first!r:.80}")
        except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
            raise BarError(
                f"{url}: expected an OpenAI-like server that lists its model at /v1/models, got {error}"
            ) from None
        return cls(url=url, model=model, positions=positions, **options)

    def answer(self, prompt: Prompt, decoding: Decoding, stop_ids: set[int], give_up: Event) -> Turn:
        """Returns the model's answer. Raises BarError when the server has not given one after all attempts,
        or when ``give_up`` is set before the next."""
        asked = {
            "model": self.model,
            "prompt": prompt.ids,
            "max_tokens": prompt.room,
            "temperature": decoding.temperature,
            "stop_token_ids": sorted(stop_ids),
        }
        if decoding.temperature:
            asked |= {"top_p": decoding.top_p, "seed": prompt.seed}
        data = json.dumps(asked).encode()
        for attempt in range(self.attempts):
            if attempt and give_up.wait(self.pause * 2 ** (attempt - 1)):
                break
            try:
                return self._ask(data)
            except BarError:
                raise
            except (OSError, HTTPException, ValueError, NotNow) as error:
                problem = error
        raise BarError(
            f"{self.url}: expected an answer of {self.model}, got {_told(problem)} ({attempt + 1} times)"
        )

    def _ask(self, data: bytes) -> Turn:
        request = urllib.request.Request(
            f"{self.url}/v1/completions", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.patience) as answer:
                return self._turn(json.load(answer))
        except urllib.error.HTTPError as error:
            told = f"status {error.code}: {' '.join(error.read(2000).decode(errors='replace').split()):.300}"
            if error.code < 500 and error.code not in AGAIN:
                raise BarError(f"{self.url}: expected an answer of {self.model}, got {told}") from None
            raise NotNow(told) from None

    def _turn(self, reply) -> Turn:
        try:
            model = reply.get("model", self.model)
            choice = reply["choices"][0]
            text = choice["text"]
            reason = choice.get("finish_reason")
            tokens = (reply.get("usage") or {}).get("completion_tokens")
        except (LookupError, TypeError, AttributeError):
            raise NotNow(f"no answer in {json.dumps(reply):.200}") from None
        if model != self.model:
            raise NotNow(f"one of {model!r:.100}")
        if not isinstance(text, str) or reason not in ENDED or (not text and (tokens == 0 or reason is None)):
            raise NotNow(f"no answer in {json.dumps(choice):.200}")
        whole = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        return Turn(text=whole, tokens=tokens, finished=ENDED[reason])


def _told(problem: Exception) -> str:
    if isinstance(problem, NotNow):
        return str(problem)
    return f"{type(problem).__name__}: {' '.join(str(problem).split()):.300}"
