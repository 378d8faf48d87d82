"""A model's own answers to prompts as chats to learn: what a further trained model should go on saying.

Answers are drawn, and kept where they are long enough and do not go round in circles; one that was cut off at
the length limit ends with its last whole sentence, which teaches to be brief and no more. They are written as
they come, batch by batch, so that the same call goes on where an earlier one stopped.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from blake3 import blake3

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.sources import Source, parse, raw_rows
from megatron_bar.errors import BarError, require_at_least
from megatron_bar.models.sampler import Sampler
from megatron_bar.weights.json_file import read_object
from megatron_bar.weights.whole import write_whole


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How answers are drawn, and which are kept."""

    max_new_tokens: int = 160
    temperature: float = 0.7
    top_p: float = 0.95
    slots: int = 32
    batch: int = 96
    """Prompts between writes."""
    least_words: int = 6
    least_new: float = 0.75
    """Share of an answer's runs of four words that are not there already."""
    seed: int = 0

    def __post_init__(self):
        require_at_least("answers", self, 1, "max_new_tokens", "slots", "batch", "least_words")


def write_answers(
    sampler: Sampler,
    chats: ChatFormat,
    prompts: Path,
    out: Path,
    *,
    model: str,
    drawing: Drawing,
    keep: Callable[[str], bool] = lambda answer: True,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes ``out``, JSONL of chats with answers that are kept, from ``prompts``, JSONL of chats without.

    ``model``: what identifies the sampler's model, so that no other's answers are gone on with. ``keep`` has
    the last word about an answer.
    """
    found = raw_rows(Source(path=prompts, kind="chat"), Path())
    rows = [parse(raw, "chat", where) for where, raw in found]
    asked = [chats.prompt(row["messages"], where=str(prompts)) for row in rows]
    identity = blake3(json.dumps([model, asked, asdict(drawing), chats.template]).encode()).hexdigest()
    partial = out.with_name(f".{out.name}.drawn")
    drawn = _begun(partial, identity)
    while len(drawn) < len(rows):
        batch = asked[len(drawn) : len(drawn) + drawing.batch]
        done = sampler.generate(
            batch,
            max_new_tokens=drawing.max_new_tokens,
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            seed=drawing.seed + len(drawn),
            slots=drawing.slots,
        )
        drawn += [[chats.tokenizer.decode(one.ids), one.finished] for one in done]
        write_whole(partial, json.dumps({"identity": identity, "drawn": drawn}, ensure_ascii=False))
        say(f"  {out.name}: {len(drawn)} of {len(rows)} prompts answered")
    answers = [text.strip() if finished else _whole_sentences(text) for text, finished in drawn]
    kept = [
        row | {"messages": [*row["messages"], {"role": "assistant", "content": answer}]}
        for row, answer in zip(rows, answers, strict=True)
        if len(answer.split()) >= drawing.least_words and _new(answer) >= drawing.least_new and keep(answer)
    ]
    if not kept:
        raise BarError(
            f"{out}: of {len(rows)} answers none is kept; the model does not answer in this template"
        )
    write_whole(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    partial.unlink()
    say(f"{out.name}: {len(kept)} of {len(rows)} answers kept")


def _begun(partial: Path, identity: str) -> list[list]:
    """Returns what an earlier call has drawn of the same."""
    if not partial.is_file():
        return []
    found = read_object(partial, expected="answers drawn so far")
    return found["drawn"] if found["identity"] == identity else []


def _whole_sentences(text: str) -> str:
    """Returns the text up to its last end of a sentence; a number of a list ("2.") is none."""
    ends = list(re.finditer(r"(?<=[^\W\d])[.!?]+[\"')]*(?=\s)", text))
    return text[: ends[-1].end()].strip() if ends else ""


def _new(answer: str) -> float:
    """Returns the share of runs of four words that no earlier one of the answer equals."""
    words = answer.lower().split()
    runs = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    return len(set(runs)) / len(runs) if runs else 1.0
