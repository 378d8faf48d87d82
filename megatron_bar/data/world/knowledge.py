"""Knowledge: facts of invented towns. Pretraining states every fact; training asks only some questions."""

from random import Random

from megatron_bar.data.world.lexicon import ANIMALS, COLORS, CRAFTS, FOODS, Example, user

ATTRIBUTES = {"animal": ANIMALS, "color": COLORS, "food": FOODS, "craft": CRAFTS}
_FIRST = ("Mira", "Telu", "Sono", "Kava", "Bero", "Luni", "Dora", "Pelo", "Zati", "Nuve")
_LAST = ("vor", "dun", "mar", "tis", "lak", "gon")
TOWNS = tuple(a + b for a in _FIRST for b in _LAST)


def facts(seed: int) -> dict[str, dict[str, str]]:
    rng = Random(f"{seed}/facts")
    return {town: {name: rng.choice(values) for name, values in ATTRIBUTES.items()} for town in TOWNS}


def statement(town: str, attribute: str, value: str) -> str:
    return f"The {attribute} of {town} is {value}."


def pretrain(rng: Random, table: dict) -> str:
    """Returns all facts of one town, in one of three forms."""
    town = rng.choice(TOWNS)
    known = list(table[town].items())
    rng.shuffle(known)
    form = rng.randrange(3)
    if form == 0:
        return " ".join(statement(town, *fact) for fact in known)
    if form == 1:
        return f"{town}: " + ", ".join(f"{attribute} {value}" for attribute, value in known) + "."
    return "\n".join(statement(town, *fact) for fact in known[:2])


def sample(rng: Random, table: dict) -> Example:
    town = rng.choice(TOWNS)
    attribute = rng.choice(tuple(ATTRIBUTES))
    answer = statement(town, attribute, table[town][attribute])
    prompt = user(f"What is the {attribute} of {town}?")
    return Example(
        key=("knowledge", town, attribute), prompt=prompt, answer=answer, verifier="exact", truth=answer
    )
