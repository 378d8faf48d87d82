"""The categories of BFCL v3 (Berkeley Function-Calling Leaderboard, Patil et al. 2025), and how they count.

Overall is the mean of three parts. non_live: the mean of its five kinds, of which simple has three languages;
live: the mean of its items; multi_turn: the mean of its categories. Items of v3; the files of v4 have 884 of
live_irrelevance and 16 of live_relevance, two more and two fewer, so as many in all.
"""

from dataclasses import dataclass

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.benchmark import Grade


@dataclass(frozen=True, kw_only=True)
class Category:
    name: str
    part: str
    items: int
    kind: str = "calls"
    """What an answer must be: calls, any (some call), none (no call), turns (a conversation with calls)."""
    weight: float | None = None
    """Weight of its mean in its part; None: the number of its items."""
    language: str = "python"
    v4: str = ""
    """Its name in the files of v4, where that is another."""


def _category(name: str, part: str, items: int, **more) -> Category:
    return Category(name=name, part=part, items=items, **more)


CATEGORIES = (
    _category("simple", "non_live", 400, weight=1 / 3, v4="simple_python"),
    _category("java", "non_live", 100, weight=1 / 3, v4="simple_java", language="java"),
    _category("javascript", "non_live", 50, weight=1 / 3, v4="simple_javascript", language="javascript"),
    _category("multiple", "non_live", 200, weight=1),
    _category("parallel", "non_live", 200, weight=1),
    _category("parallel_multiple", "non_live", 200, weight=1),
    _category("irrelevance", "non_live", 240, weight=1, kind="none"),
    _category("live_simple", "live", 258),
    _category("live_multiple", "live", 1053),
    _category("live_parallel", "live", 16),
    _category("live_parallel_multiple", "live", 24),
    _category("live_irrelevance", "live", 882, kind="none"),
    _category("live_relevance", "live", 18, kind="any"),
    _category("multi_turn_base", "multi_turn", 200, weight=1, kind="turns"),
    _category("multi_turn_miss_func", "multi_turn", 200, weight=1, kind="turns"),
    _category("multi_turn_miss_param", "multi_turn", 200, weight=1, kind="turns"),
    _category("multi_turn_long_context", "multi_turn", 200, weight=1, kind="turns"),
)
BY_NAME = {category.name: category for category in CATEGORIES}
NOT_MEASURED = "not_measured"
"""Key of a grade's detail, with the reason why the item counts for nothing."""


def of(row: dict) -> Category:
    """Returns the category of a row; raises BarError for an unknown one."""
    if row["category"] not in BY_NAME:
        raise BarError(f"bfcl: category one of {', '.join(BY_NAME)} expected, got {row['category']!r:.100}")
    return BY_NAME[row["category"]]


def overall(rows: list[dict], grades: list[Grade]) -> float:
    """Returns the score of all items that were measured; a part without any is left out of the mean."""
    scores: dict[str, list[float]] = {}
    for row, grade in zip(rows, grades, strict=True):
        if NOT_MEASURED not in grade.detail:
            scores.setdefault(of(row).name, []).append(grade.score)
    parts: dict[str, list[tuple[float, float]]] = {}
    for name, values in scores.items():
        weight = BY_NAME[name].weight or len(values)
        parts.setdefault(BY_NAME[name].part, []).append((weight, sum(values) / len(values)))
    if not parts:
        raise BarError("bfcl: no item was measured")
    means = [
        sum(weight * mean for weight, mean in part) / sum(weight for weight, _ in part)
        for part in parts.values()
    ]
    return sum(means) / len(means)
