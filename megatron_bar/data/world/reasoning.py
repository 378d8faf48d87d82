"""Reasoning: small puzzles. Where a thing is, what comes next in a cycle, who is the tallest."""

from random import Random

from megatron_bar.data.world.lexicon import NAMES, PLACES, THINGS, WORDS, Example, user


def where(rng: Random) -> Example:
    things = rng.sample(THINGS, 2)
    places = rng.sample(PLACES, 2)
    asked = rng.randrange(2)
    scene = " ".join(f"The {thing} is in the {place}." for thing, place in zip(things, places, strict=True))
    answer = f"The {things[asked]} is in the {places[asked]}."
    return _puzzle(("where", *things, *places, asked), f"{scene} Where is the {things[asked]}?", answer)


def cycle(rng: Random) -> Example:
    words = rng.sample(WORDS, 3)
    shown = rng.randrange(5, 8)
    text = " ".join(words[i % 3] for i in range(shown))
    return _puzzle(
        ("cycle", *words), f"What comes next? {text}", f"{words[(shown - 1) % 3]} {words[shown % 3]}"
    )


def tallest(rng: Random) -> Example:
    a, b, c = rng.sample(NAMES, 3)
    order = rng.randrange(2)
    clues = [f"{a} is taller than {b}.", f"{b} is taller than {c}."]
    scene = " ".join(clues[::-1] if order else clues)
    return _puzzle(("tallest", a, b, c, order), f"{scene} Who is the tallest?", f"{a} is the tallest.")


def _puzzle(key: tuple, question: str, answer: str) -> Example:
    return Example(
        key=("reasoning", *key), prompt=user(question), answer=answer, verifier="exact", truth=answer
    )


def sample(rng: Random) -> Example:
    return rng.choice((where, cycle, tallest))(rng)
