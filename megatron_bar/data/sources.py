"""Where rows come from, and which are taken: JSONL (plain, .gz, .zst), Parquet, folders, ``datasets``.

A row is text ``{"text"}``, or a text with a hole to be filled in, ``{"prefix", "suffix", "middle"}``; in kind
fim a text spells the special tokens of filling in and means them, elsewhere they are text as any other. Or it
is a chat ``{"messages"}`` (with ``"tools"`` if any); a task ``{"messages", "verifier", "truth"}``, called
``prompt``, ``dataset`` and ``ground_truth`` in published sets, which is understood too. A task's messages may
end with the reference answer, as published sets have it: no prompt shows it. Or a preference ``{"messages",
"chosen", "rejected"}``: what was asked, a better and a worse answer, each a text or a list of the one
message; as published preference sets have it, ``chosen`` and ``rejected`` may be whole chats that differ in
the last message. Every row is checked; a bad one is named by file and line, and stops the work unless the
caller collects such errors. Token files (.bin/.idx, indexed.py) are sources too, and have no rows of this
kind.
"""

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Literal

import pyarrow
import pyarrow.parquet

from megatron_bar.config.names import IS_NAME
from megatron_bar.data.indexed import read_indexed
from megatron_bar.errors import BarError
from megatron_bar.weights.json_file import loads, no_duplicates, read_object, why
from megatron_bar.weights.regular import bounded_memory, open_regular, require_inside

Kind = Literal["text", "fim", "chat", "task", "preference", "tokens"]
KEYS: dict[str, dict[str, type]] = {
    "text": {"text": str},
    "fim": {"text": str},
    "hole": {"prefix": str, "suffix": str, "middle": str},
    "chat": {"messages": list},
    "task": {"messages": list, "verifier": str, "truth": object},
    "preference": {"messages": list, "chosen": object, "rejected": object},
}
"""Keys that a row of each kind must have, and their types; hole: the other form of a text."""
TEXTS = ("text", "fim")
"""Kinds of which every token is learnt."""
ANSWERED = "answered"
"""Key of a parsed task: the assistant's turns at the end of its messages, which are no part of the prompt."""
ANSWERS = ("chosen", "rejected")
"""Keys of a preference's answers; in a checked row each is a message."""
PUBLISHED = {
    "gsm8k": "numeric",
    "math": "math",
    "code": "code",
    "ace_coder": "code",
    "acecoder": "code",
    "code_stdio": "code",
    "ifeval": "instruction",
    "ifeval_old": "instruction",
    "string_matcher": "exact",
}
"""Verifiers by the ``dataset`` that a published RLVR row names (open-instruct); other names are graded by a
model there."""
BATCH = 16
"""Rows that are in memory together, of which each may be long."""
LONGEST_ROW = 16 << 20
"""Bytes of a row's line; a book has 1 MB."""
MOST_COMPRESSED = 200
"""Bytes of a column or of lines that one compressed byte may stand for."""
MOST_BLANK = 1 << 20
"""Blank lines that follow one another."""
MEMORY = 768 << 20
"""Bytes that a few rows of Parquet or Arrow take when they are read, besides their file."""
RESULTS = ("tool", "environment")
"""Roles whose messages are what a call gave."""
_LINES = re.compile(r"\.jsonl?(\.gz|\.zst)?$")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file, folder or hub data set, and the rows of it that are used."""

    path: Path = field(metadata=IS_NAME)
    """Path relative to the recipe's data folder unless absolute; ``name#500`` takes the first 500 rows. What
    is not there is looked for on the Hugging Face hub (``owner/name`` or ``owner/name:split``). Kind tokens:
    the prefix of a .bin and .idx."""
    kind: Kind
    domain: str = field(default="", metadata=IS_NAME)
    """The name its share is logged under; the file's name if empty. SFT wants one source of the domain
    ``general``."""
    share: float = 1.0
    """Fraction of the rows in a seeded sample, of at least one; the same rows for the same seed."""
    last_turn: bool = False
    """Whether a chat's last answer alone is learnt."""

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise BarError(f"source {self.path}: share must be within 0 and 1, got {self.share}")

    @property
    def limit(self) -> int | None:
        """Number of rows from the start that may be taken; None: all."""
        _, mark, tail = self.path.name.rpartition("#")
        return int(tail) if mark and tail.isdecimal() else None

    @property
    def place(self) -> Path:
        """The path without its ``#500``."""
        return self.path if self.limit is None else self.path.with_name(self.path.name.rpartition("#")[0])

    @property
    def name(self) -> str:
        return self.domain or re.sub(r"(\.jsonl?)?(\.gz|\.zst)?(\.parquet)?$", "", self.place.name)


Raw = tuple[str, bytes | dict]
"""Where a row stands (file:line), and its unread line or its values."""


def raw_rows(source: Source, root: Path) -> Iterator[Raw]:
    """Yields every row of ``source`` up to its limit, in order."""
    path = Path(root) / source.place
    limit = source.limit
    taken = 0
    for row in islice(_rows(path, str(source.place)), limit):
        yield row
        taken += 1
    if taken == 0:
        raise BarError(f"{path}: expected at least one row, got none")
    if limit is not None and taken < limit:
        raise BarError(f"{path}: expected {limit} rows, as asked for by #{limit}, got {taken}")


def identity(source: Source, root: Path) -> dict[str, list]:
    """Returns size and time of change of every file of ``source``, by its name below the source's place; of a
    data set on the hub, what `datasets` knows it by. Other rows have another identity."""
    path = Path(root) / source.place
    if not path.exists() and _is_hub_name(str(source.place)):
        return {str(source.place): [_hub_dataset(str(source.place))._fingerprint]}
    found = {}
    for file in _files(path) if path.is_dir() else [path]:
        if not file.exists():
            raise _not_found(path)
        stat = file.stat()
        found[str(file.relative_to(path))] = [stat.st_size, stat.st_mtime_ns]
    return found


def taken_rows(source: Source, root: Path, *, seed: int) -> Iterable[int] | None:
    """Returns the numbers, from 0 and rising, of the rows that ``source.share`` takes; None: all of them."""
    if source.share == 1:
        return None
    total = sum(1 for _ in raw_rows(source, root))
    count = max(1, round(source.share * total))
    return sorted(Random(f"{seed}/{source.place}").sample(range(total), count))


def chosen_rows(source: Source, root: Path, *, seed: int) -> Iterator[Raw]:
    """Yields the rows that are used, in order."""
    numbers = taken_rows(source, root, seed=seed)
    if numbers is None:
        yield from raw_rows(source, root)
        return
    wanted = set(numbers)
    for number, row in enumerate(raw_rows(source, root)):
        if number in wanted:
            yield row


def check(source: Source, root: Path) -> None:
    """Raises unless the source is there and its first row is right: before hours of work that precede it."""
    if source.kind == "tokens":
        read_indexed(Path(root) / source.place)
        return
    where, raw = next(raw_rows(source, root))
    parse(raw, source.kind, where)


def read_rows(source: Source, root: Path, *, seed: int = 0) -> list[tuple[str, dict]]:
    """Returns (where, checked row) of the rows that are used, in memory; for tasks and tests."""
    return [(where, parse(raw, source.kind, where)) for where, raw in chosen_rows(source, root, seed=seed)]


def parse(raw: bytes | dict, kind: Kind, where: str) -> dict:
    """Returns the row, with the keys and types that its kind needs."""
    if isinstance(raw, bytes):
        try:
            # Some editors put a mark of the byte order before the first line.
            text = raw.decode("utf-8").rstrip("\r\n").removeprefix("\ufeff")
            row = loads(text, object_pairs_hook=no_duplicates)
        except (ValueError, RecursionError) as error:
            raise BarError(f"{where}: not a JSON row: {why(error)}") from None
    else:
        row = raw
    if not isinstance(row, dict):
        raise BarError(f"{where}: expected a row with {', '.join(KEYS[kind])}, got {type(row).__name__}")
    if kind == "task" and "ground_truth" in row:
        row = _from_published(row, where)
    if kind == "preference":
        row = _from_whole_chats(row, where)
    form = _form(row, kind, where)
    for key, wanted in KEYS[form].items():
        if key not in row:
            raise BarError(
                f"{where}: expected a row with {', '.join(KEYS[form])}; "
                f"{key} is missing, got {list(row)!r:.100}"
            )
        if not isinstance(row[key], wanted):
            raise BarError(f"{where}: {key} must be {_called(wanted)}, got {type(row[key]).__name__}")
    if kind == "task":
        return _without_answer(row, where)
    if kind == "preference":
        if row["messages"] and _role(row["messages"][-1]) == "assistant":
            raise BarError(f"{where}: messages expected what was asked, got an answer of the assistant last")
        row = row | {name: _answer(row[name], f"{where}: {name}") for name in ANSWERS}
    return row


def _form(row: dict, kind: Kind, where: str) -> str:
    """Returns the key of `KEYS` that says what the row must have."""
    if kind not in TEXTS or not KEYS["hole"].keys() <= row.keys():
        return kind
    if row.get("text") is not None:
        raise BarError(f"{where}: expected text, or prefix, suffix and middle, got all of them")
    return "hole"


def _without_answer(row: dict, where: str) -> dict:
    """Returns the task with the assistant's turns at its end apart, since a prompt that shows the answer
    measures nothing and teaches to copy."""
    messages = row["messages"]
    asked = len(messages)
    while asked and _role(messages[asked - 1]) == "assistant":
        asked -= 1
    if not asked:
        what = "the assistant's alone" if messages else "none"
        raise BarError(f"{where}: messages expected what is asked, got {what}")
    if _role(messages[asked - 1]) in RESULTS:
        raise BarError(
            f"{where}: messages expected what is asked last, got a result ({_role(messages[asked - 1])}), "
            "behind a call that the prompt would show"
        )
    if asked == len(messages):
        return row
    return row | {"messages": messages[:asked], ANSWERED: messages[asked:]}


def _from_published(row: dict, where: str) -> dict:
    """Translates a row of open-instruct's form into ours."""
    row = dict(row)
    truth = row.pop("ground_truth")
    source = row.pop("dataset", None)
    if isinstance(row.get("prompt"), str):
        row.setdefault("messages", [{"role": "user", "content": _asked(row["prompt"], where)}])
    elif isinstance(row.get("prompt"), list):
        row.setdefault("messages", row["prompt"])
    if "verifier" not in row:
        name = source[0] if isinstance(source, list) and len(source) == 1 else source
        if not isinstance(name, str) or name.lower() not in PUBLISHED:
            known = ", ".join(PUBLISHED)
            raise BarError(
                f"{where}: expected a verifier, or a dataset out of {known} beside ground_truth, "
                f"got {source!r:.100}"
            )
        row["verifier"] = PUBLISHED[name.lower()]
    in_list = isinstance(truth, list) and len(truth) == 1 and isinstance(source, list)
    return row | {"truth": truth[0] if in_list else truth}


def _asked(prompt: str, where: str) -> str:
    """Returns a published prompt without the role that open-instruct writes before each turn of a chat."""
    if not prompt.startswith("user: "):
        return prompt
    if "\nassistant: " in prompt:
        raise BarError(f"{where}: prompt expected a question, got a chat of several turns in one text")
    return prompt.removeprefix("user: ")


def _from_whole_chats(row: dict, where: str) -> dict:
    """Translates a preference of whole chats, whose first message is no answer, into our form."""
    chosen, rejected = (row.get(name) for name in ANSWERS)
    if not _is_whole_chat(chosen) or not _is_whole_chat(rejected):
        return row
    if chosen[:-1] != rejected[:-1]:
        got = f"{len(chosen)} and {len(rejected)} messages, of which others differ too"
        raise BarError(
            f"{where}: chosen and rejected expected to be the same chat up to its last message, got {got}"
        )
    return row | {"messages": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _is_whole_chat(value) -> bool:
    return isinstance(value, list) and bool(value) and _role(value[0]) not in (None, "assistant")


def _answer(value, where: str) -> dict:
    """Returns an answer as a message."""
    if isinstance(value, str):
        return {"role": "assistant", "content": value}
    if isinstance(value, list) and len(value) == 1 and _role(value[0]) == "assistant":
        return value[0]
    raise BarError(
        f"{where}: expected a text, or a list of one message of the assistant's, got {value!r:.100}"
    )


def _role(message) -> str | None:
    return message.get("role") if isinstance(message, dict) else None


def _called(wanted: type) -> str:
    return {str: "a string", list: "a list"}[wanted]


def _rows(path: Path, name: str) -> Iterator[Raw]:
    if path.is_dir():
        return _folder_rows(path)
    if not path.exists():
        if _is_hub_name(name):
            return _dataset_rows(_hub_dataset(name), name)
        raise _not_found(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if _LINES.search(path.name):
        return _line_rows(path)
    raise BarError(f"{path}: expected .jsonl, .jsonl.gz, .jsonl.zst or .parquet, got {path.suffix!r}")


def _not_found(path: Path) -> BarError:
    return BarError(
        f"{path}: not found; expected a JSONL or Parquet file, a folder of them, "
        "or a hub data set (owner/name), got none"
    )


def _is_hub_name(name: str) -> bool:
    is_file = _LINES.search(name) or name.endswith(".parquet")
    return not is_file and re.fullmatch(r"[\w.-]+/[\w.-]+(:\w+)?", name) is not None


def _is_saved(path: Path) -> bool:
    """Returns whether `datasets` saved the folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _files(path: Path) -> list[Path]:
    """Returns the files of a folder that hold its rows, in their order."""
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file())
    except (OSError, RecursionError) as error:
        raise BarError(f"{path}: expected a folder of data, got one that cannot be read: {error}") from None
    for file in files:
        require_inside(file, path)
    if _is_saved(path):
        return files
    return [file for file in files if file.suffix == ".parquet" or _LINES.search(file.name)]


def _folder_rows(path: Path) -> Iterator[Raw]:
    if _is_saved(path):
        _check_saved(path)
        from datasets import load_from_disk  # here: it takes a second, and few sources need it

        with bounded_memory(MEMORY):  # compressed batches are read at once
            dataset = _library(path, partial(load_from_disk, str(path)))
        yield from _dataset_rows(dataset, str(path))
        return
    files = _files(path)
    if not files:
        raise BarError(
            f"{path}: expected JSONL or Parquet files, or a data set saved by datasets, found none"
        )
    for file in files:
        yield from _rows(file, file.name)


def _check_saved(path: Path) -> None:
    """Raises unless what `datasets` would open is in the folder: its library follows any name, and a URL."""
    if (path / "dataset_dict.json").is_file():
        splits = read_object(path / "dataset_dict.json", expected="splits").get("splits")
        got = ", ".join(map(str, splits)) if isinstance(splits, list) else "none"
        raise BarError(f"{path}: expected one split, got {got}; name the folder of the split")
    files = {file.name: file.stat().st_size for file in _files(path) if file.parent == path}
    state = read_object(path / "state.json", expected="a saved data set")
    read_object(path / "dataset_info.json", expected="a saved data set's description")
    for key in ("_data_files", "_indices_data_files"):
        entries = state.get(key) or []
        names = [entry.get("filename") if isinstance(entry, dict) else entry for entry in entries]
        if wrong := [name for name in names if not isinstance(name, str) or name not in files]:
            raise BarError(f"{path}: {key} expected files of this folder, got {wrong[0]!r:.200}")


def _hub_dataset(name: str):
    from datasets import load_dataset  # as above

    repository, _, split = name.partition(":")
    return _library(name, partial(load_dataset, repository, split=split or "train"))


def _library(name: Path | str, load):
    try:
        return load()
    except Exception as error:  # noqa: BLE001  the library raises anything
        raise BarError(
            f"{name}: datasets cannot load it: {type(error).__name__}: {' '.join(str(error).split()):.200}"
        ) from None


def _dataset_rows(dataset, name: str) -> Iterator[Raw]:
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise BarError(f"{name}: expected one split, got {', '.join(dataset)}; name the folder of the split")
    number = 0
    # As Arrow keeps them: a picture or a sound would be decoded, from wherever the row says that it lies.
    tables = dataset.with_format("arrow").iter(batch_size=BATCH)
    while rows := _library(name, partial(_next_rows, tables, MEMORY)):
        for row in rows:
            number += 1
            yield f"{name}:{number}", row


def _next_rows(batches: Iterator, most: int) -> list[dict]:
    """Returns the rows of the next table or batch, none at the end; ``most``: bytes that they may take.

    What Arrow reads may be far larger than its file, and may point anywhere.
    """
    with bounded_memory(most):
        batch = next(batches, None)
        if batch is None:
            return []
        batch.validate(full=True)
        return batch.to_pylist()


def _require_honest_sizes(path: Path, metadata: pyarrow.parquet.FileMetaData) -> None:
    """Raises for columns that are far smaller in the file than in memory, as no text is."""
    for group in range(metadata.num_row_groups):
        columns = metadata.row_group(group)
        for number in range(columns.num_columns):
            column = columns.column(number)
            most = max(BATCH * LONGEST_ROW, MOST_COMPRESSED * column.total_compressed_size)
            if column.total_uncompressed_size > most:
                raise BarError(
                    f"{path}: column {column.path_in_schema!r:.100}: expected at most {most} bytes of "
                    f"{column.total_compressed_size} compressed ones, got {column.total_uncompressed_size}"
                )


def _parquet_rows(path: Path) -> Iterator[Raw]:
    number = 0
    try:
        open_regular(path).close()
        with pyarrow.parquet.ParquetFile(path) as file:
            _require_honest_sizes(path, file.metadata)
            batches = file.iter_batches(batch_size=BATCH, use_threads=False)
            left = max(BATCH * LONGEST_ROW, MOST_COMPRESSED * path.stat().st_size)
            while rows := _next_rows(batches, MEMORY + 2 * path.stat().st_size):
                for row in rows:
                    number += 1
                    texts = sum(len(text) for text in row.values() if isinstance(text, str))
                    left -= texts
                    if texts > LONGEST_ROW or left < 0:
                        most = f"{LONGEST_ROW}, and {MOST_COMPRESSED} of a compressed one"
                        raise BarError(f"{path}:{number}: expected a row of at most {most} bytes, got more")
                    yield f"{path}:{number}", row
    except MemoryError:
        raise BarError(
            f"{path}:{number + 1}: expected {BATCH} rows of at most {MEMORY} bytes, got more"
        ) from None
    except BarError:
        raise
    except Exception as error:  # noqa: BLE001  the library raises anything
        problem = " ".join(str(error).split())
        raise BarError(
            f"{path}: expected Parquet, got a file that is not readable after row {number}: {problem:.200}"
        ) from None


def _line_rows(path: Path) -> Iterator[Raw]:
    number = blank = 0
    left = max(BATCH * LONGEST_ROW, MOST_COMPRESSED * path.stat().st_size)
    try:
        open_regular(path).close()
        with _open(path) as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_ROW + 1), b""), 1):
                left -= len(line)
                if left < 0:
                    raise BarError(
                        f"{path}:{number}: expected at most {MOST_COMPRESSED} bytes of a compressed one, "
                        "got more"
                    )
                if len(line) > LONGEST_ROW:
                    raise BarError(
                        f"{path}:{number}: expected a row of at most {LONGEST_ROW} bytes, got more"
                    )
                blank = blank + 1 if line.isspace() else 0
                if blank > MOST_BLANK:
                    raise BarError(f"{path}:{number}: expected at most {MOST_BLANK} blank lines, got more")
                if not blank:
                    yield f"{path}:{number}", line
    except (EOFError, gzip.BadGzipFile, zlib.error, pyarrow.ArrowException, OSError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BarError(
            f"{path}: expected a whole file, got one broken after line {number}: {problem:.200}"
        ) from None


def _open(path: Path):
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        return io.BufferedReader(pyarrow.CompressedInputStream(path, "zstd"), 1 << 20)
    return path.open("rb")
