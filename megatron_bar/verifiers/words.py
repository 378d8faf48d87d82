"""The words that may stand around a number, those that change it, and units; for literal.py."""

import re

LEAD = frozenset(
    """a all altogether amount an and answer answers are area as be cost costs count difference
    distance equal equals exactly final gave gets got had has have he height her his in is it
    it's its just left length makes my number of only our pay pays perimeter possible price
    probability product radius ratio remain result root roots sale she side simply slope so sold
    solution solutions spent sum that the their then there therefore these they this thus to
    total value values volume was we were will you""".split()
)
UNITS = frozenset(
    """acre adult ampere angle animal apartment apple arrangement baby bag ball balloon banana barrel
    bead bean bee bird block boat book bottle bowl box boy bracelet bread brick brother bucket
    bus byte cake calorie candies candle candy car card cat celsius cent center centimeter
    centimetre chair chicken child children chocolate choice city cl class classmate club cm
    coin color combination cookie cow crayon cube cubit cup customer cycle day degree desk digit
    dime dm dog doll dollar door dress edge egg element elephant employee eraser error euro face
    family farad feet fish fl flower foot friend fruit ft function g gal gallon game girl glass
    goal gram graph group guest hat hen henry hertz hour house hr hz in inch integer item jar
    joule jump kelvin kg kid kilogram kilometer kilometre kj km kmh kn kpa kw kwh lap lb leg
    lemon letter line liter litre lollipop lumen m man marble match men meter metre mg mile
    minute ml mm mol mole monkey month mouse mph ms mv newton night nm number ohm orange ounce
    outcome oz pa page panda paper part party pascal path pattern peach pear pen pencil penny
    people percent permutation person phone photo picture piece pig pint pizza plant plate
    player point potato pound problem pt pupil puppy question rabbit rad radian rectangle region
    ribbon room rose route row runner sandwich seat sec second seed sheep sheet shell shirt shoe
    side siemens sister slice solar solution song sq square stamp star step sticker story
    student subset sweet table tablespoon task teacher team teaspoon term tesla ticket tile
    tomato ton tonne toy train tree triangle trip truck tuple turn unit usd value vase vertex
    vertices visitor volt volume vote watt way weber week wheel window woman women word worker
    yard yd year yen yuan zebra""".split()
)
"""Singular; an ending s or es is taken off. Not in it: whatever counts in parts or bundles."""
BETWEEN = frozenset(
    """a all altogether an away each for her him his in left long my of old per remaining the their
    total""".split()
)
MODIFIED = re.compile(r"(?:square|cubic|sq|cu)")
SYMBOLS = frozenset("A C F g h J K L l m N s T V W".split())
"""Units of one letter that are read inside \\text{...}; other single letters may be variables."""
MEASURES = {
    alias: names.split()[0]
    for names in (
        "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre",
        "in inch inches", "ft foot feet", "yd yard", "mi mile", "mg milligram", "g gram gramme",
        "kg kilogram", "lb pound", "oz ounce", "ml milliliter millilitre", "l liter litre", "gal gallon",
        "s sec second", "min minute", "h hr hour", "day", "week", "month", "year", "cent", "dollar usd",
    )
    for alias in names.split()
}  # fmt: skip
"""Units that are compared where truth and answer both have one."""
CHANGED_BEFORE = frozenset(
    """about above almost and anything approx approximately around at barely below beside besides between
    beyond but by circa exceeding exceeds except excluding from half hardly least less minus more most
    nearly negative neither never no nor not nothing or other over per plus roughly than times to under
    unless unlike until versus vs without wrong""".split()
)
CHANGED_AFTER = frozenset(
    """am and base billion billions choose crore crores cubed divided dozen dozens eighth eighths factorial
    fifth fifths gross half halves hundred hundreds hundredth hundredths lakh lakhs log million millions
    minus mod modulo nine nines off or pairs percentage plus pm point power quarter quarters root score scores
    sixth sixths squared tens tenth tenths third thirds thousand thousands thousandth thousandths times to
    trillion trillions twelfths""".split()
)
"""Words for running text, where anything may stand around a number: next best to a list of what may."""
