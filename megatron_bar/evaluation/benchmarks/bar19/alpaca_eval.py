"""AlpacaEval 2 (arXiv 2404.04475): how likely a judge prefers an answer to GPT-4's, answers' lengths being
equal.

What the regression needs besides stands in the rows themselves (`with_gamed`), from df_gamed.csv of the hub's
tatsu-lab/alpaca_eval: an instruction's difficulty, and how the judge took GPT-4's own longer and shorter
answers to it.
"""

import math
import random
from collections.abc import Iterable

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.length_control import Preference, controlled
from megatron_bar.evaluation.benchmarks.bar19.texts import fill, needed, text_of
from megatron_bar.evaluation.benchmarks.benchmark import Grade, JudgeModel, PublishedBenchmark, mean, once

SYSTEM = (
    "You are a highly efficient assistant, who evaluates and selects the best large language model (LLMs) "
    "based on the quality of their responses to a given instruction. This process will be used to create a "
    "leaderboard reflecting the most accurate and human-preferred answers."
)
ORDERS = text_of("alpaca_eval.txt").strip()


def with_gamed(rows: list[dict], gamed: Iterable[dict]) -> list[dict]:
    """Returns rows with ``instruction_difficulty`` and ``gamed``, the preferences and standardised lengths of
    the lines of df_gamed.csv (texts, as csv.DictReader has them) with a row's number as ``index``."""
    lines: dict[int, list[dict]] = {}
    for line in gamed:
        lines.setdefault(int(line["index"]), []).append(line)
    joined = []
    for number, row in enumerate(rows):
        if number not in lines:
            raise BarError(f"df_gamed.csv: expected lines of index {number}, found none")
        terms = [
            [float(line["preference"]), float(line["std_delta_len"])]
            for line in lines[number]
            if line["preference"] != ""
        ]
        difficulty = float(lines[number][0]["instruction_difficulty"])
        joined.append(row | {"instruction_difficulty": difficulty, "gamed": terms})
    return joined


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    """The judge sees the two answers in an order that the instruction draws, as alpaca_eval has it; it isn't
    asked about equal answers, nor about one without text, which loses."""
    judge = needed(judge, "pairwise")
    answer, reference = answers[0], row["output"]
    detail = {"longer": len(reference) - len(answer)}
    if answer == reference or not answer.strip():
        return Grade(score=0.5 if answer == reference else 0.0, detail=detail)
    first = random.Random(f"is_switched_outputs{row['instruction']}0").choices([False, True])[0]
    pair = (answer, reference) if first else (reference, answer)
    orders = fill(ORDERS, instruction=row["instruction"], output_1=pair[0], output_2=pair[1])
    tokens = judge.first_token([{"role": "system", "content": SYSTEM}, {"role": "user", "content": orders}])
    odds = tokens.get("M", -math.inf) - tokens.get("m", -math.inf)
    if math.isnan(odds):
        raise BarError(f"judge pairwise: expected m or M among its first tokens, found {tokens!r:.60}")
    second = 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
    return Grade(score=1 - second if first else second, detail=detail | {"first": first})


def lacks(rows: list[dict]) -> str:
    """Returns why lengths cannot be controlled with these rows, "" where they can."""
    if len(rows) < 10:
        return "fewer than 10 rows: the raw win rate"
    if not all(row.get("gamed") and "instruction_difficulty" in row for row in rows):
        return "rows without df_gamed.csv: the raw win rate"
    return ""


def combine(rows: list[dict], grades: list[Grade]) -> float:
    if lacks(rows):
        return mean(rows, grades)
    preferences = [
        Preference(value=grade.score, longer=grade.detail["longer"], difficulty=row["instruction_difficulty"])
        for row, grade in zip(rows, grades, strict=True)
    ]
    return controlled(preferences, [row["gamed"] for row in rows])


BENCHMARK = PublishedBenchmark(
    name="alpaca_eval",
    category="chat",
    rows=805,
    columns=("instruction", "output"),
    ask=once(lambda row: row["instruction"]),
    grade=grade,
    combine=combine,
    caveat=lacks,
    judge="pairwise",
    metric="length-controlled win rate",
    differs="published with gpt-4.1 as judge",
)
