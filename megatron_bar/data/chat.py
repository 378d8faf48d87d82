"""Chats to ids and loss mask, by a Jinja template: OLMo 2 / Tulu's, ChatML with tools, or the tokenizer's.

Rendered by transformers' own code, then cut at what the TEMPLATE wrote as special tokens: those become their
ids, and all else is text, in which a special token is spelled out in ordinary pieces. Ids equal those of
``apply_chat_template``, but for forged special tokens, and for an answer that begins with white space: an
answer is tokenised apart from what precedes it, as it is when the model itself writes it after a generation
prompt. Loss is on the assistant's tokens alone, the special token that closes them included.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property

from megatron_bar.data.tokenizer import CHAT_TEMPLATE as TULU
from megatron_bar.errors import BarError

CHATML = (
    "{% if tools and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n<functions>' + (tools | tojson) + '</functions><|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'environment' if message['role'] == 'tool' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\\n' + (message['content'] or '') }}"
    "{% if role == 'system' and loop.first and tools %}"
    "{{ ' <functions>' + (tools | tojson) + '</functions>' }}"
    "{% elif message['functions'] %}{{ ' <functions>' + message['functions'] + '</functions>' }}{% endif %}"
    "{% if message['function_calls'] %}"
    "{{ '<function_calls>' + message['function_calls'] + '</function_calls>' }}"
    "{% elif message['tool_calls'] %}{{ '<function_calls>' }}{% for call in message['tool_calls'] %}"
    "{% set function = call['function'] or call %}{{ function['name'] + '(' }}"
    "{% for name, value in function['arguments'].items() %}{{ name + '=' + (value | tojson) }}"
    "{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ')' }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}{{ '</function_calls>' }}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Olmo 3's layout: tools in <functions>, calls in <function_calls>, results in a turn of the environment."""
TEMPLATES = {"tulu": TULU, "chatml": CHATML}
ROLES = {
    "tulu": ("system", "user", "assistant"),
    "chatml": ("system", "user", "assistant", "tool", "environment"),
    "own": ("system", "developer", "user", "assistant", "tool", "environment"),
}
_CALLS = ("function_calls", "tool_calls")


@dataclass(frozen=True, kw_only=True)
class Chat:
    ids: list[int]
    mask: list[bool]
    """True where the token is a target of the loss."""


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer and the template its chats are laid out by: tulu, chatml, or own (the one in the
    tokenizer's folder)."""

    tokenizer: object
    name: str = "tulu"

    def __post_init__(self):
        if self.name not in ROLES:
            raise BarError(f"chat template must be one of {', '.join(ROLES)}, got {self.name!r}")
        if self.name == "own" and not self.tokenizer.template:
            raise BarError(f"{self.tokenizer.path.parent}: the tokenizer has no chat template of its own")
        if not self._closers:
            raise BarError(
                f"{self.tokenizer.path}: template {self.name} closes an answer by no special token "
                f"of this tokenizer, which has {', '.join(self.tokenizer.special)}"
            )

    @property
    def template(self) -> str:
        return TEMPLATES.get(self.name) or self.tokenizer.template

    @property
    def stop_ids(self) -> set[int]:
        """The tokens that end an answer."""
        return {self.tokenizer.eos_id} | {self.tokenizer.special[name] for name in self._closers}

    @cached_property
    def _closers(self) -> set[str]:
        """The special tokens that follow an answer, in the middle of a chat and at its end."""
        asked = {"role": "user", "content": "question"}
        answered = {"role": "assistant", "content": "answer"}
        closers = set()
        for chat in ([asked, answered], [asked, answered, asked]):
            text = self._write(chat, None, where="chat template")
            at = text.find(answered["content"])
            match = self._specials.search(text, at)
            if match and at >= 0:
                closers.add(match[0])
        return closers

    @cached_property
    def _specials(self) -> re.Pattern:
        names = sorted(self.tokenizer.special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)))

    def render(
        self, messages: list[dict], *, tools=None, last_turn: bool = False, where: str = "chat"
    ) -> Chat:
        """Lays out a training example, named ``where`` in errors; ``last_turn`` learns the last answer
        only."""
        messages, tools = self._checked(messages, tools, where)
        guard, messages, tools = self._guarded(messages, tools, where)
        text = self._write(messages, tools, where=where)
        answers = self._answers(text, messages, tools, where)
        turns = _turns(messages)
        learned = turns[-1:] if last_turn else turns
        for turn in learned:
            if turn not in answers:
                raise BarError(
                    f"{where}: the template does not keep message {turn}, or those before it, "
                    "as when it was answered"
                )
        ids = []
        mask = []
        at = 0
        for turn, (start, end) in answers.items():
            before = self._ids(text[at:start], guard)
            answer = self._ids(text[start:end], guard)
            ids += before + answer
            mask += [False] * len(before) + [turn in learned] * len(answer)
            at = end
        rest = self._ids(text[at:], guard)
        ids += rest
        mask += [False] * len(rest)
        if not any(mask):
            raise BarError(f"{where}: no assistant message, so nothing to learn; expected at least one")
        if all(mask):
            raise BarError(f"{where}: every token is the assistant's; expected a message to answer")
        return Chat(ids=ids, mask=mask)

    def prompt(self, messages: list[dict], *, tools=None, where: str = "chat") -> list[int]:
        """Returns the ids after which the model writes the next answer."""
        messages, tools = self._checked(messages, tools, where)
        guard, messages, tools = self._guarded(messages, tools, where)
        text = self._write(messages, tools, prompt=True, where=where)
        ids = []
        at = 0
        # Earlier answers are cut out as in training, so that the same text has the same ids.
        for start, end in self._answers(text, messages, tools, where).values():
            ids += self._ids(text[at:start], guard) + self._ids(text[start:end], guard)
            at = end
        return ids + self._ids(text[at:], guard)

    def _answers(self, text: str, messages: list[dict], tools, where: str) -> dict[int, tuple[int, int]]:
        """Returns the span of each answer in ``text``, with its closing token, unless later turns rewrite
        it."""
        spans = {}
        for turn in _turns(messages):
            prompt = self._write(messages[:turn], tools, prompt=True, where=where)
            specials = self._specials.finditer(text, len(prompt))
            closer = next((match for match in specials if match[0] in self._closers), None)
            last = turn + 1 == len(messages)
            answered = text if last else self._write(messages[: turn + 1], tools, where=where)
            if closer and text.startswith(prompt) and answered.startswith(text[: closer.start()]):
                spans[turn] = len(prompt), closer.end()
        return spans

    def _write(self, messages: list[dict], tools, *, where: str, prompt: bool = False) -> str:
        # Here: it takes two seconds, and texts need none.
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=self.template,
                add_generation_prompt=prompt,
                bos_token=self.tokenizer.bos,
                eos_token=self.tokenizer.eos,
            )
        except Exception as error:  # noqa: BLE001  a template can raise anything
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BarError(f"{where}: the chat template fails: {problem:.200}") from None
        return texts[0]

    def _guarded(self, messages: list[dict], tools, where: str) -> tuple[str, list[dict], object]:
        """Returns a character that the chat does not have, and the chat with it inside forged special
        tokens."""
        everything = json.dumps([messages, tools], ensure_ascii=False, default=str)
        if half := re.search("[\ud800-\udfff]", everything):
            raise BarError(
                f"{where}: expected text, got {half[0]!a}, half of a surrogate pair, which UTF-8 cannot hold"
            )
        guard = next(chr(n) for n in range(0xF8FF, 0xE000, -1) if chr(n) not in everything)
        if not self._specials.search(everything):
            return guard, messages, tools

        def walk(value):
            if isinstance(value, str):
                return self._specials.sub(lambda match: guard.join(match[0]), value)
            if isinstance(value, dict):
                return {walk(key): walk(part) for key, part in value.items()}
            return [walk(part) for part in value] if isinstance(value, list) else value

        return guard, walk(messages), walk(tools)

    def _ids(self, text: str, guard: str) -> list[int]:
        ids = []
        at = 0
        for match in self._specials.finditer(text):
            ids += self._plain(text[at : match.start()], guard)
            ids.append(self.tokenizer.special[match[0]])
            at = match.end()
        return ids + self._plain(text[at:], guard)

    def _plain(self, text: str, guard: str) -> list[int]:
        return self.tokenizer.encode_text(text.replace(guard, "")) if text else []

    def _checked(self, messages: list[dict], tools, where: str) -> tuple[list[dict], object]:
        """Returns the chat in the form that templates know: tools and the arguments of calls as objects."""
        if not isinstance(messages, list) or not messages:
            raise BarError(f"{where}: expected a non-empty list of messages, got {messages!r:.80}")
        checked = [
            self._checked_message(message, f"{where}: message {number}")
            for number, message in enumerate(messages)
        ]
        first = next((m["role"] for m in messages if m["role"] not in ("system", "developer")), None)
        if first == "assistant":
            raise BarError(
                f"{where}: the assistant speaks first; expected a user's message before its answer"
            )
        if isinstance(tools, str):
            tools = _json(tools, f"{where}: tools")
        objects = isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
        if tools is not None and not objects:
            raise BarError(f"{where}: tools: expected a list of JSON schemas, got {tools!r:.80}")
        if tools and self.name == "tulu":
            raise BarError(
                f"{where}: template tulu has no place for tools; use chatml, or the tokenizer's own"
            )
        return checked, tools

    def _checked_message(self, message, where: str) -> dict:
        roles = ROLES[self.name]
        if not isinstance(message, dict) or message.get("role") not in roles or not _has_content(message):
            wanted = f"a role of {', '.join(roles)} and text content"
            raise BarError(f"{where}: expected {wanted}, got {message!r:.80}")
        # Without what is None, as transformers hands it over: Parquet rows name every key that any row has.
        message = {key: value for key, value in message.items() if value is not None}
        if self.name == "tulu" and any(message.get(key) for key in _CALLS):
            raise BarError(f"{where}: template tulu has no place for calls; use chatml, or an own one")
        if calls := message.get("tool_calls"):
            message["tool_calls"] = _calls(calls, where)
        return message


def _turns(messages: list[dict]) -> list[int]:
    return [n for n, message in enumerate(messages) if message["role"] == "assistant"]


def _has_content(message: dict) -> bool:
    content = message.get("content")
    calling = message["role"] == "assistant" and any(message.get(key) for key in _CALLS)
    return isinstance(content, str) or (content is None and calling)


def _calls(calls, where: str) -> list[dict]:
    if not isinstance(calls, list):
        raise BarError(f"{where}: tool_calls: expected a list, got {calls!r:.80}")
    checked = []
    for call in calls:
        function = (call.get("function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BarError(f"{where}: tool_calls: expected name and arguments, got {call!r:.80}")
        arguments = function.get("arguments", {})
        arguments = _json(arguments, f"{where}: tool_calls") if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict):
            raise BarError(f"{where}: tool_calls: expected arguments by name, got {arguments!r:.80}")
        checked.append(call | {"function": function | {"arguments": arguments}})
    return checked


def _json(text: str, where: str):
    try:
        return json.loads(text)
    except ValueError as error:
        raise BarError(f"{where}: not readable as JSON: {error}") from None
