"""Prompts of all kinds, for the anchor to answer: what it is to go on being able to do. And instructions
whose obedience a program can check, to measure that.
"""

from collections.abc import Sequence
from random import Random

from megatron_bar.data.smol.values import CHOICES, CITIES
from megatron_bar.data.world.lexicon import Example, user

TOPICS = """the water cycle|photosynthesis|the Roman Empire|black holes|how a bicycle stays upright|inflation|
the French Revolution|how vaccines work|plate tectonics|the immune system|why the sky is blue|electric motors|
the printing press|supply and demand|tides|volcanoes|DNA|the greenhouse effect|how bread rises|the Silk Road|
lightning|the human heart|recycling|how a refrigerator works|migration of birds|the Renaissance|gravity|
how computers store numbers|the Great Wall of China|sleep|coral reefs|coffee|the history of chess|glaciers|
solar panels|how bees make honey|the stock market|earthquakes|the moon landing|the alphabet|good study habits|
public libraries|learning an instrument|healthy breakfasts|small talk|saving money|growing tomatoes|
travelling by train|remote work|morning routines""".replace("\n", "").split("|")
PEOPLE = """Marie Curie|Leonardo da Vinci|Nelson Mandela|Ada Lovelace|Albert Einstein|Cleopatra|
Charles Darwin|Frida Kahlo|Isaac Newton|Florence Nightingale|Galileo Galilei|Mozart""".replace(
    "\n", ""
).split("|")
FORMS = (
    "Explain {topic} in simple words.",
    "What is important to know about {topic}?",
    "Give me three facts about {topic}.",
    "Write a short paragraph about {topic}.",
    "Summarise {topic} in two sentences.",
    "Write a short poem about {topic}.",
    "What are the pros and cons of {topic}?",
    "I have to give a talk on {topic}. Suggest a title and three points.",
    "How would you explain {topic} to a ten-year-old?",
    "Ask me a quiz question about {topic} and give the answer.",
    "Who was {person}?",
    "What is {person} known for?",
    "Name two achievements of {person}.",
    "Write a friendly e-mail to {name} that invites them to {city}.",
    "Suggest three things to do in {city}.",
    "What should I pack for a trip to {city}?",
    "Describe a day in {country}.",
    "Name two towns of {country}.",
    "Give me a simple recipe with {food}.",
    "What goes well with {food}?",
    "Tell me a short story about a {animal} and a {thing}.",
    "Write a haiku about a {animal}.",
    "Rewrite this politely: I need the {thing} now.",
    "Correct the grammar: she don't like {food} because it taste bad.",
    "Give three synonyms of the word '{word}'.",
    "Use the word '{word}' in a sentence.",
    "Is a {animal} a mammal? Explain briefly.",
    "List five things that one finds in a {room}.",
    "What could I give {name}, who likes {genre} music, as a present?",
    "How do I keep a {plant} alive?",
    "What does it take to become good at {activity}?",
    "Give me a motivating sentence for someone who started {activity}.",
    "Classify as positive or negative: the {thing} broke after a day.",
    "Translate into French: where is the {room}?",
    "What is {a} plus {b}?",
    "Write a Python function that returns the product of a number and {a}.",
    "I feel stressed because of {subject}. What can I do?",
    "Make a to-do list for {subject}.",
    "Hello, how are you? My name is {name}.",
    "What is the difference between {food} and {other_food}?",
)
CONSTRAINED, CHOSEN = 0.25, 0.15
"""Shares of the general prompts with constraints, and of questions with four choices."""
LETTERS = "ABCD"
KINDS = {
    "an animal": "animal",
    "a country": "country",
    "something to eat": "ingredient",
    "a plant": "plant",
    "a room of a house": "room",
    "a kind of music": "genre",
    "a chemical element": "element",
    "a language": "language",
    "a planet": "planet",
    "a colour": "color",
    "a sport": "activity",
    "a month": "month",
}
"""What is asked for -> the values that are."""
THINGS = "lamp|bicycle|suitcase|teapot|violin|ladder|map|umbrella|camera|scarf".split("|")
FIRST = "Ravi|Sofia|Tom|Yuki|Zoe|Emil|Nora|Sam".split("|")


def general(rng: Random) -> Example:
    """Returns a prompt without an answer, among them requests with constraints and questions with choices:
    whether what is answered obeys or is right is not asked."""
    kind = rng.random()
    if kind < CONSTRAINED:
        return instruction(rng)
    if kind < CONSTRAINED + CHOSEN:
        return _prompt(choice_of(*_choices(rng)))
    pick = {
        name: rng.choice(CHOICES[name]) for name in ("country", "animal", "word", "room", "genre", "plant")
    }
    pick |= {name: rng.choice(CHOICES[name]) for name in ("activity", "subject")}
    food, other = rng.sample(CHOICES["ingredient"], 2)
    form = rng.choice(FORMS)
    asked = form.format(
        topic=rng.choice(TOPICS),
        person=rng.choice(PEOPLE),
        name=rng.choice(FIRST),
        city=rng.choice(CITIES),
        thing=rng.choice(THINGS),
        food=food,
        other_food=other,
        a=rng.randrange(2, 100),
        b=rng.randrange(2, 100),
        **pick,
    )
    return _prompt(asked)


def _prompt(asked: str) -> Example:
    return Example(key=("general", asked), prompt=user(asked), answer="", verifier="exact", truth=asked)


def _choices(rng: Random) -> tuple[str, list[str]]:
    """Returns a question and four choices, one of them right, in any order."""
    kinds = rng.sample(sorted(KINDS), len(LETTERS))
    texts = [rng.choice(CHOICES[KINDS[kind]]) for kind in kinds]
    rng.shuffle(texts)
    return f"Which of these is {kinds[0]}?", texts


def choice_of(question: str, choices: Sequence[str]) -> str:
    """Returns a question with choices as it is asked, MMLU's as well."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=True))
    return f"{question}\n{listed}\nAnswer with the letter of the right choice alone."


TASKS = (
    "Write a short text about {}.",
    "Tell me about {}.",
    "Explain {}.",
    "Describe {} for a newspaper.",
    "Write a letter to a friend about {}.",
)


def _constraints(rng: Random) -> tuple[tuple[str, dict], ...]:
    """Returns constraints of different kinds, in words and as the verifier knows them."""
    n, w, s = rng.randrange(20, 80), rng.randrange(2, 5), rng.randrange(2, 6)
    word, other = rng.sample(CHOICES["word"], 2)
    ending = rng.choice(("That is all.", "Thank you for reading.", "Any questions?"))
    return (
        ("Use no commas.", {"kind": "punctuation:no_comma"}),
        (
            f"Use at most {n} words.",
            {"kind": "length_constraints:number_words", "num_words": n + 1, "relation": "less than"},
        ),
        (
            f"Use at least {n} words.",
            {"kind": "length_constraints:number_words", "num_words": n, "relation": "at least"},
        ),
        (f"Use the words {word} and {other}.", {"kind": "keywords:existence", "keywords": [word, other]}),
        (f"Do not use the word {word}.", {"kind": "keywords:forbidden_words", "forbidden_words": [word]}),
        (
            f"Give exactly {s} bullet points, each beginning with *.",
            {"kind": "detectable_format:number_bullet_lists", "num_bullets": s},
        ),
        (f'End with the words "{ending}"', {"kind": "startend:end_checker", "end_phrase": ending}),
        ("Put the whole answer in double quotation marks.", {"kind": "startend:quotation"}),
        ("Give it a title in double angular brackets, as in <<title>>.", {"kind": "detectable_format:title"}),
        (
            f"Mention {word} at least {w} times.",
            {"kind": "keywords:frequency", "keyword": word, "frequency": w, "relation": "at least"},
        ),
    )


def instruction(rng: Random) -> Example:
    """Returns a request with a constraint, or two, and no answer."""
    topic = rng.choice(TOPICS)
    kept = rng.sample(_constraints(rng), rng.choice((1, 1, 2)))
    asked = " ".join([rng.choice(TASKS).format(topic), *(words for words, _ in kept)])
    truth = [constraint for _, constraint in kept]
    return Example(
        key=("instruction", asked), prompt=user(asked), answer="", verifier="instruction", truth=truth
    )
