"""A benchmark as a value: what its rows ask, how an answer scores, how scores add up.

Nothing here samples, asks a server or opens a file; whoever does gives in rows and answers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

Messages = list[dict]
"""A chat as `data.chat.ChatFormat.prompt` takes it."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are drawn. The defaults are the published run's for nearly all benchmarks."""

    temperature: float = 0.6
    top_p: float = 0.95
    answers: int = 1
    """Answers to an item, whose mean is its score."""
    max_new_tokens: int = 4096


class JudgeModel(Protocol):
    """A model that judges answers, behind a server. Its failures are BarErrors, never scores."""

    model: str
    """Name that its server has for it, to be recorded."""

    def complete[Found](self, prompt: str, *, max_tokens: int, read: Callable[[str], Found] = str) -> Found:
        """Returns what ``read`` makes of the greedy continuation of a raw ``prompt``. It raises ValueError
        for one that says nothing; then the model is asked again, some times."""

    def chat(self, messages: Messages, *, max_tokens: int) -> str:
        """Returns the greedy answer to a chat."""

    def first_token(self, messages: Messages, *, top: int = 5) -> dict[str, float]:
        """Returns the log-probabilities of the ``top`` likeliest first tokens of the answer to a chat."""


@dataclass(frozen=True, kw_only=True)
class Grade:
    score: float
    """From 0 to 1."""
    detail: dict = field(default_factory=dict)
    """JSON values that ``combine`` or a reader needs besides."""


def mean(rows: list[dict], grades: list[Grade]) -> float:
    """Returns the mean of all items' scores (micro)."""
    return sum(grade.score for grade in grades) / len(grades)


def mean_by(column: str) -> Callable[[list[dict], list[Grade]], float]:
    """Returns a function to the mean of the means by the value of ``column`` (macro)."""

    def combine(rows: list[dict], grades: list[Grade]) -> float:
        groups: dict[object, list[float]] = {}
        for row, grade in zip(rows, grades, strict=True):
            groups.setdefault(row[column], []).append(grade.score)
        return sum(sum(scores) / len(scores) for scores in groups.values()) / len(groups)

    return combine


@dataclass(frozen=True, kw_only=True)
class PublishedBenchmark:
    name: str
    category: str
    rows: int
    """Rows of the published set, in the file NAME.jsonl of a data folder."""
    columns: tuple[str, ...]
    """What every row must have."""
    ask: Callable[[dict, list[str]], Messages | None]
    """From a row and the answers so far to the next prompt; None when there is nothing more to ask. A row has
    its place in the file, from 0, as ``index``."""
    grade: Callable[[dict, list[str], JudgeModel | None], Grade]
    """From a row, the answers to what was asked one after another (behind their thoughts) and the judge, if
    there is to be one."""
    tools: Callable[[dict], list[dict] | None] = lambda row: None
    """The functions that the chat template is given, in OpenAI's form."""
    combine: Callable[[list[dict], list[Grade]], float] = mean
    """From rows and grades to the benchmark's score."""
    decoding: Decoding = Decoding()
    judge: str | None = None
    """Kind of judge that ``grade`` asks: wildguard, grader or pairwise."""
    metric: str = "accuracy"
    differs: str = ""
    """Difference from what was published."""
    caveat: Callable[[list[dict]], str] = lambda rows: ""
    """From the rows to what they lack for the published metric, shown beside the score; "" for nothing."""


def once(prompt: Callable[[dict], str]) -> Callable[[dict, list[str]], Messages | None]:
    """Returns the ``ask`` of a benchmark of one user turn."""

    def ask(row: dict, answers: list[str]) -> Messages | None:
        return None if answers else [{"role": "user", "content": prompt(row)}]

    return ask
