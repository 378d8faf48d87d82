"""Reasoning gym: procedurally generated puzzles, each scored by its own data set (arXiv 2505.24760, package
reasoning-gym).

truth = {"dataset": name, "entry": {"question", "answer", "metadata"}}, an item of that data set as JSON. The
answer is the text in the last <answer> tags, or without any the whole text. The score is 1 where the data
set's own scorer gives full marks, else 0: what it gives for less pays any text a little (0.01, 0.05), the
length of an answer ("None" holds "on"), or what is nearly as wrong as most (0.99 for a board of other cells).
A text that holds the whole question answers nothing. Quirk: several scorers compare text exactly, several
read the first number or move and leave the rest.

Left out: data sets whose scorers evaluate the answer or the entry as Python, which no text of a model may
reach; they are named in EVALUATED. And those found by a probe (gym_child.py), of entries that the data set
makes and of each entry that is checked: the scorer gives full marks to texts that answer nothing, or less to
the entry's own answer. Scorers run in a process that ends within a second; one that fails or takes longer
gives 0.
"""

import functools
import importlib
import importlib.util
import json

from megatron_bar.errors import BarError
from megatron_bar.verifiers.sandbox import fork_server
from megatron_bar.verifiers.text import visible

EVALUATED = frozenset(
    """binary_matrix bitwise_arithmetic composite countdown intermediate_integration n_queens number_sorting
    polynomial_multiplication puzzle24 simple_integration spiral_matrix string_insertion""".split()
)
LONGEST = 20_000
"""Characters of an answer; no puzzle asks for more."""


def verify(response: str, truth) -> float:
    dataset, entry = _parse_truth(truth)
    answer = answer_in(response)
    is_any = len(answer) <= LONGEST and visible(answer) and str(entry["question"]) not in answer
    return float(bool(is_any) and _ask("is_right", dataset, answer, entry) is True)


def check(truth):
    """Raises also if the scorer is wrong about this entry."""
    dataset, entry = _parse_truth(truth)
    flaw = _ask("flaw_with", dataset, entry)
    if flaw != "":
        raise BarError(
            f"reasoning_gym truth: expected an entry that the scorer of {dataset} can judge, which "
            f"{flaw or 'fails or takes longer than a second'}; found {entry!r:.200}"
        )


def _ask(asked: str, dataset: str, *rest):
    return fork_server.server("gym_child").ask(asked, dataset, *rest)


@functools.cache
def _flaw(dataset: str) -> str:
    """Returns what is wrong with a scorer, "" for nothing; found by a probe, once in a process."""
    return _ask("flaw", dataset) or ""


def answer_in(response: str) -> str:
    start = response.rfind("<answer>")
    if start < 0:
        return response.strip()
    end = response.find("</answer>", start)
    return response[start + len("<answer>") : end if end >= 0 else None].strip()


def _parse_truth(truth) -> tuple[str, dict]:
    fields = isinstance(truth, dict) and truth.keys() == {"dataset", "entry"}
    if not fields or not isinstance(truth["dataset"], str):
        raise BarError(
            f"reasoning_gym truth: expected a dict of dataset (a name) and entry, found {truth!r:.200}"
        )
    dataset = truth["dataset"]
    entry = truth["entry"]
    if dataset in EVALUATED:
        raise BarError(
            "reasoning_gym truth: expected a data set whose scorer evaluates no text as Python, "
            f"found {dataset}"
        )
    if dataset not in _datasets():
        raise BarError(f"reasoning_gym truth: expected a data set of reasoning-gym, found {dataset!r:.100}")
    if flaw := _flaw(dataset):
        raise BarError(
            f"reasoning_gym truth: expected a data set whose scorer can judge, found {dataset}, which {flaw}"
        )
    if not isinstance(entry, dict) or not {"question", "answer", "metadata"} <= entry.keys():
        raise BarError(
            f"reasoning_gym truth: expected an entry with question, answer and metadata, found {entry!r:.200}"
        )
    try:
        json.dumps(entry)
    except (TypeError, ValueError, RecursionError) as error:
        raise BarError(
            f"reasoning_gym truth: expected an entry that JSON can hold, found {entry!r:.200} ({error})"
        ) from error
    return dataset, entry


@functools.cache
def _datasets() -> frozenset[str]:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise BarError(
            "reasoning_gym verifier: package reasoning-gym expected, not found; "
            "pip install 'megatron_bar[gym]'"
        )
    return frozenset(importlib.import_module("reasoning_gym.factory").DATASETS)
