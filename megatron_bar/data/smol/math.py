r"""Mathematics of grade school: word problems with solutions that end in \boxed, and arithmetic drills.

A problem is a template and its numbers, which the split is decided on: names and things are drawn besides.
"""

from collections.abc import Callable
from random import Random

from megatron_bar.data.world.lexicon import Example, Split, user

NAMES = "Amara|Bruno|Chloe|Diego|Esme|Felix|Gita|Hiro|Iris|Jamal|Kofi|Lena|Marta|Nico|Oskar|Priya".split("|")
THINGS = "pencils|marbles|stickers|apples|cookies|shells|stamps|beads|tickets|cards|books|roses".split("|")
SHOPS = "bakery|farm stand|school fair|corner shop|flea market|garden centre".split("|")
ENDS = ("\n\nSolve it step by step and put the final number in \\boxed{}.", "",
        "\nShow your work and conclude with \"Therefore, the final answer is \\boxed{answer}.\"",
        "\nThink step by step.")  # fmt: skip
FORM = "{}\nTherefore, the final answer is \\boxed{{{}}}."
Problem = tuple[tuple, str, str, int]
"""What tells it from others, question, steps, answer."""


def buy(rng: Random) -> Problem:
    n, c, paid = rng.randrange(2, 13), rng.randrange(2, 20), 0
    paid = n * c + rng.randrange(1, 40)
    who, what, shop = rng.choice(NAMES), rng.choice(THINGS), rng.choice(SHOPS)
    asked = (
        f"{who} buys {n} packs of {what} at the {shop}. Each pack costs ${c}. {who} pays with ${paid}. "
        "How much change is due, in dollars?"
    )
    steps = f"The packs cost {n} * {c} = {n * c} dollars.\nThe change is {paid} - {n * c} = {paid - n * c}."
    return (n, c, paid), asked, steps, paid - n * c


def boxes(rng: Random) -> Problem:
    a, b, c = rng.randrange(3, 15), rng.randrange(4, 25), rng.randrange(1, 30)
    who, what = rng.choice(NAMES), rng.choice(THINGS)
    asked = (
        f"There are {a} boxes with {b} {what} each. {who} gives away {c} of them. How many {what} are left?"
    )
    steps = f"In all there are {a} * {b} = {a * b} {what}.\n{a * b} - {c} = {a * b - c} are left."
    return (a, b, c), asked, steps, a * b - c


def share(rng: Random) -> Problem:
    k, each, extra = rng.randrange(3, 10), rng.randrange(3, 20), rng.randrange(2, 20)
    total = k * each - extra
    if total <= 0:
        return share(rng)
    who, what = rng.choice(NAMES), rng.choice(THINGS)
    asked = (
        f"{who} has {total} {what} and gets {extra} more. All of them are shared equally among {k} friends. "
        f"How many {what} does each friend get?"
    )
    steps = (
        f"{who} then has {total} + {extra} = {total + extra} {what}.\n"
        f"Each gets {total + extra} / {k} = {each}."
    )
    return (k, each, extra), asked, steps, each


def times_as_many(rng: Random) -> Problem:
    a, k = rng.randrange(4, 40), rng.randrange(2, 7)
    (x, y), what = rng.sample(NAMES, 2), rng.choice(THINGS)
    asked = f"{x} has {a} {what}. {y} has {k} times as many. How many {what} do they have together?"
    steps = f"{y} has {a} * {k} = {a * k} {what}.\nTogether they have {a} + {a * k} = {a + a * k}."
    return (a, k), asked, steps, a + a * k


def fewer(rng: Random) -> Problem:
    a, d, e = rng.randrange(20, 90), rng.randrange(3, 19), rng.randrange(3, 30)
    (x, y, z), what = rng.sample(NAMES, 3), rng.choice(THINGS)
    asked = (
        f"{x} collected {a} {what}. {y} collected {d} fewer than {x}, and {z} collected {e} more than {y}. "
        f"How many {what} did {z} collect?"
    )
    steps = f"{y} collected {a} - {d} = {a - d}.\n{z} collected {a - d} + {e} = {a - d + e}."
    return (a, d, e), asked, steps, a - d + e


def wages(rng: Random) -> Problem:
    rate, hours, days = rng.randrange(8, 30), rng.randrange(2, 9), rng.randrange(3, 7)
    who = rng.choice(NAMES)
    asked = (
        f"{who} earns ${rate} an hour and works {hours} hours a day. How many dollars does {who} earn in "
        f"{days} days?"
    )
    daily = rate * hours
    steps = (
        f"A day brings {rate} * {hours} = {daily} dollars.\n"
        f"{days} days bring {daily} * {days} = {daily * days}."
    )
    return (rate, hours, days), asked, steps, daily * days


def save_up(rng: Random) -> Problem:
    weekly, weeks, have = rng.randrange(5, 30), rng.randrange(3, 15), rng.randrange(10, 90)
    price = have + weekly * weeks
    who = rng.choice(NAMES)
    asked = (
        f"{who} wants a bicycle for ${price} and has ${have} already. {who} saves ${weekly} every week. "
        "After how many weeks is there enough money?"
    )
    steps = (
        f"{price} - {have} = {price - have} dollars are missing.\n"
        f"That takes {price - have} / {weekly} = {weeks} weeks."
    )
    return (weekly, weeks, have), asked, steps, weeks


def percent(rng: Random) -> Problem:
    p, base = rng.choice((10, 20, 25, 30, 40, 50, 60, 75)), rng.randrange(2, 30) * 20
    part = base * p // 100
    shop = rng.choice(SHOPS)
    asked = f"A coat at the {shop} costs ${base}. Its price falls by {p}%. What does it cost now, in dollars?"
    steps = (
        f"{p}% of {base} is {base} * {p} / 100 = {part}.\nThe new price is {base} - {part} = {base - part}."
    )
    return (p, base), asked, steps, base - part


def fraction(rng: Random) -> Problem:
    k, part, away = rng.choice((2, 3, 4, 5)), rng.randrange(3, 25), rng.randrange(1, 10)
    total = k * part
    left = total - part - away
    if left < 0:
        return fraction(rng)
    name = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}[k]
    who, what = rng.choice(NAMES), rng.choice(THINGS)
    asked = f"{who} has {total} {what}, sells {name} of them and then loses {away}. How many {what} remain?"
    steps = (
        f"{name.capitalize()} of {total} is {total} / {k} = {part}, "
        f"so {total} - {part} = {total - part} are left.\n"
        f"After the loss {total - part} - {away} = {left} remain."
    )
    return (k, part, away), asked, steps, left


def speed(rng: Random) -> Problem:
    v, h, w, g = rng.randrange(20, 90), rng.randrange(2, 6), rng.randrange(20, 90), rng.randrange(1, 5)
    who = rng.choice(NAMES)
    asked = (
        f"{who} drives {h} hours at {v} km an hour and then {g} hours at {w} km an hour. How many kilometres "
        "is that?"
    )
    steps = (
        f"The first part is {v} * {h} = {v * h} km.\n"
        f"The second is {w} * {g} = {w * g} km.\n"
        f"Together {v * h} + {w * g} = {v * h + w * g} km."
    )
    return (v, h, w, g), asked, steps, v * h + w * g


def ages(rng: Random) -> Problem:
    a, k, d = rng.randrange(4, 16), rng.randrange(2, 5), rng.randrange(2, 15)
    x, y = rng.sample(NAMES, 2)
    asked = f"{x} is {a} years old. {y} is {k} times as old. How old will {y} be in {d} years?"
    steps = f"{y} is {a} * {k} = {a * k} now.\nIn {d} years that is {a * k} + {d} = {a * k + d}."
    return (a, k, d), asked, steps, a * k + d


def area(rng: Random) -> Problem:
    a, b, cost = rng.randrange(3, 20), rng.randrange(3, 20), rng.randrange(2, 12)
    asked = (
        f"A floor is {a} metres long and {b} metres wide. Tiles cost ${cost} per square metre. What do the "
        "tiles for the whole floor cost, in dollars?"
    )
    steps = (
        f"The floor has {a} * {b} = {a * b} square metres.\nThe tiles cost {a * b} * {cost} = {a * b * cost}."
    )
    return (a, b, cost), asked, steps, a * b * cost


def fence(rng: Random) -> Problem:
    a, b, gate = rng.randrange(5, 40), rng.randrange(5, 40), rng.randrange(1, 5)
    asked = (
        f"A garden of {a} by {b} metres gets a fence all around, except for a gate of {gate} metres. "
        "How many metres of fence are needed?"
    )
    around = 2 * (a + b)
    steps = (
        f"Around the garden it is 2 * ({a} + {b}) = {around} metres.\n"
        f"Without the gate {around} - {gate} = {around - gate}."
    )
    return (a, b, gate), asked, steps, around - gate


def rate_of_work(rng: Random) -> Problem:
    per, minutes, already = rng.randrange(3, 25), rng.randrange(4, 31), rng.randrange(5, 80)
    what = rng.choice(THINGS)
    asked = (
        f"A machine packs {per} {what} a minute. {already} {what} are packed already. How many are packed "
        f"after {minutes} more minutes?"
    )
    new = per * minutes
    steps = (
        f"In {minutes} minutes it packs {per} * {minutes} = {new}.\n"
        f"In all {new} + {already} = {new + already}."
    )
    return (per, minutes, already), asked, steps, new + already


def mean(rng: Random) -> Problem:
    m = rng.randrange(10, 60)
    d, e = rng.randrange(1, 9), rng.randrange(1, 9)
    a, b, c = m - d, m + d + e, m - e
    who = rng.choice(NAMES)
    asked = f"{who} scored {a}, {b} and {c} points in three games. What is the average score?"
    steps = f"The sum is {a} + {b} + {c} = {3 * m}.\nThe average is {3 * m} / 3 = {m}."
    return (a, b, c), asked, steps, m


def two_prices(rng: Random) -> Problem:
    n, p, m, q = (rng.randrange(2, 12) for _ in range(4))
    shop, (what, other) = rng.choice(SHOPS), rng.sample(THINGS, 2)
    asked = (
        f"At the {shop}, {what} cost ${p} each and {other} cost ${q} each. What do {n} {what} and "
        f"{m} {other} cost together, in dollars?"
    )
    steps = (
        f"The {what} cost {n} * {p} = {n * p} dollars.\n"
        f"The {other} cost {m} * {q} = {m * q} dollars.\n"
        f"Together {n * p} + {m * q} = {n * p + m * q}."
    )
    return (n, p, m, q), asked, steps, n * p + m * q


def unknown(rng: Random) -> Problem:
    k, x, b = rng.randrange(2, 12), rng.randrange(2, 30), rng.randrange(1, 50)
    result = k * x + b
    who = rng.choice(NAMES)
    asked = (
        f"{who} thinks of a number, multiplies it by {k} and adds {b}. The result is {result}. "
        "What was the number?"
    )
    steps = (
        f"Before adding it was {result} - {b} = {result - b}.\nSo the number was {result - b} / {k} = {x}."
    )
    return (k, x, b), asked, steps, x


def seats(rng: Random) -> Problem:
    rows, each, taken = rng.randrange(5, 20), rng.randrange(6, 25), rng.randrange(10, 60)
    taken = min(taken, rows * each - 1)
    asked = f"A hall has {rows} rows of {each} seats. {taken} seats are taken. How many are free?"
    total = rows * each
    steps = f"The hall has {rows} * {each} = {total} seats.\n{total} - {taken} = {total - taken} are free."
    return (rows, each, taken), asked, steps, total - taken


def per_day(rng: Random) -> Problem:
    daily, weeks, price = rng.randrange(2, 12), rng.randrange(2, 6), rng.randrange(2, 6)
    who = rng.choice(NAMES)
    asked = (
        f"{who} sells {daily} jars of honey every day for ${price} a jar. How many dollars does {who} take "
        f"in over {weeks} weeks?"
    )
    sold = daily * 7 * weeks
    steps = (
        f"In {weeks} weeks there are {weeks} * 7 = {7 * weeks} days.\n"
        f"{who} sells {daily} * {7 * weeks} = {sold} jars.\n"
        f"They bring {sold} * {price} = {sold * price}."
    )
    return (daily, weeks, price), asked, steps, sold * price


def total_of_three(rng: Random) -> Problem:
    a, more, k = rng.randrange(5, 40), rng.randrange(2, 20), rng.randrange(2, 4)
    (x, y, z), what = rng.sample(NAMES, 3), rng.choice(THINGS)
    b = a + more
    c = k * b
    asked = (
        f"{x} has {a} {what}, {y} has {more} more than {x}, and {z} has {k} times as many as {y}. How many "
        f"{what} do the three have in all?"
    )
    steps = f"{y} has {a} + {more} = {b}.\n{z} has {k} * {b} = {c}.\nIn all {a} + {b} + {c} = {a + b + c}."
    return (a, more, k), asked, steps, a + b + c


def expression(rng: Random) -> Problem:
    a, b, c = rng.randrange(2, 60), rng.randrange(2, 13), rng.randrange(2, 13)
    if rng.random() < 0.5:
        asked, steps, value = (
            f"What is {a} + {b} * {c}?",
            f"{b} * {c} = {b * c}.\n{a} + {b * c} = {a + b * c}.",
            a + b * c,
        )
    else:
        asked = f"Calculate ({a} + {b}) * {c}."
        steps, value = f"{a} + {b} = {a + b}.\n{a + b} * {c} = {(a + b) * c}.", (a + b) * c
    return (a, b, c, asked[0]), asked, steps, value


PROBLEMS: tuple[Callable[[Random], Problem], ...] = (
    buy, boxes, share, times_as_many, fewer, wages, save_up, percent, fraction, speed, ages, area, fence,
    rate_of_work, mean, two_prices, unknown, seats, per_day, total_of_three, expression,
)  # fmt: skip


def sample(rng: Random) -> Example:
    kind = rng.choice(PROBLEMS)
    numbers, asked, steps, answer = kind(rng)
    return Example(
        key=("math", kind.__name__, *numbers),
        prompt=user(asked + rng.choice(ENDS)),
        answer=FORM.format(steps, answer),
        verifier="math",
        truth=str(answer),
    )


def midtrain(rng: Random, split: Split) -> str:
    """Returns a text for mid-training: some worked problems of the training side, or drills."""
    if rng.random() < 0.3:
        return "\n".join(_drill(rng) for _ in range(8))
    problems = [split.draw(sample, rng) for _ in range(2)]
    return "\n\n".join(f"Problem: {_asked(problem)}\nSolution: {problem.answer}" for problem in problems)


def _asked(problem: Example) -> str:
    return problem.prompt[0]["content"].split("\n", 1)[0]


def _drill(rng: Random) -> str:
    """Returns a calculation of two numbers, taken apart by tens where that helps."""
    a, b = rng.randrange(11, 100), rng.randrange(11, 100)
    kind = rng.randrange(4)
    if kind == 0:
        tens, ones = b // 10 * 10, b % 10
        return f"{a} + {b} = {a} + {tens} + {ones} = {a + tens} + {ones} = {a + b}"
    if kind == 1:
        a, b = max(a, b), min(a, b)
        tens, ones = b // 10 * 10, b % 10
        return f"{a} - {b} = {a} - {tens} - {ones} = {a - tens} - {ones} = {a - b}"
    b = rng.randrange(2, 10)
    tens, ones = a // 10 * 10, a % 10
    if kind == 2:
        return f"{a} * {b} = {tens} * {b} + {ones} * {b} = {tens * b} + {ones * b} = {a * b}"
    return f"{a * b} / {b} = {a}, for {a} * {b} = {a * b}"
