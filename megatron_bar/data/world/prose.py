"""General text for pretraining, from which attention learns to look up: copies, records, quotes, stories."""

import json
import string
from random import Random

from megatron_bar.data.world.lexicon import ANIMALS, COLORS, FOODS, NAMES, OTHERS, PLACES, THINGS, WORDS
from megatron_bar.data.world.safety import ADJECTIVES, PEOPLE
from megatron_bar.data.world.tool_use import NOUNS, VERBS

_KEYS = {"name": NAMES, "animal": ANIMALS, "color": COLORS, "food": FOODS, "thing": THINGS, "place": PLACES}
_SAID = ("I can't find that.", "I can help with that.", "I like that.", "Can I help?", "I can't.")


def echo(rng: Random) -> str:
    """Returns a passage of words and numbers, said twice or thrice."""
    length = rng.randrange(4, 14)
    text = " ".join(
        rng.choice(WORDS + NAMES + OTHERS) if rng.random() < 0.7 else str(rng.randrange(1, 100))
        for _ in range(length)
    )
    return "\n".join([text] * rng.choice((2, 3)))


def record(rng: Random) -> str:
    """Returns fields, then sentences that need them: looking up by key."""
    keys = rng.sample(tuple(_KEYS), 3)
    values = {key: rng.choice(_KEYS[key]) for key in keys}
    values["number"] = str(rng.randrange(1, 100))
    keys.append("number")
    rng.shuffle(keys)
    shown = ", ".join(f"{key} {values[key]}" for key in keys)
    asked = rng.sample(keys, 3)
    return f"{shown}. " + " ".join(f"The {key} is {values[key]}." for key in asked)


def json_record(rng: Random) -> str:
    """Returns a record as JSON and in words, either first. It has the marks and the spelling of identifiers,
    no function and no call."""
    keys = rng.sample(tuple(_KEYS), 2)
    values = {key: rng.choice(_KEYS[key]) for key in keys}
    verb = rng.choice(VERBS)
    noun = rng.choice(NOUNS)
    title = f"{verb}_{noun}"
    forms = (
        {title: values},
        [values, {"string": title}],
        {"parameters": title, "arguments": values},
        {"name": title} | values,
    )
    shown = rng.choice(forms)
    said = " ".join(f"The {key} is {value}." for key, value in values.items()) + f" We {verb} the {noun}."
    return "\n".join(rng.sample([json.dumps(shown), said], 2))


def quote(rng: Random) -> str:
    """Returns the same words with and without a space before them, in capitals, in lists."""
    words = rng.sample(WORDS, rng.randrange(2, 4))
    name = rng.choice(NAMES)
    spoken = " and ".join(words)
    form = rng.randrange(4)
    if form == 0:
        return f"{name} likes {spoken}.\n" + "\n".join(words)
    if form == 1:
        return f"{name} wrote {spoken}.\n" + " ".join(word.upper() for word in words)
    if form == 2:
        return f"{name} said {spoken}. " + " ".join(f'"{word}"' for word in words)
    return f"{name} has {spoken}: " + ", ".join(words)


def story(rng: Random) -> str:
    a, b = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    place = rng.choice(PLACES)
    color = rng.choice(COLORS)
    person = rng.choice(PEOPLE)
    return (
        f"{a} saw the {rng.choice(ADJECTIVES)} {person} in the {place}. "
        f"The {person} gave {a} a {color} {thing}. "
        f"{a} took the {color} {thing} to {b}. {rng.choice(_SAID)} Now {b} has the {thing}."
    )


def counting(rng: Random) -> str:
    start = rng.randrange(0, 90)
    return " ".join(str(n) for n in range(start, start + rng.randrange(5, 10)))


def letters(rng: Random) -> str:
    """Returns a random string said twice: no letter or mark of the keyboard stays unseen."""
    marks = "".join(
        rng.choice(string.ascii_letters + string.digits + ".,:;!?'-") for _ in range(rng.randrange(4, 9))
    )
    return f"{marks} {marks}"
