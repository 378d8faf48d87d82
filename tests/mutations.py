"""Mutations of JSON and of bytes for hypothesis: what a buggy tool, a bad disk or an enemy would make of a
good file."""

import copy
import json
import math

from hypothesis import strategies as st


class Pairs(list):
    """A JSON object as [key, value] lists, which may repeat a key."""


class Literal(str):
    """JSON text that goes into the file as it stands."""


LITERALS = (
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-0.0",
        "1E400",
        "00",
        "tru",
        "",
        "[",
        "}",
        "'a'",
        "/**/1",
        "9" * 5000,
    ),
    *(
        "[" * 5000 + "]" * 5000,
        "[" * 200_000,
        '{"a":' * 3000 + "1" + "}" * 3000,
        '"\\ud800"',
        '"\\u0000"',
        '"a\nb"',
        "\ufeff1",
    ),
)
NAMES = (
    *(
        "",
        ".",
        "..",
        "../../evil",
        "/etc/passwd",
        "..\\evil",
        "a/b",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "~",
        "CON",
        "x" * 300,
        "é\u2028😀",
    ),
    *(
        "../x.safetensors",
        "model.safetensors",
        "pytorch_model.bin",
        "__metadata__",
        "__class__",
        "model.norm.weight",
        "config.json",
    ),
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    2**31 - 1,
    2**31,
    2**32,
    2**63,
    2**64,
    10**30,
    10**400,
    -(2**63),
    0.5,
    1e-320,
    1e308,
    math.nan,
    math.inf,
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        *map(st.sampled_from, (NAMES, NUMBERS, [Literal(text) for text in LITERALS])),
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(st.tuples(st.text(max_size=4), inner), max_size=3).map(
            lambda pairs: Pairs(map(list, pairs))
        )
    ),
    max_leaves=5,
)


def read(text: bytes) -> Pairs:
    return json.loads(text, object_pairs_hook=lambda pairs: Pairs(map(list, pairs)))


def text(tree) -> str:
    if isinstance(tree, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{text(value)}" for key, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(text, tree)) + "]"
    return tree if isinstance(tree, Literal) else json.dumps(tree)


def _places(tree) -> list[tuple[list, int]]:
    """Every value of the tree, as the list that holds it and where."""
    found = []
    for n, item in enumerate(tree):
        holder, at = (item, 1) if isinstance(tree, Pairs) else (tree, n)
        found.append((holder, at))
        if isinstance(holder[at], list):
            found += _places(holder[at])
    return found


def _near(value) -> list:
    """What is almost the value."""
    if isinstance(value, bool):
        return [not value, int(value), str(value)]
    if isinstance(value, int | float):
        return [
            value + 1,
            value - 1,
            -value,
            2 * value,
            f"{value}.0" if abs(value) > 1e300 else float(value),
            str(value),
            [value],
            bool(value),
        ]
    if isinstance(value, str):
        return [value.upper(), value + "\0", f"../{value}", f"{value} ", value[:-1], [value], value * 2]
    return [None]


@st.composite
def mutated_tree(draw, tree: Pairs) -> Pairs:
    """One to three changes."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(tree)
        objects = [tree, *(holder[at] for holder, at in places if isinstance(holder[at], Pairs))]
        lists = [tree, *(holder[at] for holder, at in places if isinstance(holder[at], list) and holder[at])]
        what = draw(st.sampled_from(("value", "near", "swap", "remove", "twice", "rename", "add")))
        if what in ("value", "near", "swap") and places:
            holder, at = draw(st.sampled_from(places))
            other, where = draw(st.sampled_from(places))
            known = {"near": _near(holder[at]), "swap": [copy.deepcopy(other[where])]}
            holder[at] = draw(st.sampled_from(known[what]) if what in known else VALUES)
        elif what in ("remove", "twice"):
            holder = draw(st.sampled_from(lists))
            if holder:
                at = draw(st.integers(0, len(holder) - 1))
                holder[at : at + 1] = [] if what == "remove" else [holder[at], copy.deepcopy(holder[at])]
        else:
            holder = draw(st.sampled_from(objects))
            name = draw(st.sampled_from(NAMES) | st.text(max_size=8))
            if what == "rename" and holder:
                draw(st.sampled_from(holder))[0] = name
            else:
                holder.append([name, draw(VALUES)])
    return tree


@st.composite
def mutated_bytes(draw, data: bytes) -> bytes:
    """One to three flips, cuts, insertions or holes."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(("flip", "cut", "insert", "hole")))
        if what == "flip" and data:
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
        elif what == "cut":
            data = data[:at]
        elif what == "insert":
            data = data[:at] + draw(st.binary(min_size=1, max_size=9)) + data[at:]
        else:
            data = data[:at] + data[at + draw(st.integers(1, 40)) :]
    return data
