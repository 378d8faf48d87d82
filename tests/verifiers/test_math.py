r"""Final answers as people and models write them: every place, notation, unit and list, made by rule, so that
what is right is known without a grader; and what looks alike and is not.
"""

import itertools
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_bar.verifiers import check_task, formula, literal, verify, verify_many
from megatron_bar.verifiers.extract import marked
from megatron_bar.verifiers.notation import plain

PLACES = [
    "**Answer:** %s", "**Answer**: %s", "Answer: **%s**", "*Answer*: %s", "__Answer:__ %s", "Answer: $%s$ \n\n---",
    "### Answer\n%s", "### Answer: %s", "## Final Answer\n\n%s", "**Final Answer**\n\n%s", "ANSWER: %s",
    "**Final Answer**\n\n\\[ %s \\]", "**Final Answer:**\n$$%s$$", "Final Answer: $%s$", "Final answer is %s.",
    "The final answer is \\(%s\\).", "So the answer is $%s$.", "the answer is: %s", "The answer is\n\n%s",
    "The correct answer is **%s**.", "<answer>%s</answer>", "<answer>\n%s\n</answer>", "<answer>$%s$</answer>\n",
    "Therefore, the answer is $\\boxed{%s}$.", "\\boxed{%s}.", "$$\\boxed{%s}$$", "$\\fbox{%s}$", "\\[\\boxed{%s}\\]\n",
    "**\\boxed{%s}**", "\\boxed{\\boxed{%s}}", "\\boxed {%s}", "\\boxed{%s}\n\nLet me verify: it works in 3 steps.",
    "\\boxed{%s}\n\n### Verification\n12*3 = 36", "Answer: $%s$\n\n**Check:** 1+1=2", "Answer: %s\n\nNote: 7 is prime.",
    "Final Answer: The final answer is $%s$. I hope it is correct.", "The answer to the problem is %s.",
    "Answer \u2014 %s", "\u2705 **Final Answer:** $\\boxed{%s}$ \u2705", "1. a step\n2. **Final Answer:** %s",
    "> **Answer:** %s", "<b>Answer:</b> %s", "<strong>Final Answer:</strong> %s<br>", "Answer: $\\displaystyle %s$",
    "\\textbf{Answer: } %s", "answer = %s", "The answer is therefore %s.", "Thus, the final answer is: \n\n%s",
    "<think>maybe \\boxed{99}</think>\n\\boxed{%s}", "\\boxed{99}\nWait, that is wrong.\n\\boxed{%s}", "#### %s",
    "I think.\n#### %s\n", "The final answer is $%s$, because of symmetry.", "The answer is $%s$ (as required).",
    "Answer: $%s$ since 3+4=7", "**The answer is: $%s$.**", "Final Answer:\n```\n%s\n```", "The answer is $%s$. So 7 is not.",
    "Answer: %s\n\n#### Explanation\nIt is 6 * 7.", "\\boxed{%s}\n\n(The answer: a number of apples.)",
]  # fmt: skip
ANSWERS = [
    ("17", "18"),
    (r"\frac{5}{8}", r"\frac{8}{5}"),
    (r"3\sqrt{7}", r"7\sqrt{3}"),
    ("x^2-4", "x^2+4"),
    ("-6", "6"),
]


@pytest.mark.parametrize("place", PLACES)
def test_wherever_the_answer_stands(place):
    for right, wrong in ANSWERS:
        assert verify("math", place % right, right) == 1, right
        assert verify("math", place % wrong, right) == 0, right


@pytest.mark.parametrize("join", ["%s, %s and %s", "%s; %s; %s", "$%s$, $%s$, $%s$", "%s or %s or %s",
    "x = %s, x = %s, x = %s", r"%s,\quad %s,\quad %s", "%s \\text{ and } %s, %s"])  # fmt: skip
def test_boxes_in_a_row_are_one_list(join):
    boxes = tuple(rf"\boxed{{{n}}}" for n in (3, -5, 8))
    assert verify("math", f"So {join % boxes}.", "-5, 3, 8") == 1
    assert [verify("math", f"So {join % boxes}.", truth) for truth in ("8", "3", "3, 8", "3, -5")] == [0] * 4


numbers = st.fractions(-(10**6), 10**6, max_denominator=10**4)


def notations(value: Fraction) -> list[str]:
    """Returns how ``value`` may be written."""
    sign, top, under = "-" if value < 0 else "", abs(value.numerator), value.denominator
    forms = [
        f"{sign}{top}/{under}",
        rf"{sign}\frac{{{top}}}{{{under}}}",
        rf"\dfrac{{{sign}{top}}}{{{under}}}",
    ]
    forms += [rf"\left({sign}\tfrac{{{top}}}{{{under}}}\right)", rf"x = {sign}\cfrac{{{top}}}{{{under}}}"]
    if 10**6 % under == 0:
        places = f"{value.numerator * (10**6 // under)}"
        forms += [
            rf"{places} \times 10^{{-6}}",
            rf"{places}\cdot10^{{-6}}",
            f"{places} \u00d7 10\u207b\u2076",
            f"{places}e-6",
        ]
    if top > under > 1:
        whole, rest = divmod(top, under)
        forms += [f"{sign}{whole} {rest}/{under}", rf"{sign}{whole}\frac{{{rest}}}{{{under}}}"]
        if rest < 10 > under:
            forms += [rf"{sign}{whole}\frac{rest}{under}"]
    if top < 10:
        forms += [rf"{sign}\frac{top}{{{under}}}"]
    if under < 10:
        forms += [rf"{sign}\frac{{{top}}}{under}"]
    if under == 1:
        spaced = f"{top:,}"
        forms += [sign + spaced.replace(",", comma) for comma in (",", "{,}", r"\,", " ", "\u202f")]
        forms += [f"{sign}{top}.0", rf"\${sign}{top}", rf"{{{sign}{top}}}", f"({sign}{top})"]
    return forms


@settings(max_examples=200, deadline=None)
@given(numbers, numbers)
def test_every_notation_of_a_number(value, other):
    """That value, and no other; also as the truth."""
    assume(value != other)
    for form in notations(value):
        assert verify("math", rf"\boxed{{{form}}}", f"{value}") == 1, form
        assert verify("math", f"Answer: {value}", form) == 1, form
        assert verify("math", f"**Answer:**\n{form}", f"{other}") == 0, form


@settings(max_examples=200)
@given(st.integers(0, 99), st.text("0123456789", max_size=3), st.text("0123456789", min_size=1, max_size=6))
def test_repeating_decimals(whole, before, period):
    """Their values are the limits of their decimals."""
    value = literal.literal(plain(rf"{whole}.{before}\overline{{{period}}}"))
    for repeats in (1, 5):
        cut = Fraction(f"{whole}.{before}{period * repeats}")
        assert 0 <= value - cut <= Fraction(1, 10 ** (len(before) + len(period) * repeats))
    assert literal.literal(f"{whole}.{before}({period})") == value
    assert verify("math", rf"\boxed{{{whole}.{before}{period}}}", str(value)) == (int(period) == 0)


UNITS = """cm m km kg g mg s min h hours minutes ft feet inches mph km/h m/s m/s^2 N J W V Hz K cm^2 cm^3 units
integers ways students apples degrees dollars cents percent people books gallons liters mL pounds points
solutions cookies days weeks triangles games pages mol kJ radians widgets gnomes""".split()
UNITS += [
    "sq. units",
    "square units",
    "cubic feet",
    "per hour",
    "miles per hour",
    "years old",
    "marbles in all",
]
FACTORS = ["million", "thousand", "dozen", "hundred", "billion", "gazillion", "factorial", "squared", "times 3", "or 6",
    "and 6", "plus 1", "halves", "pairs", "lakh", "mod 3", "base 6", "to 7", "thirds", "x", "or more", "minus 2", "pm"]  # fmt: skip


@pytest.mark.parametrize(
    "form", [r"%s\text{ %s}", r"%s\ \text{%s}", r"%s \mathrm{~%s}", r"%s\,\mathrm{%s}", r"%s~\mbox{ %s}"]
)
def test_units_leave_a_number_as_it_is_and_factors_do_not(form):
    for unit in UNITS:
        assert verify("math", rf"\boxed{{{form % (5, unit)}}}", "5") == 1, unit
        assert verify("math", r"\boxed{5}", form % (5, unit)) == 1, unit
        assert verify("math", rf"\boxed{{{form % (6, unit)}}}", form % (5, unit)) == 0, unit
    for factor in FACTORS:
        assert verify("math", rf"\boxed{{{form % (5, factor)}}}", "5") == 0, factor
        assert verify("math", f"Answer: 5 {factor}", "5") == 0, factor


def power(base, exponent, form):
    fraction = rf"\frac{{1}}{{{base}^{{{-exponent}}}}}"
    return [f"{base}^{{{exponent}}}", fraction if exponent < 0 else f"{base}^{exponent}"][form]


@settings(max_examples=200, deadline=None)
@given(*[st.tuples(st.integers(2, 12), st.integers(-200, 200), st.integers(0, 1))] * 2)
def test_powers_are_compared_as_integers_are(one, other):
    """Where the truth is no number (a power of ten is one, and nothing is calculated for it)."""
    same = Fraction(one[0]) ** one[1] == Fraction(other[0]) ** other[1]
    for wrap in ("%s", r"%s\sqrt{3}", r"%s\pi", "(1, %s)", "1 - %s"):
        answer, truth = (wrap % power(*parts) for parts in (one, other))
        assume(literal.number(plain(power(*other))) is None)
        assert verify("math", rf"\boxed{{{answer}}}", truth) == same, wrap


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(2, 16), st.integers(0, 10**6), st.integers(2, 16))
def test_digits_and_base_must_both_be_those(digits, base, others, another):
    same = digits == others and base == another
    assert verify("math", rf"\boxed{{{digits}_{{{base}}}}}", f"{others}_{{{another}}}") == same
    assert verify("math", rf"\boxed{{{digits}_{{{base}}}}}", f"{digits}_{{{base}}}") == 1
    assert verify("math", rf"\boxed{{{digits}}}", f"{digits}_{{{base}}}") == (base == 10)


few = st.lists(
    st.integers(-3, 3) | st.sampled_from([r"\frac{1}{2}", "0.25", r"-\frac{3}{4}"]), min_size=2, max_size=4
)
BRACKETS = ["%s", r"\{%s\}", "(%s)", "[%s]", "(%s]", "[%s)", r"\left(%s\right)"]


@settings(max_examples=300)
@given(
    few,
    few,
    st.sampled_from(BRACKETS),
    st.sampled_from(BRACKETS),
    st.sampled_from([", ", ",", "; "]),
    st.randoms(),
)
def test_lists_points_and_intervals(wanted, other, around, enclosing, comma, random):
    """By the definition: a list and a set have no order, the rest has, and brackets are part of it; only a list
    may be written in others."""
    if random.random() < 0.7:
        other = random.sample(wanted, len(wanted))
    kinds = [text.replace(r"\left", "").replace(r"\right", "") for text in (around, enclosing)]
    loose = ("%s", r"\{%s\}")
    allowed = kinds[0] == kinds[1] or kinds[0] == "%s" or (kinds[0] in loose and kinds[1] in loose)
    ordered = kinds[0] not in loose or kinds[1] not in loose
    values = [[literal.literal(str(part)) for part in parts] for parts in (wanted, other)]
    equal = values[0] == values[1] if ordered else sorted(values[0]) == sorted(values[1])
    truth, answer = (
        form % ", ".join(map(str, parts)) for form, parts in ((around, wanted), (enclosing, other))
    )
    answer = enclosing % comma.join(map(str, other))
    assert verify("math", rf"\boxed{{{answer}}}", truth) == (allowed and equal)


CHOICES = [("%s", 1), ("(%s)", 1), (r"\text{%s}", 1), (r"\textbf{(%s)}", 1), (r"\textbf{(%s) } 12", 1), ("(%s) 12", 1),
    ("%s. 12", 1), ("%s) twelve", 1), ("%s: the cat", 1), (r"\mathrm{%s}", 1), ("Option %s", 1), ("%s.", 1),
    (r"\text{(%s)}\ \frac{1}{2}", 1), ("not %s", 0), ("2%s", 0), ("%s%s", 0), ("(%s) or (J)", 0), ("J and %s", 0),
    ("%s, J", 0), ("(J), (%s)", 0), ("J: %s", 0), ("12", 0), ("%s = 5", 0)]  # fmt: skip


@pytest.mark.parametrize("letter, other", list(itertools.permutations("ABCD", 2)))
def test_choices(letter, other):
    for truth in (
        letter,
        rf"\text{{({letter})}}",
        rf"\textbf{{({letter})}}",
        f"({letter})",
        rf"\mathrm{{({letter})}}",
    ):
        for form, score in CHOICES:
            answer = form.replace("%s", letter)
            assert verify("math", rf"\boxed{{{answer}}}", truth) == score, answer
            assert verify("math", f"The answer is: {answer}", truth) == score, answer
            assert verify("math", rf"\boxed{{{form.replace('%s', other)}}}", truth) == 0, answer


@pytest.mark.parametrize("form, score", [("%s. True, False", 1), ("%s. antisymmetric", 1), ("%s) twelve", 1), ("%s: the cat", 1),
    ("%s. True. It follows from x.", 1), ("%s", 1), ("%s.\n", 1), ("%s. True. J. False", 0), ("%s or J", 0), ("%s. or J.", 0)])  # fmt: skip
def test_a_choice_begins_an_answer_that_says_nothing_else(form, score):
    assert verify("math", form % "C", "C") == score
    assert verify("math", form % "A", "C") == 0


@settings(max_examples=200)
@given(st.text("ABCDEMNPQR", min_size=3, max_size=7), st.randoms())  # no NONE among them, which is no truth
def test_words_keep_the_order_of_their_letters(word, random):
    other = "".join(random.sample(word, len(word)))
    for form in ("%s", r"\text{%s}", "%s."):
        assert verify("math", rf"\boxed{{{form % other}}}", word) == (word == other)
        assert verify("math", f"Answer: {form % other}", rf"\text{{{word}}}") == (word == other)


COPIES = [("3 * 4 + 5", "17"), (r"2.5\times 4", "10"), ("2^{10}", "1024"), ("5!", "120"), (r"\sqrt{16}", "4"), ("6(7)", "42"),
    (r"2\times 10", "20"), ("10^{2+1}", "1000"), (r"\binom{5}{2}", "10"), (r"\cos \pi", "-1"), ("i^2", "-1"), ("0^0", "1"),
    (r"\sqrt{2}+\sqrt{2}", r"2\sqrt{2}"), (r"\sqrt{2}\sqrt{3}", r"\sqrt{6}"), (r"3\cdot4\pi", r"12\pi"), ("(6)(7)", "42"),
    (r"\sin^2 x + \cos^2 x", "1"), (r"\sin(\pi/4)", r"\frac{\sqrt{2}}{2}"), (r"|3+4i|", "5"), (r"\frac{6\cdot7}{1}", "42"),
    (r"\sum_{i=1}^{3}14", "42"), (r"7\cdot 3!", "42"), (r"\int_0^{42}1dx", "42"), (r"\max(42,1)", "42"), ("42+0", "42")]  # fmt: skip


@pytest.mark.parametrize("question, truth", COPIES)
def test_a_question_copied_back_earns_nothing(question, truth):
    assert [verify("math", place % question, truth) for place in PLACES] == [0] * len(PLACES)


leaves = st.integers(0, 9).map(str) | st.sampled_from(
    ["x", "y", "x^2", r"\pi", r"\sqrt{3}", r"\sqrt{x}", "e"]
)
expressions = st.recursive(
    leaves,
    lambda inner: st.tuples(inner, inner, st.sampled_from(
        ["({}+{})", "({}-{})", r"\frac{{{}}}{{{}}}", r"({})\cdot({})", "({})({})"])).map(
            lambda parts: parts[2].format(*parts[:2])) | inner.map(lambda base: f"({base})^2"),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(expressions, expressions)
def test_values_agree_with_sympy(one, other):
    """Also of an expression and its expansion, which are equal by construction."""
    sympy = pytest.importorskip("sympy")
    trees = [sympy_tree(text, sympy) for text in (one, other)]
    assume(not any(tree.has(sympy.zoo, sympy.nan) for tree in trees))
    verdict = formula.equal(one, other)
    if verdict is not None:
        assert verdict == (sympy.simplify(trees[0] - trees[1]) == 0), (one, other)
    assert formula.equal(one, rf"\frac{{2({one})}}{{2}}") in (True, None)
    assert formula.equal(one, f"({one})+1") in (False, None)


def sympy_tree(text: str, sympy):
    """Reads the grammar of ``expressions``, by Python's own parser."""
    python = (
        text.replace(r"\cdot", "*")
        .replace(")(", ")*(")
        .replace("^", "**")
        .replace(r"\pi", "pi")
        .replace("e", "E")
    )
    while r"\frac" in python:
        start = python.rindex(r"\frac{")
        top, rest = marked(rf"\boxed{python[start + 5 :]}"), python[start + 5 :]
        under = marked(rf"\boxed{rest[len(top) + 2 :]}")
        python = python[:start] + f"(({top})/({under}))" + rest[len(top) + len(under) + 4 :]
    python = python.replace(r"\sqrt{3}", "sqrt(3)").replace(r"\sqrt{x}", "sqrt(x)")
    return sympy.sympify(
        python, locals={"x": sympy.Symbol("x", positive=True), "y": sympy.Symbol("y", real=True)}
    )


pieces = st.sampled_from(
    [*"0129x+-*/^(){}[],.;:=_ ei!|<", r"\frac", r"\sqrt", r"\pi", r"\text{", r"\pm", "and", "A", "cm"]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(pieces, max_size=14).map("".join), st.lists(pieces, max_size=6).map("".join))
def test_whatever_is_written_is_read_or_left(one, other):
    assert formula.equal(one, other) in (True, False, None)
    assert isinstance(literal.number(plain(one)), Fraction | None)
    assert marked(one) is None or isinstance(marked(one), str)
    for truth in ("17", "(1, 2)", "B", "203_5", "even"):
        assert verify("math", rf"\boxed{{{one}}}", truth) in (0, 1)


def test_many_answers_keep_their_order_among_servers():
    """Symbolic answers of many threads, which the formulas cannot decide."""
    items = [("math", rf"\boxed{{\sin({n}x)}}", rf"\sin({n + n % 2}x)") for n in range(24)]
    assert verify_many(items) == [float(n % 2 == 0) for n in range(24)]


@pytest.mark.parametrize(
    "truth", [r"5 \mathrm{~min}", r"2\sqrt{3} \text{ max}", r"2:30\text{ p.m.}", "203_5", "A", "x = 3"]
)
def test_truths_that_are_read(truth):
    check_task("math", truth, "here")
    assert verify("math", f"Answer: {truth}", truth) == 1
