"""The report says what the numbers say: a hand-made result, its tables, and verdicts that flip with the numbers."""

import math

import pytest

from megatron_bar.evaluation.generative import interval
from megatron_bar.evaluation.report import margins, margins_table, routing_table, scores_table, write_report

SKILLS = ("chat", "math", "code")


def items(right: int, of: int = 40) -> list[dict]:
    return [{"prompt": "p", "answer": "a", "score": float(n < right)} for n in range(of)]


def model(chat: int, math: int, code: int, **more) -> dict:
    return {"scores": {"chat": items(chat), "math": items(math), "code": items(code)}, "routing": {}} | more


def result() -> dict[str, dict]:
    """Everything as BAR would have it: 40 items a skill."""
    return {
        "anchor": model(30, 4, 2),
        "math-rlvr": model(20, 30, 2),
        "code-sft": model(20, 4, 26),
        "merged": model(28, 20, 10),
        "final": model(
            30,
            31,
            25,
            experts=["anchor", "math", "code"],
            routing={"sft_math": [[0.2, 0.7, 0.1], [0.4, 0.5, 0.1]], "sft_code": [[0.1, 0.1, 0.8], [0.3, 0.1, 0.6]]},
        ),
    }


EXPERTS = {"math": "math-rlvr", "code": "code-sft"}


def report(found: dict[str, dict]) -> str:
    return write_report("tiny", found, experts=EXPERTS, trained=("math", "code"))


def verdicts(found: dict[str, dict]) -> dict[str, bool]:
    """Claim -> whether the report says that it holds."""
    section = report(found).partition("## The published claims")[2]
    lines = [line.removeprefix("- ") for line in section.splitlines() if line.startswith("- ")]
    assert all(line.startswith(("Holds: ", "Does NOT hold: ")) for line in lines)
    return {line.partition(": ")[2].partition(" (")[0]: line.startswith("Holds") for line in lines}


@pytest.mark.parametrize("right, of", [(10, 100), (50, 100), (120, 400), (399, 400)])
def test_the_interval_is_about_the_binomial_one(right, of):
    """The mean of n draws from {0, 1} is binomial: its standard deviation is known, and at these n it is nearly normal."""
    share = right / of
    low, high = interval([1.0] * right + [0.0] * (of - right))
    half = 1.96 * math.sqrt(share * (1 - share) / of)
    assert low == pytest.approx(share - half, abs=0.25 * half + 1 / of)
    assert high == pytest.approx(min(1.0, share + half), abs=0.25 * half + 1 / of)
    assert interval([1.0] * right + [0.0] * (of - right)) == (low, high), "the same numbers give the same interval"


def test_the_interval_of_equal_scores_has_no_width():
    assert interval([0.25] * 30) == (0.25, 0.25)


def test_more_items_narrow_the_interval():
    widths = [high - low for low, high in (interval([0.0, 1.0] * n) for n in (10, 40, 160))]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.15) and widths[1] / widths[2] == pytest.approx(2, rel=0.15)


def test_the_scores_table():
    assert scores_table(result()).splitlines() == [
        "| model | overall | chat | math | code |",
        "| --- | --- | --- | --- | --- |",
        "| anchor | 30.0 | **75.0** | 10.0 | 5.0 |",
        "| math-rlvr | 43.3 | 50.0 | 75.0 | 5.0 |",
        "| code-sft | 41.7 | 50.0 | 10.0 | **65.0** |",
        "| merged | 48.3 | 70.0 | 50.0 | 25.0 |",
        "| final | 71.7 | **75.0** | **77.5** | 62.5 |",
    ]


def test_margins_are_of_pairs_of_items():
    """Two models of equal scores on different items: no gain, but not for certain."""
    one, other = model(20, 20, 0), model(20, 20, 40)
    other["scores"]["math"].reverse()
    chat, math_, code = margins(one, other, SKILLS)
    assert chat == ("chat", 0.0, 0.0, 0.0)
    assert math_[1] == 0.0 and math_[2] < -0.2 and math_[3] > 0.2
    assert code == ("code", 1.0, 1.0, 1.0)
    assert margins_table([chat, math_, code, ("x", -0.5, -0.6, -0.4)]).splitlines()[2:] == [
        "| chat | +0.0 | +0.0 to +0.0 | no |",
        f"| math | +0.0 | {100 * math_[2]:+.1f} to {100 * math_[3]:+.1f} | no |",
        "| code | +100.0 | +100.0 to +100.0 | yes |",
        "| x | -50.0 | -60.0 to -40.0 | lower |",
    ]


def test_models_measured_on_different_items_are_not_compared():
    short = model(20, 20, 20)
    short["scores"]["math"].pop()
    with pytest.raises(ValueError, match="shorter"):
        margins(model(20, 20, 20), short, ("math",))


def test_the_routing_table_is_the_mean_over_layers():
    assert routing_table(result()["final"]).splitlines() == [
        "| data | anchor | math | code |",
        "| --- | --- | --- | --- |",
        "| sft_math | 30.0 | 60.0 | 10.0 |",
        "| sft_code | 20.0 | 10.0 | 70.0 |",
    ]


def test_the_report_holds_every_table_and_where_it_comes_from():
    text = report(result())
    assert text.startswith("# Report of the recipe tiny\n") and text.endswith("\n")
    assert "(chat 40, math 40, code 40 items; one seed)" in text
    for table in (scores_table(result()), routing_table(result()["final"])):
        assert table in text
    assert margins_table(margins(result()["anchor"], result()["final"], SKILLS)) in text


BEATS = "the final model beats the anchor on every trained skill"
MATH = "merging costs math next to nothing against its own expert"
CODE = "merging costs code next to nothing against its own expert"
ROUTES = "router training helps the merged model"
KEEPS = "the skills that no expert was trained for are kept"


def test_all_verdicts_hold_where_the_numbers_say_so():
    assert verdicts(result()) == dict.fromkeys((BEATS, MATH, CODE, ROUTES, KEEPS), True)


@pytest.mark.parametrize(
    "name, skill, right, fails",
    [
        ("anchor", "math", 31, {BEATS}),
        ("anchor", "code", 24, {BEATS}),  # one item more is within the noise
        ("final", "math", 4, {BEATS, MATH, ROUTES}),
        ("final", "code", 15, {CODE}),  # router training helped math more
        ("final", "chat", 12, {KEEPS}),
        ("merged", "math", 40, set()),  # math alone lost, but code gained more
        ("merged", "code", 40, {ROUTES}),
        ("math-rlvr", "math", 40, {MATH}),
        ("code-sft", "math", 40, set()),
    ],
)
def test_verdicts_flip_with_the_numbers(name, skill, right, fails):
    found = result()
    found[name]["scores"][skill] = items(right)
    said = verdicts(found)
    assert {claim for claim, holds in said.items() if not holds} == fails
    assert len(said) == 5
