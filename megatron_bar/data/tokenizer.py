"""Text to ids: the tokenizer of a Hugging Face folder, a SentencePiece model, or one trained here.

Text never yields a special token: a literal ``<|endoftext|>`` in a user's words is spelled out in ordinary
pieces (transformers' default would end the text there). Special ids are put in by chat.py, by the packer, and
where a row or its source says so (`pieces`). The trained tokenizer is a byte-level BPE as OLMo 2's, with its
own splitting rule: one digit per token, and tags such as <|user|> or <functions> whole.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from blake3 import blake3
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_bar.data.fast_bpe import fast_encoder
from megatron_bar.data.templates import TULU
from megatron_bar.errors import BarError
from megatron_bar.weights.json_file import read_object
from megatron_bar.weights.regular import read_regular

END = "<|endoftext|>"
PAD = "<|pad|>"
HOLE = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
"""Special tokens of a text with a hole, in the order in which it is written."""
LONGEST_TEMPLATE = 1 << 20
"""Bytes of a chat template."""
MOST_GROWTH = 1000
"""Times that a tokenizer may make a text longer before it cuts it."""
MOST_PARTS = 100
"""Normalizers, splitters, processors and decoders of a tokenizer, and ids that it puts around a text."""
LONGEST_PIECE = 4096
"""Characters of a piece of the vocabulary."""
MOST_ADDED = 1 << 20
"""Characters of all added tokens together."""
Pieces = str | list[str | int]
"""A text, or its parts: texts, and special tokens by their ids."""
_PIECES = r"<\|[a-z]+\|>|</?[a-z_]+>|\n *|'[a-z]+| ?\p{L}+|_\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}<]+|<|\s+"


@dataclass(frozen=True, kw_only=True)
class _Text:
    """Fields that both kinds of tokenizer have."""

    path: Path
    """The file it was read from."""
    eos_id: int
    pad_id: int
    special: dict[str, int]
    """Every special token, which no text can spell."""
    bos: str
    eos: str
    """Names of these tokens for a chat template; ``bos`` is ``eos`` where the tokenizer has none."""
    begin: tuple[int, ...] = ()
    """What the tokenizer itself puts before a text that is no chat: BOS, or nothing."""
    template: str | None = None
    """The Jinja chat template that the folder ships."""
    added: dict[str, int] = field(default_factory=dict)
    """Tokens that text may spell, though they are no pieces of the vocabulary's own."""
    hash: str = field(init=False)
    """BLAKE3 of the file."""

    def __post_init__(self):
        object.__setattr__(self, "hash", blake3(self.path.read_bytes()).hexdigest())

    def documents(self, texts: list[Pieces]) -> list[list[int]]:
        """Returns the ids of whole texts, as models are pretrained on them: each from ``begin`` to EOS."""
        parts = [[text] if isinstance(text, str) else text for text in texts]
        texts = [piece for text in parts for piece in text if isinstance(piece, str)]
        encoded = iter(self.encode_texts(texts))
        documents = []
        for text in parts:
            ids = list(self.begin)
            for piece in text:
                ids += next(encoded) if isinstance(piece, str) else (piece,)
            documents.append([*ids, self.eos_id])
        return documents

    def pieces(self, row: dict, *, rendered: bool = False) -> Pieces:
        """Returns a checked row of text for `documents`.

        A hole's parts stand behind their special tokens, prefix, suffix, middle (PSM: arXiv 2207.14255); in a
        text that is ``rendered`` so, what spells these tokens becomes them.
        """
        if row.get("text") is None:
            prefix, suffix, middle = self.hole_ids()
            return [prefix, row["prefix"], suffix, row["suffix"], middle, row["middle"]]
        if not rendered:
            return row["text"]
        ids = dict(zip(HOLE, self.hole_ids(), strict=True))
        parts = re.split(f"({'|'.join(map(re.escape, HOLE))})", row["text"])
        return [ids.get(part, part) for part in parts if part]

    def hole_ids(self) -> list[int]:
        """Returns the ids of `HOLE`."""
        known = self.special | self.added
        for name in HOLE:
            if name not in known:
                raise BarError(
                    f"{self.path}: filling in the middle expected the special tokens {', '.join(HOLE)}, "
                    f"got none called {name}"
                )
        return [known[name] for name in HOLE]


@dataclass(frozen=True, kw_only=True)
class BpeText(_Text):
    """A ``tokenizers`` tokenizer behind the project's interface."""

    tokenizer: Tokenizer
    fast: Callable[[str], list[int]] | None = None
    """Encoder with the same ids, sooner; raises ValueError where it cannot."""

    @cached_property
    def vocab_size(self) -> int:
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode_text(self, text: str) -> list[int]:
        if self.fast is not None:
            try:
                return self.fast(text)
            except ValueError:
                pass  # the slow one can
        return _called(self.path, self.tokenizer.encode, text, add_special_tokens=False).ids

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """Encodes many at once."""
        if self.fast is not None:
            return [self.encode_text(text) for text in texts]
        encode = self.tokenizer.encode_batch_fast
        encodings = _called(self.path, encode, texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text, without special tokens."""
        return _called(self.path, self.tokenizer.decode, list(ids), skip_special_tokens=True)


@dataclass(frozen=True, kw_only=True)
class SentencePieceText(_Text):
    """A SentencePiece model behind the same interface; control symbols in text are never read as such by
    SentencePiece itself."""

    processor: object

    @property
    def vocab_size(self) -> int:
        return self.processor.vocab_size()

    def encode_text(self, text: str) -> list[int]:
        return self.processor.encode(text, add_bos=False, add_eos=False)

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        return self.processor.encode(texts, add_bos=False, add_eos=False)

    def decode(self, ids: Iterable[int]) -> str:
        return self.processor.decode(list(ids))


def _called(path: Path, function: Callable, *given, **options):
    """Returns the library's result; what it fails or panics at (a bug, of a tokenizer's making) is an error
    that names the tokenizer."""
    try:
        return function(*given, **options)
    except BaseException as error:
        # A panic is no Exception.
        if type(error).__name__ != "PanicException" and not isinstance(error, Exception):
            raise
        raise BarError(f"{path}: the tokenizer fails: {' '.join(str(error).split()):.200}") from None


def load_tokenizer(path: Path | str) -> BpeText | SentencePieceText:
    """Returns the tokenizer of a Hugging Face folder, or of a SentencePiece ``.model`` file."""
    path = Path(path)
    if path.suffix == ".model":
        return _load_sentencepiece(path)
    file = path if path.suffix == ".json" else path / "tokenizer.json"
    if not file.is_file():
        model = path / "tokenizer.model"
        if model.is_file():
            return _load_sentencepiece(model)
        raise BarError(f"{file}: not found; expected a tokenizer.json, or a SentencePiece tokenizer.model")
    return _load_bpe(file)


def _load_bpe(file: Path) -> BpeText:
    spec = read_object(file, expected="a tokenizer")
    _require_modest(file, spec)
    _require_modest_growth(file, spec)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # noqa: BLE001  the library raises a bare Exception for a bad file
        raise BarError(
            f"{file}: not a readable tokenizer.json: {' '.join(str(error).split()):.200}"
        ) from None
    added = tokenizer.get_added_tokens_decoder().items()
    special = {token.content: number for number, token in added if token.special}
    plain = {token.content: number for number, token in added if not token.special}
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    beside = file.parent / "tokenizer_config.json"
    config = _read_config(beside)
    eos = _token_name(beside, config, "eos_token", END)
    pad = _token_name(beside, config, "pad_token", PAD)
    for key, name in (("eos_token", eos), ("pad_token", pad)):
        if tokenizer.token_to_id(name) is None:
            raise BarError(f"{file}: {key} {name!r} is not in the vocabulary")
        if name not in special:
            raise BarError(
                f"{file}: {key} {name!r} is not marked as a special token, so text could contain it"
            )
    return BpeText(
        path=file,
        tokenizer=tokenizer,
        fast=fast_encoder(spec),
        eos_id=special[eos],
        pad_id=special[pad],
        special=special,
        added=plain,
        bos=_token_name(beside, config, "bos_token", eos),
        eos=eos,
        begin=_begin(file, tokenizer),
        template=_chat_template(file.parent, config),
    )


def _require_modest(file: Path, spec: dict) -> None:
    """Raises for sizes that no tokenizer has and that the library takes gigabytes for, or its stack."""
    model = spec["model"] if isinstance(spec.get("model"), dict) else {}
    vocab = model["vocab"] if isinstance(model.get("vocab"), dict | list) else ()
    added = spec["added_tokens"] if isinstance(spec.get("added_tokens"), list) else ()
    pieces = [piece[0] if isinstance(piece, list) and piece else piece for piece in vocab]
    contents = [token.get("content") for token in added if isinstance(token, dict)]
    longest = max((len(piece) for piece in pieces if isinstance(piece, str)), default=0)
    written = sum(len(content) for content in contents if isinstance(content, str))
    parts, around = 0, 0
    pending = [spec.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    while pending:
        part = pending.pop()
        parts += isinstance(part, dict) and "type" in part
        if isinstance(part, dict) and isinstance(part.get("single"), list):
            around += _around(part)
        elif isinstance(part, dict | list):
            pending += part.values() if isinstance(part, dict) else part
    for what, most, found in (
        ("parts", MOST_PARTS, parts),
        ("ids around a text", MOST_PARTS, around),
        ("characters in a piece", LONGEST_PIECE, longest),
        ("characters in added tokens", MOST_ADDED, written),
    ):
        if found > most:
            raise BarError(f"{file}: expected at most {most} {what}, got {found}")


def _around(template: dict) -> int:
    """Returns the number of ids that a template puts around a text, and how often more than once the text."""
    known = template.get("special_tokens")
    ids = {
        name: len(token["ids"]) if isinstance(token, dict) and isinstance(token.get("ids"), list) else 0
        for name, token in (known.items() if isinstance(known, dict) else ())
    }
    entries = [entry for entry in template["single"] if isinstance(entry, dict)]
    special = [entry["SpecialToken"] for entry in entries if isinstance(entry.get("SpecialToken"), dict)]
    texts = sum("Sequence" in entry for entry in entries)
    return sum(ids.get(str(token.get("id")), 0) for token in special) + MOST_PARTS * max(0, texts - 1)


def _longest_mapped(part: dict) -> int:
    """Returns the most bytes that SentencePiece's map writes for a character: its size, a trie, then texts,
    each with a NUL behind it."""
    try:
        data = base64.b64decode(part["precompiled_charsmap"])
    except (KeyError, TypeError, ValueError):
        return 1
    return max(map(len, data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")))


def _require_modest_growth(file: Path, spec: dict) -> None:
    """Raises where the parts of a tokenizer that rewrite text could make much of little: each writes up to so
    many characters for one, and they follow one another."""
    growth = 1
    pending = [spec.get("normalizer"), spec.get("pre_tokenizer"), spec.get("decoder")]
    while pending:
        part = pending.pop()
        pending += part if isinstance(part, list) else []
        if isinstance(part, dict):
            pending += part.values()
            written = part.get("content") or part.get("prepend") or ""
            if part.get("type") in ("Replace", "Prepend") and isinstance(written, str):
                growth *= max(1, len(written) + (part["type"] == "Prepend"))
            elif part.get("type") in ("ByteLevel", "Metaspace"):
                growth *= 2
            elif part.get("type") == "Precompiled":
                growth *= max(1, _longest_mapped(part))
    if growth > MOST_GROWTH:
        raise BarError(f"{file}: expected a text to grow {MOST_GROWTH} times at most, got {growth:.3g}")


def _begin(file: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns what the post-processor puts before a text. It alone decides, as in transformers 5, which does
    not ask ``add_bos_token`` where there is a tokenizer.json."""
    encoded = _called(file, tokenizer.encode, "a")
    pairs = zip(encoded.ids, encoded.sequence_ids, strict=True)
    return tuple(number for number, _ in takewhile(lambda pair: pair[1] is None, pairs))


def _token_name(file: Path, config: dict, key: str, default: str) -> str:
    name = config.get(key) or default
    name = name.get("content") if isinstance(name, dict) else name
    if not isinstance(name, str):
        raise BarError(
            f"{file}: {key} expected a string or an object with 'content', got {config[key]!r:.100}"
        )
    return name


def _chat_template(folder: Path, config: dict) -> str | None:
    """Returns the template where transformers keeps it: in a file, or in the config, there perhaps by
    name."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return read_regular(file, LONGEST_TEMPLATE).decode("utf-8")
        except BarError:
            raise
        except (OSError, ValueError) as error:
            raise BarError(f"{file}: expected UTF-8 text, got {error}") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise BarError(
            f"{folder / 'tokenizer_config.json'}: chat_template expected a string, got {template!r:.100}"
        )
    return template


def _read_config(file: Path) -> dict:
    return read_object(file, expected="a tokenizer's config") if file.is_file() else {}


def _load_sentencepiece(path: Path) -> SentencePieceText:
    from sentencepiece import SentencePieceProcessor  # here: only such models need the library

    if not path.is_file():
        raise BarError(f"{path}: not found; expected a SentencePiece model")
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise BarError(f"{path}: not a readable SentencePiece model: {str(error).splitlines()[0]}") from None
    eos = processor.eos_id()
    pad = processor.pad_id()
    if eos < 0:
        raise BarError(
            f"{path}: the SentencePiece model has no end-of-sentence piece, which chats and packing need"
        )
    special = {processor.id_to_piece(n): n for n in range(processor.vocab_size()) if processor.is_control(n)}
    bos = processor.bos_id()
    config = _read_config(path.parent / "tokenizer_config.json")
    return SentencePieceText(
        path=path,
        processor=processor,
        eos_id=eos,
        pad_id=pad if pad >= 0 else eos,
        special=special,
        bos=processor.id_to_piece(bos if bos >= 0 else eos),
        eos=processor.id_to_piece(eos),
        begin=(bos,) if bos >= 0 and config.get("add_bos_token") else (),
        template=_chat_template(path.parent, config),
    )


def train_tokenizer(texts: Iterable[str], out: Path | str, *, vocab_size: int) -> BpeText:
    """Trains a byte-level BPE on ``texts`` and writes a folder that transformers.AutoTokenizer loads."""
    out = Path(out)
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (END, PAD)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
        "chat_template": TULU,
    }
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return load_tokenizer(out)
