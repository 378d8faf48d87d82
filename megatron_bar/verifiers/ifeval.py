"""IFEval's constraints (arXiv 2311.07911) by their published names and arguments, as lm-eval grades them.

They take the text as it was written, white space around included: IFEval counts it. They are followed to
the letter (a keyword is a pattern, ``2*3*4`` is highlighted, ``7`` and ``NaN`` are JSON, digits alone are in
every language); the kinds of constraints.py are what a reader would count. Sentences are Punkt's by a table
of our own, where lm-eval downloads one: they part at an abbreviation that only one of the tables has.
Languages are langdetect's with a seed; lm-eval's differ from run to run on short texts. Both packages come
with the extra "eval".
"""

import functools
import itertools
import json
import re
from collections.abc import Callable
from typing import Literal, get_args

Relation = Literal["less than", "at least"]
RELATIONS = get_args(Relation)
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
# Before most words these end no sentence. Not "e.g." and "etc.", which Punkt's own table does not have.
ABBREVIATIONS = (
    "mr mrs ms dr prof sr jr st ft ct lt col gen maj adm sen rep reps messrs mg chg cie corp co inc ltd "
    "bros ave va vs yr wash jan feb aug sept sep oct nov dec tues wed fri ala ariz calif colo conn fla "
    "ga ill kan ky mich minn nev okla ore pa tenn vt wis u.s u.k u.n n.y n.j n.c s.c d.c l.a u.s.a a.m "
    "p.m ph.d m.b.a b.v a.g s.a n.v c f h k l m n r s t v w e"
)
STARTERS = (
    "he since so both these it nevertheless this indeed however instead under similarly some though "
    "while when in despite although nonetheless thus there if the nor separately moreover but they yet "
    "many according among meanwhile even i"
)


def holds(count: int, relation: str, n: int) -> bool:
    return count < n if relation == "less than" else count >= n


def existence(text: str, *, keywords: list) -> bool:
    return all(re.search(keyword, text, re.IGNORECASE) for keyword in keywords)


def frequency(text: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    return holds(len(re.findall(keyword.strip(), text, re.IGNORECASE)), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: list) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    return holds(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    return language_of(text) in (language, None)


def number_sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    # No more than matter: to find all of many takes long.
    found = itertools.islice(punkt().span_tokenize(text), num_sentences)
    return holds(sum(1 for _ in found), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Holds for n parts with ``***`` between; it may also stand before the first and after the last."""
    parts = [part.strip() for part in text.split("***")]
    return all(parts[1:-1]) and sum(part != "" for part in parts) == num_paragraphs


def number_words(text: str, *, num_words: int, relation: Relation) -> bool:
    return holds(len(re.findall(r"\w+", text)), relation, num_words)


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in text.split("\n\n")]
    count = sum(part != "" for part in parts)
    if count != num_paragraphs or nth_paragraph > count or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"""[.,?!'"]""", word.lower())[0] == first_word.lower()


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    # What opens and is not closed takes the rest of its line, so that no line is read twice.
    return sum(map(bool, re.findall(r"\[[^\]\n]*(\]?)", text))) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    return re.search(POSTSCRIPTS.get(marker, marker.lower()), text.lower()) is not None


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^[^\S\n]*-", text, re.MULTILINE)) == num_bullets


def constrained_response(text: str) -> bool:
    return any(option in text for option in OPTIONS)


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """Counts ``*one*`` and, once more, ``**two**``."""
    found = re.findall(r"\*([^\n*]*)\*", text) + re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(part.strip() != "" for part in found) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{section_spliter.strip()}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    spans = [line[line.find("<<") : line.rfind(">>") + 2] for line in text.split("\n") if "<<" in line]
    return any(len(span) > 4 and span.lstrip("<").rstrip(">").strip() for span in spans)


def two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    said = [part for part in parts if part]
    return all(parts[1:-1]) and len(said) == 2 and said[0] != said[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    return holds(sum(word.isupper() for word in words(text)), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    return text.isupper() and language_of(text) in ("en", None)


def english_lowercase(text: str) -> bool:
    return text.islower() and language_of(text) in ("en", None)


def no_comma(text: str) -> bool:
    return "," not in text


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@functools.cache
def punkt():
    """Returns the sentence tokenizer."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS.split())
    parameters.sent_starters = set(STARTERS.split())
    return PunktSentenceTokenizer(parameters)


def words(text: str) -> list[str]:
    """Returns the words and signs of a text, by the tokenizer of NLTK."""
    from nltk.tokenize import NLTKWordTokenizer

    split = NLTKWordTokenizer().tokenize
    return [word for sentence in punkt().tokenize(text) for word in split(sentence)]


@functools.cache
def _languages():
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory


def language_of(text: str) -> str | None:
    """Returns the code of a text's language ("en"), None where nothing in it tells one."""
    from langdetect import LangDetectException

    detector = _languages().create()
    detector.append(text)
    try:
        return detector.detect()
    except LangDetectException:
        return None


IFEVAL: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
    "startend:quotation": quotation,
}
PACKAGES = {
    "language:response_language": "langdetect",
    "change_case:english_capital": "langdetect",
    "change_case:english_lowercase": "langdetect",
    "length_constraints:number_sentences": "nltk",
    "change_case:capital_word_frequency": "nltk",
}
"""Packages that constraints need."""
