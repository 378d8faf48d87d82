"""Chat: instructions whose obedience can be checked by a program: length, case, format."""

from random import Random

from megatron_bar.data.world.lexicon import ANIMALS, COLORS, FOODS, NAMES, THINGS, WORDS, Example, user

LISTS = {"animals": ANIMALS, "colors": COLORS, "foods": FOODS, "things": THINGS}
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}


def repeat(rng: Random) -> Example:
    word = rng.choice(WORDS)
    n = rng.choice(tuple(COUNTS))
    upper = rng.random() < 0.5
    case = "capital" if upper else "small"
    shown = word.upper() if upper else word
    kept = {"kind": "all_uppercase" if upper else "all_lowercase"}
    rules = [{"kind": "exact_words", "n": n}, kept, {"kind": "contains", "text": shown}]
    request = f"Write the word {word} {COUNTS[n]} times in {case} letters."
    return _task(("repeat", word, n, upper), request, " ".join([shown] * n), rules)


def listing(rng: Random) -> Example:
    kind = rng.choice(tuple(LISTS))
    n = rng.choice((2, 3, 4))
    first, *rest = rng.sample(LISTS[kind], n)
    rules = [{"kind": "comma_separated", "n": n}, {"kind": "starts_with", "text": first}]
    request = f"List {COUNTS[n]} {kind} with commas. Start with {first}."
    return _task(("list", kind, n, first), request, ", ".join([first, *rest]), rules)


def greeting(rng: Random) -> Example:
    name = rng.choice(NAMES)
    word = rng.choice(WORDS)
    rules = [
        {"kind": "starts_with", "text": "Hello"},
        {"kind": "contains", "text": name},
        {"kind": "ends_with", "text": word},
        {"kind": "max_words", "n": 5},
    ]
    request = f"Say hello to {name}. End with the word {word}."
    return _task(("greet", name, word), request, f"Hello {name}, here is {word}", rules)


def copy(rng: Random) -> Example:
    words = [
        rng.choice(WORDS) if rng.random() < 0.6 else str(rng.randrange(1, 100))
        for _ in range(rng.randrange(2, 5))
    ]
    text = " ".join(words)
    rules = [{"kind": "exact_words", "n": len(words)}, {"kind": "contains", "text": text}]
    return _task(("copy", *words), f"Repeat after me: {text}", text, rules)


def _task(key: tuple, request: str, answer: str, rules: list) -> Example:
    return Example(
        key=("chat", *key), prompt=user(request), answer=answer, verifier="instruction", truth=rules
    )


def sample(rng: Random) -> Example:
    return rng.choice((repeat, listing, greeting, copy))(rng)
