"""The same ids several times sooner: tiktoken in place of tokenizers, where the two are provably the same.

They are where a vocabulary's merges are numbered in the order in which they are applied, one for each token:
then the lowest pair of neighbours that makes a token is always that token's own merge. What remains is how
text is split beforehand, which depends on two regular-expression engines: only the pattern of GPT-4, which
OLMo 2 uses, is taken, and tests/data compares the ids over every Unicode code point.
"""

from collections.abc import Callable
from itertools import pairwise

import tiktoken

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UNUSUAL = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
_UNUSUAL += ("byte_fallback", "ignore_merges")
"""Options of a BPE model that none may have set."""
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def fast_encoder(spec: dict) -> Callable[[str], list[int]] | None:
    """Returns an encoder by the tokenizer.json ``spec``; None where its ids might not be the same.

    It finds no special tokens, and raises ValueError for a text that its engine cannot split (a million
    blanks in a row).
    """
    model = spec["model"]
    plain = model.get("type") == "BPE" and not any(model.get(key) for key in _UNUSUAL)
    if not plain or spec.get("normalizer") or not _splits_as_expected(spec.get("pre_tokenizer")):
        return None
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    whole = {token["content"] for token in spec["added_tokens"]}  # some files list them among the pieces too
    vocab = {token: number for token, number in model["vocab"].items() if token not in whole}
    bytes_of = _byte_alphabet()
    ids = [vocab.get(left + right, -1) for left, right in merges]
    in_order = all(a < b for a, b in pairwise(ids)) and len(merges) == len(vocab) - len(bytes_of)
    if not in_order or not bytes_of.keys() <= vocab.keys():
        return None
    if ids[:1] <= [max(vocab[char] for char in bytes_of)]:
        return None
    # Added tokens that are not special are found in text, as tokenizers finds them, where they are plain.
    added = [token for token in spec["added_tokens"] if not token["special"]]
    if any(token[key] for token in added for key in ("single_word", "lstrip", "rstrip", "normalized")):
        return None
    encoding = tiktoken.Encoding(
        "of a tokenizer.json",
        pat_str=PATTERN,
        mergeable_ranks={bytes(bytes_of[char] for char in token): number for token, number in vocab.items()},
        special_tokens={token["content"]: token["id"] for token in added},
    )
    names = {token["content"] for token in added}
    return lambda text: encoding.encode(text, allowed_special=names, disallowed_special=())


def _splits_as_expected(spec: dict | None) -> bool:
    parts = (spec or {}).get("pretokenizers", [])
    if len(parts) != 2 or parts[0].get("pattern") != {"Regex": PATTERN}:
        return False
    how = (parts[0].get("behavior"), parts[0].get("invert"))
    return how in (("Removed", True), ("Isolated", False)) and _BYTE_LEVEL.items() <= parts[1].items()


def _byte_alphabet() -> dict[str, int]:
    """Returns the character that byte-level BPE writes for each byte: itself where it can be seen, else one
    from 256 on (GPT-2)."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
