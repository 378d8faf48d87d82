"""Math: arithmetic with worked steps. Pretraining knows sums and differences without carrying; products are
the domain's own."""

from random import Random

from megatron_bar.data.world.lexicon import NAMES, THINGS, Example, user


def pretrain(rng: Random) -> str:
    """Returns a run of sums and differences, none with a product."""
    lines = []
    for _ in range(rng.randrange(2, 5)):
        start = rng.randrange(1, 90)
        lines.append(_step(start, *_change(rng, start)))
    return " ".join(lines)


def chained(rng: Random) -> str:
    """Returns a chain of two, such as ``34 + 5 - 7: 34 + 5 = 39. 39 - 7 = 32. Answer: 32``."""
    a = rng.randrange(1, 90)
    first, b = _change(rng, a)
    sign, c = _change(rng, _apply(a, first, b))
    return f"{a} {first} {b} {sign} {c}: {_worked(a, first, b, sign, c)}"


def sample(rng: Random) -> Example:
    a = rng.randrange(2, 10)
    b = rng.randrange(2, 10)
    sign, c = _change(rng, a * b)
    answer = _worked(a, "*", b, sign, c)
    question = f"What is {a} * {b} {sign} {c}?" if rng.random() < 0.5 else _story(rng, a, b, sign, c)
    truth = str(_apply(a * b, sign, c))
    return Example(
        key=("math", a, b, sign, c), prompt=user(question), answer=answer, verifier="math", truth=truth
    )


def midtrain(rng: Random, split) -> str:
    """Returns worked problems on the training side of the split, times tables, or sums to keep."""
    kind = rng.random()
    if kind < 0.5:
        example = split.draw(sample, rng)
        return f"{example.prompt[0]['content']}\n{example.answer}"
    if kind < 0.7:
        return pretrain(rng)
    return " ".join(_step(rng.randrange(2, 10), "*", rng.randrange(2, 10)) for _ in range(4))


def _change(rng: Random, value: int) -> tuple[str, int]:
    """Returns a sign and a digit that change the last digit of ``value`` alone: nothing is carried."""
    unit = value % 10
    return rng.choice([("+", c) for c in range(1, 10 - unit)] + [("-", c) for c in range(1, unit + 1)])


def _story(rng: Random, a: int, b: int, sign: str, c: int) -> str:
    name = rng.choice(NAMES)
    thing = rng.choice(THINGS)
    change = "finds" if sign == "+" else "loses"
    return f"{name} has {a} boxes with {b} {thing}s each and {change} {c}. How many {thing}s?"


def _apply(a: int, op: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def _step(a: int, op: str, b: int) -> str:
    return f"{a} {op} {b} = {_apply(a, op, b)}."


def _worked(a: int, op: str, b: int, sign: str, c: int) -> str:
    middle = _apply(a, op, b)
    return f"{_step(a, op, b)} {_step(middle, sign, c)} Answer: {_apply(middle, sign, c)}"
