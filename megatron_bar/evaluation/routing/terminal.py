"""The routing lens in the terminal: a text in which each token has the colour of the expert with the largest
weight."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from megatron_bar.cli import colours
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError, shown
from megatron_bar.evaluation.generative import load_model
from megatron_bar.evaluation.routing.lens import expert_names, token_texts, token_weights
from megatron_bar.parallel.state import ParallelConfig, distributed
from megatron_bar.report.plot import expert_colour
from megatron_bar.weights.folder import Folder


def route(
    folder: Path,
    text: str,
    *,
    template: str | None = None,
    layer: int | None = None,
) -> None:
    """Prints ``text`` coloured by the routers of ``folder``, and every expert's mean weight and how many
    tokens it wins.

    ``template``: the text is a user's message, laid out by it (chat.ROLES) up to where the model answers;
    None: text as it is. ``layer``: the one whose weights are shown, from 1; None: the mean over layers.
    """
    shape = Folder.open(folder).config
    if not shape.num_experts:
        raise BarError(f"{folder}: expected a model with experts, got a dense one: it routes nothing")
    if layer is not None and not 1 <= layer <= shape.num_layers:
        raise BarError(f"layer: expected 1 to {shape.num_layers}, got {layer}")
    tokenizer = load_tokenizer(folder)
    ids = _token_ids(tokenizer, text, template)
    if len(ids) > shape.max_positions:
        raise BarError(
            f"text: expected at most {shape.max_positions} tokens (the model's positions), got {len(ids)}"
        )
    with distributed():
        weights = token_weights(load_model(folder, ParallelConfig()), ids)
    layers = shape.num_layers
    if layer is None:
        where = f"mean over {layers} layers"
        seen = weights.mean(1)
    else:
        where = f"layer {layer} of {layers}"
        seen = weights[:, layer - 1]
    names = expert_names(folder, shape.num_experts)
    console = colours()
    console.print(coloured(token_texts(tokenizer, ids), seen))
    console.print(shares(names, seen, title=f"{len(ids)} tokens, {where}"))


def _token_ids(tokenizer, text: str, template: str | None) -> list[int]:
    if not text:
        raise BarError("text: expected at least one token, got none")
    if half := re.search("[\ud800-\udfff]", text):  # as a command line has bytes that are not UTF-8
        raise BarError(f"text: expected UTF-8, got {half[0]!a}")
    if template is None:
        return tokenizer.encode_text(text)
    return ChatFormat(tokenizer, template).prompt([{"role": "user", "content": text}], where="text")


def coloured(tokens: Sequence[str], weights: torch.Tensor) -> Text:
    """Returns the text, each token in black on the colour of its winner; ``weights``: ``[tokens,
    experts]``."""
    text = Text()
    for token, winner in zip(tokens, weights.argmax(1).tolist(), strict=True):
        text.append(shown(token), style=f"black on {expert_colour(winner)}")
    return text


def shares(names: Sequence[str], weights: torch.Tensor, *, title: str) -> Table:
    """Returns the legend: every expert's colour, mean weight and number of tokens won."""
    won = torch.bincount(weights.argmax(1), minlength=len(names)).tolist()
    table = Table("", "expert", title=title, title_justify="left")
    table.add_column("mean weight", justify="right")
    table.add_column("wins", justify="right")
    for number, (name, mean) in enumerate(zip(names, weights.mean(0).tolist(), strict=True)):
        cells = Text(shown(name)), f"{100 * mean:.1f} %", str(won[number])
        table.add_row(Text("  ", style=f"on {expert_colour(number)}"), *cells)
    return table
