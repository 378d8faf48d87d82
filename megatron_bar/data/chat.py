"""Chats to ids and loss mask, by the OLMo 2 / Tulu template.

    <|endoftext|><|system|>\\nS\\n<|user|>\\nU\\n<|assistant|>\\nA<|endoftext|>       and a newline before the next turn

Ids equal those of transformers' ``apply_chat_template``, except that text cannot spell a special token, and that an answer is
always tokenised apart from what precedes it, as it is when the model itself writes it after a generation prompt.
Loss is on the assistant's tokens alone, the closing <|endoftext|> included. Left out: tool roles, other templates.
"""

from dataclasses import dataclass

from megatron_bar.errors import BarError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Chat:
    ids: list[int]
    mask: list[bool]
    """True where the token is a target of the loss."""


def render(messages: list[dict], tokenizer, *, where: str = "chat") -> Chat:
    """A training example. ``where`` names the row in an error."""
    _check(messages, where)
    ids, mask = [tokenizer.eos_id], [False]
    pending = ""
    for message in messages:
        if message["role"] != "assistant":
            pending += _turn(message)
            continue
        before = tokenizer.encode_text(pending + "<|assistant|>\n")
        answer = [*tokenizer.encode_text(message["content"]), tokenizer.eos_id]
        ids += before + answer
        mask += [False] * len(before) + [True] * len(answer)
        pending = "\n"
    if not any(mask):
        raise BarError(f"{where}: no assistant message, so nothing to learn; expected at least one")
    if messages[-1]["role"] != "assistant":
        rest = tokenizer.encode_text(pending)
        ids += rest
        mask += [False] * len(rest)
    return Chat(ids=ids, mask=mask)


def generation_prompt(messages: list[dict], tokenizer, *, where: str = "chat") -> list[int]:
    """The ids after which the model writes the next answer."""
    _check(messages, where)
    ids, pending = [tokenizer.eos_id], ""
    for message in messages:
        if message["role"] == "assistant":
            ids += tokenizer.encode_text(pending + "<|assistant|>\n")
            ids += [*tokenizer.encode_text(message["content"]), tokenizer.eos_id]
            pending = "\n"
        else:
            pending += _turn(message)
    return ids + tokenizer.encode_text(pending + "<|assistant|>\n")


def _turn(message: dict) -> str:
    return f"<|{message['role']}|>\n{message['content']}\n"


def _check(messages: list[dict], where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise BarError(f"{where}: expected a non-empty list of messages, got {messages!r:.80}")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            wanted = f"a role of {', '.join(ROLES)} and text content"
            raise BarError(f"{where}: message {number}: expected {wanted}, got {message!r:.80}")
