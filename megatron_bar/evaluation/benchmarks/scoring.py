"""What stored answers score. It needs no model, and can be done again and again."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.answers import Answer, Unit
from megatron_bar.evaluation.benchmarks.benchmark import Grade, JudgeModel, mean
from megatron_bar.evaluation.benchmarks.items import Items, said
from megatron_bar.report.bootstrap import Estimate, mean_interval, statistic_interval

QUESTIONS = 32
"""Questions to a judge under way at a time."""


def score(items: Items, answers: Mapping[Unit, Answer], judge: JudgeModel | None) -> tuple[dict, list[dict]]:
    """Returns the benchmark's score with its 95 % interval and what is to be known of it, and for each item
    prompt, answer (the first) and score."""
    benchmark = items.benchmark
    units = items.units
    # Programs and mathematics are graded in processes of their own, so threads use all cores.
    threads = QUESTIONS if benchmark.judge else len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        futures = {unit: pool.submit(_grade, items, unit, answers[unit], judge) for unit in units}
        try:
            grades = {unit: future.result() for unit, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    of_items = [
        _mean_of([grades[row["index"], n] for n in range(items.decoding.answers)]) for row in items.rows
    ]
    estimate = _estimate(items, of_items)
    entry = {
        "score": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "metric": benchmark.metric,
        "items": len(items.rows),
        "answers": items.decoding.answers,
        "cut": sum(
            not answer.too_long and not answer.turns[-1].finished for answer in map(answers.get, units)
        ),
        "too_long": sum(answers[unit].too_long for unit in units),
        "differs": _differs(items),
    }
    scored = [_scored(items, row, answers, grade) for row, grade in zip(items.rows, of_items, strict=True)]
    return entry, scored


def _grade(items: Items, unit: Unit, answer: Answer, judge: JudgeModel | None) -> Grade:
    """Returns the grade of an answer. Where a prompt was too long for the model it is an empty one."""
    row = items.by_index[unit[0]]
    where = f"{items.benchmark.name}: item {unit[0]}, answer {unit[1]}"
    texts = [said(turn.text) for turn in answer.turns]
    try:
        grade = items.benchmark.grade(row, texts or [""], judge)
    except BarError as error:
        raise BarError(f"{where}: {error}") from None
    if not 0 <= grade.score <= 1:
        raise ValueError(f"{where}: expected a score from 0 to 1, got {grade.score}")
    return grade


def _mean_of(grades: list[Grade]) -> Grade:
    """Returns the grade of an item by those of its answers."""
    if len(grades) == 1:
        return grades[0]
    scores = [grade.score for grade in grades]
    return Grade(score=sum(scores) / len(scores), detail={"scores": scores})


def _estimate(items: Items, grades: list[Grade]) -> Estimate:
    """Returns the benchmark's score with its interval over the items."""
    combine = items.benchmark.combine
    if combine is mean:
        return mean_interval([[grade.score for grade in grades]])

    def of(chosen: np.ndarray) -> float:
        return combine([items.rows[n] for n in chosen], [grades[n] for n in chosen])

    return statistic_interval(of, len(grades))


def _differs(items: Items) -> str:
    """Returns in what the score differs from the published one."""
    benchmark = items.benchmark
    greedy = "" if items.decoding == benchmark.decoding else "greedy, one answer to an item"
    return "; ".join(part for part in (benchmark.differs, benchmark.caveat(items.rows), greedy) if part)


def _scored(items: Items, row: dict, answers: Mapping[Unit, Answer], grade: Grade) -> dict:
    first = answers[row["index"], 0]
    prompt = items.messages(row, ())[-1]["content"]
    answer = "\n\n".join(turn.text for turn in first.turns)
    detail = {"detail": grade.detail} if grade.detail else {}
    return {"prompt": prompt, "answer": answer, "score": grade.score, **detail}
