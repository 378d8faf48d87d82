"""Values of Java and JavaScript from their spelling, as BFCL reads them: by patterns, element by element.

What does not fit its type stays the text it is, which then equals no value of that type. Quirks of BFCL that
are kept, so that scores compare: texts in Java's arrays keep their quotes, nested objects are cut off.
"""

import re

NUMBERS = {
    "java": {
        "byte": (int, r"-?\d+", ""),
        "short": (int, r"-?\d+", ""),
        "integer": (int, r"-?\d+", ""),
        "long": (int, r"-?\d+[lL]", "lL"),
        "float": (float, r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?[fF]", "fF"),
        "double": (float, r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", ""),
    },
    "javascript": {
        "integer": (int, r"-?\d+", ""),
        "float": (float, r"-?\d+(?:\.\d+)?", ""),
        "Bigint": (int, r"-?\d+n", "n"),
    },
}
"""Type to its Python type, its pattern, and the letters that end it."""
LONGEST = 4000
"""Characters that are read: Python reads no longer integer, and patterns take time with their square."""
AS_LIST = re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)")
ADDED = re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{(.+?)\}\}", re.DOTALL)
EMPTY_LIST = re.compile(r"new\s+ArrayList<\w*>\(\)")
ARRAY = re.compile(r"new\s+\w+\[\]\s*\{(.*?)\}")
MAP = re.compile(r"new\s+HashMap<.*?>\s*\(\)\s*\{([^}]*+)\}", re.DOTALL)
PUT = re.compile(r"put\(\"(?>(.*?)\",)\s*+(.*?)\)")
EMPTY_MAP = re.compile(r"new\s+HashMap<.*?>\s*\(\)")
ROW = r"\s*\[[^\]\n]*+\]\s*"
ROWS = re.compile(rf"\[{ROW}(?:,{ROW})*+\]|\bnew\s+Array\({ROW}(?:,{ROW})*+\)")
ELEMENTS = re.compile(r"\[(.*?)\]|\bnew\s+Array\((.*?)\)")
OBJECT = re.compile(r"\{(.*?)\}")
PAIR = re.compile(r"([^:]+):\s*+(.*?)(?:,\s*+(?=[^,]+:)|$)")


def read(text: str, language: str, kind: str, inner: str | None = None) -> object:
    """Returns the value that ``text`` spells; ``inner`` is the declared type of a list's elements."""
    if kind in NUMBERS[language]:
        convert, pattern, ends = NUMBERS[language][kind]
        return convert(text.rstrip(ends)) if re.fullmatch(pattern, text) and len(text) < LONGEST else text
    if kind.lower() == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if language == "javascript":
        if kind == "String":
            return _unquoted(text)
        readers = {"array": _array, "dict": _object}
    else:
        readers = {"ArrayList": _array_list, "Array": _java_array, "HashMap": _hash_map}
    return readers[kind](text, inner) if kind in readers and len(text) <= LONGEST else text


def _unquoted(text: str) -> str:
    return text[1:-1] if text[:1] in ("'", '"') and text[-1:] == text[:1] else text


def _plain(text: str, language: str) -> object:
    """Returns a value whose type nobody declared."""
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"') or (language == "javascript" and text.startswith("'")):
        return _unquoted(text)
    if language == "java":
        for kind in ("long", "float"):
            value = read(text, language, kind)
            if value is not text:
                return value
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _java_element(text: str, inner: str | None) -> object:
    return read(text, "java", inner) if inner else _plain(text, "java")


def _array_list(text: str, inner: str | None) -> object:
    listed, added = AS_LIST.search(text), ADDED.search(text)
    if listed:
        elements = listed[1].split(",")
    elif added:
        elements = re.findall(r"add\((.+?)\)", added[1])
    else:
        return [] if EMPTY_LIST.search(text) else text
    if inner in ("char", "String"):
        return [element.strip()[1:-1] for element in elements]  # without its quotes
    return [_java_element(element.strip(), inner) for element in elements]


def _java_array(text: str, inner: str | None) -> object:
    found = ARRAY.search(text)
    if not found:
        return text
    return [_java_element(part.strip(), inner) for part in found[1].split(",") if part.strip()]


def _hash_map(text: str, inner: str | None) -> object:
    found = MAP.search(text)
    if found:
        return {key: _plain(value.strip(), "java") for key, value in PUT.findall(found[1])}
    return {} if EMPTY_MAP.search(text) else text


def _array(text: str, inner: str | None) -> object:
    rows = ROWS.match(text)
    if rows:
        return [
            [_plain(part.strip(), "javascript") for part in row.strip().removeprefix("[").split(",")]
            for row in re.findall(r"\[(.*?)\]", rows[0])
        ]
    found = ELEMENTS.match(text)
    if not found:
        return text
    inside = (found[1] if found[1] is not None else found[2]).strip()
    parts = [part.strip() for part in inside.split(",")] if inside else []
    return [read(part, "javascript", inner) if inner else _plain(part, "javascript") for part in parts]


def _object(text: str, inner: str | None) -> object:
    found = OBJECT.match(text)
    if text == "{}" or not found:
        return {} if found else text
    values = {}
    for key, value in PAIR.findall(found[1]):
        value = value.strip()
        if value.startswith("[") and value.endswith("]"):
            read_value = _array(value, None)
        elif value.startswith("{") and value.endswith("}"):
            read_value = _object(value, None)
        else:
            read_value = _plain(value.strip("'\""), "javascript")
        values[key.strip().strip("'\"")] = read_value
    return values
