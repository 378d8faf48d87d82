"""How the rows of a new router start: drawn, zero, or along what texts have in common.

OLMo 2's routers see the residual stream (BAR's released recipe: N(0, 0.02); its real runs: domain
embeddings). With norms before the blocks a router sees a normed state, whose values are as large as the
norm's weights: rows of N(0, 0.02) would give logits with a standard deviation of 1.3 at hidden size 4096, and
input embeddings do not live in that space. There rows are scaled until their logits deviate by at most
`LOGIT_STD`: as measured on the anchor's own hidden states, where texts are given, else by formula
(`start_std`).

Legend: t tokens, l layers, h hidden.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from blake3 import blake3
from torch import Tensor

from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.experts.choices import RouterInit
from megatron_bar.weights.folder import EMBEDDING, Folder
from megatron_bar.weights.hf_config import ROUTER

ROUTER_STD = 0.02
DOMAIN_NORM = 0.5
"""Norm of a domain embedding; the published runs' router rows have norms 0.41 to 0.54."""
LOGIT_STD = 0.3
"""Largest standard deviation of a router's logits at the start, with norms before the blocks."""
TOKENS = 512
"""Tokens of a text whose hidden states are looked at."""

Rows = Callable[[str, int], Tensor]
"""Function of a router's name and a row's number: the row's start ``[h]`` in fp32."""


def router_rows(
    anchor: Folder,
    init: RouterInit,
    seed: int,
    general_text: Path | str | None,
    domain_text: Path | str | None,
) -> Rows:
    """Returns how the two rows of a branch start. Row 0 does not depend on the domain, so that branches share
    their anchor."""
    texts = [text for text in (general_text, domain_text) if text is not None]
    before = anchor.config.block.norms == "before"
    if texts and (init == "zero" or (init == "normal" and not before)):
        where = "" if init == "zero" else f" in family {anchor.config.family}"
        raise BarError(f"texts are not used with router init {init!r}{where}")
    if init in ("domain", "hidden") and len(texts) < 2:
        raise BarError(
            f"router init {init!r} expected a general text (row 0) and a domain text (row 1), "
            "got only one or none"
        )
    match init:
        case "zero":
            return lambda name, row: torch.zeros(anchor.config.hidden_size)
        case "normal":
            rows = drawn_rows(anchor, seed)
            if not texts:
                return rows
        case "domain":
            if before:
                raise BarError(
                    f"router init 'domain' expected routers that see the residual stream; those of family "
                    f"{anchor.config.family} see normed states, where input embeddings do not live: expected "
                    "hidden, normal or zero"
                )
            embeddings = [domain_embedding(anchor, text) for text in texts]
            return lambda name, row: embeddings[row]
        case "hidden":
            rows = None
        case _:
            raise BarError(f"router init expected normal, domain, hidden or zero, got {init!r}")
    # One text serves both rows.
    states = [hidden_states(anchor, text) for text in (texts * 2)[:2]]

    def row(name: str, number: int) -> Tensor:
        seen_th = states[number][int(name.removesuffix(ROUTER).rpartition(".")[2])]
        start_h = _towards(seen_th.mean(0)) if rows is None else rows(name, number)
        return start_h * _at_most(LOGIT_STD, seen_th @ start_h) if before else start_h

    return row


def _towards(mean_h: Tensor) -> Tensor:
    return DOMAIN_NORM * mean_h / mean_h.norm()


def _at_most(std: float, logits_t: Tensor) -> float:
    return min(1.0, std / max(float(logits_t.std()), 1e-12))


def drawn_rows(folder: Folder, seed: int) -> Rows:
    """Returns rows drawn from N(0, `start_std`), by ``seed``, name and number alone."""

    def row(name: str, number: int) -> Tensor:
        drawn = normal_row(folder.config.hidden_size, f"{seed}/{name}/{number}")
        return drawn * (start_std(folder, name) / ROUTER_STD)

    return row


def normal_row(width: int, key: str) -> Tensor:
    """Returns ``[width]`` in fp32, drawn from N(0, `ROUTER_STD`) by ``key`` alone."""
    generator = torch.Generator().manual_seed(int.from_bytes(blake3(key.encode()).digest(7)))
    return ROUTER_STD * torch.randn(width, generator=generator)


def start_std(folder: Folder, router: str) -> float:
    """Returns the standard deviation of a drawn row's values.

    A state behind an RMSNorm with weights w is w u, where u has a mean square of 1. So the logits of a row
    from N(0, s) have a standard deviation of about s |w|, which is kept to `LOGIT_STD`.
    """
    if folder.config.block.norms == "after":
        return ROUTER_STD
    weight = folder.read(router.removesuffix(ROUTER) + ".post_attention_layernorm.weight").float()
    return min(ROUTER_STD, LOGIT_STD / max(float(weight.norm()), 1e-12))


def hidden_states(folder: Folder, text: Path | str) -> Tensor:
    """Returns what a router in the place of each FFN would see of the text's first `TOKENS` tokens,
    ``[l, t, h]`` in fp32, by transformers."""
    ids = [token for line in _token_ids(folder, Path(text)) for token in line][:TOKENS]
    import transformers  # here: it takes seconds, and only these starts need it

    transformers.utils.logging.disable_progress_bar()
    with TemporaryDirectory() as place:
        folder.link_to(Path(place))
        model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype="auto", local_files_only=True)
    seen: list[Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].float()))
    with torch.no_grad():
        model(torch.tensor([ids]))
    return torch.stack(seen)


def domain_embedding(folder: Folder, text: Path | str) -> Tensor:
    """Returns the mean input embedding of the text's tokens, scaled to `DOMAIN_NORM`."""
    counts = torch.zeros(folder.config.vocab_size, dtype=torch.float64)
    for ids in _token_ids(folder, Path(text)):
        counts += torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=len(counts))
    start = 0
    mean = torch.zeros(folder.config.hidden_size, dtype=torch.float64)
    for chunk in folder.chunks(EMBEDDING):
        mean += counts[start : start + len(chunk)] @ chunk.double()
        start += len(chunk)
    if not 0 < mean.norm() < torch.inf:
        raise BarError(
            f"{folder.path}: tensor {EMBEDDING!r}: expected rows with a mean to point along for {text}, "
            f"got {mean.norm()}"
        )
    return _towards(mean).float()


def _token_ids(folder: Folder, text: Path) -> Iterator[list[int]]:
    """Yields the ids of every line; raises where there is none, or one that the model has not."""
    tokenizer = load_tokenizer(folder.path)
    vocabulary = folder.config.vocab_size
    empty = True
    try:
        with text.open(encoding="utf-8") as lines:
            for line in lines:
                ids = tokenizer.encode_text(line)
                if ids and max(ids) >= vocabulary:
                    expected = f"below vocab_size {vocabulary}"
                    raise BarError(f"{folder.path}: token ids expected {expected}, got {max(ids)} in {text}")
                empty = empty and not ids
                yield ids
    except (OSError, UnicodeDecodeError) as error:
        raise BarError(f"{text}: not readable as UTF-8 text: {error}") from None
    if empty:
        raise BarError(f"{text}: expected text, got no tokens")
