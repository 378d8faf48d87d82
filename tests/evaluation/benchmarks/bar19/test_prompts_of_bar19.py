"""What is asked, to the letter: hashes of what oe-eval (olmes 5a51f50) and alpaca_eval 0.6.6 make of the rows."""

import hashlib

import pytest

from megatron_bar.evaluation.benchmarks.bar19 import (
    agieval_english,
    alpaca_eval,
    bbh,
    gpqa,
    ifeval,
    mmlu,
    popqa,
    simpleqa,
    zebralogic,
)  # fmt: skip

MMLU = {"question": "What colour is chlorophyll?", "subject": "high_school_biology", "answer": 1}
MMLU |= {"choices": ["red", "green", "blue", "grey"]}
GPQA = {"Question": "Which energy?", "Correct Answer": " 4 eV [title]x ", "Incorrect Answer 1": "2  eV"}
GPQA |= {"Incorrect Answer 2": "8 eV [1]", "Incorrect Answer 3": None}
AGIEVAL = {
    "passage": "Read\n\nthis.",
    "question": "2x=6, x=?(A)?",
    "options": ["(A)2", "B. 3", " (C) 4", "D"],
}
ZEBRA = {"id": "lgp-test-2x2-1", "size": "2*2", "puzzle": "There are 2 houses {so}."}
ZEBRA |= {
    "solution": {"header": ["House", "Name", "Pet"], "rows": [["1", "Ann", "cat"], ["2", "Bob", "dog"]]}
}
BBH = [{"task": task, "input": "not ( True ) and ( True ) is"} for task in bbh.TASKS]
PUBLISHED = {
    "mmlu": "9c4b7425b843c185",
    "gpqa": "efc3665776ec4aaf",
    "agieval_english": "f00a4ddeb2e2e7f6",
    "zebralogic": "4c59b43a1f65830e",
    "bbh": "92e7f9ba4fa6d34e",
    "popqa": "31ed3266d657cd9c",
}


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "module, rows",
    [
        (mmlu, [MMLU]),
        (gpqa, [GPQA | {"index": index} for index in range(448)]),
        (agieval_english, [AGIEVAL]),
        (zebralogic, [ZEBRA]),
        (bbh, BBH),
        (popqa, [{"question": "What is Ada Fisk's occupation?"}]),
    ],
)
def test_one_user_turn_to_the_letter(module, rows):
    benchmark = module.BENCHMARK
    asked = [benchmark.ask(row, []) for row in rows]
    assert all(len(messages) == 1 and messages[0]["role"] == "user" for messages in asked)
    assert digest(*(messages[0]["content"] for messages in asked)) == PUBLISHED[benchmark.name]
    assert benchmark.ask(rows[0], ["an answer"]) is None


class Listener:
    """A judge that keeps what it was asked."""

    def __init__(self):
        self.asked: list[list[dict]] = []

    def chat(self, messages, *, max_tokens):
        self.asked.append(messages)
        return "A"

    def first_token(self, messages, *, top=5):
        self.asked.append(messages)
        return {"m": -0.1, "M": -2.3}


def test_what_the_grader_is_asked():
    judge = Listener()
    row = {"problem": "In which year was X {founded}?", "answer": "1903"}
    assert simpleqa.BENCHMARK.ask(row, []) == [{"role": "user", "content": row["problem"]}]
    simpleqa.grade(row, ["It is {so}."], judge)
    assert [[message["role"] for message in asked] for asked in judge.asked] == [["user"]]
    assert digest(judge.asked[0][0]["content"]) == "09c593ee04d3ab8c"


def test_what_the_pairwise_judge_is_asked():
    """In alpaca_eval's order: of these two instructions it shows the first one's answers the other way round."""
    judge = Listener()
    rows = [{"instruction": text, "output": "The Nile."} for text in ("Name three rivers.", "Name a lake.")]
    assert alpaca_eval.BENCHMARK.ask(rows[0], []) == [{"role": "user", "content": "Name three rivers."}]
    for row in rows:
        alpaca_eval.grade(row, ["Mine {output_2}."], judge)
    said = [
        [part for message in asked for part in (message["role"], message["content"])] for asked in judge.asked
    ]
    assert digest(*said[0], *said[1]) == "a2b2f042437770e3"


def test_the_prompt_alone():
    assert ifeval.BENCHMARK.ask({"prompt": "No {commas}.\n"}, []) == [
        {"role": "user", "content": "No {commas}.\n"}
    ]
