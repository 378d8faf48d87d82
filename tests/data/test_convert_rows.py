"""Rows of public sets in every shape that is known of them: what they become, and why others are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from data.mirror import SIGNATURE, calling, chat, padded, turn

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.convert import PUBLISHED, NoTokenizer, check_line, convert, reason
from megatron_bar.data.hub import FromHub, HubSet
from megatron_bar.errors import BarError
from megatron_bar.verifiers import VERIFIERS as KNOWN
from megatron_bar.verifiers import verify


def wanted(kind: str, **more) -> FromHub:
    return FromHub(path=Path("x.jsonl"), hub=HubSet(id="some/set"), convert=kind, **more)


def made(kind: str, row: dict, template: str = "olmo", **more) -> dict:
    """What the row becomes, after the checks that a stage makes of the line."""
    into = wanted(kind, **more)
    found = convert(row, into)
    line = json.dumps(found, ensure_ascii=False).encode() + b"\n"
    check_line(line, into, ChatFormat(NoTokenizer(), template), "x:1")
    return found


U, A = turn("user", "Hi"), turn("assistant", "Hello.")
CALL = {"role": "assistant", "function_calls": 'f(x=1, y="a")'}
OBJECT = {"name": "f", "arguments": {"x": 1, "y": "a"}}
CHATS = {
    "plain": ([U, A], [U, A]),
    "null keys": (padded([U, A]), [U, A]),
    "system null": ([turn("system", None), U, A], [turn("system", ""), U, A]),
    "environment null": ([U, CALL, turn("environment", None), A], [U, CALL, turn("environment", ""), A]),
    "empty functions": ([turn("system", "s", functions=""), U, A], [turn("system", "s"), U, A]),
    "functions a list": (
        [turn("system", "s", functions=[{"name": "f"}]), U, A],
        [turn("system", "s", functions='[{"name": "f"}]'), U, A],
    ),
    "a turn that says nothing": (
        [U, A, turn("user", "And?"), turn("assistant", None)],
        [U, A, turn("user", "And?")],
    ),
    "an empty answer": ([U, turn("assistant", ""), U, A], [U, U, A]),
    "calls of texts": (
        [U, {"role": "assistant", "function_calls": ["f(x=1)", "g()"]}],
        [U, {"role": "assistant", "function_calls": "f(x=1)\ng()"}],
    ),
    "calls of objects": ([U, {"role": "assistant", "function_calls": [OBJECT]}], [U, CALL]),
    "calls with arguments as text": (
        [U, {"role": "assistant", "function_calls": [{"name": "f", "arguments": '{"x": 1, "y": "a"}'}]}],
        [U, CALL],
    ),
    "no calls but content": ([U, turn("assistant", "Hello.", function_calls=[])], [U, A]),
}


@pytest.mark.parametrize("name", CHATS)
def test_chats(name):
    messages, expected = CHATS[name]
    assert made("chat", {"id": "1", "messages": messages, "source": "s"}) == {"messages": expected}


def test_published_tool_use_keeps_its_calls_and_what_they_gave():
    messages = made("chat", {"messages": calling(3), "source_dataset": "Dolci Instruct Tool Use"})["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "environment", "assistant"]
    assert messages[0] == {"role": "system", "content": "", "functions": SIGNATURE}
    assert messages[2] == {"role": "assistant", "function_calls": 'get_weather(city="t3")'}


REFUSED = {
    "messages missing": ("chat", {}, "messages must be a list, got NoneType"),
    "messages a dict": ("chat", {"messages": {"role": "user"}}, "messages must be a list, got dict"),
    "messages of text": ("chat", {"messages": json.dumps(chat(1))}, "messages must be a list, got str"),
    "messages empty": ("chat", {"messages": []}, "expected an assistant message"),
    "a message of text": ("chat", {"messages": ["Hi"]}, "message expected with a role and content, got str"),
    "only a question": ("chat", {"messages": [U]}, "expected an assistant message"),
    "only empty answers": (
        "chat",
        {"messages": [U, turn("assistant", None)]},
        "expected an assistant message",
    ),
    "a result last": ("chat", {"messages": [U, CALL, turn("environment", "4")]}, "result"),
    "the assistant first": ("chat", {"messages": [A, U, A]}, "the assistant speaks first"),
    "a user's null": ("chat", {"messages": [turn("user", None), A]}, "message 0: expected a role"),
    "calls of numbers": (
        "chat",
        {"messages": [U, turn("assistant", None, function_calls=[3])]},
        "function_calls expected",
    ),
    "half a character": ("chat", {"messages": [U, turn("assistant", "\ud800")]}, "surrogate"),
    "no data set": ("task", {"messages": [U], "ground_truth": "5"}, "dataset expected as the name of one"),
    "two data sets": (
        "task",
        {"messages": [U], "ground_truth": ["5", "6"], "dataset": ["math", "code"]},
        "dataset expected",
    ),
    "a judge's": (
        "task",
        {"messages": [U], "ground_truth": "5", "dataset": "general-quality"},
        "expected a data set out of",
    ),
    "no truth": ("task", {"messages": [U], "dataset": "math"}, "math truth"),
    "a truth of the wrong kind": (
        "task",
        {"messages": [U], "ground_truth": {"a": 1}, "dataset": "math"},
        "math truth",
    ),
    "a program for a truth": (
        "task",
        {"messages": [U], "ground_truth": "def f(): pass", "dataset": "code"},
        "code truth",
    ),
    "only an answer": (
        "task",
        {"messages": [A], "ground_truth": "5", "dataset": "math"},
        "expected a message before the answer",
    ),
    "a prompt of a number": (
        "task",
        {"prompt": 3, "ground_truth": "5", "dataset": "math"},
        "messages or prompt expected",
    ),
    "text empty": ("text", {"text": " \n"}, "text expected, got an empty one"),
    "text a list": ("text", {"text": ["a"]}, "text expected, got list"),
    "holes in another order": (
        "fim",
        {"text": "<|fim_suffix|>a<|fim_prefix|>b<|fim_middle|>c"},
        "one prefix, suffix and middle",
    ),
    "two holes": (
        "fim",
        {"text": "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>c<|fim_prefix|>d"},
        "one prefix, suffix and middle",
    ),
    "a hole behind text": (
        "fim",
        {"text": "x<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>c"},
        "behind other text",
    ),
    "different questions": (
        "preference",
        {"chosen": [turn("user", "1"), A], "rejected": [turn("user", "2"), A]},
        "the same chat up to its last message",
    ),
    "no rejected answer": ("preference", {"messages": [U], "chosen": "a"}, "rejected"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_can_use_is_refused(name):
    kind, row, message = REFUSED[name]
    with pytest.raises((BarError, UnicodeEncodeError), match=message):
        made(kind, row)


def test_calls_need_a_template_with_a_place_for_them():
    with pytest.raises(BarError, match="template tulu has no place for calls"):
        made("chat", {"messages": [U, CALL]}, "tulu")


TASKS = {
    # columns of the set -> verifier and truth; each is asked what is in Q
    "omega": ({"ground_truth": "5", "dataset": "math"}, "math", "5"),
    "lists": ({"ground_truth": ["5"], "dataset": ["math"]}, "math", "5"),
    "a list and a name": ({"ground_truth": ["5"], "dataset": "math"}, "math", "5"),
    "lists of lists": ({"ground_truth": [["5"]], "dataset": ["MATH"]}, "math", "5"),
    "gsm8k": ({"ground_truth": "5", "dataset": "gsm8k"}, "numeric", "5"),
    "asserts of text": (
        {"ground_truth": '["assert f(1) == 2"]', "dataset": "code"},
        "code",
        ["assert f(1) == 2"],
    ),
    "one assert": (
        {"ground_truth": ["assert f(1) == 2"], "dataset": "ace_coder"},
        "code",
        ["assert f(1) == 2"],
    ),
    "asserts in a list": (
        {"ground_truth": ['["assert f(1) == 2"]'], "dataset": ["code"]},
        "code",
        ["assert f(1) == 2"],
    ),
    "inputs and outputs": (
        {"ground_truth": '[{"input": "1 2", "output": "3"}]', "dataset": "code_stdio"},
        "code",
        {"stdin_tests": [["1 2", "3"]]},
    ),
    "string_matcher": ({"ground_truth": "Oslo", "dataset": "string_matcher"}, "exact", "Oslo"),
}
Q = [turn("user", "What is 2 + 3?")]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    "asked",
    [
        {"messages": Q},
        {"messages": [*Q, turn("assistant", "5")]},
        {"prompt": "user: What is 2 + 3?"},
        {"prompt": "What is 2 + 3?", "messages": None},
        {"prompt": Q},
    ],
    ids=["messages", "answered", "user:", "prompt", "prompt of messages"],
)
def test_tasks(name, asked):
    columns, verifier, truth = TASKS[name]
    row = made("task", asked | columns | {"solution": "5", "difficulty": 0.5})
    assert row == {"messages": Q, "verifier": verifier, "truth": truth}


def test_instructions_keep_their_published_form_and_score_the_share():
    truth = "[{'instruction_id': ['punctuation:no_comma'], 'kwargs': [None]}]"
    row = {"messages": Q, "ground_truth": [truth], "dataset": ["ifeval"], "constraint": "no comma"}
    assert convert(row, wanted("task")) == {
        "messages": Q,
        "verifier": "instruction",
        "truth": {"constraints": truth, "reward": "fraction"},
    }


def test_a_set_that_names_no_verifier_gets_the_tables():
    row = made("task", {"prompt": "user: Hi", "ground_truth": ["5"]}, verifier="math")
    assert (row["verifier"], row["truth"]) == ("math", "5")


def test_only_the_name_in_front_is_taken_off_a_prompt():
    text = "user: Say this.\nuser: again"
    row = made("task", {"prompt": text, "ground_truth": "5", "dataset": "math"})
    assert row["messages"] == [turn("user", "Say this.\nuser: again")]


def test_verifiers_are_ours():
    assert set(PUBLISHED.values()) <= KNOWN.keys()


def test_truths_that_were_converted_grade():
    row = made("task", {"messages": Q, **TASKS["inputs and outputs"][0]})
    program = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
    assert verify(row["verifier"], program, row["truth"]) == 1.0
    assert verify(row["verifier"], program.replace("+", "-"), row["truth"]) == 0.0


def test_texts_and_texts_to_fill_in():
    assert made("text", {"text": "a<|fim_prefix|>", "url": None}) == {"text": "a<|fim_prefix|>"}
    rendered = "<|fim_prefix|>def f():\n<|fim_suffix|>\n<|fim_middle|>    return 1"
    parts = {"prefix": "def f():\n", "suffix": "\n", "middle": "    return 1"}
    assert made("fim", {"text": rendered, "id": "1"}) == parts
    assert made("fim", parts | {"id": "1"}) == parts
    assert made("fim", {"text": "x = 1\n"}) == {"text": "x = 1\n"}


def test_preferences_keep_what_they_were_asked():
    worse = turn("assistant", "No.")
    row = {"prompt": "Hi", "chosen": padded([U, A]), "rejected": padded([U, worse]), "chosen_rating": 4.5}
    assert made("preference", row) == {"chosen": [U, A], "rejected": [U, worse]}


def test_reasons_are_without_what_is_a_rows_own():
    error = BarError("set/x:17: message 3: expected a role of user and text content, got {'role': 'bot'}")
    assert reason(error, "set/x:17") == "message N: expected a role of user and text content"


def test_a_table_that_cannot_be_is_refused():
    good = wanted("task", rows=10)
    for changes, message in (
        ({"column": "source"}, "a column and the values"),
        ({"sample": 11}, "a sample of 1 to rows, got 11 of 10"),
        ({"path": Path("../x.jsonl")}, "a path below the data folder"),
        ({"path": Path("/x.jsonl")}, "a path below the data folder"),
        ({"hub": HubSet(id="../x")}, "hub id expected as owner/name"),
    ):
        with pytest.raises(BarError, match=message):
            replace(good, **changes)
