"""Texts of growing number, for bench_growth.py: rows to token files, and the tokens of a report's lens."""

import gzip
import random
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "report")]

from bench_data import CORPUS  # noqa: E402
from growth import Quantity, Work  # noqa: E402
from report_example import report  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from megatron_bar.data.preprocess import preprocess  # noqa: E402
from megatron_bar.data.sources import Source  # noqa: E402
from megatron_bar.report.html import html  # noqa: E402

VOCABULARY, LAYERS, TEXTS = 2000, 4, 50


def save_tokenizer(folder: Path, texts: list[str]) -> Path:
    """Byte-level BPE trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY, **options))
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def preprocessing(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    with gzip.open(CORPUS, "rt", encoding="utf-8") as file:
        rows = sorted(file, key=len)
    tokenizer = save_tokenizer(place / "tokenizer", rows[::10])
    made = 0

    def work(count: int) -> Work:
        # Spread evenly over the lengths, so that rows are as long at every size.
        taken = [rows[(2 * n + 1) * len(rows) // (2 * count)] for n in range(count)]
        random.Random(0).shuffle(taken)
        file = place / f"{count}.jsonl"
        file.write_text("".join(taken), encoding="utf-8")

        def run() -> None:
            nonlocal made
            made += 1
            preprocess(Source(path=file, kind="text"), place, tokenizer, place / f"tokens-{made}")

        return Work(size=count, run=run)

    return [work(count) for count in sizes]


def reports(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    def work(tokens: int) -> Work:
        given = report(tokens, layers=LAYERS, texts=TEXTS)
        return Work(
            size=tokens, run=lambda: (place / "report.html").write_text(html(given), encoding="utf-8")
        )

    return [work(tokens) for tokens in sizes]


QUANTITIES = (
    Quantity(
        name="preprocessing",
        over="rows",
        sizes=(58, 117, 233, 467, 934),
        make=preprocessing,
        expected=1,
        why="every row is read, tokenised and written once; the tokenizer is loaded once",
    ),
    Quantity(
        name="report",
        over="tokens of the lens",
        sizes=(8_000, 16_000, 32_000, 64_000, 128_000),
        make=reports,
        expected=1,
        why="every token and its weights are written once; tables and curves stay",
    ),
)
