"""Code: write a small Python function from its description, graded by a run. Combinations are held out."""

from random import Random

from megatron_bar.data.world.lexicon import Example, user

NAMES = ("step", "calc", "solve", "turn", "move", "change")
OPERATIONS = {
    "adds": ("x + {}", lambda x, n: x + n),
    "subtracts": ("x - {}", lambda x, n: x - n),
    "multiplies by": ("x * {}", lambda x, n: x * n),
    "divides by": ("x // {}", lambda x, n: x // n),
    "keeps the rest by": ("x % {}", lambda x, n: x % n),
}
INPUTS = (1, 5, 12, 37, 100, 999)


def sample(rng: Random, lengths: tuple[int, ...] = (1, 2, 2, 3)) -> Example:
    name = rng.choice(NAMES)
    length = rng.choice(lengths)
    while True:
        plan = tuple((rng.choice(tuple(OPERATIONS)), rng.randrange(2, 10)) for _ in range(length))
        if len({_run(plan, x) for x in INPUTS}) > 1:  # a constant could be written without understanding
            break
    request = f"Write a function named {name} that {_words(plan)}."
    truth = {"function": name, "tests": [[[x], _run(plan, x)] for x in INPUTS]}
    return Example(
        key=("code", *plan), prompt=user(request), answer=_source(name, plan), verifier="code", truth=truth
    )


def sample_test(rng: Random) -> Example:
    return sample(rng, (2, 2, 3))


def midtrain(rng: Random, split) -> str:
    """Returns a commented function on the training side of the split."""
    example = split.draw(sample, rng)
    request = example.prompt[0]["content"]
    return f"# {request.removeprefix('Write a ')}\n{example.answer}"


def _words(plan: tuple) -> str:
    return " and then ".join(f"{operation} {n}" for operation, n in plan)


def _source(name: str, plan: tuple) -> str:
    body = "".join(f"    x = {OPERATIONS[operation][0].format(n)}\n" for operation, n in plan)
    return f"def {name}(x):\n{body}    return x"


def _run(plan: tuple, x: int) -> int:
    for operation, n in plan:
        x = OPERATIONS[operation][1](x, n)
    return x
