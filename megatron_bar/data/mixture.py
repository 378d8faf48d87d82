"""What a stage trains on: its sources prepared once, packed, and mixed by weight or by the published union.

Union (arXiv 2604.18473): all of the general data and all of the domain's, every row once an epoch. Weights
name domains and say which share of the rows each has; a domain's files share it by their size.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from blake3 import blake3

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import Tokens, read_indexed
from megatron_bar.data.packing import CutRows, PackedRows, Rows, TooLong
from megatron_bar.data.preprocess import VERSION, Options, preprocess
from megatron_bar.data.sources import Source, identity
from megatron_bar.errors import BarError

SMALL = 16 << 20
"""Bytes of a source below which starting more processes costs more than it gains."""


def prepare(
    source: Source,
    root: Path,
    chats: ChatFormat,
    cache: Path,
    *,
    seed: int,
    say: Callable[[str], None],
    skip_bad: bool = False,
) -> Path:
    """Returns the prefix of the token files of ``source``, made in ``cache`` unless they are there.

    Their name depends on all that they depend on, every file of the source among it. ``skip_bad`` leaves bad
    rows out.
    """
    place = Path(root) / source.place
    if source.kind == "tokens":
        read_indexed(place, vocab_size=chats.tokenizer.vocab_size)
        return place
    others = {"task": "RLVR", "preference": "DPO"}
    if source.kind in others:
        raise BarError(
            f"{place}: rows of {source.kind}s are for {others[source.kind]}; "
            "expected text, chats or token files"
        )
    options = Options(template=chats.name, seed=seed, skip_bad=skip_bad)
    files = identity(source, root)
    key = [VERSION, str(source.path), source.kind, source.share, source.last_turn]
    key += [asdict(options), chats.tokenizer.hash, chats.tokenizer.begin, chats.template, files]
    digest = blake3(json.dumps(key).encode()).hexdigest()
    out = Path(cache) / f"{source.place.name.partition('.')[0]}-{digest[:12]}"
    if not out.is_dir():
        large = place.is_dir() or (place.exists() and place.stat().st_size > SMALL)
        processes = (os.cpu_count() or 1) if large else 1
        Path(cache).mkdir(parents=True, exist_ok=True)
        made = preprocess(source, root, chats.tokenizer.path, out, options, processes=processes)
        learnt = made["learnt"] / made["tokens"]
        counts = f"{made['documents']:,} rows, {made['tokens']:,} tokens, {learnt:.1%} learnt"
        left_out = f", {len(made['bad_rows']):,} bad rows left out" if made["bad_rows"] else ""
        say(f"tokens of {place}: {counts}{left_out}")
    return out / "tokens"


@dataclass(frozen=True)
class Mixture:
    """Packed data sets, and the weight of each among the rows; None: the union."""

    parts: list[Rows]
    weights: list[float] | None


def mix(
    named: Sequence[tuple[str, Tokens]],
    *,
    packing: str,
    length: int,
    pad_id: int,
    too_long: TooLong = "truncate",
    weights: dict[str, float] | None = None,
) -> Mixture:
    """Packs the sources. ``named``: each one's domain and tokens. ``weights``: of the domains, adding up to
    1."""
    domains = list(dict.fromkeys(name for name, _ in named))
    if weights is not None:
        _check(weights, domains)
    if packing == "documents":
        groups = [[pair for pair in named if pair[0] == name] for name in domains]
        if weights is None:
            groups = [named]  # documents of all domains share rows, and so fill them best
        parts = [PackedRows(group, length, pad_id=pad_id, too_long=too_long) for group in groups]
        return Mixture(parts, None if weights is None else [weights[name] for name in domains])
    parts = [CutRows(name, tokens, length, masked=packing == "cut_masked") for name, tokens in named]
    if weights is None:
        return Mixture(parts, None)
    sizes = {name: sum(len(part) for part in parts if part.name == name) for name in domains}
    return Mixture(parts, [weights[part.name] * len(part) / sizes[part.name] for part in parts])


def _check(weights: dict[str, float], domains: list[str]) -> None:
    unknown = sorted(set(weights) - set(domains))
    missing = sorted(set(domains) - set(weights))
    if unknown or missing:
        which = f"{', '.join(unknown)} is none of them" if unknown else f"{', '.join(missing)} has none"
        raise BarError(f"weights: expected one for each of {', '.join(domains)}; {which}")
    for name, weight in weights.items():
        if not weight > 0:
            raise BarError(f"weights: {name} expected a positive share, got {weight}")
    if abs(sum(weights.values()) - 1) > 1e-6:
        raise BarError(f"weights: expected to add up to 1, got {sum(weights.values()):.6g}")


def summary(parts: Sequence[Rows]) -> str:
    """Returns how well the rows are filled, in a line."""
    rows = sum(len(part) for part in parts)
    packed = [part for part in parts if isinstance(part, PackedRows)]
    if not packed:
        return f"{rows:,} rows, concatenated and cut"
    documents = sum(part.documents for part in packed)
    long = sum(part.too_long for part in packed)
    filled = sum(part.efficiency * len(part) for part in packed) / rows
    return f"{documents:,} documents in {rows:,} rows, {filled:.1%} filled, {long:,} longer than a row"
