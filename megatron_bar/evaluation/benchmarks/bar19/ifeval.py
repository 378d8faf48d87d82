"""IFEval (arXiv 2311.07911): all of a prompt's instructions are followed, each by the answer or by one of its
forms without the first line, the last line or stars. One without a letter or digit follows none."""

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.benchmark import Grade, JudgeModel, PublishedBenchmark, once
from megatron_bar.verifiers import instruction
from megatron_bar.verifiers.ifeval import IFEVAL
from megatron_bar.verifiers.text import says_something, seen

LONGEST = 65_536
"""Characters of an answer that is graded; one of 4,096 tokens has about 20,000."""


def forms(answer: str) -> list[str]:
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [form for form in dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]) if form.strip()]


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    truth = {"instruction_id_list": row["instruction_id_list"], "kwargs": row["kwargs"]}
    constraints = instruction.check(truth)
    if unknown := [kind for kind, _ in constraints if kind not in IFEVAL]:
        raise BarError(f"instruction_id_list: expected the published 25, found {unknown[0]}")
    answer = seen(answers[0])
    written = forms(answer) if len(answer) <= LONGEST and says_something(answer) else []
    followed = [any(IFEVAL[kind](form, **fields) for form in written) for kind, fields in constraints]
    return Grade(score=float(all(followed)), detail={"followed": followed})


BENCHMARK = PublishedBenchmark(
    name="ifeval",
    category="chat",
    rows=541,
    columns=("prompt", "instruction_id_list", "kwargs"),
    ask=once(lambda row: row["prompt"]),
    grade=grade,
    metric="prompt-level loose accuracy",
    differs="a sign in the place of a letter is counted, where the published scorer draws a letter; an "
    "answer without a letter or digit follows nothing",
)
