"""BFCL's 4,441 items of the package bfcl-eval: counts, wanted calls, others', and BFCL's own checkers on the same
calls. Conversations run in the sandbox; BFCL's checker of them runs the truth's calls and mutations of them."""

import json
import random
from collections import Counter

import pytest
from bfcl_items import answers_of, items, of_kind, reference, wanted_calls, wanted_turns, written
from olmo_items import sampled
from tokenizers import Tokenizer

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer, train_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.bfcl import BENCHMARK, calls, categories, rows, turns
from megatron_bar.evaluation.benchmarks.benchmark import Grade
from megatron_bar.verifiers import spelled

IMPOSSIBLE = {
    "simple_java_36": "an element of type any is a text, and the only possible value is True",
    "simple_java_65": "an element of type any is a text, and the only possible value is True",
    "live_simple_106-63-0": "a required argument has no possible value",
    "live_simple_112-68-0": "a required argument has no possible value",
    "live_multiple_862-181-3": "the wanted function is none of those offered",
    "live_multiple_964-207-0": "the wanted argument is none of the function's",
}
"""Items that no answer fits, by BFCL's own checker either."""
OTHER_COUNTS = {"live_irrelevance": 884, "live_relevance": 16}
"""Items of v4's files where they are not v3's."""


def score(row: dict, *answers: str) -> float:
    return BENCHMARK.grade(row, list(answers), None).score


def test_every_category_has_the_items_of_v3_but_for_two():
    found = Counter(row["category"] for row in items())
    assert found == {category.name: category.items for category in categories.CATEGORIES} | OTHER_COUNTS
    assert sum(found.values()) == BENCHMARK.rows == 4441
    assert len({row["id"] for row in items()}) == 4441
    assert all(column in row for row in items() for column in BENCHMARK.columns)
    for row in of_kind("turns"):
        assert len(row["question"]) == len(row["ground_truth"]) and "sources" in row
        assert all(turn or str(n) in row["missed_function"] for n, turn in enumerate(row["question"]))


def test_the_parts_weigh_as_published():
    """The published baseline: right where nothing is to be called, and nowhere else."""
    every = [
        ({"category": category.name}, Grade(score=float(category.kind == "none")))
        for category in categories.CATEGORIES
        for _ in range(category.items)
    ]
    found, grades = map(list, zip(*every, strict=True))
    assert categories.overall(found, grades) == pytest.approx((0.2 + 882 / 2251 + 0) / 3, abs=1e-12)
    assert 100 * categories.overall(found, grades) == pytest.approx(19.7275, abs=5e-5)
    languages = [Grade(score=float(row["category"] == "java")) for row in found]
    assert categories.overall(found, languages) == pytest.approx(1 / 5 / 3 / 3, abs=1e-12)
    one = [Grade(score=float(row["category"] == "multi_turn_base")) for row in found]
    assert categories.overall(found, one) == pytest.approx(1 / 4 / 3, abs=1e-12)
    with pytest.raises(BarError, match="category one of simple, java"):
        categories.overall([{"category": "sql"}], [Grade(score=1.0)])


def test_conversations_without_classes_are_not_measured_and_the_rest_is_shown():
    row = {key: value for key, value in of_kind("turns")[0].items() if key != "sources"}
    assert BENCHMARK.ask(row, []) is None
    grade = BENCHMARK.grade(row, [], None)
    assert "sources" in grade.detail["not_measured"]
    single = {"category": "multiple"}
    assert categories.overall([row, single], [grade, Grade(score=1.0)]) == 1.0
    with pytest.raises(BarError, match="no item was measured"):
        categories.overall([row], [grade])


def test_what_is_asked():
    row = next(row for row in items() if row["category"] == "simple")
    system, user = BENCHMARK.ask(row, [])
    assert system["content"].startswith(
        "You are an expert in composing functions. You are given a question and"
    )
    assert "\n<function_calls>\nfunc_name1(params_name1=params_value1, params_name2=" in system["content"]
    assert system["content"].endswith("\n\nHere is a list of functions in JSON format that you can invoke.")
    assert user == row["question"][0][0] and BENCHMARK.ask(row, ["done"]) is None
    (tool,) = BENCHMARK.tools(row)
    assert tool["type"] == "function" and tool["function"]["parameters"] == row["function"][0]["parameters"]
    assert tool["function"]["description"].endswith(" Note that the provided function is in Python 3 syntax.")
    for row in items():
        messages, tools = BENCHMARK.ask(row, []), BENCHMARK.tools(row)
        assert messages[0]["role"] == "system" and messages[-1]["role"] == "user"
        assert [message["role"] for message in messages].count("system") == 1
        assert len(tools) == len(row["function"])
        texts = categories.of(row).language != "python"
        kinds = [p["type"] for tool in tools for p in tool["function"]["parameters"]["properties"].values()]
        assert not texts or set(kinds) <= {"string"}
    assert any(
        "type parameter in string representation" in json.dumps(BENCHMARK.tools(row)) for row in items()
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tiny tokenizer with ChatML's special tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["What is 3 * 4? Say blue."] * 4, folder, vocab_size=290)
    trained = Tokenizer.from_file(str(folder / "tokenizer.json"))
    trained.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    trained.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def test_a_chat_template_shows_the_functions_or_is_named(tokenizer):
    shown, without = ChatFormat(tokenizer, "chatml"), ChatFormat(tokenizer, "tulu")
    for row in sampled(items(), 20):
        messages, tools = BENCHMARK.ask(row, []), BENCHMARK.tools(row)
        if not tools:
            continue
        text = tokenizer.decode(shown.prompt(messages, tools=tools))
        assert "in JSON format that you can invoke. <functions>[{" in text
        assert all(json.dumps(tool["function"]["name"]) in text for tool in tools)
        with pytest.raises(BarError, match="template tulu has no place for tools; use another"):
            without.prompt(messages, tools=tools)
    row = next(row for row in of_kind("turns") if row["ground_truth"][0])
    messages = BENCHMARK.ask(row, answers_of(wanted_turns(row))[:1])
    text = tokenizer.decode(shown.prompt(messages, tools=BENCHMARK.tools(row)))
    assert text.count("\nenvironment\n") == len(row["ground_truth"][0])
    assert text.endswith("\nassistant\n")


def test_every_wanted_call_is_right_and_another_items_hardly_ever():
    found = of_kind("calls")
    assert len(found) == 2501
    assert {row["id"] for row in found if not score(row, written(wanted_calls(row)))} == set(IMPOSSIBLE)
    others = found[1:] + found[:1]
    wrong = [score(row, written(wanted_calls(other))) for row, other in zip(found, others, strict=True)]
    assert sum(wrong) < 0.05 * len(wrong)


def test_relevance_is_any_call_and_irrelevance_none():
    assert len(of_kind("none")) == 1124 and len(of_kind("any")) == 16
    for row in of_kind("none", "any"):
        wanted = float(categories.of(row).kind == "any")
        assert (
            score(row, written([(row["function"][0]["name"] if row["function"] else "f", {"x": 1})]))
            == wanted
        )
        assert score(row, "None of the functions can do this.") == 1 - wanted
    none, some = of_kind("none")[0], of_kind("any")[0]
    for text in ("", "<function_calls>\n</function_calls>", "f(x=1) would need to know x."):
        assert (score(none, text), score(some, text)) == (1.0, 0.0), text
    for text in ("f(x=1)", "a.b(x=1)\ng(y='(')", "[f(x=1), g(x=2)]", "<function_calls>f()</function_calls>"):
        assert (score(none, text), score(some, text)) == (0.0, 1.0), text
    for text in (
        "f(1)",
        "f(x=y)",
        "f(x=open('a').read())",
        "<function_calls>\nf(x=2 * 3)\n</function_calls>",
    ):
        assert (score(none, text), score(some, text)) == (0.0, 0.0), text


MUTATIONS = {
    "as wanted": lambda made, rng: made,
    "another order": lambda made, rng: made[::-1],
    "none": lambda made, rng: [],
    "one missing": lambda made, rng: made[1:],
    "one twice": lambda made, rng: [*made, made[0]],
    "another name": lambda made, rng: [(made[0][0] + "_", made[0][1]), *made[1:]],
    "an argument missing": lambda made, rng: changed(made, rng, lambda given, key: given.pop(key)),
    "an argument more": lambda made, rng: [(made[0][0], made[0][1] | {"surplus": 1}), *made[1:]],
    "another type": lambda made, rng: changed(made, rng, retyped),
    "another value": lambda made, rng: changed(made, rng, revalued),
    "another spelling": lambda made, rng: changed(made, rng, respelled),
}


def changed(made: list, rng: random.Random, change) -> list:
    copy = json.loads(json.dumps(made))
    place = rng.randrange(len(copy)) if copy else 0
    if copy and copy[place][1]:
        change(copy[place][1], rng.choice(sorted(copy[place][1])))
    return [(name, given) for name, given in copy]


def retyped(given: dict, key: str) -> None:
    """Another type of the same look: 3 for "3", 3.0 for 3, True for 1, a list for its element."""
    value = given[key]
    if isinstance(value, bool):
        given[key] = int(value)
    elif isinstance(value, int):
        given[key] = float(value)
    elif isinstance(value, float):
        given[key] = int(value) if value == int(value) else str(value)
    elif isinstance(value, str):
        given[key] = [value]
    elif isinstance(value, list):
        given[key] = [str(element) for element in value]
    else:
        given[key] = json.dumps(value)


def revalued(given: dict, key: str) -> None:
    value = given[key]
    if isinstance(value, bool):
        given[key] = not value
    elif isinstance(value, int | float):
        given[key] = value + 1
    elif isinstance(value, str):
        given[key] = value + "x"
    elif isinstance(value, list):
        given[key] = value[::-1] if value[::-1] != value else [*value, 1]
    else:
        given[key] = dict(list((value or {"k": 1}).items())[1:])


def respelled(given: dict, key: str) -> None:
    value = given[key]
    if isinstance(value, str):
        given[key] = value.upper().replace(" ", "")
    elif isinstance(value, list):
        given[key] = [element.upper() if isinstance(element, str) else element for element in value]
    elif isinstance(value, dict):
        given[key] = dict(reversed(value.items()))


def test_calls_are_judged_as_bfcls_own_checker_judges_them():
    """On every item, as wanted and changed in ten ways: 27,511 calls."""
    rng = random.Random(11)
    found = of_kind("calls")
    cases = [
        {
            "row": row,
            "calls": change(wanted_calls(row), rng),
            "kind": kind,
            "language": categories.of(row).language,
        }
        for row in found
        for kind, change in MUTATIONS.items()
    ]
    mine = [bool(score(case["row"], written(case["calls"]))) for case in cases]
    theirs = reference(cases)
    assert len(cases) == 11 * 2501
    verdicts = Counter((case["kind"], verdict) for case, verdict in zip(cases, mine, strict=True))
    assert all(verdicts[kind, False] for kind in MUTATIONS)
    differing = [
        (case["kind"], case["row"]["id"], case["calls"], wanted)
        for case, verdict, wanted in zip(cases, mine, theirs, strict=True)
        if verdict is not wanted and not (isinstance(wanted, str) and verdict is False)
    ]
    assert differing == []


def test_a_tuple_is_no_list_and_a_tuple_where_one_is_declared_is_a_list():
    def judged(kind: str, text: str) -> float:
        parameters = {"properties": {"at": {"type": kind, "items": {"type": "integer"}}}, "required": ["at"]}
        row = {"category": "simple", "function": [{"name": "go", "parameters": parameters}]}
        return score(row | {"ground_truth": [{"go": {"at": [[1, 2]]}}]}, text)

    assert (
        judged("tuple", "go(at=(1, 2))")
        and judged("tuple", "go(at=[1, 2])")
        and judged("array", "go(at=[1,2])")
    )
    assert not judged("array", "go(at=(1, 2))") and not judged("tuple", "go(at=(2, 1))")


def test_values_of_java_and_javascript():
    for text, language, kind, inner, wanted in (
        ("9L", "java", "long", None, 9), ("9", "java", "long", None, "9"), ("1.5f", "java", "float", None, 1.5),
        ("1.5", "java", "float", None, "1.5"), ("2e3", "java", "double", None, 2000.0),
        ("new int[]{1, 2}", "java", "Array", "integer", [1, 2]),
        ("new ArrayList<>(Arrays.asList(\"a\", \"b\"))", "java", "ArrayList", "String", ["a", "b"]),
        ("new ArrayList<Integer>() {{ add(1); add(2); }}", "java", "ArrayList", "integer", [1, 2]),
        ("new HashMap<String, Object>() {{ put(\"k\", 1); put(\"l\", true); }}", "java", "HashMap", None,
         {"k": 1, "l": True}),
        ("7n", "javascript", "Bigint", None, 7), ("'x'", "javascript", "String", None, "x"),
        ("[[1, 2], [3, 4]]", "javascript", "array", "array", [[1, 2], [3, 4]]),
        ("{'a': 'b', \"c\": [1, true]}", "javascript", "dict", None, {"a": "b", "c": [1, True]}),
        ("9" * 5000, "java", "integer", None, "9" * 5000),
    ):  # fmt: skip
        assert spelled.read(text, language, kind, inner) == wanted, text


def test_wanted_conversations_are_right_and_changed_ones_as_bfcls_own_checker_says():
    compare_conversations(sampled(of_kind("turns"), 12))


@pytest.mark.slow
def test_all_conversations_are_judged_as_bfcls_own_checker_judges_them():
    compare_conversations(of_kind("turns"))


CHANGES = {
    "as wanted": lambda made: made,
    "without the last call": lambda made: [*made[:-1], made[-1][:-1]],
    "without the first call": lambda made: [made[0][1:], *made[1:]],
    "every call twice": lambda made: [[call for call in calls for _ in "12"] for calls in made],
    "in the other order": lambda made: [calls[::-1] for calls in made],
    "with an argument more": lambda made: [
        [(name, given | {"surplus": 1}) for name, given in calls] for calls in made
    ],
    "all in the first turn": lambda made: [
        [call for calls in made for call in calls],
        *([] for _ in made[1:]),
    ],
}


def compare_conversations(found: list[dict]) -> None:
    cases = [
        {"row": row, "made": change(wanted_turns(row)), "kind": kind}
        for row in found
        for kind, change in CHANGES.items()
    ]
    for case in cases:
        texts = [written(made).split("\n")[1:-1] for made in case["made"]]
        case["turns"] = [[lines] if lines else [] for lines in texts]
    mine = [bool(score(case["row"], *answers_of(case["made"]))) for case in cases]
    verdicts = Counter((case["kind"], verdict) for case, verdict in zip(cases, mine, strict=True))
    assert verdicts["as wanted", False] == 0
    assert all(verdicts[kind, False] for kind in CHANGES if kind not in ("as wanted", "every call twice"))
    theirs = reference(
        [
            {"row": {k: v for k, v in case["row"].items() if k != "sources"}, "turns": case["turns"]}
            for case in cases
        ]
    )
    assert [
        (case["kind"], case["row"]["id"], verdict, wanted)
        for case, verdict, wanted in zip(cases, mine, theirs, strict=True)
        if verdict is not wanted
    ] == []


def test_another_items_conversation_is_wrong():
    found = sampled(of_kind("turns"), 24)
    others = found[1:] + found[:1]
    made = [score(row, *answers_of(wanted_turns(other))) for row, other in zip(found, others, strict=True)]
    assert sum(made) < 0.05 * len(made)


def test_a_conversation_goes_on_with_results_and_new_functions_to_its_end():
    row = next(row for row in of_kind("turns") if row["id"] == "multi_turn_miss_func_0")
    hidden = next(iter(row["missed_function"].values()))[0]["name"]
    assert hidden not in [tool["function"]["name"] for tool in BENCHMARK.tools(row)]
    answers = []
    for number, made in enumerate(wanted_turns(row)):
        for answer in [*([written(made)] if made else []), "Done."]:
            messages = BENCHMARK.ask(row, answers)
            assert [m["content"] for m in messages if m["role"] == "assistant"] == answers
            assert messages[-1]["role"] == (
                "environment" if answers and answer == "Done." and made else "user"
            )
            answers.append(answer)
        if str(number) in row["missed_function"]:
            news = [m for m in messages if m["content"].endswith("choose from. What about now?")]
            assert hidden in news[0]["content"]
    results = [message["content"] for message in messages if message["role"] == "environment"]
    assert len(results) == sum(map(len, wanted_turns(row)))
    assert json.loads(results[0]) == {"current_working_directory": "document"}
    assert BENCHMARK.ask(row, answers) is None
    assert score(row, *answers) == 1.0


def test_what_a_call_may_do_wrong_is_told_to_the_model_and_nothing_leaves_the_sandbox():
    row = next(row for row in of_kind("turns") if row["id"] == "multi_turn_base_0")
    answer = written(
        [("nowhere", {}), ("cd", {"way": "up"}), ("__init__", {}), ("cat", {"file_name": "/etc/passwd"})]
    )
    results = [m["content"] for m in BENCHMARK.ask(row, [answer]) if m["role"] == "environment"]
    assert results[0] == "Error during execution: name 'nowhere' is not defined"
    assert results[1].startswith("Error during execution: ") and "way" in results[1]
    assert results[2] == "Error during execution: name '__init__' is not defined"
    assert "error" in json.loads(results[3])


def test_more_than_twenty_steps_end_a_conversation():
    row = next(row for row in of_kind("turns") if row["id"] == "multi_turn_base_0")
    step = written([("ls", {})])
    assert BENCHMARK.ask(row, [step] * 20)[-1]["role"] == "environment"
    assert BENCHMARK.ask(row, [step] * 21) is None
    grade = BENCHMARK.grade(row, [step] * 21, None)
    assert grade.score == 0.0 and grade.detail["reason"] == "turn 0: more than 20 steps"
    assert BENCHMARK.grade(row, [step], None).detail["reason"] == "turn 0: not asked to its end"


def test_a_call_that_never_ends_is_stopped_and_wrong(monkeypatch):
    row = next(row for row in of_kind("turns") if "MathAPI" in row["involved_classes"])
    call = ("logarithm", {"value": 3, "base": 2, "precision": 2_000_000})
    monkeypatch.setattr(turns, "LIMITS", turns.sandbox.Limits(wall_s=4.0, cpu_s=1, memory_bytes=512 << 20))
    assert BENCHMARK.ask(row, [written([call])]) is None
    for answers in ([written([call])], answers_of([[call]] * len(row["question"]))):
        grade = BENCHMARK.grade(row, answers, None)
        assert grade.score == 0.0 and "too long" in grade.detail["reason"]


@pytest.mark.parametrize(
    "answers",
    [
        ['{"name": "\\ud800", "arguments": {}}'],
        ['{"name": "ls", "arguments": {"\\udfff": 1}}'],
        [
            "touch(file_name='a')",
            f"echo(content='{chr(1) * 24_000}', file_name='a')",
            "cat(file_name='a')\n" * 1500,
        ],
    ],
    ids=["a name that is no text", "an argument's name that is no text", "results that no memory holds"],
)
def test_no_answer_ends_the_run(answers):
    row = next(row for row in of_kind("turns") if "GorillaFileSystem" in row["involved_classes"])
    messages = BENCHMARK.ask(row, answers)
    assert messages is None or "".join(message["content"] for message in messages).encode()
    assert BENCHMARK.grade(row, [*answers, "Done."], None).score == 0.0


def test_what_is_put_into_a_default_is_not_in_the_truth_as_well():
    row = next(row for row in of_kind("turns") if "TwitterAPI" in row["involved_classes"])
    row |= {"involved_classes": ["TwitterAPI"], "question": row["question"][:1]}
    config = row["initial_config"]["TwitterAPI"]
    login = ("authenticate_twitter", {key: config[key] for key in ("username", "password")})
    post = ("post_tweet", {"content": "x"})
    row["ground_truth"] = [[f"{name}(**{arguments!r})" for name, arguments in (login, post)]]
    number = config.get("tweet_counter", 0)
    mention = ("mention", {"tweet_id": number, "mentioned_usernames": ["@eve"]})
    assert score(row, *answers_of([[login, post]])) == 1.0
    shown = ("get_tweet", {"tweet_id": number})
    assert score(row, *answers_of([[login, post, mention, shown]])) == 0.0


@pytest.mark.parametrize(
    ("text", "language", "kind"),
    [
        ("[[" + "],[" * 40, "javascript", "array"),
        ("new Array([1]" + ",[1]" * 40, "javascript", "array"),
        ("new ArrayList<>() {{" + " " * 3900, "java", "ArrayList"),
        ("new HashMap<>() {" + " " * 3900, "java", "HashMap"),
        ("new HashMap<>() {{" + 'put("a",' * 480 + "}}", "java", "HashMap"),
        ("{" + "a" * 40_000 + "}", "javascript", "dict"),
    ],
    ids=["rows", "rows of new", "spaces in a list", "spaces in a map", "puts without end", "no pairs"],
)
def test_spellings_that_could_be_read_in_many_ways_are_read_in_one(text, language, kind):
    """By a pattern that tries them all, each takes minutes or more."""
    spelled.read(text, language, kind)


def test_classes_that_do_not_run_are_told_and_never_a_score():
    row = next(row for row in of_kind("turns") if "MathAPI" in row["involved_classes"])
    broken = rows.packed(rows.unpacked(row["sources"]) | {"MathAPI": "raise ValueError('cut off')"})
    with pytest.raises(BarError, match=r"multi_turn_\w+: BFCL's classes do not run: .*cut off"):
        score(row | {"sources": broken}, *answers_of(wanted_turns(row)))


def test_a_folder_without_the_files_or_with_broken_ones_is_told(tmp_path):
    with pytest.raises(BarError, match=r"data/BFCL_v4_simple_python\.json expected, not found"):
        list(rows.rows(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/BFCL_v4_simple_python.json").write_text(
        '{"id": "simple_0", "question": [[]], "function": []}\n'
    )
    with pytest.raises(BarError, match="a file of BFCL expected"):
        list(rows.rows(tmp_path))
    (tmp_path / "data/BFCL_v4_simple_python.json").write_text('{"id": ')
    with pytest.raises(BarError, match="lines of JSON expected"):
        list(rows.rows(tmp_path))


def test_calls_are_all_of_an_answer():
    assert calls.read("<function_calls>\nf(x=1)\n</function_calls>") == [("f", {"x": 1})]
    assert calls.read("a.b(x='y', z=[1, {'k': None}])") == [("a.b", {"x": "y", "z": [1, {"k": None}]})]
    assert calls.read("Sure.\n<function_calls>f(x=1)</function_calls>") == []
    assert calls.read("f(x=1)\nI called f.") == [] == calls.read("")
