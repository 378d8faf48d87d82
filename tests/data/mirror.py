"""An invented mirror of hub data sets: the sets that the published recipe reads, a few rows each, in the shapes
that their real rows have, and rows that nobody can use."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from megatron_bar.data.hub import FromHub
from megatron_bar.recipes import published

SIGNATURE = '[{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]'
ROWS = 12
"""Of every file that is made."""


def turn(role: str, content: str | None, **more) -> dict:
    return {"role": role, "content": content, **more}


def chat(n: int) -> list[dict]:
    return [turn("user", f"What is {n} + {n}? größer 😀"), turn("assistant", f"{2 * n}")]


def calling(n: int) -> list[dict]:
    """As published tool use: null contents, null keys, calls as text."""
    nothing = {"functions": None, "function_calls": None}
    return [
        turn("system", None if n % 2 else "You may call.", **nothing | {"functions": SIGNATURE}),
        turn("user", f"Weather in town {n}?", **nothing),
        turn("assistant", None, **nothing | {"function_calls": f'get_weather(city="t{n}")'}),
        turn("environment", None if n % 3 == 0 else '{"temp": 4}', **nothing),
        turn("assistant", None, **nothing),  # says nothing: dropped
        turn("assistant", f"{n} degrees.", **nothing),
    ]


def padded(messages: list[dict]) -> list[dict]:
    """With the null keys that Parquet gives every message of such a set."""
    return [{"functions": None, "function_calls": None} | message for message in messages]


def rl_row(n: int, source: str) -> dict:
    return {
        "id": f"{source}-{n}",
        "prompt": f"user: What is {n} * 7?",
        "ground_truth": [str(7 * n)],
        "dataset": ["math"],
        "dataset_source": source,
        "outputs": [f"{7 * n}", "no idea"],
        "passrate": 0.5,
        "solution": None,
    }


def code_row(n: int) -> dict:
    tests = [f"assert f({n}, 1) == {n + 1}", f"assert f(0, {n}) == {n}, 'a message'"]
    return {
        "messages": [
            turn("user", f"Write f, which adds, for task {n}."),
            turn("assistant", "def f(a, b): ..."),
        ],
        "ground_truth": json.dumps(tests),
        "dataset": "code" if n % 2 else "ace_coder",
        "solution": "def f(a, b): ...",
        "difficulty": n % 4,
        "id": f"code-{n}",
    }


def fim(n: int) -> dict:
    if n % 5 == 0:
        return {"id": str(n), "text": f"x = {n}\n"}
    text = f"<|fim_prefix|>def f{n}():\n<|fim_suffix|>\n    return x\n<|fim_middle|>    x = {n}"
    return {"id": str(n), "text": text, "metadata": {"lang": "Python"}}


def text(n: int) -> dict:
    return {"id": str(n), "text": f"Theorem {n}. Of {n} numbers one is largest.\n", "url": None, "score": 4.2}


def rows_of(row: FromHub, count: int = ROWS) -> list[dict]:
    """Rows as the set has them, of which the file ``row`` is made."""
    value = {row.column: row.values[0]} if row.column else {}
    if row.convert == "text":
        return [text(n) for n in range(count)]
    if row.convert == "fim":
        return [fim(n) for n in range(count)]
    if row.hub == published.DOLCI_RL:
        return [rl_row(n, row.values[0]) for n in range(count)]
    if row.convert == "task":
        return [code_row(n) for n in range(count)]
    if row.hub == published.DOLCI:
        of_tools = "tool_use" in row.name
        return [
            {
                "id": str(n),
                "messages": calling(n) if of_tools else padded(chat(n)),
                row.column: row.values[n % len(row.values)],
                "domain": "x",
            }
            for n in range(count)
        ]
    return [{"id": f"{n}", "messages": chat(n), **value} for n in range(count)]


def write(path: Path, rows: Sequence[dict]) -> None:
    """Writes rows in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return
    data = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    if path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(path, "zstd") as file:
            file.write(data)
        return
    path.write_bytes(data)


PLACES = {
    "HuggingFaceTB/finemath": ["finemath-4plus/train-{n:05d}-of-00002.parquet"],
    "allenai/dolma3_dolmino_pool": ["data/stack_edu_fim-Python_{n:04d}/shard_{n:08d}.jsonl.zst"],
    "tokyotech-llm/swallow-code": ["ablation/exp11-scor/jsonl/train_{n:04d}.jsonl"],
}
MATH_PLACES = {
    "persona_math_v5": "data/math/tulu_math/personahub_math_v5/train_{n:04d}.jsonl",
    "gsm8k_synth": "data/math/dolmino_math_synth/gsm8k-synth/resample_v1_6x/x{n}.jsonl",
    "gsm_mind": "data/math/dolmino_math_synth/gsm_mind/debate/concat_train.0{n}.jsonl",
    "mathcoder2_synthmath": "data/math/mathcoder2-synthmath/m-a-p_Matrix/filtered-math/book.{n:04d}.jsonl",
    "tinygsm_problem_solving": "data/math/tinyGSM-MIND/problem-solving/part{n}.jsonl.gz",
    "tinygsm_2students": "data/math/tinyGSM-MIND/2students/part{n}.jsonl.gz",
}
OTHER_ROWS = {
    published.TULU.id: {"id": "other", "messages": chat(1), "source": "another/set"},
    published.DOLCI.id: {
        "id": "other",
        "messages": padded(chat(1)),
        "source_dataset": "Logic Puzzles",
        "domain": "y",
    },
    published.DOLCI_RL.id: rl_row(3, "another/set"),
}
"""Rows of the mixed sets that no file takes."""


def make_mirror(folder: Path, table: Sequence[FromHub], count: int = ROWS) -> Path:
    """Writes two files of every set that ``table`` reads, the rows of a mixed set in turn."""
    for hub in dict.fromkeys(row.hub for row in table):
        wanted = [row for row in table if row.hub == hub]
        mixed = [row for row in wanted if row.column]
        if mixed:
            rows = [found[n] for n in range(count) for found in [rows_of(row, count) for row in mixed]]
            rows += [OTHER_ROWS[hub.id]] * 2
            halves(folder / hub.id, "data/train-{n:05d}-of-00002.parquet", rows)
            continue
        for row in wanted:
            place = (
                MATH_PLACES.get(Path(row.name).name) or PLACES.get(hub.id, ["data/train-{n:05d}.jsonl"])[0]
            )
            halves(folder / hub.id, place, rows_of(row, count))
        (folder / hub.id / "README.md").write_text("what the set is")
    return folder


def halves(folder: Path, place: str, rows: list[dict]) -> None:
    middle = len(rows) // 2
    for n, part in enumerate((rows[:middle], rows[middle:])):
        write(folder / place.format(n=n), part)
