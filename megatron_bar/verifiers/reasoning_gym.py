"""Reasoning gym: procedurally generated puzzles, each scored by its own data set (arXiv 2505.24760, package
reasoning-gym).

truth = {"dataset": name, "entry": {"question", "answer", "metadata"}}, an item of that data set as JSON. The
answer is the text in the last <answer> tags, or without any the whole text. The score is the data set's own;
quirks: many give a little for a near miss (0.01 for anything, or the share of an answer that is right), and
several compare text exactly.

Left out: data sets whose scorers evaluate the answer or the entry as Python, which no text of a model may
reach; they are named in EVALUATED. Scorers run in a process that ends within a second; one that fails or
takes longer gives 0.
"""

import functools
import importlib
import importlib.util
import json

from megatron_bar.errors import BarError
from megatron_bar.verifiers.sandbox import fork_server

EVALUATED = frozenset(
    """binary_matrix bitwise_arithmetic composite countdown intermediate_integration n_queens number_sorting
    polynomial_multiplication puzzle24 simple_integration spiral_matrix string_insertion""".split()
)
LONGEST = 20_000
"""Characters of an answer; no puzzle asks for more."""


def verify(response: str, truth) -> float:
    dataset, entry = _parse_truth(truth)
    answer = answer_in(response)
    score = fork_server.server("gym_child").ask(dataset, answer, entry) if len(answer) <= LONGEST else None
    return min(max(score, 0.0), 1.0) if score is not None and score == score else 0.0


def check(truth):
    """Raises also if the scorer gives the entry's own answer nothing. Some data sets have entries without
    one."""
    dataset, entry = _parse_truth(truth)
    answer = entry["answer"]
    if isinstance(answer, str) and not fork_server.server("gym_child").ask(dataset, answer, entry):
        raise BarError(
            "reasoning_gym truth: expected an entry whose own answer scores, "
            f"found {entry!r:.200} of {dataset}"
        )


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
