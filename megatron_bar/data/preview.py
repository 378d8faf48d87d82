"""A look at packed data: every token of a few rows, and per source how much of it is learnt."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from megatron_bar.cli import colours
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import Tokens, in_memory
from megatron_bar.data.mixture import mix, summary
from megatron_bar.data.packing import Batch
from megatron_bar.data.sources import TEXTS, Source, parse, raw_rows
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError, shown

TRAINED = "green"
READ = "dim"
SPECIAL = "reverse"


def preview(
    inputs: Sequence[Path],
    tokenizer: Path,
    *,
    kind: str,
    template: str,
    last_turn: bool,
    packing: str,
    length: int,
    rows: int,
    samples: int,
) -> None:
    """Prints ``samples`` packed rows, made of the first ``rows`` rows of each input, and statistics."""
    for name, value, least in (("length", length, 1), ("rows", rows, 1), ("samples", samples, 0)):
        if value < least:
            raise BarError(f"{name} expected at least {least}, got {value}")
    console = colours()
    chats = ChatFormat(load_tokenizer(tokenizer), template)
    named = []
    for path in inputs:
        source = Source(path=path, kind=kind, last_turn=last_turn)
        named.append((str(path), _tokens(source, chats, rows)))
    mixture = mix(named, packing=packing, length=length, pad_id=chats.tokenizer.pad_id)
    done = 0
    for part in mixture.parts:
        for number in range(min(samples - done, len(part))):
            console.rule(f"row {number}")
            console.print(row_text(part.take([number]), chats.tokenizer))
            done += 1
    console.rule("sources")
    console.print(statistics(named, length))
    console.print(Text(shown(summary(mixture.parts))))


def _tokens(source: Source, chats: ChatFormat, rows: int) -> Tokens:
    documents = []
    for where, raw in islice(raw_rows(source, Path()), rows):
        row = parse(raw, source.kind, where)
        if source.kind in TEXTS:
            pieces = chats.tokenizer.pieces(row, rendered=source.kind == "fim")
            (ids,) = chats.tokenizer.documents([pieces])
            documents.append((ids, [True] * len(ids)))
        else:
            messages = row["messages"]
            chat = chats.render(messages, tools=row.get("tools"), last_turn=source.last_turn, where=where)
            documents.append((chat.ids, chat.mask))
    return in_memory(documents)


def row_text(batch: Batch, tokenizer) -> Text:
    """Returns one packed row. A token is trained where the position before it has it as its label."""
    ids = batch.ids[0].tolist()
    labels = batch.labels[0].tolist()
    documents = [0] * len(ids) if batch.documents is None else batch.documents[0].tolist()
    special = {number: name for name, number in tokenizer.special.items()}
    text = Text()
    for span in _spans(ids, [False, *(label >= 0 for label in labels[:-1])], documents, special):
        written = special[span.ids[0]] if span.special else tokenizer.decode(span.ids)
        text.append(shown(written), style=span.style)
        if span.ends:
            text.append("┃\n", style="bold red")
    padding = sum(document < 0 for document in documents)
    text.append(f"{padding} tokens of padding" if padding else "", style="italic")
    return text


class _Span:
    """Tokens in a row that look the same; decoded together, since one alone may be half a character."""

    def __init__(self, style: str, special: bool):
        self.ids: list[int] = []
        self.style = style
        self.special = special
        self.ends = False


def _spans(ids, trained, documents, special) -> list[_Span]:
    spans: list[_Span] = []
    for n, (token, learn, document) in enumerate(zip(ids, trained, documents, strict=True)):
        if document < 0:
            break
        style = TRAINED if learn else READ
        if token in special:
            style = f"{SPECIAL} {style}"
        if not spans or token in special or spans[-1].style != style or spans[-1].ends:
            spans.append(_Span(style, token in special))
        spans[-1].ids.append(token)
        spans[-1].ends = n + 1 == len(ids) or documents[n + 1] != document
    return spans


def statistics(named: Sequence[tuple[str, Tokens]], length: int) -> Table:
    columns = ("source", "documents", "tokens", "learnt", "least", "shortest", "mean", "longest")
    table = Table(*columns, f"over {length}")
    for name, tokens in named:
        sizes = tokens.lengths
        learn = np.ones(len(tokens.ids), bool) if tokens.learn is None else np.asarray(tokens.learn, bool)
        shares = [learn[a:b].mean() for a, b in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)]
        cells = [len(tokens), len(tokens.ids), f"{learn.mean():.1%}", f"{min(shares):.1%}"]
        cells += [sizes.min(), f"{sizes.mean():.0f}", sizes.max(), (sizes > length).sum()]
        table.add_row(Text(shown(name)), *map(str, cells))
    return table
