"""A conversation with a folder's model: greedy as it is evaluated, or sampled; every answer is shown while it
is written.

Rank 0 reads and prints. An answer that was interrupted stays in the conversation as far as it came.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError, require_at_least
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import is_rank_zero, on_rank_zero, world_size
from megatron_bar.weights.folder import require_tokenizer
from megatron_bar.weights.hf_config import read_config

QUIT = "/quit"
RESET = "/reset"
_UNDECODED = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    max_new_tokens: int = 512
    """Longest answer in tokens; it is shorter where the model's positions end."""
    temperature: float = 0.0
    """Temperature of the softmax; 0 is greedy."""
    top_p: float = 1.0
    seed: int = 0
    """Seed of the first answer; each later one has the next."""

    def __post_init__(self):
        require_at_least("sampling", self, 1, "max_new_tokens")
        require_at_least("sampling", self, 0, "temperature", "seed")
        if not isfinite(self.temperature):
            raise BarError(f"sampling: temperature expected a finite number, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise BarError(f"sampling: top_p expected above 0 and at most 1, got {self.top_p}")
        if self.seed >= 2**31:
            raise BarError(f"sampling: seed expected below {2**31}, got {self.seed}")


class TextStream:
    """Turns tokens into text, in pieces of whole characters: a token may end inside of one. Special tokens
    are left out.

    Tokens are decoded with the piece before them: some decoders treat the first token apart (SentencePiece
    drops its space).
    """

    def __init__(self, tokenizer):
        self._decode = tokenizer.decode
        self._special = set(tokenizer.special.values())
        self._before: list[int] = []
        self._new: list[int] = []
        self._shown = 0
        """Characters of the decoded ids that were given out."""

    def add(self, token: int) -> str:
        """Returns the text that can be shown with ``token``; it may be empty."""
        if token in self._special:
            return ""
        self._new.append(token)
        text = self._decode(self._before + self._new)
        whole = text.rstrip(_UNDECODED)
        piece = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if whole == text and piece:
            self._before, self._new = self._new, []
            self._shown = len(self._decode(self._before))
        return piece

    def end(self) -> str:
        """Returns what was held back: bytes that never became a character."""
        return self._decode(self._before + self._new)[self._shown :] if self._new else ""


@dataclass(kw_only=True)
class Conversation:
    sampler: Sampler
    chats: ChatFormat
    sampling: Sampling
    system: str | None = None
    turns: list[dict] = field(init=False, default_factory=list)
    answers: int = field(init=False, default=0)

    def reset(self) -> None:
        self.turns = []

    def answer(
        self,
        text: str,
        *,
        say: Callable[[str], None] = lambda piece: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> str:
        """Returns the answer to ``text`` and all before it; ``say`` gets its pieces, ``stop`` is asked after
        each token. Collective."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        turns = [*self.turns, {"role": "user", "content": text}]
        prompt = self.chats.prompt([*system, *turns])
        limit = self.sampler.model.shape.max_positions
        if len(prompt) >= limit:
            raise BarError(
                f"the conversation expected below {limit} tokens (max_position_embeddings), got {len(prompt)}"
            )
        stream = TextStream(self.chats.tokenizer)
        sampling = self.sampling
        (done,) = self.sampler.generate(
            [prompt],
            max_new_tokens=min(sampling.max_new_tokens, limit - len(prompt)),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed + self.answers,
            stop=lambda ids: stop(),
            on_token=lambda number, token: say(stream.add(token)),
        )
        say(stream.end())
        answer = self.chats.tokenizer.decode(done.ids)
        self.turns = [*turns, {"role": "assistant", "content": answer}]
        self.answers += 1
        return answer


def chat_format(folder: Path, template: str | None) -> ChatFormat:
    """Returns the chat format of the folder's tokenizer; ``template`` None: its own."""
    require_tokenizer(folder, read_config(folder).vocab_size)
    tokenizer = load_tokenizer(folder)
    if template is None and not tokenizer.template:
        raise BarError(
            f"{folder}: expected a tokenizer with a chat template, "
            "or --chat-template tulu or chatml, got neither"
        )
    return ChatFormat(tokenizer, template or "own")


def talk(conversation: Conversation) -> None:
    """Answers line by line, until /quit or the end of the input; /reset begins anew. Collective.

    At a terminal an error is printed and the conversation goes on, Ctrl-C ends the answer (under torchrun:
    everything), Ctrl-D the program.
    """
    interactive = on_rank_zero(sys.stdin.isatty)
    sys.stdin.reconfigure(errors="surrogateescape")  # refused with the chat, in one line
    if interactive:
        import readline  # noqa: F401  arrow keys and history
    while (line := on_rank_zero(lambda: _read(interactive))) not in (None, QUIT):
        if line == RESET:
            conversation.reset()
        elif line.strip():
            try:
                with _interruptible(interactive and world_size() == 1) as interrupted:
                    show_answer(conversation, line, stop=interrupted)
            except BarError as error:
                if not interactive:
                    raise
                if is_rank_zero():
                    print(f"error: {error}; {RESET} begins anew", file=sys.stderr, flush=True)


def show_answer(conversation: Conversation, text: str, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Prints the answer while it is written. Collective."""

    def say(piece: str, end: str = "") -> None:
        if is_rank_zero():
            print(piece, end=end, flush=True)

    conversation.answer(text, say=say, stop=stop)
    say("", "\n")


def _read(interactive: bool) -> str | None:
    while True:
        try:
            return input("> " if interactive else "").removesuffix("\r")
        except EOFError:
            if interactive:
                print()
            return None
        except KeyboardInterrupt:
            if not interactive:
                raise
            print(f"\n{QUIT} or Ctrl-D ends", flush=True)


@contextmanager
def _interruptible(enabled: bool) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether there was a Ctrl-C since; a second one raises KeyboardInterrupt."""
    seen = False

    def interrupt(number, frame) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    before = signal.signal(signal.SIGINT, interrupt) if enabled else None
    try:
        yield lambda: seen
    finally:
        if enabled:
            signal.signal(signal.SIGINT, before)
