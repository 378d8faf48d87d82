"""SimpleQA (arXiv 2411.04368): short facts, graded by a model; the harmonic mean of what is right of all and
of what was attempted."""

import re

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.texts import fill, needed, text_of
from megatron_bar.evaluation.benchmarks.benchmark import Grade, JudgeModel, PublishedBenchmark, once
from megatron_bar.verifiers.text import spoken

GRADER = text_of("simpleqa.txt").strip()
REMINDER = GRADER.splitlines()[-1]
VERDICTS = {"A": "correct", "B": "incorrect", "C": "not attempted"}
TRIES = 3


def verdict_of(reply: str) -> str | None:
    """Returns the verdict of a grader that replies with its letter, its word, or both and nothing else."""
    match = re.fullmatch(r"\W*([ABC]\b)?\W*(correct|incorrect|not[_ ]attempted)?\W*", reply, re.IGNORECASE)
    letter, word = match.groups() if match else (None, None)
    verdicts = {VERDICTS[letter.upper()]} if letter else set()
    verdicts |= {word.lower().replace("_", " ")} if word else set()
    return verdicts.pop() if len(verdicts) == 1 else None


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    """An answer without text is not attempted, whoever grades. A reply that gives no verdict is shown to the
    grader once more with the last line of its orders, twice at most."""
    judge = needed(judge, "grader")
    if not answers[0].strip():
        return Grade(score=0.0, detail={"verdict": VERDICTS["C"]})
    orders = fill(GRADER, question=row["problem"], target=row["answer"], predicted_answer=answers[0])
    messages = [{"role": "user", "content": orders}]
    for _ in range(TRIES):
        reply = judge.chat(messages, max_tokens=2048)
        if verdict := verdict_of(spoken(reply)):
            return Grade(score=float(verdict == VERDICTS["A"]), detail={"verdict": verdict})
        messages = [
            *messages,
            {"role": "assistant", "content": reply},
            {"role": "user", "content": REMINDER},
        ]
    raise BarError(f"judge grader: expected A, B or C, found {reply!r:.100} in {TRIES} tries")


def f1(rows: list[dict], grades: list[Grade]) -> float:
    right = sum(grade.score for grade in grades)
    attempted = sum(grade.detail["verdict"] != VERDICTS["C"] for grade in grades)
    return 2 * right / (attempted + len(grades))


BENCHMARK = PublishedBenchmark(
    name="simpleqa",
    category="knowledge",
    rows=4_326,
    columns=("problem", "answer"),
    ask=once(lambda row: row["problem"]),
    grade=grade,
    combine=f1,
    judge="grader",
    metric="F1",
    differs="published with gpt-4.1-2025-04-14 as grader; a reply must be one verdict",
)
