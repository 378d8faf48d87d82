"""Code: small Python functions, asked for in a sentence, as a docstring to complete or with tests.

A function of lists or words is put together: which elements count, what becomes of each, what is made of them
all. The split is decided on that combination, so a held-out one was never written in training. The tests'
values come from the same parts as functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from megatron_bar.data.world.lexicon import Example, Split, user


@dataclass(frozen=True)
class Phrase:
    """``text`` in a sentence, ``code`` of an element x or of a list xs, and what that computes."""

    text: str
    code: str
    run: Callable


def _keeps(n: int) -> tuple[Phrase, ...]:
    return (
        Phrase("", "", lambda x: True),
        Phrase("even ", "x % 2 == 0", lambda x: x % 2 == 0),
        Phrase("odd ", "x % 2 == 1", lambda x: x % 2 == 1),
        Phrase("positive ", "x > 0", lambda x: x > 0),
        Phrase("negative ", "x < 0", lambda x: x < 0),
        Phrase(f"that are greater than {n}", f"x > {n}", lambda x: x > n),
        Phrase(f"that are less than {n}", f"x < {n}", lambda x: x < n),
        Phrase(f"that are divisible by {n}", f"x % {n} == 0", lambda x: x % n == 0),
    )


def _maps(k: int) -> tuple[Phrase, ...]:
    return (
        Phrase("", "x", lambda x: x),
        Phrase("squares", "x * x", lambda x: x * x),
        Phrase("cubes", "x ** 3", lambda x: x**3),
        Phrase("doubles", "2 * x", lambda x: 2 * x),
        Phrase("absolute values", "abs(x)", abs),
        Phrase(f"products with {k}", f"x * {k}", lambda x: x * k),
        Phrase("negations", "-x", lambda x: -x),
    )


OF_NUMBERS = (
    Phrase("sum", "sum({})", sum),
    Phrase("number", "len({})", len),
    Phrase("largest", "max({}, default=0)", lambda xs: max(xs, default=0)),
    Phrase("smallest", "min({}, default=0)", lambda xs: min(xs, default=0)),
    Phrase("sorted list", "sorted({})", sorted),
    Phrase("list", "{}", list),
    Phrase("reversed list", "{}[::-1]", lambda xs: xs[::-1]),
    Phrase("list without repetitions, in order,", "sorted(set({}))", lambda xs: sorted(set(xs))),
)
OF_WORDS = (
    Phrase("list", "{}", list),
    Phrase("number", "len({})", len),
    Phrase("sorted list", "sorted({})", sorted),
    Phrase("text, joined by spaces,", "' '.join({})", " ".join),
    Phrase("reversed list", "{}[::-1]", lambda xs: xs[::-1]),
)
WORDS = "tree|Lamp|river|Sky|otter|apple|Engine|moon|cat|Umbrella|stone|ink|Bee|window|echo".split("|")


def _word_keeps(n: int, letter: str) -> tuple[Phrase, ...]:
    return (
        Phrase("", "", lambda x: True),
        Phrase(f"that have more than {n} letters", f"len(x) > {n}", lambda x: len(x) > n),
        Phrase(f"that have at most {n} letters", f"len(x) <= {n}", lambda x: len(x) <= n),
        Phrase(f"that contain the letter {letter!r}", f"{letter!r} in x", lambda x: letter in x),
        Phrase("that begin with a capital letter", "x[0].isupper()", lambda x: x[0].isupper()),
        Phrase(f"that end with {letter!r}", f"x.endswith({letter!r})", lambda x: x.endswith(letter)),
    )


WORD_MAPS = (
    Phrase("", "x", lambda x: x),
    Phrase("in upper case", "x.upper()", str.upper),
    Phrase("in lower case", "x.lower()", str.lower),
    Phrase("spelled backwards", "x[::-1]", lambda x: x[::-1]),
    Phrase("cut to three letters", "x[:3]", lambda x: x[:3]),
)


def of_numbers(rng: Random) -> tuple:
    keep, change = rng.choice(_keeps(rng.randrange(2, 10))), rng.choice(_maps(rng.randrange(3, 10)))
    made = rng.choice(OF_NUMBERS)
    before, after = (keep.text, "") if not keep.text.startswith("that") else ("", f" {keep.text}")
    of_each = f"the {change.text} of " if change.text else ""
    text = f"the {made.text} of {of_each}the {before}numbers in a list{after}"
    if made.text in ("largest", "smallest"):
        text += " (0 if there are none)"
    inputs = [[rng.randrange(-20, 40) for _ in range(size)] for size in (5, 7, 3, 6)] + [[]]
    return text, "numbers", keep, change, made, inputs


def of_words(rng: Random) -> tuple:
    keep = rng.choice(_word_keeps(rng.randrange(3, 6), rng.choice("aeinort")))
    change, made = rng.choice(WORD_MAPS), rng.choice(OF_WORDS)
    text = f"the {made.text} of the words in a list{f' {keep.text}' if keep.text else ''}"
    if change.text:
        text += f", each {change.text}"
    inputs = [rng.sample(WORDS, size) for size in (5, 7, 3, 6)] + [[]]
    return text, "words", keep, change, made, inputs


def combined(rng: Random) -> tuple[str, str, str, Callable, list]:
    """Returns a description, the argument's name, the function's body, what it computes, and inputs."""
    text, name, keep, change, made, inputs = rng.choice((of_numbers, of_words))(rng)
    if keep.code or change.code != "x":
        listed = f"[{change.code} for x in {name}{f' if {keep.code}' if keep.code else ''}]"
    else:
        listed = name
    body = f"return {made.code.format(listed)}"
    if made.code == "{}" and listed == name:
        body = f"return list({name})"
    return text, name, body, lambda xs: made.run([change.run(x) for x in xs if keep.run(x)]), inputs


def _digits(rng: Random) -> tuple:
    k = rng.randrange(2, 10)
    found = (
        (
            "the sum of the digits of a non-negative integer",
            "return sum(int(d) for d in str(n))",
            lambda n: sum(map(int, str(n))),
        ),
        (
            f"how often the digit {k} occurs in a non-negative integer",
            f"return str(n).count('{k}')",
            lambda n: str(n).count(str(k)),
        ),
        (
            f"the sum of the numbers from 1 to n that are divisible by {k}",
            f"return sum(i for i in range(1, n + 1) if i % {k} == 0)",
            lambda n: sum(i for i in range(1, n + 1) if i % k == 0),
        ),
        (f"True if n is divisible by {k}, and False otherwise", f"return n % {k} == 0", lambda n: n % k == 0),
        (
            "the number of divisors of a positive integer",
            "count = 0\nfor d in range(1, n + 1):\n    if n % d == 0:\n        count += 1\nreturn count",
            lambda n: sum(n % d == 0 for d in range(1, n + 1)),
        ),
        (
            f"the product of n and {k}, plus the remainder of n by {k}",
            f"return n * {k} + n % {k}",
            lambda n: n * k + n % k,
        ),
        (
            f"the list of the first n multiples of {k}",
            f"return [{k} * i for i in range(1, n + 1)]",
            lambda n: [k * i for i in range(1, n + 1)],
        ),
        (f"the remainder of n squared by {k}", f"return n * n % {k}", lambda n: n * n % k),
        (
            "True if n reads the same backwards, and False otherwise",
            "return str(n) == str(n)[::-1]",
            lambda n: str(n) == str(n)[::-1],
        ),
        (
            f"n counted down to 0 in steps of {k}, as a list",
            f"return list(range(n, -1, -{k}))",
            lambda n: list(range(n, -1, -k)),
        ),
    )
    return *rng.choice(found), [rng.randrange(2, 10), rng.randrange(10, 30), 1, 22, 33, rng.randrange(30, 50)]


def _text(rng: Random) -> tuple:
    k, (a, b) = rng.randrange(2, 6), rng.sample("aeiorstn", 2)
    found = (
        (
            f"how often the letter {a!r} occurs in a text, in either case",
            f"return s.lower().count('{a}')",
            lambda s: s.lower().count(a),
        ),
        (
            f"a text with every {a!r} replaced by {b!r}",
            f"return s.replace('{a}', '{b}')",
            lambda s: s.replace(a, b),
        ),
        (
            f"the first {k} characters of a text, in upper case",
            f"return s[:{k}].upper()",
            lambda s: s[:k].upper(),
        ),
        (f"the last {k} characters of a text, backwards", f"return s[-{k}:][::-1]", lambda s: s[-k:][::-1]),
        (
            f"a text without its characters {a!r} and {b!r}",
            f"return ''.join(c for c in s if c not in '{a}{b}')",
            lambda s: "".join(c for c in s if c not in (a, b)),
        ),
        (
            f"every word of a text that has more than {k} letters, as a list",
            f"return [w for w in s.split() if len(w) > {k}]",
            lambda s: [w for w in s.split() if len(w) > k],
        ),
        (
            f"a text repeated {k} times, with a dash between",
            f"return '-'.join([s] * {k})",
            lambda s: "-".join([s] * k),
        ),
        (
            f"True if a text has more than {k} words, and False otherwise",
            f"return len(s.split()) > {k}",
            lambda s: len(s.split()) > k,
        ),
        (
            "the number of vowels in a text",
            "return sum(c in 'aeiou' for c in s.lower())",
            lambda s: sum(c in "aeiou" for c in s.lower()),
        ),
        (
            f"a dictionary from each word of a text with at least {k} letters to its length",
            f"return {{w: len(w) for w in s.split() if len(w) >= {k}}}",
            lambda s: {w: len(w) for w in s.split() if len(w) >= k},
        ),
    )
    texts = [" ".join(rng.sample(WORDS, size)) for size in (1, 3, 4, 6)]
    return *rng.choice(found), [*texts, "Rain on the roof", ""]


def simple(rng: Random) -> tuple[str, str, str, Callable, list]:
    if rng.random() < 0.5:
        text, body, run, inputs = _digits(rng)
        return text, "n", body, run, inputs
    text, body, run, inputs = _text(rng)
    return text, "s", body, run, inputs


NAMES = ("solve", "compute", "process", "transform", "get_result", "evaluate", "find_it", "run", "calculate")
PLAIN = (
    "Write a Python function {name}({argument}) that returns {text}.",
    "Write a function named {name} in Python. It takes {argument} and returns {text}.",
    "Please implement {name}({argument}): it should return {text}.",
)
SHOWN = 3
"""Tests that a request shows."""


def sample(rng: Random) -> Example:
    text, argument, body, run, inputs = (combined if rng.random() < 0.6 else simple)(rng)
    name = rng.choice(NAMES)
    tests = [[[value], run(value)] for value in inputs]
    calls = [f"{name}({value!r})" for value, _ in zip(inputs, range(SHOWN), strict=False)]
    form = rng.randrange(3)
    if form == 0:
        asked = rng.choice(PLAIN).format(name=name, argument=argument, text=text)
    elif form == 1:
        shown = "\n".join(
            f"    >>> {call}\n    {run(value)!r}" for call, value in zip(calls, inputs, strict=False)
        )
        head = f'def {name}({argument}):\n    """Return {text}.\n{shown}\n    """'
        asked = f"Complete the following function:\n```python\n{head}\n```"
    else:
        shown = "\n".join(
            f"assert {call} == {run(value)!r}" for call, value in zip(calls, inputs, strict=False)
        )
        asked = f"Write a function to return {text}.\nYour code should pass these tests:\n{shown}"
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    return Example(
        key=("code", argument, text),
        prompt=user(asked),
        answer=f"```python\ndef {name}({argument}):\n{lines}\n```",
        verifier="code",
        truth={"function": name, "tests": tests},
    )


def midtrain(rng: Random, split: Split) -> str:
    """Returns a module of three commented functions of the training side."""
    parts = []
    for _ in range(3):
        example = split.draw(sample, rng)
        code = example.answer.removeprefix("```python\n").removesuffix("\n```")
        parts.append(f"# Returns {example.key[2]}.\n{code}")
    return "\n\n\n".join(parts)
