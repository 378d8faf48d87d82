"""Values that requests for functions speak of: of each kind its JSON schema and how to draw one."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

CITIES = """Oslo|Lisbon|Nairobi|Toronto|Kyoto|Denver|Valencia|Prague|Santiago|Austin|Helsinki|Mumbai|
Cape Town|Buenos Aires|New Orleans|Salt Lake City|Edinburgh|Hanoi|Lagos|Melbourne|Portland|Krakow|
Montreal|Seville|Geneva|Osaka|Tampa|Bristol|Leeds|Cairo""".replace("\n", "").split("|")
FIRST = "Ada|Boris|Carla|Dmitri|Elena|Farid|Greta|Hugo|Ines|Jonas|Kira|Liam|Maya|Nils|Olga|Pedro".split("|")
LAST = "Brandt|Castillo|Dvorak|Eriksen|Fontaine|Grant|Hayashi|Ivanov|Jansen|Keller|Lopez|Moreau".split("|")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    *("November", "December"),
)
CHOICES = {
    name: tuple(part.strip() for part in text.replace("\n", " ").split("|"))
    for name, text in {
        "country": "Norway|Peru|Kenya|Vietnam|Canada|Portugal|Chile|Egypt|Poland|New Zealand|Morocco|Greece",
        "company": "Acme|Globex|Initech|Umbra Foods|Northwind|Blue Harbor|Vandelay|Stark Tools|Orbitex",
        "exchange": "NASDAQ|LSE|Tokyo Stock Exchange|Euronext",
        "restaurant": "Luigi's|The Green Fork|Sakura House|Old Mill|Casa Verde|Harbor Grill|Le Petit Jardin",
        "song": "Blue Lantern|Paper Boats|Midnight Orchard|Silver Road|Echoes of June|Northern Rain",
        "artist": "The Lanterns|Mara Lune|Velvet Harbor|Otis Grey|Nova Kids|Iris and the Tides",
        "movie": "The Last Lighthouse|Paper Moon Rising|Iron Valley|Seven Bridges|Quiet Storm|Red Comet",
        "book": "The Glass Orchard|Winter Letters|A Map of Tides|The Clockmaker|Salt and Stars",
        "artwork": "The Blue Rider|Water Lilies|The Night Watch|Girl with a Balloon|The Thinker",
        "museum": "Louvre|Rijksmuseum|Prado|Tate Modern",
        "genre": "jazz|rock|classical|folk|hip hop|electronic|country|reggae",
        "book_genre": "mystery|science fiction|romance|history|fantasy|biography",
        "mood": "calm|happy|sad|energetic|romantic",
        "room": "kitchen|living room|bedroom|office|garage|bathroom|hallway",
        "label": "morning run|gym|medicine|school|blue|trail|team meeting",
        "subject": "dentist appointment|budget review|birthday party|project kickoff|pay the rent|"
        "buy groceries|call the plumber|quarterly report|book club|water the plants",
        "ingredient": "chicken|spinach|rice|salmon|lentils|tofu|mushrooms|potatoes|eggs|chickpeas|beef",
        "dish": "lasagna|pancakes|vegetable curry|apple pie|fried rice|tomato soup",
        "cuisine": "Italian|Thai|Mexican|Indian|Greek|Japanese|Moroccan",
        "activity": "swimming|running|cycling|rowing|yoga|dancing|hiking",
        "team": "Harbor Hawks|River Wolves|Steel City|North Stars|Golden Bears|Red Foxes",
        "element": "iron|neon|copper|helium|sodium|oxygen|gold|mercury",
        "language": "French|Spanish|German|Japanese|Swahili|Italian|Polish|Korean",
        "topic": "electric cars|coral reefs|solar power|chess tournaments|ancient Rome|space telescopes|"
        "home gardening|remote work|honey bees",
        "product": "desk lamp|water bottle|wool sweater|backpack|phone case|garden hose|coffee grinder",
        "color": "red|blue|green|black|white|yellow|purple",
        "plant": "basil|orchid|snake plant|tomato|lavender|cactus|rose bush",
        "animal": "gray wolf|blue whale|red panda|house mouse|fruit fly|zebrafish|snowy owl|honey badger",
        "planet": "Mercury|Venus|Earth|Mars|Jupiter|Saturn|Uranus|Neptune",
        "car": "compact car|SUV|convertible|minivan|pickup truck",
        "gene": "BRCA1|TP53|FOXP2|MYC|SHH|PAX6",
        "case": "Miller v. Stone|Baker v. Hall|Reed v. Lakeside|Cole v. Norton",
        "court": "Supreme Court|High Court|Court of Appeals",
        "table": "customers|orders|invoices|employees|products",
        "word": "river|apple|light|green|music|stone",
        "sentence": "The river is calm today|Green apples taste sour|Where is the train station|"
        "I would like a cup of tea|Music and light fill the hall|See you tomorrow morning",
        "file": "holiday.png|report.txt|cover.jpg|notes.md|logo.png|data_2021.csv|backup.zip",
        "month": "|".join(MONTHS),
    }.items()
}
ENUMS = {
    "length_unit": ("cm", "m", "inches", "feet"),
    "distance_unit": ("km", "miles"),
    "temperature_unit": ("celsius", "fahrenheit", "kelvin"),
    "currency": ("USD", "EUR", "JPY", "GBP", "CHF", "INR", "CAD"),
    "on_off": ("on", "off"),
    "cabin": ("economy", "business", "first"),
    "diet": ("vegan", "vegetarian", "keto", "gluten-free"),
    "priority": ("low", "medium", "high"),
    "season": ("spring", "summer", "autumn", "winter"),
    "screen": ("2D", "3D", "IMAX"),
    "marital": ("single", "married", "head of household"),
    "clock_format": ("12h", "24h"),
}
LISTS = {
    "words": ("pear", "fig", "cherry", "date", "apple", "kiwi", "mango", "lemon"),
    "amenities": ("wifi", "parking", "pool", "gym", "breakfast"),
    "weekdays": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "people": FIRST,
    "properties": ("density", "melting point", "atomic mass", "boiling point", "symbol"),
    "columns": ("name", "price", "city", "id", "date", "email"),
}
RANGES = {
    "number": (2, 120),
    "small": (2, 9),
    "money": (20, 5000),
    "big": (1000, 900_000),
    "year": (1850, 2023),
    "id": (10_000, 99_999),
    "percent_whole": (5, 100),
    "tall": (140, 205),
}


@dataclass(frozen=True)
class Kind:
    schema: dict
    draw: Callable[[Random], tuple[object, str]]
    """Returns a value and how a request says it."""


def _said(values: list) -> str:
    return f"{', '.join(map(str, values[:-1]))} and {values[-1]}" if len(values) > 1 else str(values[0])


def _date(rng: Random) -> tuple[str, str]:
    year, month, day = rng.randrange(2021, 2026), rng.randrange(1, 13), rng.randrange(1, 29)
    value = f"{year}-{month:02d}-{day:02d}"
    return value, rng.choice((value, value, f"{MONTHS[month - 1]} {day}, {year}"))


def _time(rng: Random) -> tuple[str, str]:
    value = f"{rng.randrange(6, 23):02d}:{rng.choice((0, 15, 30, 45)):02d}"
    return value, value


def _person(rng: Random) -> tuple[str, str]:
    name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    return name, name


def _email(rng: Random) -> tuple[str, str]:
    address = f"{rng.choice(FIRST).lower()}@{rng.choice(('example.com', 'mail.org', 'work.net'))}"
    return address, address


def _percent(rng: Random) -> tuple[float, str]:
    tenths = rng.choice((rng.randrange(1, 30) * 10, rng.randrange(10, 95)))
    value = tenths / 1000
    spelled = f"{tenths // 10}" if tenths % 10 == 0 else f"{tenths / 10}"
    return value, f"{spelled}%"


def _decimal(rng: Random) -> tuple[float, str]:
    value = rng.randrange(11, 400) / 10
    return value, str(value)


def _numbers(rng: Random) -> tuple[list, str]:
    values = [rng.randrange(1, 100) for _ in range(rng.randrange(3, 6))]
    return values, rng.choice((_said(values), str(values)))


def _matrix(rng: Random) -> tuple[list, str]:
    values = [[rng.randrange(1, 10) for _ in range(2)] for _ in range(2)]
    return values, str(values)


def _one(choices) -> Callable[[Random], tuple[str, str]]:
    def draw(rng: Random) -> tuple[str, str]:
        value = rng.choice(choices)
        return value, value

    return draw


def _within(low: int, high: int) -> Callable[[Random], tuple[int, str]]:
    def draw(rng: Random) -> tuple[int, str]:
        value = rng.randrange(low, high)
        return value, str(value)

    return draw


def _some(choices) -> Callable[[Random], tuple[list, str]]:
    def draw(rng: Random) -> tuple[list, str]:
        values = rng.sample(choices, rng.randrange(1, 4))
        return values, _said(values)

    return draw


TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": {"type": "string"}}
WHOLE = {"type": "array", "items": {"type": "integer"}}
KINDS = {
    **{name: Kind(TEXT, _one(choices)) for name, choices in CHOICES.items()},
    **{name: Kind({"type": "string", "enum": list(values)}, _one(values)) for name, values in ENUMS.items()},
    **{name: Kind(TEXTS, _some(choices)) for name, choices in LISTS.items()},
    **{name: Kind({"type": "integer"}, _within(*ends)) for name, ends in RANGES.items()},
    "city": Kind(TEXT, _one(CITIES)),
    "date": Kind(TEXT, _date),
    "time": Kind(TEXT, _time),
    "person": Kind(TEXT, _person),
    "email": Kind(TEXT, _email),
    "percent": Kind({"type": "float"}, _percent),
    "decimal": Kind({"type": "float"}, _decimal),
    "numbers": Kind(WHOLE, _numbers),
    "matrix": Kind({"type": "array", "items": WHOLE}, _matrix),
    "yes": Kind({"type": "boolean"}, lambda rng: (True, "")),
}
