"""Chats to ids and loss mask, by a Jinja template: one of templates.py, or the tokenizer's own.

Rendered by transformers' own code, then cut at what the TEMPLATE wrote as special tokens: those become their
ids, and all else is text, in which a special token is spelled out in ordinary pieces. Ids equal those of
``apply_chat_template``, but for forged special tokens, and for an answer that begins with white space: an
answer is tokenised apart from what precedes it, as it is when the model itself writes it after a generation
prompt. Loss is on the assistant's tokens alone, the special token that closes them included.

What a row holds and a template would leave out without a word is refused: tools, calls, thoughts, a role. So
is what would teach something else than the row says: an empty answer, a result that nobody answers.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cached_property

from megatron_bar.data.own_template import renderer
from megatron_bar.data.sources import RESULTS
from megatron_bar.data.templates import NAMES, ROLES, TEMPLATES
from megatron_bar.errors import BarError

_CALLS = ("function_calls", "tool_calls")
_BESIDE = (*_CALLS, "functions", "function_call", "reasoning_content", "thinking")
"""Keys of a message, besides its role and content, that say something to a model."""
_UNSAID = ("system", "developer", "tool", "environment")
"""Roles whose content may be null, as in published rows: it stands for none."""
_OTHERS = "use another (chatml and olmo123 have one)"


@dataclass(frozen=True, kw_only=True)
class Chat:
    ids: list[int]
    mask: list[bool]
    """True where the token is a target of the loss."""


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer and the template its chats are laid out by: a name of `templates`, or own (the one in the
    tokenizer's folder)."""

    tokenizer: object
    name: str = "tulu"
    _written: dict[tuple[str, str], bool] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What `_writes` found, by role and key."""
    _shapes: set[tuple] = field(default_factory=set, init=False, compare=False, repr=False)
    """Shapes of chats that were laid out once (`check`)."""

    def __post_init__(self):
        if self.name not in NAMES:
            raise BarError(f"chat template must be one of {', '.join(NAMES)}, got {self.name!r}")
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
        messages, tools = self._checked_example(messages, tools, last_turn, where)
        guard, messages, tools = self._guarded(messages, tools, where)
        text, answers, learned = self._laid_out(messages, tools, last_turn, where)
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
        if all(mask):
            raise BarError(f"{where}: every token is the assistant's; expected a message to answer")
        return Chat(ids=ids, mask=mask)

    def check(
        self, messages: list[dict], *, tools=None, last_turn: bool = False, where: str = "chat"
    ) -> None:
        """Raises what `render` would raise, and makes no ids.

        A template of ours puts texts one after the other and looks into none. So a chat that has the shape of
        an earlier one, its roles and what each message has, fares like that one and is not laid out again. A
        tokenizer's own template may look into texts, and lays out each.
        """
        messages, tools = self._checked_example(messages, tools, last_turn, where)
        shape = (last_turn, *(_shape(message) for message in messages))
        plain = tools is None and not any("tool_calls" in message for message in messages)
        if self.name != "own" and plain and shape in self._shapes:
            return
        _, messages, tools = self._guarded(messages, tools, where)
        text, answers, _ = self._laid_out(messages, tools, last_turn, where)
        if len(text) == sum(end - start for start, end in answers.values()):
            raise BarError(f"{where}: every token is the assistant's; expected a message to answer")
        if plain:
            self._shapes.add(shape)

    def prompt(self, messages: list[dict], *, tools=None, where: str = "chat") -> list[int]:
        """Returns the ids after which the model writes the next answer."""
        messages, tools = self._checked(messages, tools, where)
        guard, messages, tools = self._guarded(messages, tools, where)
        if messages[-1]["role"] == "assistant":
            raise BarError(
                f"{where}: expected what is asked last, got an answer, which the prompt would show"
            )
        text = self._write(messages, tools, prompt=True, where=where)
        ids = []
        at = 0
        # Earlier answers are cut out as in training, so that the same text has the same ids.
        for start, end in self._answers(text, messages, tools, where).values():
            ids += self._ids(text[at:start], guard) + self._ids(text[start:end], guard)
            at = end
        return ids + self._ids(text[at:], guard)

    def _laid_out(
        self, messages: list[dict], tools, last_turn: bool, where: str
    ) -> tuple[str, dict[int, tuple[int, int]], list[int]]:
        """Returns the text, the span of each answer in it, and the turns that are learnt."""
        text = self._write(messages, tools, where=where)
        answers = self._answers(text, messages, tools, where)
        learned = _learned(messages, last_turn)
        for turn in learned:
            if turn in answers:
                continue
            if turn and messages[turn - 1]["role"] == "assistant":
                raise BarError(
                    f"{where}: message {turn}: the assistant speaks twice in a row, and template {self.name} "
                    "does not lay the second out as after a prompt; expected one message, or a user's between"
                )
            raise BarError(
                f"{where}: the template does not keep message {turn}, or those before it, "
                "as when it was answered"
            )
        return text, answers, learned

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
        given = {
            "conversations": [messages],
            "tools": tools,
            "chat_template": self.template,
            "add_generation_prompt": prompt,
            "bos_token": self.tokenizer.bos,
            "eos_token": self.tokenizer.eos,
        }
        try:
            if self.name == "own":
                return renderer().ask(**given)
            # Here: it takes two seconds, and texts need none.
            from transformers.utils.chat_template_utils import render_jinja_template

            texts, _ = render_jinja_template(**given)
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
        guard = next((chr(n) for n in range(0xF8FF, 0xE000, -1) if chr(n) not in everything), None)
        if guard is None:
            raise BarError(f"{where}: expected text, got every character of Unicode's private use")
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

    def _checked_example(
        self, messages: list[dict], tools, last_turn: bool, where: str
    ) -> tuple[list[dict], object]:
        """Returns `_checked` messages and tools of a chat from which something can be learnt."""
        messages, tools = self._checked(messages, tools, where)
        learned = _learned(messages, last_turn)
        if not learned:
            raise BarError(f"{where}: no assistant message, so nothing to learn; expected at least one")
        for turn in learned:
            message = messages[turn]
            if not message.get("content", "").strip() and not any(message.get(key) for key in _BESIDE):
                raise BarError(
                    f"{where}: message {turn}: expected an answer, got an empty one, "
                    "which would teach to end at once"
                )
        if messages[-1]["role"] in RESULTS:
            raise BarError(
                f"{where}: expected the assistant's answer last, "
                f"got a result ({messages[-1]['role']}) that nobody answers"
            )
        return messages, tools

    def _checked(self, messages: list[dict], tools, where: str) -> tuple[list[dict], object]:
        """Returns the chat in the form that templates know: contents as text, tools and the arguments of
        calls as objects, no key without a value."""
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
        if tools and not self._writes("system", "tools"):
            raise BarError(f"{where}: template {self.name} has no place for tools; {_OTHERS}")
        return checked, tools

    def _checked_message(self, message, where: str) -> dict:
        roles = ROLES[self.name]
        role = message.get("role") if isinstance(message, dict) else None
        content = _content(message, where) if role in roles else None
        if content is None and not (role == "assistant" and any(message.get(key) for key in _CALLS)):
            wanted = f"a role of {', '.join(roles)} and text content"
            raise BarError(f"{where}: expected {wanted}, got {message!r:.80}")
        # Without what is None, as transformers hands it over: Parquet rows name every key that any row has.
        found = {key: value for key, value in message.items() if value is not None and key != "content"}
        if content is not None:
            found["content"] = content
        for key in _BESIDE:
            if key not in found:
                continue
            if not found[key] and key != "functions":
                del found[key]
            elif found[key] and not self._writes(role, key):
                what = "calls" if key in _CALLS else f"{key} of a message of {role}"
                raise BarError(f"{where}: template {self.name} has no place for {what}; {_OTHERS}")
        if "tool_calls" in found:
            found["tool_calls"] = _calls(found["tool_calls"], where)
        if isinstance(found.get("functions"), list):
            found["functions"] = json.dumps(found["functions"], ensure_ascii=False)
        if isinstance(found.get("function_calls"), list):
            found["function_calls"] = _call_lines(found["function_calls"], where)
        return found

    def _writes(self, role: str, key: str) -> bool:
        """Returns whether the template writes what a message of ``role`` has under ``key``: it is tried."""
        if (role, key) not in self._written:
            self._written[role, key] = self._try(role, key)
        return self._written[role, key]

    def _try(self, role: str, key: str) -> bool:
        mark = "Xq7mark"
        function = {"name": mark, "description": mark, "parameters": {"type": "object", "properties": {}}}
        call = {"name": mark, "arguments": {}}
        values = {"tool_calls": [{"type": "function", "function": call}], "function_call": call}
        tools = [{"type": "function", "function": function}] if key == "tools" else None
        asked = {"role": "user", "content": "question"}
        answered = {"role": "assistant", "content": "answer"}
        tried = {"role": role, "content": "text"} | ({} if tools else {key: values.get(key, mark)})
        chats = {"system": [tried, asked, answered], "user": [tried, answered], "assistant": [asked, tried]}
        try:
            chat = chats.get(role, [asked, answered, tried, answered])
            return mark in self._write(chat, tools, where="chat template")
        except BarError:
            return True  # some want other company; a row of theirs will show it


def _turns(messages: list[dict]) -> list[int]:
    return [n for n, message in enumerate(messages) if message["role"] == "assistant"]


def _learned(messages: list[dict], last_turn: bool) -> list[int]:
    turns = _turns(messages)
    return turns[-1:] if last_turn else turns


def _shape(message: dict) -> tuple:
    """Returns all of a message that our own templates tell apart."""
    beside = (bool(message[key]) if key in message else None for key in _BESIDE)
    return message["role"], bool(message.get("content")), *beside


def _content(message: dict, where: str) -> str | None:
    """Returns the text of a message: of a list of text parts, one after the other."""
    content = message.get("content")
    if content is None:
        return "" if message["role"] in _UNSAID else None
    if isinstance(content, list):
        for part in content:
            of_text = isinstance(part, dict) and part.get("type", "text") == "text"
            if not of_text or not isinstance(part.get("text"), str):
                raise BarError(f"{where}: content: expected text or parts of text, got {part!r:.80}")
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else None


def _call_lines(calls: list, where: str) -> str:
    """Returns calls, each a text or an object of name and arguments, as the lines that templates write."""
    lines = []
    for call in calls:
        if isinstance(call, str):
            lines.append(call)
            continue
        function = _calls([call], where)[0]["function"]
        given = (f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in function["arguments"].items())
        lines.append(f"{function['name']}({', '.join(given)})")
    return "\n".join(lines)


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
