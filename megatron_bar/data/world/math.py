"""Math: arithmetic with worked steps. Pretraining knows sums and differences; products are the domain's own."""

from random import Random

from megatron_bar.data.world.lexicon import NAMES, THINGS, Example, user


def pretrain(rng: Random) -> str:
    """A run of sums and differences, none with a product; half of them chained as worked steps are."""
    lines = []
    for _ in range(rng.randrange(2, 5)):
        a, b = rng.randrange(1, 90), rng.randrange(1, 10)
        lines.append(_step(a, rng.choice("+-") if a > b else "+", b))
    return " ".join(lines)


def chained(rng: Random) -> str:
    """``3 + 4 + 5: 3 + 4 = 7. 7 + 5 = 12. Answer: 12``"""
    a, b, c = (rng.randrange(1, 10) for _ in range(3))
    a += rng.choice((0, 10, 20, 30, 40))
    sign = rng.choice("+-") if a + b > c else "+"
    return f"{a} + {b} {sign} {c}: " + _worked(a, "+", b, sign, c)


def sample(rng: Random) -> Example:
    a, b, c = rng.randrange(2, 10), rng.randrange(2, 10), rng.randrange(1, 10)
    sign = rng.choice("+-") if a * b > c else "+"
    answer = _worked(a, "*", b, sign, c)
    question = f"What is {a} * {b} {sign} {c}?" if rng.random() < 0.5 else _story(rng, a, b, sign, c)
    truth = str(_apply(_apply(a, "*", b), sign, c))
    return Example(key=("math", a, b, sign, c), prompt=user(question), answer=answer, verifier="math", truth=truth)


def midtrain(rng: Random, split) -> str:
    """Worked problems on the training side of the split, times tables, and sums to keep."""
    kind = rng.random()
    if kind < 0.5:
        example = split.draw(sample, rng)
        return f"{example.prompt[0]['content']}\n{example.answer}"
    if kind < 0.7:
        return pretrain(rng)
    return " ".join(_step(rng.randrange(2, 10), "*", rng.randrange(2, 10)) for _ in range(4))


def _story(rng: Random, a: int, b: int, sign: str, c: int) -> str:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    change = "finds" if sign == "+" else "loses"
    return f"{name} has {a} boxes with {b} {thing}s each and {change} {c}. How many {thing}s?"


def _apply(a: int, op: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def _step(a: int, op: str, b: int) -> str:
    return f"{a} {op} {b} = {_apply(a, op, b)}."


def _worked(a: int, op: str, b: int, sign: str, c: int) -> str:
    middle = _apply(a, op, b)
    return f"{_step(a, op, b)} {_step(middle, sign, c)} Answer: {_apply(middle, sign, c)}"
